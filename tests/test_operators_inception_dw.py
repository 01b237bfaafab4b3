"""Inception depthwise convolution beyond the matrix: the released code's numbers, boxes, cost."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import omniconv as oc


def waves(shape: torch.Size | tuple[int, ...], step: float = 0.37) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float64).mul(step).sin().view(shape)


# Printed by the released code (sail-sg/inceptionnext, InceptionDWConv2d) run in float64 on the
# same inputs: sum(y), sum(y s), max|y|, sum(dx x), sum|dw| of the square, of the band along the
# width and of that along the height, with s = cos(0.1 i), where i counts the outputs.
# (channels, square, band, branch ratio).
# fmt: off
RELEASED = {
    (16, 3, 11, 0.125): (
        152.880374882, -38.976257634, 4.129143294, -39.446956224,
        43.950109868, 38.738285443, 48.480874577,
    ),
    (27, 5, 7, 0.125): (
        532.920303575, 5.945424435, 7.712827947, 4.832310193,
        245.427508725, 86.794208918, 66.063329525,
    ),
    (20, 3, 9, 0.25): (
        1133.849813025, -10.402894429, 4.671279197, -13.345212711,
        208.012469813, 158.105942984, 165.397126014,
    ),
}
# fmt: on


def released_state(channels: int, square: int, band: int, ratio: float) -> dict[str, torch.Tensor]:
    each = int(channels * ratio)
    shapes = {
        "dwconv_hw.weight": (each, 1, square, square),
        "dwconv_hw.bias": (each,),
        "dwconv_w.weight": (each, 1, 1, band),
        "dwconv_w.bias": (each,),
        "dwconv_h.weight": (each, 1, band, 1),
        "dwconv_h.bias": (each,),
    }
    return {name: waves(shape, 0.37 + 0.05 * i) for i, (name, shape) in enumerate(shapes.items())}


def official_layer(channels: int, square: int, band: int, ratio: float) -> nn.Module:
    own = {"square": square, "branch_ratio": ratio, "dtype": torch.float64}
    return oc.nn.InceptionDWConv2d(channels, channels, band, padding="same", **own)


@pytest.mark.parametrize("case", RELEASED)
def test_numbers_of_the_released_code(case):
    layer = official_layer(*case)
    layer.load_state_dict(layer.from_official(released_state(*case)), strict=True)
    x = waves((2, case[0], 9, 7)).requires_grad_()
    y = layer(x)
    seed = torch.arange(y.numel(), dtype=torch.float64).mul(0.1).cos().view_as(y)
    dx, *others = torch.autograd.grad((y * seed).sum(), (x, *layer.branches()))
    got = [y.sum(), (y * seed).sum(), y.abs().max(), (dx * x).sum()]
    got += [gradient.abs().sum() for gradient in others]
    assert [float(v.detach()) for v in got] == pytest.approx(RELEASED[case], rel=1e-10, abs=1e-9)


def test_official_parameters_must_fit():
    case = (16, 3, 11, 0.125)
    layer, state = official_layer(*case), released_state(*case)
    with pytest.raises(ValueError, match=r"state_dict must hold exactly dwconv_hw.weight, .*, got"):
        layer.from_official({k: v for k, v in state.items() if k != "dwconv_w.bias"})
    with pytest.raises(ValueError, match=r"dwconv_w.weight must have shape \(2, 1, 1, 11\), got"):
        layer.from_official(state | {"dwconv_w.weight": waves((2, 1, 11, 1))})
    with pytest.raises(ValueError, match="layer must have two axes and a bias"):
        oc.nn.InceptionDWConv1d(16, 16, 11).from_official(state)
    with pytest.raises(ValueError, match="layer must have two axes and a bias"):
        oc.nn.InceptionDWConv2d(16, 16, 11, bias=False).from_official(state)


def test_the_kernel_is_one_centred_box_per_branch():
    layer = oc.nn.InceptionDWConv2d(4, 4, (5, 4), square=3, branch_ratio=0.25)
    assert layer.weight.shape == (4, 1, 5, 4)
    for branch in layer.branches():
        nn.init.ones_(branch)
    # an even axis has its centre at tap 1 of 4, where padding="same" puts the pixel
    passing, square, width, height = layer.weight[:, 0].detach().int().tolist()
    assert passing == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert square == [[0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert width == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert height == [[0, 1, 0, 0]] * 5


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("size", [3, 4, 7])
def test_most_channels_pass_untouched(dim, size):
    layer = oc.create("inception_dw", 24, 24, size, dim=dim, padding="same")
    x = torch.randn(2, 24, *[6] * dim)
    passed = 24 - 3 * (dim + 1)
    y = layer(x)
    assert torch.equal(y[:, :passed], x[:, :passed])
    assert bool((y[:, passed:] != x[:, passed:]).flatten(2).any(-1).all())


def test_channels_are_split_as_the_paper_does():
    layer = oc.nn.InceptionDWConv2d(96, 96, 11, padding=5)
    assert [tuple(b.shape) for b in layer.branches()] == [
        (12, 1, 3, 3),
        (12, 1, 1, 11),
        (12, 1, 11, 1),
    ]
    assert layer.identity_channels == 60
    assert sum(b.numel() for b in layer.branches()) == 31 * 12
    assert oc.nn.InceptionDWConv2d(3, 3, 11).identity_channels == 0
    assert oc.nn.InceptionDWConv3d(16, 16, 5, branch_ratio=0.25).identity_channels == 0


class _Kernels(TorchDispatchMode):
    """Shapes of the kernels that convolutions are given."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "convolution" in str(func):
            self.shapes.append(tuple(args[1].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_no_step_sees_a_dense_kernel(mode):
    layer = oc.nn.InceptionDWConv2d(8, 8, 11, padding=5, padding_mode=mode)
    with torch.no_grad(), _Kernels() as kernels:
        layer(torch.randn(2, 8, 12, 12))
    assert kernels.shapes == [(1, 1, 3, 3), (1, 1, 1, 11), (1, 1, 11, 1)]


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_the_layer_is_depthwise_whatever_groups_says(groups):
    layer = oc.nn.InceptionDWConv2d(8, 8, 5, groups=groups)
    assert layer.groups == layer.fold().groups == 8
    assert layer.weight.shape == (8, 1, 5, 5)


def test_a_fresh_identity_adds_nothing_and_its_bias_can_learn():
    layer = oc.nn.InceptionDWConv2d(16, 16, 5, padding=2)
    assert layer.bias[:10].eq(0).all()
    assert layer.bias[10:].ne(0).all()
    layer(torch.randn(1, 16, 6, 6)).sum().backward()
    assert layer.bias.grad[:10].tolist() == [36.0] * 10


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_from_conv_is_the_nearest_kernel(dim):
    torch.manual_seed(dim)
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dim - 1]
    conv = plain(8, 8, (5, 4, 3)[:dim], groups=8, dtype=torch.float64)
    layer = oc.card("inception_dw").layer(dim).from_conv(conv)
    rest = layer.weight - conv.weight
    slopes = torch.autograd.grad(rest.square().sum(), layer.branches())
    assert all(not slope.any() for slope in slopes)
    assert torch.equal(layer.bias, conv.bias)
    again = oc.card("inception_dw").layer(dim).from_conv(layer.fold())
    assert torch.equal(again.weight, layer.weight)


def test_from_conv_refuses_what_is_not_depthwise():
    with pytest.raises(ValueError, match=r"conv must be depthwise .* got groups=1"):
        oc.nn.InceptionDWConv2d.from_conv(nn.Conv2d(8, 8, 3))
    with pytest.raises(TypeError, match=r"conv must be an nn\.Conv2d, got Conv1d"):
        oc.nn.InceptionDWConv2d.from_conv(nn.Conv1d(8, 8, 3, groups=8))


def test_swap_and_fold():
    model = nn.Sequential(
        nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(1, 1, 3)
    )
    report = oc.swap_(model, "inception_dw", kernel_size=11)
    assert [row.status for row in report.layers] == ["swapped", "swapped", "skipped"]
    assert model[0].kernel_size == model[1].mixer.kernel_size == (11, 11)
    x = torch.randn(2, 8, 9, 9)
    y = model[:2](x)
    assert y.shape == (2, 4, 9, 9)
    oc.fold_(model)
    assert type(model[0]) is nn.Conv2d
    torch.testing.assert_close(model[:2](x), y)


def test_autocast_gives_the_low_precision_to_every_channel():
    layer = oc.nn.InceptionDWConv2d(8, 8, 5, padding=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(1, 8, 6, 6)).dtype == torch.bfloat16


BRANCH = torch.ones(2, 1, 3, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"branches": []}, TypeError, "branches must be a sequence of tensors"),
        ({"branches": [None]}, TypeError, r"branches\[0\] must be a floating-point tensor"),
        ({"branches": [BRANCH[0]]}, ValueError, r"branches\[0\] must have shape \(channels, 1, "),
        ({"size": (3, 2)}, ValueError, r"a box within \(3, 2\), got \(2, 1, 3, 3\)"),
        ({"size": (3, 0)}, ValueError, r"size\[1\] must be an int of at least 1"),
        ({"size": 3}, TypeError, "size must be a sequence of ints"),
        ({"identity": -1}, ValueError, "identity must be an int of at least 0"),
    ],
)
def test_bad_arguments_of_the_functional(change, error, message):
    good = {"branches": [BRANCH], "identity": 1, "size": (5, 4)}
    assert oc.functional.inception_kernel(**good).shape == (3, 1, 5, 4)
    with pytest.raises(error, match=message):
        oc.functional.inception_kernel(**(good | change))
