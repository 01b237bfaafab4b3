"""Involution beyond the matrix: the released code's numbers, and where its kernels come from."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import omniconv as oc


def waves(shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float64).mul(0.37).sin().view(shape)


def released_state(channels: int, extent: int) -> dict[str, torch.Tensor]:
    """The released layer's parameters, with its initial running statistics."""
    hidden, kernels = channels // 4, extent**2 * channels // 16
    shapes = {
        "conv1.conv.weight": (hidden, channels, 1, 1),
        "conv1.bn.weight": (hidden,),
        "conv1.bn.bias": (hidden,),
        "conv2.conv.weight": (kernels, hidden, 1, 1),
        "conv2.conv.bias": (kernels,),
    }
    return {name: waves(shape) for name, shape in shapes.items()} | {
        "conv1.bn.running_mean": torch.zeros(hidden),
        "conv1.bn.running_var": torch.ones(hidden),
        "conv1.bn.num_batches_tracked": torch.tensor(0),
    }


# Printed by the released code (d-li14/involution, involution_naive.py, with a stand-in for mmcv's
# ConvModule) run in float64 on the same inputs, first in training mode, then in evaluation mode:
# sum(y), sum(y s), max|y|, sum(dx x), sum|dW0|, sum|dW1|, sum|d gamma| with s = cos(0.1 i), where i
# counts the outputs, and the sum of the running variances. (channels, extent, stride, size).
# fmt: off
RELEASED = {
    (16, 3, 1, (5, 6)): (
        (-4.813791397, 16.644037826, 10.002442555, 16.644216681,
         69.787466086, 109.156548238, 12.75445765, 3.749051798),
        (0.231425347, 14.240382635, 8.276846953, 20.26463798,
         88.084245636, 85.841683815, 8.482131913, 3.749051798),
    ),
    (32, 7, 1, (4, 5)): (
        (-22.943783419, 1.295434024, 17.485175794, 1.295428055,
         309.218189678, 2085.040306324, 20.383611603, 7.696323197),
        (-18.142494247, 1.770039118, 16.663027977, 0.969270179,
         449.750452048, 1580.801360245, 15.172380662, 7.696323197),
    ),
    (32, 7, 2, (6, 8)): (
        (31.256006834, 251.802196463, 19.780823517, 251.793409367,
         878.895442362, 21163.4652997, 49.681109804, 7.207503525),
        (33.167635311, 221.425352403, 18.487222431, 225.707822287,
         128.161026862, 4586.218655536, 9.564373992, 7.207503525),
    ),
    (48, 3, 3, (6, 9)): (
        (3.095282045, 8.813097864, 4.115300914, 8.835711123,
         276.344279371, 469.319934502, 13.002250078, 10.866647498),
        (1.700411364, 7.271764987, 3.449003273, 7.635854018,
         35.948279347, 406.197777382, 1.184495625, 10.866647498),
    ),
}
# fmt: on


@pytest.mark.parametrize("case", RELEASED)
def test_numbers_of_the_released_code(case):
    channels, extent, stride, size = case
    layer = oc.nn.Involution2d(
        channels,
        channels,
        extent,
        stride=stride,
        padding=(extent - 1) // 2,
        group_channels=16,
        bias=False,
        dtype=torch.float64,
    )
    layer.load_state_dict(layer.from_official(released_state(channels, extent)), strict=True)
    x = waves((2, channels, *size)).requires_grad_()
    for training, released in zip((True, False), RELEASED[case], strict=True):
        y = layer.train(training)(x)
        seed = torch.arange(y.numel(), dtype=torch.float64).mul(0.1).cos().view_as(y)
        wanted = (x, layer.reduce, layer.span, layer.norm.weight)
        dx, *others = torch.autograd.grad((y * seed).sum(), wanted)
        got = [y.sum(), (y * seed).sum(), y.abs().max(), (dx * x).sum()]
        got += [gradient.abs().sum() for gradient in others] + [layer.norm.running_var.sum()]
        assert [float(v.detach()) for v in got] == pytest.approx(released, rel=1e-9, abs=1e-8)


def test_from_official_names_what_is_missing():
    state = released_state(16, 3)
    del state["conv2.conv.bias"]
    with pytest.raises(
        ValueError, match=r"state_dict must hold exactly conv1.conv.weight, .*, got"
    ):
        oc.nn.Involution2d.from_official(state)


@pytest.mark.parametrize(("stride", "dilation"), [((1, 1), (1, 1)), ((2, 3), (2, 1))])
def test_the_functional_equals_unfold_times_kernel(stride, dilation):
    x = waves((2, 6, 9, 8))
    columns = F.unfold(x, (3, 2), dilation, 0, stride)
    size = tuple(
        (n - d * (k - 1) - 1) // s + 1
        for n, d, k, s in zip((9, 8), dilation, (3, 2), stride, strict=True)
    )
    kernels = waves((2, 3, 3, 2, *size))
    right = torch.einsum(
        "bgcqp,bgqp->bgcp", columns.view(2, 3, 2, 6, -1), kernels.flatten(4).flatten(2, 3)
    )
    y = oc.functional.involution(x, kernels, stride, dilation)
    torch.testing.assert_close(y, right.reshape(2, 6, *size))


class _Largest(TorchDispatchMode):
    """The largest tensor that any operator returns."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor):
                self.numbers = max(self.numbers, t.numel())
        return out


def test_no_step_forms_the_unfolded_input():
    layer = oc.nn.Involution2d(16, 16, 7, padding=3)
    x = torch.randn(2, 16, 20, 20, requires_grad=True)
    with _Largest() as largest:
        layer(x).sum().backward()
    assert largest.numbers <= 2 * 49 * 20 * 20  # the kernels; unfolded it would be 16 times that


def test_half_precision_sums_over_taps_in_float32():
    x = waves((1, 2, 30, 30)).bfloat16()
    kernels = waves((1, 1, 15, 15, 16, 16)).abs().bfloat16()
    y = oc.functional.involution(x, kernels)
    right = oc.functional.involution(x.double(), kernels.double())
    torch.testing.assert_close(y.double(), right, rtol=2.0**-8, atol=1e-6)


def test_autocast_gives_the_low_precision_whatever_comes_in():
    layer = oc.nn.Involution2d(8, 8, 3, padding=1, padding_mode="replicate")
    x = torch.randn(2, 8, 5, 5)
    for given in (x, x.bfloat16()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(given)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
    assert layer.reduce.grad.dtype == torch.float32


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_training_normalises_over_the_batch_as_the_reference_does(dim, stride):
    size = (4, 3, 2)[:dim]
    layer = oc.create(
        "involution", 4, 4, size, stride=stride, dim=dim, padding=1, groups=2, dtype=torch.float64
    )
    x = waves((3, 4, *(7, 5, 4)[:dim])).requires_grad_()
    y, right = layer(x), oc.card("involution").reference(layer, x)
    torch.testing.assert_close(y, right)
    for ours, wanted in zip(
        torch.autograd.grad(y.square().sum(), (x, layer.reduce)),
        torch.autograd.grad(right.square().sum(), (x, layer.reduce)),
        strict=True,
    ):
        torch.testing.assert_close(ours, wanted)


def test_the_generating_cell_starts_under_the_centre_tap_and_is_clipped():
    """With H = identity of one channel, the output shows the mean that generates the kernel."""
    layer = oc.nn.Involution1d(1, 1, 3, stride=4, padding=1, bias=False).eval()
    with torch.no_grad():
        layer.reduce.fill_(1.0)
        layer.span.copy_(torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1))
        layer.norm.running_var.fill_(1.0 - layer.norm.eps)
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0, 7.0]]])
    torch.testing.assert_close(layer(x), torch.tensor([[[2.5 * 1.0, 6.0 * 5.0]]]))


def test_one_position_cannot_be_normalised_in_training():
    layer = oc.nn.Involution2d(4, 4, 3)
    for x in (torch.randn(1, 4, 3, 3), torch.randn(4, 3, 3)):
        with pytest.raises(ValueError, match="input must give more than one output position"):
            layer(x)
        assert layer.eval()(x).isfinite().all()
        layer.train()
    assert layer(torch.randn(2, 4, 3, 3)).isfinite().all()
    layer.norm.eval()
    assert layer(torch.randn(1, 4, 3, 3)).isfinite().all()


def test_an_empty_batch_leaves_the_statistics_alone():
    layer = oc.nn.Involution2d(4, 4, 3, padding=1)
    x = torch.randn(0, 4, 5, 5, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == (0, 4, 5, 5)
    assert layer.norm.running_mean.eq(0).all()
    assert layer.norm.running_var.eq(1).all()
    assert all(not p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("dim", "size"), [(1, 400), (2, 24), (3, 9)])
def test_a_fresh_layer_has_the_depthwise_convolutions_variance(dim, size, training):
    torch.manual_seed(0)
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dim - 1]
    found = torch.zeros(2)
    for _ in range(30):
        x = torch.randn(2, 32, *[size] * dim)
        layer = oc.create("involution", 32, 32, 3, padding=1, dim=dim).train(training)
        with torch.no_grad():
            found[0] += layer(x).var()
            found[1] += plain(32, 32, 3, padding=1, groups=32)(x).var()
    assert 0.9 < float(found[0] / found[1]) < 1.1


@pytest.mark.parametrize("extent", [None, 5, (3, 7)])
def test_from_conv_keeps_a_depthwise_convolution(extent):
    conv = nn.Conv2d(6, 6, 3, stride=2, padding=1, dilation=2, groups=6).double().eval()
    layer = oc.nn.Involution2d.from_conv(conv, extent)
    x = waves((2, 6, 9, 8))
    assert layer.groups == 6
    torch.testing.assert_close(layer(x), conv(x))


@pytest.mark.parametrize("own", [{"group_channels": 3}, {"groups": 2}])
def test_from_conv_gives_sharing_channels_their_mean_kernel(own):
    conv = nn.Conv1d(6, 6, 5, padding=2, groups=6).double().eval()
    layer = oc.nn.Involution1d.from_conv(conv, **own)
    x = waves((2, 6, 9))
    mean = conv.weight.detach().view(2, 3, 1, 5).mean(1, keepdim=True).expand(2, 3, 1, 5)
    right = F.conv1d(x, mean.reshape(6, 1, 5), conv.bias, padding=2, groups=6)
    torch.testing.assert_close(layer(x), right)


def test_a_taken_over_layer_learns_to_depend_on_its_input():
    layer = oc.nn.Involution2d.from_conv(nn.Conv2d(4, 4, 3, padding=1, groups=4))
    layer(torch.randn(2, 4, 6, 6)).square().sum().backward()
    assert layer.span.grad.abs().max() > 0


def test_from_conv_refuses_a_dense_convolution():
    with pytest.raises(ValueError, match=r"conv must be depthwise .* got groups=2"):
        oc.nn.Involution2d.from_conv(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(TypeError, match=r"conv must be an nn\.Conv2d, got Conv1d"):
        oc.nn.Involution2d.from_conv(nn.Conv1d(4, 4, 3, groups=4))


@pytest.mark.parametrize(("channels", "each"), [(64, 16), (48, 16), (20, 10), (17, 1), (6, 6)])
def test_a_swapped_layer_has_the_papers_groups_or_the_nearest(channels, each):
    model = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, groups=channels))
    oc.swap_(model, "involution")
    assert isinstance(model[0], oc.nn.Involution2d)
    assert model[0].groups == channels // each
    dense = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1))
    oc.swap_(dense, "involution", kernel_size=5)
    assert dense[0].mixer.groups == channels // each
    assert dense[0].mixer.kernel_size == (5, 5)
    assert dense(torch.randn(2, channels, 6, 6)).shape == (2, 8, 6, 6)
    fresh = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, groups=channels))
    oc.swap_(fresh, "involution", from_weights=False, group_channels=1)
    assert fresh[0].groups == channels


X, K = torch.randn(2, 6, 7, 8), torch.randn(2, 3, 3, 3, 5, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": X[0, 0]}, ValueError, "x must have 3, 4 or 5 axes"),
        ({"x": X.long()}, TypeError, "x must be a floating-point tensor"),
        ({"kernels": None}, TypeError, "kernels must be a floating-point tensor, got NoneType"),
        ({"kernels": K.double()}, TypeError, "kernels must have the dtype of x, torch.float32"),
        ({"kernels": K.to("meta")}, ValueError, "kernels must be on the device of x, cpu"),
        ({"kernels": K[0]}, ValueError, r"kernels must have 6 axes \(batch 2, groups, 2 of the"),
        ({"kernels": K[:1]}, ValueError, r"kernels must have 6 axes \(batch 2"),
        ({"x": X[:, :4]}, ValueError, "groups that divides the 4 channels of x, got 3"),
        ({"stride": 2}, ValueError, r"output's spatial size \(3, 3\) .* got \(5, 6\)"),
        ({"stride": 0}, ValueError, "stride must be an int of at least 1"),
        ({"dilation": (1, 1, 1)}, ValueError, "dilation must be an int or 2 ints"),
    ],
)
def test_wrong_arguments_of_the_functional_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        oc.functional.involution(**({"x": X, "kernels": K} | arguments))
