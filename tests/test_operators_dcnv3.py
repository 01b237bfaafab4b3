"""DCNv3 and DCNv4 beyond the matrix: the released code's numbers, and what they take over."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import omniconv as oc

NAMES = ("dcnv3", "dcnv4")


def waves(shape: torch.Size | tuple[int, ...], phase: float = 0.0) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float64).mul(0.37).add(phase).sin().view(shape)


def released_state(
    name: str, channels: int, extent: int, groups: int, dw: int | None, removed: bool, bias: bool
) -> dict[str, torch.Tensor]:
    """The released layer's parameters, filled in alphabetical order."""
    points = groups * (extent**2 - removed)
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(part: str, rows: int, bias: bool = True) -> None:
        shapes[f"{part}.weight"] = (rows, channels)
        shapes.update({f"{part}.bias": (rows,)} if bias else {})

    if name == "dcnv3":
        linear("input_proj", channels)
        linear("output_proj", channels)
        linear("offset", 2 * points)
        linear("mask", points)
        dw = dw or extent
        shapes |= {"dw_conv.1.1.weight": (channels,), "dw_conv.1.1.bias": (channels,)}
    else:
        linear("value_proj", channels)
        linear("output_proj", channels, bias)
        linear("offset_mask", math.ceil(3 * points / 8) * 8)
    if dw:
        part = "dw_conv.0" if name == "dcnv3" else "offset_mask_dw"
        shapes |= {f"{part}.weight": (channels, 1, dw, dw), f"{part}.bias": (channels,)}
    return {part: waves(shapes[part], i) for i, part in enumerate(sorted(shapes))}


# Printed by the released code (OpenGVLab/InternImage, DCNv3_pytorch and dcnv3_core_pytorch, with
# float64 grids) on the same inputs. DCNv4's kernel is CUDA only: its numbers are those of DCNv3's
# core without softmax between the module's linear layers, its rows read as the kernel reads them.
# sum(y), sum(y s), max|y|, sum(dx x), sum|dx| with s = cos(0.1 i), where i counts outputs.
# (channels, kernel, padding, groups, offset_scale, dw_kernel_size, remove_center, size, dilation).
# fmt: off
RELEASED = [
    ("dcnv3", (8, 3, 1, 2, 1.0, None, False, (5, 6), 1),
     (-319.05220302, 479.272004165, 4.558453846, -23.69102298, 616.549402546)),
    ("dcnv4", (8, 3, 1, 2, 1.0, None, False, (5, 6), 1),
     (382.35544853, -1060.394620554, 12.844623721, -78.545294442, 4934.308908187)),
    ("dcnv3", (12, 3, 1, 3, 0.5, 5, True, (4, 5), 1),
     (137.6846302, -170.367749286, 8.422326294, 8.209161543, 797.605886814)),
    ("dcnv4", (12, 3, 1, 3, 0.5, 5, True, (4, 5), 1),  # output_bias=False
     (-84.307760152, 629.194995073, 36.639147873, -393.965282373, 38283.313165914)),
    ("dcnv3", (8, 5, 2, 4, 2.0, None, True, (6, 4), 1),
     (-250.63161551, 8.51698727, 1.935223164, 0.497956958, 50.263576357)),
    ("dcnv4", (8, 5, 2, 4, 2.0, None, True, (6, 4), 1),
     (-147.871973637, -231.644130395, 6.456969843, 40.709810306, 2026.886349154)),
    ("dcnv4", (6, 3, 2, 1, 1.5, None, False, (5, 5), 2),
     (39.637776388, -113.27303491, 18.213004025, 39.436455734, 2246.010849861)),
]
# fmt: on


@pytest.mark.parametrize(("name", "case", "released"), RELEASED)
def test_numbers_of_the_released_code(name, case, released):
    channels, extent, padding, groups, scale, dw, removed, size, dilation = case
    bias = not (name == "dcnv4" and dw)
    layer = oc.create(
        name,
        channels,
        channels,
        extent,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
        offset_scale=scale,
        remove_center=removed,
        dw_kernel_size=dw,
        dtype=torch.float64,
    )
    state = released_state(name, channels, extent, groups, dw, removed, bias)
    layer.load_state_dict(layer.from_official(state), strict=True)
    x = waves((2, channels, *size), 0.5).requires_grad_()
    y = layer(x)
    seed = torch.arange(y.numel(), dtype=torch.float64).mul(0.1).cos().view_as(y)
    (dx,) = torch.autograd.grad((y * seed).sum(), x)
    got = [y.sum(), (y * seed).sum(), y.abs().max(), (dx * x).sum(), dx.abs().sum()]
    assert [float(v.detach()) for v in got] == pytest.approx(released, rel=1e-9, abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_from_official_names_what_does_not_fit(name):
    state = released_state(name, 8, 3, 2, None, False, True)
    layer = oc.create(name, 8, 8, 3, padding=1, groups=2)
    layer.load_state_dict(layer.from_official(state))
    with pytest.raises(ValueError, match=r"state_dict must hold exactly .*output_proj\.weight"):
        layer.from_official({k: v for k, v in state.items() if k != "output_proj.weight"})
    other = oc.create(name, 8, 8, (3, 5), groups=2)
    with pytest.raises(ValueError, match="state_dict fits a layer over two axes with a square"):
        other.from_official(state)
    with pytest.raises(ValueError, match="state_dict fits a layer over two axes"):
        oc.create(name, 8, 8, 3, groups=2, dim=1).from_official(state)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("removed", [False, True])
def test_a_fresh_layer_averages_over_the_kernel(name, removed):
    layer = oc.create(name, 6, 9, 3, padding=1, groups=3, remove_center=removed).double()
    x = waves((2, 6, 5, 7))
    ones = (..., None, None)
    v = F.conv2d(x, layer.value, layer.value_bias)
    mean = F.avg_pool2d(v, 3, 1, 1) * 9
    mean = (mean - v) / 8 if removed else mean / 9
    right = F.conv2d(mean, layer.output) + layer.bias[ones]
    torch.testing.assert_close(layer(x), right)


def test_weights_of_version_three_add_up_to_one_and_those_of_version_four_need_not():
    x = torch.randn(2, 4, 6, 6)
    sums = {}
    for name in NAMES:
        layer = oc.create(name, 4, 4, 3, padding=1, groups=2)
        with torch.no_grad():
            layer.point.normal_()
        _, mask = layer.places(x)
        sums[name] = mask.unflatten(1, (2, 9)).sum(2)
    torch.testing.assert_close(sums["dcnv3"], torch.ones_like(sums["dcnv3"]))
    assert sums["dcnv4"].min() < 0 < 2 < sums["dcnv4"].max()


def test_the_scale_widens_the_grid_around_the_windows_centre():
    """Without offsets, a scale of 2 is a dilation of 2 at the same centre."""
    x = waves((1, 2, 9, 8))
    offset, mask = x.new_zeros(1, 18, 9, 8), waves((1, 9, 9, 8))
    narrow = oc.functional.deform_aggregate(x, offset, mask, 3, padding=1, offset_scale=2.0)
    wide = oc.functional.deform_aggregate(x, offset, mask, 3, padding=2, dilation=2)
    torch.testing.assert_close(narrow, wide)
    moved = oc.functional.deform_aggregate(x, offset + 0.5, mask, 3, padding=1, offset_scale=2.0)
    other = oc.functional.deform_aggregate(x, offset + 1.0, mask, 3, padding=2, dilation=2)
    torch.testing.assert_close(moved, other)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("removed", [False, True])
def test_from_conv_is_exact_for_one_weight_per_tap_times_a_matrix(name, removed):
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1).double()
    with torch.no_grad():
        taps = waves((1, 2, 1, 3, 3)).square() + 0.1  # not negative
        if removed:
            taps[..., 1, 1] = 0
        matrix = waves((8, 2, 3, 1, 1), 1.0)
        conv.weight.copy_((taps * matrix).flatten(1, 2))
    layer = oc.card(name).layer(2).from_conv(conv, groups=2, remove_center=removed)
    x = waves((2, 6, 7, 8))
    torch.testing.assert_close(layer(x), conv(x))


@pytest.mark.parametrize("name", NAMES)
def test_from_conv_is_exact_for_one_wide_layers_and_near_for_others(name):
    kind = oc.card(name).layer(2)
    wide = nn.Conv2d(4, 6, 1, groups=2).double()
    x = waves((2, 4, 7, 6))
    torch.testing.assert_close(kind.from_conv(wide)(x), wide(x))
    conv = nn.Conv2d(4, 6, 3, padding=1).double()
    x = torch.randn(8, 4, 16, 16, dtype=torch.float64)

    def distance(layer: nn.Module) -> float:
        with torch.no_grad():
            return float((layer(x) - conv(x)).square().mean() / conv(x).var())

    fine, coarse = (distance(kind.from_conv(conv, groups=g)) for g in (2, 1))
    assert fine < coarse < 1
    assert distance(kind.from_conv(conv, 5, groups=2)) == pytest.approx(fine, abs=0.01)


def test_version_four_takes_over_every_depthwise_layer():
    conv = nn.Conv2d(6, 6, (3, 5), padding=(1, 2), groups=6).double()
    layer = oc.nn.DCNv4Conv2d.from_conv(conv)
    x = waves((2, 6, 7, 8))
    assert layer.groups == 6
    torch.testing.assert_close(layer(x), conv(x))
    layer(x).square().sum().backward()
    assert layer.point.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups"), [(64, 64, 4), (48, 64, 4), (20, 30, 2), (17, 5, 1), (3, 8, 1)]
)
def test_a_swapped_layer_has_the_papers_groups_or_the_nearest(inputs, outputs, groups):
    model = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1))
    oc.swap_(model, "dcnv4")
    assert isinstance(model[0], oc.nn.DCNv4Conv2d)
    assert model[0].groups == groups
    assert model(torch.randn(1, inputs, 5, 5)).shape == (1, outputs, 5, 5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_few_channels_compute_what_the_reference_does(name, channels):
    """The matrix leaves them out for DCNv3: a layer norm over so few amplifies rounding."""
    layer = oc.create(name, channels, 2, 3, padding=1, dtype=torch.float64)
    with torch.no_grad():
        layer.point.normal_()
    x = waves((2, channels, 5, 4))
    torch.testing.assert_close(layer(x), oc.card(name).reference(layer, x), rtol=1e-9, atol=1e-9)


def test_the_generator_may_see_more_than_the_kernel():
    """A larger depthwise kernel keeps the window's centre; reflected input must allow for it."""
    own = {"padding": 1, "padding_mode": "reflect", "dw_kernel_size": 7}
    layer = oc.nn.DCNv4Conv2d(2, 2, 3, stride=2, **own)
    assert layer(torch.randn(1, 2, 6, 7)).shape == (1, 2, 3, 4)
    with pytest.raises(ValueError, match="input is too small for padding_mode='reflect'"):
        layer(torch.randn(1, 2, 3, 7))
    with torch.no_grad():
        layer.depthwise.zero_()
        layer.depthwise[:, :, 3, 3] = 1.0
        layer.depthwise_bias.zero_()
        layer.point.normal_()
    plain = oc.nn.DCNv4Conv2d(2, 2, 3, stride=2, padding=1, padding_mode="reflect")
    shared = {k: v for k, v in layer.state_dict().items() if "depthwise" not in k}
    plain.load_state_dict(shared)
    x = torch.randn(2, 2, 8, 9)
    torch.testing.assert_close(layer(x), plain(x))


X, OFFSET, MASK = torch.randn(2, 4, 5, 6), torch.randn(2, 36, 3, 4), torch.rand(2, 18, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": X[0, 0]}, ValueError, "x must have 3, 4 or 5 axes"),
        ({"x": X.long()}, TypeError, "x must be a floating-point tensor"),
        ({"mask": None}, TypeError, "mask must be a floating-point tensor, got NoneType"),
        ({"mask": MASK[:, :9]}, ValueError, r"mask must have shape \(2, 18, 3, 4\), got"),
        ({"offset": OFFSET[:, 1:]}, ValueError, r"offset must have shape \(batch, offset groups"),
        ({"x": X[:, :3]}, ValueError, "offset groups must divide in_channels=3, got 2"),
        ({"kernel_size": 5}, ValueError, r"offset must have shape \(batch, offset groups x 50"),
        ({"kernel_size": 7}, ValueError, "x of spatial size .* is too small for kernel_size"),
        ({"offset_scale": None}, TypeError, "offset_scale must be a finite number"),
        ({"stride": 0}, ValueError, "stride must be an int of at least 1"),
    ],
)
def test_wrong_arguments_of_the_functional_are_refused(arguments, error, message):
    base = {"x": X, "offset": OFFSET, "mask": MASK, "kernel_size": 3}
    with pytest.raises(error, match=message):
        oc.functional.deform_aggregate(**(base | arguments))
