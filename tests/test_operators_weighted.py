"""Weighted convolution beyond the matrix: the released code's numbers, and what density means."""

from __future__ import annotations

import pytest
import torch

import omniconv as oc


def waves(shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float64).mul(0.37).sin().view(shape)


# Printed by the released code (cammarasana123/weightedConvolution2.0, wConv.py) run in float64 on
# the same inputs: sum(y), sum(y s), max|y|, sum(dx x), sum|dw| with s = cos(0.1 i), where i counts
# the outputs. Fixed density (0.25, 0.75), extent 5, stride 2, padding 2, two groups, 4 -> 6.
RELEASED = {
    1: (39.739748908, -3.095175836, 4.463691895, -0.971481934, 25.899565542),
    2: (276.31550364, -24.393509462, 5.220184349, -6.437840261, 741.74658858),
    3: (615.136502565, -47.093991905, 6.992546969, -48.056047612, 1170.145551028),
}
# The trainable class of the same repository (wConv_Trainable.py): 7 wide, density (0.27, 0.17,
# 0.54), stride 2, padding 3: gradient of the one profile it shares over the axes.
RELEASED_DENSITY_GRADIENT = {
    1: (1.8273799214, 0.1065187029, -3.9247925556),
    2: (-15.5572913153, 107.7458569075, 225.6978614815),
    3: (26.2390759758, -10.8190076194, -104.6430959125),
}


def run(dim: int, **arguments) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    layer = oc.create(
        "weighted", 4, 6, stride=2, groups=2, dim=dim, dtype=torch.float64, **arguments
    )
    with torch.no_grad():
        layer.raw.copy_(waves(layer.raw.shape))
        layer.bias.copy_(waves(layer.bias.shape))
    x = waves((2, 4, *(9, 8, 7)[:dim])).requires_grad_()
    y = layer(x)
    seed = torch.arange(y.numel(), dtype=torch.float64).mul(0.1).cos().view_as(y)
    (y * seed).sum().backward()
    return layer, x, y.detach(), seed


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_numbers_of_the_released_code(dim):
    layer, x, y, seed = run(dim, kernel_size=5, padding=2, density=[0.25, 0.75])
    got = (y.sum(), (y * seed).sum(), y.abs().max(), (x.grad * x).sum(), layer.raw.grad.abs().sum())
    assert [float(v.detach()) for v in got] == pytest.approx(RELEASED[dim], abs=1e-8)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_density_gradient_of_the_released_code(dim):
    layer, *_ = run(
        dim, kernel_size=7, padding=3, density=[0.27, 0.17, 0.54], trainable_density=True
    )
    per_axis = layer.density.grad.view(dim, 3).sum(0)
    assert per_axis.tolist() == pytest.approx(RELEASED_DENSITY_GRADIENT[dim], abs=1e-8)


def test_density_is_listed_from_the_outside_inwards():
    layer = oc.WeightedConv1d(1, 1, 5, density=[0.25, 0.75], bias=False)
    torch.nn.init.ones_(layer.raw)
    assert layer.weight.flatten().tolist() == [0.25, 0.75, 1.0, 0.75, 0.25]


def test_a_number_is_a_power_of_the_distance():
    layer = oc.WeightedConv1d(1, 1, 5, density=0.5, trainable_density=True)
    assert layer.density.tolist() == [0.25, 0.5]
    fixed = oc.WeightedConv1d(1, 1, 5, density=0.5)
    assert fixed.phi.tolist() == [0.25, 0.5, 1.0, 0.5, 0.25]


def test_both_forms_tell_their_profiles():
    density = [[0.5], [0.25, 0.75], []]
    for trainable in (False, True):
        layer = oc.WeightedConv3d(1, 1, (3, 6, 2), density=density, trainable_density=trainable)
        assert [p.tolist() for p in layer.profiles()] == density


def test_even_sizes_have_two_ones_in_the_middle():
    layer = oc.WeightedConv1d(1, 1, 4, density=0.5)
    torch.nn.init.ones_(layer.raw)
    assert layer.weight.flatten().tolist() == [0.5, 1.0, 1.0, 0.5]


def test_one_profile_per_axis():
    layer = oc.WeightedConv2d(1, 1, (3, 5), density=[[0.5], [0.25, 0.75]])
    torch.nn.init.ones_(layer.raw)
    column, row = torch.tensor([0.5, 1, 0.5]), torch.tensor([0.25, 0.75, 1, 0.75, 0.25])
    torch.testing.assert_close(layer.weight[0, 0], torch.outer(column, row))


def test_only_the_trainable_form_learns_its_density():
    fixed = oc.WeightedConv2d(2, 2, 3)
    assert [name for name, _ in fixed.named_parameters()] == ["bias", "raw"]
    learned = oc.WeightedConv2d(2, 2, 3, trainable_density=True)
    assert "density" in dict(learned.named_parameters())
    (no_decay,) = [g for g in oc.param_groups(learned, 0.1, 1e-2) if g["weight_decay"] == 0.0]
    assert no_decay["params"][0] is learned.density


def test_from_conv_loses_only_what_density_zero_hides():
    conv = torch.nn.Conv2d(2, 3, 3, padding=1)
    layer = oc.WeightedConv2d.from_conv(conv, density=[0.0])
    expected = torch.zeros_like(conv.weight)
    expected[..., 1, 1] = conv.weight.detach()[..., 1, 1]
    torch.testing.assert_close(layer.weight, expected)


def test_the_functional_checks_its_density():
    raw = torch.ones(1, 1, 5)
    with pytest.raises(ValueError, match=r"density must hold 1 profiles .*got 2"):
        oc.functional.weighted_kernel(raw, [torch.ones(2), torch.ones(2)])
    with pytest.raises(ValueError, match=r"density\[0\] must hold 2 values"):
        oc.functional.weighted_kernel(raw, [torch.ones(3)])
