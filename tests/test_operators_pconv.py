"""PConv beyond the matrix: the released code's numbers, what passes, what it costs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omniconv as oc


def waves(shape: torch.Size | tuple[int, ...], step: float = 0.37) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(1, count + 1, dtype=torch.float64).mul(step).sin().view(shape)


def layer_of(channels: int, dim: int = 2, **arguments) -> torch.nn.Module:
    both = {"in_channels": channels, "out_channels": channels, "kernel_size": 3, "padding": 1}
    return oc.create("pconv", **{"dim": dim, "dtype": torch.float64} | both | arguments)


def test_numbers_of_the_released_code():
    """Printed by the released code (JierunChen/FasterNet, models/fasternet.py: Partial_conv3,
    split_cat) run in float64 on the same inputs: sum(y), sum(y s), max|y|, sum(dx x), sum|dw|
    with s = cos(0.1 i), where i counts the outputs. 12 channels, n_div = 4.
    """
    released = (0.16206696282, 5.91738417148, 7.87122781, 5.91738417148, 16.8010607928)
    layer = layer_of(12, bias=False)
    layer.load_state_dict({"taps": waves((3, 3, 3, 3))})
    x = waves((2, 12, 7, 6), 0.53).requires_grad_()
    y = layer(x)
    seed = torch.arange(y.numel(), dtype=torch.float64).mul(0.1).cos().view_as(y)
    (y * seed).sum().backward()
    got = (
        y.sum(),
        (y * seed).sum(),
        y.abs().max(),
        (x.grad * x).sum(),
        layer.taps.grad.abs().sum(),
    )
    assert [float(v.detach()) for v in got] == pytest.approx(released, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_other_channels_pass_to_the_last_bit(dim):
    layer = layer_of(8, dim)
    x = waves((2, 8, *[5] * dim))
    assert layer.passing == (2, 3, 4, 5, 6, 7)
    assert torch.equal(layer(x)[:, 2:], x[:, 2:])
    assert not torch.equal(layer(x)[:, :2], x[:, :2])


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": 0},
        {"padding": 3, "stride": 2},
        {"padding": 2, "stride": 3, "dilation": 2, "padding_mode": "replicate"},
        {"padding": "same", "kernel_size": 4},
        {"groups": 2, "stride": 2},
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # of the folded layer
def test_it_is_torchs_convolution_with_the_block_kernel(dim, arguments):
    torch.manual_seed(0)
    layer = layer_of(8, dim, **arguments)
    with torch.no_grad():
        layer.bias.copy_(waves((8,)))
    x = waves((2, 8, *[7] * dim))
    torch.testing.assert_close(layer(x), layer.fold()(x))


def test_only_the_first_channels_are_computed():
    """With n_div = 4 a 1/16 of the plain convolution, as the paper counts."""
    whole = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    layer = oc.PConv2d(64, 64, 3, padding=1, bias=False)
    x = torch.randn(1, 64, 14, 14)
    found = oc.analysis.count_flops(layer, x).forward
    assert 16 * found == oc.analysis.count_flops(whole, x).forward
    assert 16 * layer.taps.numel() == whole.weight.numel()


def test_n_div_one_is_the_plain_convolution():
    layer = layer_of(6, n_div=1)
    x = waves((2, 6, 5, 5))
    assert layer.passing == ()
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.taps, layer.bias, padding=1))


def test_at_least_one_channel_is_convolved():
    assert layer_of(3, n_div=8).taps.shape == (1, 1, 3, 3)


def test_each_group_is_a_layer_of_its_own():
    layer = layer_of(16, groups=2)
    assert layer.passing == (*range(2, 8), *range(10, 16))
    x = waves((2, 16, 5, 5))
    alone = []
    for part, half in enumerate(x.chunk(2, 1)):
        own = layer_of(8)
        own.load_state_dict({k: v.chunk(2)[part] for k, v in layer.state_dict().items()})
        alone.append(own(half))
    torch.testing.assert_close(layer(x), torch.cat(alone, 1))


def test_fresh_biases_leave_passing_channels_alone():
    bias = layer_of(16, groups=2).bias.detach().view(2, 8)
    assert torch.equal(bias[:, 2:], torch.zeros(2, 6, dtype=torch.float64))
    assert bias[:, :2].abs().min() > 0


def test_swap_makes_fasternets_pair_of_a_dense_layer():
    """PConv and the 1-wide convolution that mixes; a depthwise layer becomes PConv alone."""
    conv = nn.Conv2d(8, 16, 3, stride=2, padding=1)
    model = nn.Sequential(conv, nn.Conv2d(16, 16, 5, padding=2, groups=16))
    kernel = model[1].weight.detach().clone()
    report = oc.swap_(model, "pconv")
    mixer, pointwise = model[0].mixer, model[0].pointwise
    assert isinstance(mixer, oc.PConv2d)
    assert (mixer.groups, mixer.bias) == (1, None)
    assert (pointwise.kernel_size, pointwise.out_channels) == ((1, 1), 16)
    assert isinstance(model[1], oc.PConv2d)
    assert [row.weights for row in report.swapped] == ["new", "nearest"]
    assert model[1].groups == 1
    taps = model[1].taps.detach()
    assert torch.equal(taps[range(4), range(4)], kernel[:4, 0])  # depthwise: the block's diagonal
    assert int(taps.ne(0).sum()) == 4 * 25
    assert model(torch.randn(1, 8, 9, 9)).shape == (1, 16, 5, 5)


def test_output_size_is_refused():
    with pytest.raises(TypeError, match="output_size must be left out"):
        layer_of(4)(waves((1, 4, 5, 5)), [5, 5])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"taps": [1.0]}, "taps must be a floating-point tensor"),
        ({"taps": torch.ones(2, 2)}, "taps must have shape"),
        ({"taps": torch.ones(2, 1, 3)}, "taps must have shape .* with groups=1"),
        ({"channels": 1}, "channels must be an int of at least 2, got 1"),
        ({"channels": 2.0}, "channels must be an int"),
        ({"groups": 0}, "groups must be an int of at least 1"),
    ],
)
def test_bad_arguments_of_the_functional(change, match):
    good = {"taps": torch.ones(2, 2, 3), "channels": 4, "groups": 1}
    kernel = oc.functional.pconv_kernel(**good)
    assert kernel.shape == (4, 4, 3)
    assert torch.equal(kernel[2:, 2:, 1], torch.eye(2))
    with pytest.raises((TypeError, ValueError), match=match):
        oc.functional.pconv_kernel(**(good | change))
