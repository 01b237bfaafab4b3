"""Partial convolution beyond the matrix: the released code's numbers, and what a mask means."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import omniconv as oc


def waves(shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float64).mul(0.37).sin().view(shape)


def holes(shape: tuple[int, ...]) -> torch.Tensor:
    return (waves(shape).roll(3, -1) > 0.8).double()


def filled(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(waves(p.shape))
    return layer


# Printed by the released code (NVIDIA/partialconv, partialconv2d.py and partialconv3d.py) run in
# float64 on the same inputs: sum(y), sum(y s), max|y|, sum(dx x), sum|dw| with s = cos(0.1 i),
# where i counts the outputs, and the sum of the new mask. It adds 1e-8 to the sum of the mask.
RELEASED = [
    (
        2,
        {"kernel_size": 3, "padding": 1},
        1,
        (589.694487464, -349.318809594, 9.672705559, -350.403021905, 2529.100199353, 81),
    ),
    (
        2,
        {"kernel_size": (3, 2), "stride": 2, "padding": 2, "dilation": 2, "bias": False},
        1,
        (27.328187926, -4.349391537, 14.040377928, -4.349391537, 512.235429687, 28),
    ),
    (
        2,
        {"kernel_size": 3, "stride": 2, "padding": 1},
        4,
        (85.895171132, 19.641670963, 19.202392599, 18.35109736, 688.682185535, 192),
    ),
    (
        3,
        {"kernel_size": 3, "padding": 1},
        1,
        (2438.434900223, 440.306443757, 28.919877686, 429.227272859, 10172.230365152, 655),
    ),
    (
        3,
        {"kernel_size": (3, 2, 3), "stride": (2, 1, 2), "padding": 1},
        4,
        (1044.417621948, 213.22501938, 27.327867965, 195.749450741, 5300.376858878, 1152),
    ),
    (
        2,
        {"kernel_size": 5, "padding": 2},
        None,
        (481.310365827, -0.099814382, 17.163948131, -1.52048916, 2761.065967075, 112),
    ),
]


@pytest.mark.parametrize(("dim", "arguments", "channels", "released"), RELEASED)
def test_numbers_of_the_released_code(dim, arguments, channels, released):
    layer = filled(
        oc.create("partial", 4, 6, dim=dim, padding_is_hole=True, dtype=torch.float64, **arguments)
    )
    size = (8, 7, 6)[:dim]
    x = waves((2, 4, *size)).requires_grad_()
    y, new = layer(x, None if channels is None else holes((2, channels, *size)))
    seed = torch.arange(y.numel(), dtype=torch.float64).mul(0.1).cos().view_as(y)
    (y * seed).sum().backward()
    got = (y.sum(), (y * seed).sum(), y.abs().max(), (x.grad * x).sum())
    got += (layer.weight.grad.abs().sum(), new.sum())
    assert [float(v.detach()) for v in got] == pytest.approx(released, rel=1e-8, abs=2e-5)


def test_the_released_state_dict_loads():
    layer = oc.nn.PartialConv2d(4, 6, 3)
    layer.load_state_dict(nn.Conv2d(4, 6, 3).state_dict(), strict=True)


@pytest.mark.parametrize("hidden", [float("nan"), float("inf"), 1e30])
def test_what_lies_under_a_hole_has_no_influence(hidden):
    layer = filled(oc.nn.PartialConv2d(4, 6, 3, padding=1, dtype=torch.float64))
    mask = holes((2, 4, 6, 5))
    x = waves((2, 4, 6, 5))
    right, new = layer(x, mask)
    spoilt = torch.where(mask == 0, hidden, x).requires_grad_()
    y, same = layer(spoilt, mask)
    torch.testing.assert_close(y, right, rtol=0, atol=0)
    assert torch.equal(new, same)
    y.sum().backward()
    assert spoilt.grad.isfinite().all()
    assert not spoilt.grad[mask == 0].any()
    assert layer.weight.grad.isfinite().all()


def test_one_valid_pixel_stands_for_the_whole_window():
    layer = oc.nn.PartialConv2d(1, 1, 3, dtype=torch.float64)
    mask = torch.zeros(1, 1, 3, 3)
    mask[0, 0, 0, 2] = 1
    x = waves((1, 1, 3, 3))
    y, new = layer(x, mask)
    torch.testing.assert_close(
        y, 9 * layer.weight[..., 0, 2] * x[..., 0, 2] + layer.bias.view(1, 1, 1, 1)
    )
    assert new.tolist() == [[[[1.0]]]]


def test_an_empty_mask_gives_zeros_whatever_the_bias():
    layer = filled(oc.nn.PartialConv2d(4, 6, 3, padding=1))
    y, new = layer(torch.randn(2, 4, 5, 5), torch.zeros(2, 1, 5, 5))
    assert not y.any()
    assert not new.any()


def test_a_window_wholly_in_the_padding_is_the_plain_convolutions():
    arguments = {"kernel_size": 1, "padding": 2, "dtype": torch.float64}
    conv = nn.Conv2d(2, 3, **arguments)
    layer = oc.nn.PartialConv2d.from_conv(conv)
    x = waves((1, 2, 3, 3))
    y, new = layer(x)
    torch.testing.assert_close(y, conv(x))
    assert new.all()
    strict = oc.nn.PartialConv2d.from_conv(conv, padding_is_hole=True)
    y, new = strict(x)
    assert new.sum() == 9
    assert not y[..., :2, :].any()


def test_a_group_counts_its_own_channels():
    layer = filled(oc.nn.PartialConv2d(4, 6, 3, padding=1, groups=2, dtype=torch.float64))
    x = waves((2, 4, 5, 6))
    mask = torch.ones(2, 4, 5, 6)
    mask[:, :2] = 0
    mask[:, 2] = 0
    y, new = layer(x, mask)
    assert not y[:, :3].any()
    assert new.sum((0, 2, 3)).tolist() == [0, 0, 0, 60, 60, 60]
    bias = layer.bias[3:].view(1, 3, 1, 1)
    half = nn.functional.conv2d(x[:, 3:], layer.weight[3:, 1:], padding=1)
    torch.testing.assert_close(y[:, 3:], 2 * half + bias)


def test_certainties_weigh_pixels_and_their_scale_cancels():
    layer = filled(oc.nn.PartialConv2d(4, 6, 3, padding=1, dtype=torch.float64))
    x, mask = waves((2, 4, 5, 6)), holes((2, 1, 5, 6)) * waves((2, 1, 5, 6)).abs()
    y, new = layer(x, mask)
    faint, same = layer(x, mask * 1e-30)
    torch.testing.assert_close(faint, y)
    assert torch.equal(new, same)
    assert set(new.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_image_and_mask_are_padded_alike(mode):
    layer = filled(oc.nn.PartialConv2d(4, 6, 3, padding=2, padding_mode=mode, dtype=torch.float64))
    inside = oc.nn.PartialConv2d(4, 6, 3, dtype=torch.float64)
    inside.load_state_dict(layer.state_dict())
    x, mask = waves((2, 4, 5, 6)), holes((2, 1, 5, 6))
    pads = (2, 2, 2, 2)
    right = inside(nn.functional.pad(x, pads, mode=mode), nn.functional.pad(mask, pads, mode=mode))
    for got, wanted in zip(layer(x, mask), right, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float16, torch.bfloat16, torch.float64])
def test_the_new_mask_has_the_masks_type_and_is_its_own(dtype):
    layer = oc.nn.PartialConv2d(4, 6, 3, padding=1, dtype=torch.bfloat16)
    x = torch.randn(2, 4, 5, 6, dtype=torch.bfloat16)
    for channels, outputs in ((1, 1), (4, 6)):
        y, new = layer(x, holes((1, channels, 5, 6)).to(dtype))
        assert y.dtype == torch.bfloat16
        assert (new.dtype, new.shape) == (dtype, (2, outputs, 5, 6))
        before = new.clone()
        new[0, 0] = 1 - new[0, 0].to(torch.int)
        assert torch.equal(new[1], before[1])
        assert torch.equal(new[:, 1:], before[:, 1:])


@pytest.mark.parametrize("channels", [1, 4])
def test_layers_chain_until_the_holes_are_closed(channels):
    x, mask = torch.randn(1, 4, 9, 9), torch.zeros(1, channels, 9, 9, dtype=torch.bool)
    mask[..., 4, 4] = True
    for steps in range(1, 5):
        x, mask = oc.nn.PartialConv2d(4, 4, 3, padding=1)(x, mask)
        assert mask.shape == (1, channels, 9, 9)
        assert int(mask[0, 0].sum()) == (2 * steps + 1) ** 2
    assert x.isfinite().all()
    assert mask.all()


def test_no_gradient_flows_to_the_mask():
    layer = oc.nn.PartialConv2d(4, 6, 3)
    mask = torch.rand(2, 1, 5, 5, requires_grad=True)
    y, new = layer(torch.randn(2, 4, 5, 5), mask)
    assert not new.requires_grad
    y.sum().backward()
    assert mask.grad is None


def test_sums_over_many_channels_survive_float16():
    """The ratio, 110,592 here, is beyond float16, and so is any epsilon that a sum could need."""
    layer = oc.nn.PartialConv1d(4096, 2, 27, padding=13, dtype=torch.float16)
    with torch.no_grad():
        layer.weight.fill_(2.0**-14)
    mask = torch.zeros(1, 4096, 40)
    mask[0, 7, 20] = 1
    y, new = layer(torch.ones(1, 4096, 40, dtype=torch.float16), mask)
    right = 2.0**-14 * 27 * 4096 + layer.bias.double()
    torch.testing.assert_close(y[0, :, 20].double(), right, rtol=2e-3, atol=0)
    assert y.isfinite().all()
    assert new[0, 0].sum() == 27


@pytest.mark.parametrize("extent", [None, 5, (3, 7)])
def test_from_conv_is_exact_under_a_full_mask(extent):
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2).double()
    layer = oc.nn.PartialConv2d.from_conv(conv, extent)
    x = waves((2, 4, 9, 8))
    torch.testing.assert_close(layer(x)[0], conv(x))
    torch.testing.assert_close(layer(x, torch.ones(2, 4, 9, 8))[0], conv(x))


def test_the_functional_is_the_layer():
    layer = oc.nn.PartialConv2d(4, 6, (3, 2), 2, "valid", 2, 2, padding_is_hole=True)
    x, mask = torch.randn(2, 4, 9, 8), holes((2, 1, 9, 8))
    got = oc.functional.partial_conv(
        x, mask, layer.weight, layer.bias, 2, "valid", 2, 2, padding_is_hole=True
    )
    for ours, right in zip(got, layer(x, mask), strict=True):
        assert torch.equal(ours, right)


X = torch.randn(2, 4, 5, 6)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (1, TypeError, "mask must be a bool or floating-point tensor or None, got int"),
        (X.to(torch.uint8)[:, :1], TypeError, "got dtype torch.uint8"),
        (X[:, :1].to("meta"), ValueError, "mask must be on the input's device cpu, got meta"),
        (X[0, :1], ValueError, r"shape \(1 or 2, 1 or 4, 5, 6\) .* got \(1, 5, 6\)"),
        (X[:, :2], ValueError, r"got \(2, 2, 5, 6\)"),
        (X[:, :1, :4], ValueError, r"got \(2, 1, 4, 6\)"),
        (X.expand(3, 2, 4, 5, 6)[:, 0], ValueError, r"got \(3, 4, 5, 6\)"),
    ],
)
def test_a_wrong_mask_is_refused_in_one_sentence(mask, error, message):
    with pytest.raises(error, match=message):
        oc.nn.PartialConv2d(4, 6, 3)(X, mask)


W = torch.randn(6, 2, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weight": W[0, 0]}, ValueError, "weight must have 3, 4 or 5 axes"),
        ({"weight": W.int()}, TypeError, "weight must be a floating-point tensor"),
        ({"weight": W.double()}, TypeError, "x must have the layer's dtype"),
        ({"x": X[:, :3]}, ValueError, "x must have in_channels=4 channels, got 3"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias must have shape \(6,\), got \(5,\)"),
        ({"groups": 0}, ValueError, "groups must be an int of at least 1"),
        ({"stride": (1, 1, 1)}, ValueError, "stride must be an int or 2 ints"),
        ({"padding_mode": "zero"}, ValueError, "did you mean 'zeros'"),
        ({"padding_is_hole": None}, TypeError, "padding_is_hole must be True or False"),
    ],
)
def test_wrong_arguments_of_the_functional_are_refused(arguments, error, message):
    right = {"x": X, "mask": None, "weight": W, "groups": 2}
    with pytest.raises(error, match=message):
        oc.functional.partial_conv(**(right | arguments))
