"""CondConv beyond the matrix: the released code's numbers, per-sample kernels, export."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import omniconv as oc


def waves(shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float64).mul(0.37).sin().view(shape)


# Printed by the released code (CondConv2D of tensorflow/tpu, condconv_layers.py, behind the
# routing layer of its efficientnet_model.py) run by TensorFlow 2.15 in float64 on the same inputs:
# sum(y), sum(y s), max|y|, sum(dx x), sum|dW|, sum|dR|, sum|dc| with s = cos(0.1 i), where i counts
# the outputs.
# fmt: off
RELEASED = [
    (
        (3, 4, 6, 5), 6, (3, 3), 8, {"padding": 1},
        (23.579267591, 0.211826471, 0.673054949, 0.220926354, 2074.590364505, 0.97886665,
         2.385450165),
    ),
    (
        (2, 5, 7, 8), 4, (3, 2), 3, {"stride": 2},
        (-30.699564927, -133.613053161, 17.653463353, -128.465357229, 704.955147535,
         19.823929749, 52.721327059),
    ),
    (
        (2, 3, 9, 8), 4, (3, 3), 4, {"padding": 2, "dilation": 2},
        (-16.961347252, -1.485329909, 2.955366683, -1.471136117, 855.510460627, 0.386838726,
         4.046359761),
    ),
]
# fmt: on


@pytest.mark.parametrize(("shape", "outputs", "extent", "experts", "own", "released"), RELEASED)
def test_numbers_of_the_released_code(shape, outputs, extent, experts, own, released):
    channels = shape[1]
    layer = oc.nn.CondConv2d(
        channels, outputs, extent, **own, bias=False, experts=experts, dtype=torch.float64
    )
    state = {
        "condconv_kernel": waves((experts, extent[0] * extent[1] * channels * outputs)),
        "kernel": waves((channels, experts)),
        "bias": waves((experts,)),
    }
    layer.load_state_dict(layer.from_official(state), strict=True)
    x = waves(shape).requires_grad_()
    y = layer(x)
    seed = torch.arange(y.numel(), dtype=torch.float64).mul(0.1).cos().view_as(y)
    loss = (y * seed).sum()
    wanted = (x, layer.kernels, layer.routing, layer.routing_bias)
    dx, *others = torch.autograd.grad(loss, wanted)
    got = [y.sum(), loss, y.abs().max(), (dx * x).sum(), *(d.abs().sum() for d in others)]
    assert [float(v.detach()) for v in got] == pytest.approx(released, rel=1e-9, abs=1e-8)


def test_from_official_names_what_does_not_fit():
    layer = oc.nn.CondConv2d(3, 4, 3, bias=False, experts=2)
    state = {"condconv_kernel": waves((2, 108)), "kernel": waves((3, 2)), "bias": waves((2,))}
    layer.load_state_dict(layer.from_official(state))
    with pytest.raises(ValueError, match="state_dict must hold exactly condconv_kernel, kernel"):
        layer.from_official({"kernel": waves((3, 2))})
    with pytest.raises(ValueError, match="for a layer with groups=1 and bias=False"):
        oc.nn.CondConv2d(3, 4, 3, experts=2).from_official(state)
    with pytest.raises(ValueError, match=r"kernel must have shape \(3, 2\), got \(2, 3\)"):
        layer.from_official(state | {"kernel": waves((2, 3))})


def test_one_expert_is_a_convolution_scaled_by_its_routing_weight():
    layer = oc.nn.CondConv2d(3, 4, 3, padding=1, bias=False, experts=1)
    x = torch.randn(5, 3, 6, 7)
    plain = nn.functional.conv2d(x, layer.kernels, padding=1)
    torch.testing.assert_close(layer(x), plain * layer.route(x).view(5, 1, 1, 1))


def test_routing_is_a_sigmoid_and_no_softmax():
    layer = oc.nn.CondConv2d(3, 4, 3, experts=5)
    with torch.no_grad():
        layer.routing_bias.fill_(3.0)
    weights = layer.route(torch.randn(6, 3, 5, 5))
    assert weights.shape == (6, 5)
    assert weights.gt(0.5).all()  # a softmax's would add up to 1
    assert weights.lt(1).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_mixing_kernels_is_mixing_the_experts_outputs(groups):
    """The paper's equivalence with a linear mixture of experts, at one convolution's cost."""
    experts, routing = waves((3, 6, 4 // groups, 3, 2)), waves((5, 3))
    x = waves((5, 4, 7, 6))
    y = oc.functional.cond_conv(x, routing, experts, stride=2, padding=1, groups=groups)
    each = [nn.functional.conv2d(x, w, stride=2, padding=1, groups=groups) for w in experts]
    right = torch.einsum("bechw,be->bchw", torch.stack(each, 1), routing)
    torch.testing.assert_close(y, right)


def test_a_bias_per_sample():
    x, routing, experts = waves((3, 2, 5)), waves((3, 4)), waves((4, 6, 2, 3))
    bias = waves((3, 6))
    y = oc.functional.cond_conv(x, routing, experts, bias)
    bare = oc.functional.cond_conv(x, routing, experts)
    torch.testing.assert_close(y, bare + bias[..., None])


class _Calls(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[func.name().partition("::")[2]] += 1
        return func(*args, **(kwargs or {}))


def test_a_batch_is_one_grouped_convolution():
    layer = oc.nn.CondConv2d(4, 6, 3, groups=2)
    with _Calls() as calls, torch.no_grad():
        layer(torch.randn(7, 4, 8, 8))
    assert calls.count["convolution"] == 1


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_an_exported_program_holds_no_group_per_sample_and_takes_any_batch(dim, groups):
    layer = oc.create(
        "condconv",
        4,
        6,
        (3, 2, 2)[:dim],
        dim=dim,
        stride=2,
        padding=1,
        groups=groups,
        padding_mode="replicate",
    )
    x = torch.randn(3, 4, *(7, 6, 5)[:dim])
    batch = torch.export.Dim("batch")
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},), strict=False)
    assert not any("conv" in str(node.target) for node in program.graph.nodes)
    for size in (1, 2, 9):
        x = torch.randn(size, 4, *(7, 6, 5)[:dim])
        torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_an_empty_batch_gives_an_empty_output_and_no_gradient(dim):
    layer = oc.create("condconv", 2, 3, 3, dim=dim, stride=2, padding=1)
    x = torch.randn(0, 2, *(7, 6, 5)[:dim], requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == (0, 3, *(4, 3, 3)[:dim])
    assert all(not p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize("experts", [1, 3, 8])
@pytest.mark.parametrize("extent", [None, 5])
def test_from_conv_keeps_a_convolution_and_tells_the_experts_apart(experts, extent):
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2).double()
    layer = oc.nn.CondConv2d.from_conv(conv, extent, experts=experts)
    x = waves((3, 4, 8, 7))
    torch.testing.assert_close(layer(x), conv(x))
    if experts > 1:
        first, second, *_ = layer.kernels.chunk(experts)
        assert (first - second).abs().min() > 0
        layer(x).square().sum().backward()
        rows = layer.routing.grad
        assert (rows[0] - rows[1]).abs().max() > 0  # the same gradient would keep them alike


def test_swap_takes_dense_and_depthwise_layers():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8))
    x = torch.randn(2, 4, 7, 7)
    right = model(x)
    oc.swap_(model, "condconv", experts=4)
    assert all(type(layer) is oc.nn.CondConv2d for layer in model)
    torch.testing.assert_close(model(x), right)


X, R, W = torch.randn(2, 4, 7, 8), torch.randn(2, 3), torch.randn(3, 6, 4, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"experts": W[0, 0]}, ValueError, r"experts must have 4, 5 or 6 axes \(experts, outputs"),
        ({"experts": None}, TypeError, "experts must be a floating-point tensor, got NoneType"),
        ({"routing": R.long()}, TypeError, "routing must be a floating-point tensor"),
        ({"routing": R.double()}, TypeError, "routing must have the dtype of experts, torch.fl"),
        ({"routing": R[:, :2]}, ValueError, r"routing must have shape \(batch 2, experts 3\)"),
        ({"bias": torch.randn(3)}, ValueError, r"bias must have shape \(6,\) or \(2, 6\), got"),
        ({"x": X[0]}, ValueError, r"x must have 4 axes, got shape \(4, 7, 8\)"),
        ({"x": X[:, :3]}, ValueError, "x must have in_channels=4 channels, got 3"),
        ({"groups": 2}, ValueError, "x must have in_channels=8 channels, got 4"),
    ],
)
def test_wrong_arguments_of_the_functional_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        oc.functional.cond_conv(**({"x": X, "routing": R, "experts": W} | arguments))
