"""gnConv beyond the matrix: the released code's numbers, orders, cost, and what it takes over."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import omniconv as oc


def waves(shape: torch.Size | tuple[int, ...], step: float = 0.37) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(1, count + 1, dtype=torch.float64).mul(step).sin().view(shape)


def layer_of(channels: int, dim: int = 2, **arguments) -> torch.nn.Module:
    both = {"in_channels": channels, "out_channels": channels, "kernel_size": 3, "padding": 1}
    return oc.create("gnconv", **{"dim": dim, "dtype": torch.float64} | both | arguments)


# Printed by the released code (raoyongming/HorNet, hornet.py: gnconv) run in float64 on the same
# inputs, for (order, s, channels): sum(y), sum(y s), max|y|, sum(dx x), sum|d depthwise|,
# sum|d project_in| with s = cos(0.1 i), where i counts the outputs.
RELEASED = {
    (2, 1.0, 8): (
        464.427241346,
        -46.7619373512,
        2.55520268105,
        0.282623509696,
        437.368367523,
        153.719074688,
    ),
    (5, 1 / 3, 32): (
        1461.43604922,
        -8.0818631427,
        1.14359895359,
        -0.0594076529258,
        657.269706351,
        630.966837216,
    ),
}


@pytest.mark.parametrize("case", RELEASED)
def test_numbers_of_the_released_code(case):
    order, scale, channels = case
    widths = [channels >> k for k in reversed(range(order))]
    shapes = {
        "proj_in": (2 * channels, channels, 1, 1),
        "dwconv": (sum(widths), 1, 7, 7),
        "proj_out": (channels, channels, 1, 1),
    }
    shapes |= {f"pws.{k}": (widths[k + 1], widths[k], 1, 1) for k in range(order - 1)}
    released: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        for kind, size in (("weight", shape), ("bias", shape[:1])):
            count = len(released)
            values = waves(size, 0.37 + 0.05 * count)
            shift = 0.3 if kind == "bias" else 0.0
            released[f"{name}.{kind}"] = values / max(1, values[0].numel()) ** 0.5 + shift
    layer = layer_of(channels, kernel_size=7, padding=3, order=order, scale=scale)
    layer.load_state_dict(layer.from_official(released))
    x = waves((2, channels, 9, 8)).requires_grad_()
    y = layer(x)
    seed = torch.arange(y.numel(), dtype=torch.float64).mul(0.1).cos().view_as(y)
    (y * seed).sum().backward()
    grads = (layer.depthwise.grad.abs().sum(), layer.project_in.grad.abs().sum())
    got = (y.sum(), (y * seed).sum(), y.abs().max(), (x.grad * x).sum(), *grads)
    assert [float(v.detach()) for v in got] == pytest.approx(RELEASED[case], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_order_n_multiplies_n_plus_one_values_of_the_input(order):
    layer = layer_of(16, order=order, bias=False)
    x = waves((1, 16, 5, 5))
    with torch.no_grad():
        torch.testing.assert_close(layer(2 * x), 2 ** (order + 1) * layer(x), rtol=1e-10, atol=0)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_the_cost_is_the_papers(order):
    """Multiply-adds are below H W C (2 K^2 + 11/3 C + 2), whatever the order."""
    channels, size, extent = 64, 14, 7
    layer = oc.GnConv2d(channels, channels, extent, padding=3, order=order, device="meta")
    assert len(layer.project_in) == 2 * channels
    forward, _ = oc.card("gnconv").flops(layer, (1, channels, size, size))
    products = size * size * sum(layer.widths)
    kernel = layer.depthwise.numel() + layer.depthwise_bias.numel()
    multiply_adds = (forward - products - kernel) / 2 + products
    bound = size * size * channels * (2 * extent**2 + 11 / 3 * channels + 2)
    assert multiply_adds < bound
    widths = (2 - 2.0 ** (1 - order)) * extent**2 + (2 - 2.0 ** (1 - order))
    mixes = channels * (3 + 2 / 3 * (1 - 4.0 ** (1 - order)))
    assert multiply_adds == pytest.approx(size * size * channels * (widths + mixes), rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_factors_of_every_product_have_variance_one(order):
    torch.manual_seed(0)
    second = 0.0
    for _ in range(40):
        layer = layer_of(32, order=order, dtype=torch.float32, padding=0, bias=False)
        with torch.no_grad():
            second += float(layer(torch.randn(4, 32, 12, 12)).square().mean()) / 40
    assert second == pytest.approx(1 / 3, rel=0.12)


def test_channels_that_no_power_of_two_divides_keep_at_least_one_per_gate():
    assert layer_of(5, order=4).widths == (1, 1, 2, 5)
    assert layer_of(6, groups=2, order=3).widths == (1, 1, 3)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_a_strided_layer_is_every_second_output(dim, padding):
    torch.manual_seed(dim)
    whole = layer_of(4, dim, padding=padding)
    strided = layer_of(4, dim, padding=padding, stride=2)
    strided.load_state_dict(whole.state_dict())
    x = waves((2, 4, *[6] * dim))
    every = (..., *[slice(None, None, 2)] * dim)
    torch.testing.assert_close(strided(x), whole(x)[every])


def test_each_group_is_a_layer_of_its_own():
    torch.manual_seed(0)
    layer = layer_of(8, groups=2)
    x = waves((2, 8, 5, 5))
    alone = []
    for part, half in enumerate(x.chunk(2, 1)):
        own = layer_of(4)
        own.load_state_dict({k: v.chunk(2)[part] for k, v in layer.state_dict().items()})
        alone.append(own(half))
    torch.testing.assert_close(layer(x), torch.cat(alone, 1))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3, "groups": 8, "padding": 1},
        {"kernel_size": 1},
        {"kernel_size": 3, "groups": 8, "stride": 2, "padding": 2, "padding_mode": "reflect"},
    ],
)
def test_depthwise_and_pointwise_convolutions_are_taken_over_exactly(order, arguments):
    if order == 1 and "padding_mode" in arguments:
        arguments = arguments | {"padding": 1}
    conv = nn.Conv2d(8, 8, **arguments, dtype=torch.float64)
    layer = oc.GnConv2d.from_conv(conv, order=order, scale=0.5)
    x = waves((2, 8, 7, 7))
    torch.testing.assert_close(layer(x), conv(x))


def test_dense_kernels_become_the_nearest_depthwise_and_pointwise_pair():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, bias=False, dtype=torch.float64)
    layer = oc.GnConv2d.from_conv(conv)
    impulse = torch.zeros(4, 4, 5, 5, dtype=torch.float64)
    impulse[range(4), range(4), 2, 2] = 1
    found = layer(impulse) - conv(impulse)  # the kernels' difference, mirrored, per input channel
    lost = [
        torch.linalg.svdvals(conv.weight.detach()[:, i].flatten(1))[1:].norm() for i in range(4)
    ]
    assert found.flatten(1).norm(dim=1).tolist() == pytest.approx([float(v) for v in lost])


def test_gates_learn_from_the_first_step():
    torch.manual_seed(0)
    layer = oc.GnConv2d.from_conv(nn.Conv2d(8, 8, 3, padding=1, groups=8), groups=1)
    layer(torch.randn(2, 8, 6, 6)).square().sum().backward()
    assert layer.mixes[-1].grad.abs().min() > 0


def test_groups_of_the_source_may_be_joined():
    conv = nn.Conv2d(8, 12, (3, 1), groups=4, dtype=torch.float64)
    with torch.no_grad():  # one kernel up to a factor
        conv.weight.copy_(waves((12, 1, 1, 1)) * waves((1, 2, 3, 1)))
    for groups in (1, 2, 4):
        layer = oc.GnConv2d.from_conv(conv, groups=groups)
        torch.testing.assert_close(layer(waves((2, 8, 7, 7))), conv(waves((2, 8, 7, 7))))
    with pytest.raises(ValueError, match=r"groups must divide conv\.groups=1, got 2"):
        oc.GnConv2d.from_conv(nn.Conv2d(8, 8, 3), groups=2)


def test_swap_keeps_a_depthwise_layer_and_takes_a_dense_one():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 3))
    torch.manual_seed(0)
    report = oc.swap_(model, "gnconv", kernel_size=5)
    assert [row.weights for row in report.swapped] == ["kept", "nearest"]
    assert [type(m) for m in model] == [oc.GnConv2d] * 2
    assert model[0].groups == 1  # HorNet's layer, not one per channel
    assert model(torch.randn(1, 4, 9, 9)).shape == (1, 8, 5, 5)


def test_official_parameters_must_fit():
    layer = oc.GnConv2d(4, 4, 7, padding=3, order=2)
    with pytest.raises(ValueError, match=r"must hold exactly proj_in\.weight"):
        layer.from_official({"proj_in.weight": torch.ones(8, 4, 1, 1)})
    names = {"proj_in": (8, 4, 1, 1), "dwconv": (6, 1, 7, 7), "proj_out": (4, 4, 1, 1)}
    names["pws.0"] = (4, 2, 1, 1)
    good = {f"{k}.weight": torch.ones(s) for k, s in names.items()}
    good |= {f"{k}.bias": torch.ones(s[0]) for k, s in names.items()}
    assert set(layer.from_official(good)) == set(layer.state_dict())
    with pytest.raises(ValueError, match=r"dwconv.weight must have shape \(6, 1, 7, 7\)"):
        layer.from_official(good | {"dwconv.weight": torch.ones(6, 1, 3, 3)})
    with pytest.raises(ValueError, match=r"proj_out.bias must have shape None"):
        oc.GnConv2d(4, 4, 7, order=2, bias=False).from_official(good)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"p": [1.0]}, "p must be a floating-point tensor"),
        ({"p": torch.ones(2, 2)}, "p must have 3 to 5 axes"),
        ({"gates": []}, "gates must hold at least one tensor"),
        ({"gates": [torch.ones(1, 2, 4)]}, "mixes must be one fewer than gates, got 1 for 1"),
        ({"mixes": [3]}, r"mixes\[0\] must be a pair of tensors"),
        ({"mixes": [(torch.ones(4, 3, 1), torch.ones(4))]}, r"mixes\[0\]\[0\] must have shape"),
        ({"mixes": [(torch.ones(4, 2, 1), torch.ones(3))]}, r"mixes\[0\]\[1\] must have shape"),
        ({"groups": 3}, "groups must divide 2 and 4, got 3"),
        ({"mixes": []}, "mixes must be one fewer than gates, got 0 for 2"),
        ({"gates": [torch.ones(1, 2, 4), None]}, r"gates\[1\] must be a floating-point tensor"),
        ({"gates": [torch.ones(1, 2, 4)] * 2}, r"gates\[1\] must have shape \(1, 4, 4\)"),
    ],
)
def test_bad_arguments_of_the_functional(change, match):
    good = {
        "p": torch.ones(1, 2, 4),
        "gates": [torch.ones(1, 2, 4), torch.ones(1, 4, 4)],
        "mixes": [(torch.ones(4, 2, 1), torch.ones(4))],
    }
    assert torch.equal(oc.functional.recursive_gating(**good), torch.full((1, 4, 4), 3.0))
    with pytest.raises((TypeError, ValueError), match=match):
        oc.functional.recursive_gating(**(good | change))
