"""SPD-Conv beyond the matrix: the strided convolution that it is, and whole networks without."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omniconv as oc
from omniconv.models import resnet


def waves(shape: torch.Size | tuple[int, ...], step: float = 0.37) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(1, count + 1, dtype=torch.float64).mul(step).sin().view(shape)


def layer_of(dim: int = 2, **arguments) -> torch.nn.Module:
    base = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1}
    return oc.create("spd", **{"dim": dim, "dtype": torch.float64} | base | arguments)


def test_numbers_of_the_released_code():
    """Printed by the released code (LabSAINT/SPD-Conv, YOLOv5-SPD/models/common.py:
    space_to_depth, then nn.Conv2d(12, 5, 3, padding=1)) run in float64 on the same inputs:
    sum(y), sum(y s), max|y|, sum(dx x), sum|dw| with s = cos(0.1 i), where i counts the outputs.
    """
    released = (110.669258408, 1.33308499142, 19.2316668788, 20.1476035587, 274.460264264)
    layer = layer_of(in_channels=3, out_channels=5)
    official = {"weight": waves((5, 12, 3, 3)), "bias": waves((5,), 0.53)}
    layer.load_state_dict(layer.from_official(official))
    x = waves((2, 3, 8, 6), 0.71).requires_grad_()
    y = layer(x)
    seed = torch.arange(y.numel(), dtype=torch.float64).mul(0.1).cos().view_as(y)
    (y * seed).sum().backward()
    grads = layer.weight.grad.abs().sum()
    got = (y.sum(), (y * seed).sum(), y.abs().max(), (x.grad * x).sum(), grads)
    assert [float(v.detach()) for v in got] == pytest.approx(released, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"scale": 3, "padding": 0},
        {"scale": (2, 3, 1), "kernel_size": (2, 3, 2), "groups": 2},
        {"stride": 2, "dilation": 2, "padding": 2},
        {"padding_mode": "reflect"},
        {"padding_mode": "circular", "scale": 3},
    ],
)
def test_it_is_a_strided_convolution_with_a_larger_kernel(dim, arguments):
    cut = {k: v[:dim] if isinstance(v, tuple) else v for k, v in arguments.items()}
    layer = layer_of(dim, **cut)
    kernel = layer.strided_kernel()
    reach = zip(layer.scale, layer.dilation, layer.kernel_size, strict=True)
    assert kernel.shape[2:] == tuple(s * (d * (k - 1) + 1) for s, d, k in reach)
    x = waves((2, 4, *(12, 18, 12)[:dim]))
    padding = [s * p for s, p in zip(layer.scale, layer.padding, strict=True)]
    flat = [p for p in reversed(padding) for _ in range(2)]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    stride = [s * t for s, t in zip(layer.scale, layer.stride, strict=True)]
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dim - 1]
    right = convolve(F.pad(x, flat, mode=mode), kernel, layer.bias, stride, groups=layer.groups)
    torch.testing.assert_close(layer(x), right)


def test_every_pixel_counts():
    """A strided convolution whose kernel is smaller than its stride leaves pixels out."""
    x = waves((1, 2, 7, 7)).requires_grad_()
    strided = nn.Conv2d(2, 8, 1, stride=2, dtype=torch.float64)
    seen = torch.autograd.grad(strided(x).square().sum(), x)[0] != 0
    assert float(seen.double().mean()) < 0.4
    layer = oc.SPDConv2d.from_conv(strided)
    with torch.no_grad():
        layer.weight.add_(waves(layer.weight.shape))
    assert torch.autograd.grad(layer(x).square().sum(), x)[0].ne(0).all()


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 1, "stride": 3},
        {"kernel_size": 1, "stride": 2, "padding": "valid"},
        {"kernel_size": 7, "stride": 2, "padding": 3, "padding_mode": "replicate"},
        {"kernel_size": 3, "stride": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "stride": 2, "padding": 4, "dilation": 4, "groups": 2},
        {"kernel_size": 5, "stride": 4, "padding": 2},
        {"kernel_size": 4, "padding": 1},
    ],
)
def test_strided_convolutions_are_taken_over_exactly_at_every_size(dim, arguments):
    plain = oc.testing.Subject(oc.card("spd"), dim=dim).plain
    conv = plain(4, 6, **arguments, dtype=torch.float64)
    layers = (oc.SPDConv1d, oc.SPDConv2d, oc.SPDConv3d)
    layer = layers[dim - 1].from_conv(conv)
    assert layer.scale == conv.stride
    for size in range(6, 11):
        x = waves((1, 4, *[size] * dim))
        torch.testing.assert_close(layer(x), conv(x))


@pytest.mark.parametrize("scale", [2, 4])
def test_a_part_of_the_stride_may_become_cells(scale):
    conv = nn.Conv2d(4, 6, 3, stride=4, padding=1, dtype=torch.float64)
    layer = oc.SPDConv2d.from_conv(conv, scale=scale)
    assert layer.stride == (4 // scale,) * 2
    for size in (8, 9, 10, 11):
        torch.testing.assert_close(
            layer(waves((1, 4, size, size))), conv(waves((1, 4, size, size)))
        )


def test_a_larger_extent_keeps_the_output():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, dtype=torch.float64)
    layer = oc.SPDConv2d.from_conv(conv, extent=5)
    assert (layer.kernel_size, layer.padding) == ((5, 5), (2, 2))
    torch.testing.assert_close(layer(waves((1, 4, 9, 8))), conv(waves((1, 4, 9, 8))))


@pytest.mark.parametrize(
    ("arguments", "own", "match"),
    [
        ({"stride": 2}, {}, "padding must be half of dilation .* = 2 on the strided axis 0.*got 0"),
        ({"stride": 2, "padding": 3, "dilation": 3}, {}, "dilation must be at most the scale 2"),
        ({"stride": 3, "padding": 1}, {"scale": 2}, "scale must divide the stride 3"),
        ({"kernel_size": 2, "stride": 2, "padding": 1, "dilation": 2}, {}, "kernel have a centre"),
    ],
)
def test_convolutions_whose_grid_or_taps_would_be_lost_are_refused(arguments, own, match):
    conv = nn.Conv2d(4, 4, **{"kernel_size": 3} | arguments)
    with pytest.raises(ValueError, match=match):
        oc.SPDConv2d.from_conv(conv, **own)
    with pytest.raises(TypeError, match=r"conv must be an nn\.Conv2d, got Linear"):
        oc.SPDConv2d.from_conv(nn.Linear(2, 2))


@pytest.mark.parametrize("from_weights", [True, False])
def test_swap_makes_a_resnet_without_strides(from_weights):
    """The row's model transform: every strided convolution goes, all else stays."""
    torch.manual_seed(0)
    model = resnet(20).eval()
    strided = [n for n, m in model.named_modules() if getattr(m, "stride", None) == (2, 2)]
    images = [torch.randn(2, 3, n, n) for n in (32, 31, 29)]
    with torch.no_grad():
        before = [model(x) for x in images]
        report = oc.swap_(model, "spd", from_weights=from_weights)
        after = [model(x) for x in images]
    assert [row.path for row in report.swapped] == strided
    assert len(strided) == 2
    assert {row.weights for row in report.swapped} == {"kept" if from_weights else "new"}
    skipped = [row.reason for row in report.layers if row.status == "skipped"]
    assert set(skipped) == {"stride must be above 1: SPD-Conv replaces strided convolutions"}
    assert not [m for m in model.modules() if getattr(m, "stride", None) == (2, 2)]
    if from_weights:
        for found, right in zip(after, before, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
    again = oc.swap_(model, "spd")
    assert not again.swapped


def test_swap_says_which_strided_layers_it_leaves():
    stem = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 3, 2, 2, dilation=2))
    report = oc.swap_(stem, "spd")
    assert not report.swapped
    assert "padding must be half" in report.layers[0].reason
    assert "dilation must be 1 on strided axes" in report.layers[1].reason


def test_a_part_of_the_stride_cannot_be_swapped_without_weights():
    model = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4, padding=2))
    report = oc.swap_(model, "spd", scale=2, from_weights=False)
    assert "the output would change from shape" in report.layers[0].reason


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_space_to_depth_by_its_definition(dim):
    scale = (2, 3, 2)[:dim]
    x = waves((2, 3, *(4, 6, 4)[:dim]))
    deep = oc.functional.space_to_depth(x, scale)
    for number, offset in enumerate(itertools.product(*map(range, scale))):
        lattice = (..., *(slice(i, None, s) for i, s in zip(offset, scale, strict=True)))
        assert torch.equal(deep[:, number :: len(deep[0]) // 3], x[lattice])


def test_space_to_depth_is_torchs_pixel_unshuffle():
    x = waves((2, 3, 6, 9))
    assert torch.equal(oc.functional.space_to_depth(x, 3), F.pixel_unshuffle(x, 3))


def test_sizes_too_small_in_cells_are_refused():
    with pytest.raises(ValueError, match=r"too small for kernel_size=.* over cells of scale=\(2, "):
        layer_of(padding=0)(waves((1, 4, 4, 8)))
    with pytest.raises(ValueError, match=r"too small for padding_mode='reflect'.*padding 3"):
        layer_of(padding_mode="reflect")(waves((1, 4, 3, 8)))


def test_official_parameters_must_fit():
    layer = layer_of(bias=False)
    good = {"weight": torch.ones(6, 16, 3, 3)}
    assert set(layer.from_official(good)) == {"weight"}
    with pytest.raises(ValueError, match="must hold exactly weight, got"):
        layer.from_official(good | {"bias": torch.ones(6)})
    with pytest.raises(ValueError, match=r"weight must have shape \(6, 16, 3, 3\)"):
        layer.from_official({"weight": torch.ones(6, 4, 3, 3)})
    with pytest.raises(ValueError, match="scale=2 and groups=1"):
        layer_of(scale=3).from_official(good)


@pytest.mark.parametrize(
    ("x", "scale", "match"),
    [
        (None, 2, "x must be a floating-point tensor"),
        (torch.ones(2, 4), 2, "x must have 3 to 5 axes"),
        (torch.ones(1, 1, 4, 5), 2, r"x must have spatial sizes that scale=\(2, 2\) divides"),
        (torch.ones(1, 1, 4, 4), 0, "scale must be an int of at least 1"),
    ],
)
def test_bad_arguments_of_the_functional(x, scale, match):
    with pytest.raises((TypeError, ValueError), match=match):
        oc.functional.space_to_depth(x, scale)
