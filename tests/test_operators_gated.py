"""Gated convolution beyond the matrix: the released code's numbers, and what a gate is."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omniconv as oc
from omniconv.operators.masked.gated import ACTIVATIONS, GAIN


def waves(shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float64).mul(0.37).sin().view(shape)


# Printed by the released code (gen_conv of JiahuiYu/generative_inpainting, inpaint_ops.py) run by
# TensorFlow 2.15 in its version-1 mode, in float64, on the same inputs: sum(y), sum(y s), max|y|,
# sum(dx x), sum|dw|, sum|db| with s = cos(0.1 i), where i counts the outputs.
RELEASED = [
    (
        (2, 5, 6, 7),
        (5, 12),
        {"padding": 2},
        (129.568645308, 2.278925259, 0.773042399, -0.40102786, 1081.299143115, 83.552833204),
    ),
    (
        (2, 4, 8, 6),
        (3, 8),
        {"stride": 2},
        (54.262535491, -12.096274576, 3.320742274, -3.884795635, 342.706504057, 25.459401656),
    ),
    (
        (2, 4, 9, 8),
        (3, 6),
        {"dilation": 4, "padding": 4},
        (252.954646808, -2.547799019, 3.313002889, -2.324357792, 143.462961567, 6.098181386),
    ),
]


@pytest.mark.parametrize(("shape", "sizes", "arguments", "released"), RELEASED)
def test_numbers_of_the_released_code(shape, sizes, arguments, released):
    extent, both = sizes
    layer = oc.nn.GatedConv2d(shape[1], both // 2, extent, **arguments, dtype=torch.float64)
    state = {"kernel": waves((extent, extent, shape[1], both)), "bias": waves((both,))}
    layer.load_state_dict(layer.from_official(state), strict=True)
    x = waves(shape).requires_grad_()
    # TensorFlow pads nothing before and one after an even size at stride 2
    y = layer(F.pad(x, (0, 1, 0, 1)) if arguments.get("stride") == 2 else x)
    seed = torch.arange(y.numel(), dtype=torch.float64).mul(0.1).cos().view_as(y)
    loss = (y * seed).sum()
    dx, dw, *db = torch.autograd.grad(loss, (x, layer.weight, layer.bias, layer.gate_bias))
    got = [y.sum(), loss, y.abs().max(), (dx * x).sum(), dw.abs().sum(), torch.cat(db).abs().sum()]
    assert [float(v.detach()) for v in got] == pytest.approx(released, rel=1e-9, abs=1e-8)


def test_from_official_names_what_does_not_fit():
    state = {"kernel": waves((3, 3, 4, 8)), "bias": waves((8,))}
    with pytest.raises(ValueError, match="state_dict must hold exactly kernel, bias, got"):
        oc.nn.GatedConv2d.from_official({"kernel": state["kernel"]})
    for wrong in ({"bias": waves((4,))}, {"kernel": waves((3, 3, 4, 7)), "bias": waves((7,))}):
        with pytest.raises(ValueError, match=r"kernel must have shape \(\*size, in, 2 O\)"):
            oc.nn.GatedConv2d.from_official(state | wrong)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_features_and_gates_are_two_convolutions_of_the_same_groups(groups):
    layer = oc.nn.GatedConv2d(4, 8, 3, groups=groups, activation="tanh", dtype=torch.float64)
    feature, gate = (nn.Conv2d(4, 8, 3, groups=groups, dtype=torch.float64) for _ in range(2))
    feature.load_state_dict({"weight": layer.weight[:8], "bias": layer.bias})
    gate.load_state_dict({"weight": layer.weight[8:], "bias": layer.gate_bias})
    x = waves((2, 4, 6, 5))
    torch.testing.assert_close(layer(x), feature(x).tanh() * gate(x).sigmoid())


def test_the_identity_gives_torchs_gated_linear_unit():
    layer = oc.nn.GatedConv1d(3, 4, 3, padding=1, activation="identity")
    x = torch.randn(2, 3, 9)
    bias = torch.cat((layer.bias, layer.gate_bias))
    right = F.glu(F.conv1d(x, layer.weight, bias, padding=1), 1)
    torch.testing.assert_close(layer(x), right)


def test_it_is_executed_as_one_convolution():
    layer = oc.nn.GatedConv2d(4, 6, 3, groups=2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(torch.randn(2, 4, 8, 8))
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["aten::conv2d"] == 1


def test_a_closed_gate_hides_and_an_open_one_shows():
    layer = oc.nn.GatedConv2d(2, 3, 3, padding=1)
    with torch.no_grad():
        layer.weight[3:] = 0
        layer.gate_bias.copy_(torch.tensor([-200.0, 0.0, 200.0]))
    x = torch.randn(2, 2, 6, 6)
    y = layer(x)
    shown = F.elu(F.conv2d(x, layer.weight[:3], layer.bias, padding=1))
    assert not y[:, 0].any()
    torch.testing.assert_close(y[:, 1], shown[:, 1] / 2)
    torch.testing.assert_close(y[:, 2], shown[:, 2])


def test_a_channel_of_the_input_can_be_a_mask_that_the_gate_follows():
    """The partial convolution's rule is one setting of the gate: it learns what that one fixes."""
    layer = oc.nn.GatedConv2d(2, 1, 1, activation="identity")
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 200.0]]).view(2, 2, 1, 1))
        layer.bias.zero_()
        layer.gate_bias.fill_(-100.0)
    x, mask = torch.randn(1, 1, 5, 5), (torch.rand(1, 1, 5, 5) > 0.5).float()
    torch.testing.assert_close(layer(torch.cat((x, mask), 1)), x * mask)


@pytest.mark.parametrize("activation", [name for name in GAIN if name != "tanh"])
def test_the_gain_makes_the_output_as_wide_as_the_plain_layers(activation):
    """Var(phi(gain u) sigma(v)) = Var(u), by the trapezoidal rule in u and v."""
    nodes = torch.linspace(-9, 9, 9001, dtype=torch.float64)
    weights = (-(nodes**2) / 2).exp()
    weights /= weights.sum()
    u = nodes / math.sqrt(3)
    features, gates = ACTIVATIONS[activation](GAIN[activation] * u), u.sigmoid()
    second = (weights @ features**2) * (weights @ gates**2)
    first = (weights @ features) * (weights @ gates)
    assert float(second - first**2) == pytest.approx(1 / 3, rel=1e-5)


@pytest.mark.parametrize("activation", ["identity", "elu", "relu", "leaky_relu"])
def test_from_conv_keeps_what_phi_keeps(activation):
    conv = nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3).double()
    layer = oc.nn.GatedConv2d.from_conv(conv, 5, activation=activation)
    x = waves((2, 3, 9, 8))
    y, right = layer(x), conv(x)
    kept = right >= 0 if activation != "identity" else torch.ones_like(right, dtype=torch.bool)
    torch.testing.assert_close(y[kept], right[kept])
    torch.testing.assert_close(y, ACTIVATIONS[activation](2 * right) / 2)


def test_a_taken_over_layer_learns_its_gates():
    layer = oc.nn.GatedConv2d.from_conv(nn.Conv2d(3, 4, 3, padding=1))
    layer(torch.randn(2, 3, 6, 6)).square().sum().backward()
    assert layer.weight.grad[4:].abs().min() > 0
    assert layer.gate_bias.grad.abs().min() > 0


def test_swap_takes_dense_and_depthwise_layers():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8))
    x = torch.randn(2, 4, 7, 7)
    right = model(x)
    oc.swap_(model, "gated", activation="identity")
    assert all(type(layer) is oc.nn.GatedConv2d for layer in model)
    torch.testing.assert_close(model(x), right)


def test_the_functional_is_the_layer():
    layer = oc.nn.GatedConv2d(4, 6, 3, 2, 1, 2, 2, padding_mode="reflect", activation="relu")
    x = torch.randn(4, 7, 8)
    y = oc.functional.gated_conv(
        x,
        layer.weight,
        torch.cat((layer.bias, layer.gate_bias)),
        2,
        1,
        2,
        2,
        activation="relu",
        padding_mode="reflect",
    )
    torch.testing.assert_close(y, layer(x), rtol=0, atol=0)


X, W = torch.randn(2, 4, 7, 8), torch.randn(6, 4, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weight": W[:5]}, ValueError, r"weight must have 3, 4 or 5 axes \(twice the outputs"),
        ({"weight": W[0, 0]}, ValueError, "weight must have 3, 4 or 5 axes"),
        ({"weight": None}, TypeError, "weight must be a floating-point tensor, got NoneType"),
        ({"bias": torch.randn(3)}, ValueError, r"bias must have shape \(6,\), got \(3,\)"),
        ({"x": X[:, :3]}, ValueError, "x must have in_channels=4 channels, got 3"),
        ({"x": X.double()}, TypeError, "x must have the layer's dtype"),
        ({"groups": 2, "x": X}, ValueError, "groups must divide out_channels=3, got 2"),
        ({"activation": "gelu"}, ValueError, "activation must be one of 'elu', 'relu'"),
    ],
)
def test_wrong_arguments_of_the_functional_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        oc.functional.gated_conv(**({"x": X, "weight": W} | arguments))
