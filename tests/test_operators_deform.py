"""Deformable convolution beyond the matrix: torchvision's numbers, restricted forms, ONNX nodes."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import omniconv as oc
from omniconv import testing
from omniconv.kernels.deform import onnx as deform_onnx


def waves(shape: torch.Size | tuple[int, ...], phase: float = 0.0) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float64).mul(0.37).add(phase).sin().view(shape)


def stirred(layer: nn.Module, scale: float = 0.2) -> nn.Module:
    """The layer with offsets and masks that depend on the input."""
    with torch.no_grad():
        layer.offset_weight.copy_(scale * waves(layer.offset_weight.shape))
        layer.offset_bias.copy_(3 * scale * waves(layer.offset_bias.shape, 1.0))
    return layer


# Printed by torchvision 0.28's compiled deform_conv2d behind an offset convolution, as DCNv2's
# layer (raw.chunk(3), the mask's sigmoid) and v1's have it, in float64 on the same inputs: sum(y),
# sum(y s), max|y|, sum(dx x), sum|dW|, sum|dW_offset| with s = cos(0.1 i), where i counts outputs.
# (shape of x, outputs, kernel, groups, offset groups, modulated, arguments).
# fmt: off
RELEASED = [
    (
        (2, 4, 7, 6), 6, (3, 3), 1, 1, True, {"padding": 1},
        (398.913049025, 5.580817596, 7.218345366, -79.068825361, 147.935365432, 1541.590089141),
    ),
    (
        (2, 6, 8, 7), 6, (3, 2), 2, 3, True,
        {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
        (207.704084457, 8.244212474, 1.934042261, -4.406202831, 83.949058932, 870.907004076),
    ),
    (
        (2, 4, 6, 6), 4, (3, 3), 4, 2, False, {"padding": 2, "dilation": 2},
        (266.268534665, -3.45792895, 3.721885779, 19.285842315, 102.180310751, 3121.642753266),
    ),
    (
        (1, 3, 5, 7), 2, (1, 5), 1, 1, False, {"padding": (0, 2)},
        (57.45296327, 7.787103733, 2.09521092, 2.759563786, 84.350302377, 88.594681982),
    ),
]
# fmt: on


@pytest.mark.parametrize(
    ("shape", "outputs", "extent", "groups", "offset_groups", "modulated", "own", "released"),
    RELEASED,
)
def test_numbers_of_torchvision_behind_the_released_layers(
    shape, outputs, extent, groups, offset_groups, modulated, own, released
):
    rows = offset_groups * extent[0] * extent[1] * (3 if modulated else 2)
    name = "conv_offset_mask" if modulated else "conv_offset"
    state = {
        "weight": waves((outputs, shape[1] // groups, *extent)),
        "bias": waves((outputs,), 1.0),
        f"{name}.weight": 0.3 * waves((rows, shape[1], *extent), 2.0),
        f"{name}.bias": waves((rows,), 3.0),
    }
    layer = oc.nn.DeformConv2d(
        shape[1],
        outputs,
        extent,
        groups=groups,
        offset_groups=offset_groups,
        modulated=modulated,
        dtype=torch.float64,
        **own,
    )
    layer.load_state_dict(layer.from_official(state), strict=True)
    x = waves(shape, 0.5).requires_grad_()
    y = layer(x)
    seed = torch.arange(y.numel(), dtype=torch.float64).mul(0.1).cos().view_as(y)
    wanted = (x, layer.weight, layer.offset_weight)
    dx, *others = torch.autograd.grad((y * seed).sum(), wanted)
    got = [y.sum(), (y * seed).sum(), y.abs().max(), (dx * x).sum()]
    got += [gradient.abs().sum() for gradient in others]
    assert [float(v.detach()) for v in got] == pytest.approx(released, rel=1e-9, abs=1e-8)


def test_from_official_names_what_is_missing():
    with pytest.raises(ValueError, match=r"state_dict must hold weight, conv_offset.weight, .*got"):
        oc.nn.DeformConv2d.from_official({"weight": waves((1, 1, 1, 1))})


ROUNDED = {
    "rounded": {"round_offset": True},
    "co-design": {"modulated": False, "max_offset": 7, "round_offset": True, "shape": "square"},
}


def _rounded_cases() -> list[testing.Case]:
    """Rounded forms, in the whole matrix but for finite differences: theirs are 0."""
    card = replace(oc.card("deform"), variants={"default": {}} | ROUNDED)
    return [
        case
        for case in testing.cases(card, tier=1)
        if case.variant in ROUNDED and case.property != "gradcheck"
    ]


@pytest.mark.parametrize("case", _rounded_cases(), ids=str)
def test_rounded_forms_pass_the_matrix(case):
    if case.skip or case.missing:
        pytest.skip(case.skip or case.missing)
    case.run()


def test_rounded_offsets_are_whole_and_their_gradient_passes_straight_through():
    free = stirred(oc.nn.DeformConv2d(3, 4, 3, padding=1, dtype=torch.float64))
    rounded = oc.nn.DeformConv2d(3, 4, 3, padding=1, round_offset=True, dtype=torch.float64)
    rounded.load_state_dict(free.state_dict())
    x = waves((2, 3, 6, 7)).requires_grad_()
    offset, mask = rounded.places(x)
    exact, right = free.places(x)
    assert exact.frac().abs().max() > 0.1
    assert torch.equal(offset, exact.round())
    assert torch.equal(mask, right)
    seed = waves(offset.shape, 2.0)
    for ours, wanted in zip(
        torch.autograd.grad((offset * seed).sum(), (x, rounded.offset_weight)),
        torch.autograd.grad((exact * seed).sum(), (x, free.offset_weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("shape", ["free", "square"])
def test_offsets_stay_in_their_bound_and_do_not_learn_beyond_it(shape):
    layer = stirred(oc.nn.DeformConv2d(3, 4, 5, padding=2, max_offset=1, shape=shape), 1.0)
    offset, _ = layer.places(torch.randn(2, 3, 8, 8))
    assert offset.abs().max() == 1
    assert 0 < offset.detach().abs().lt(1).double().mean() < 1
    with torch.no_grad():
        layer.offset_weight.zero_()
        layer.offset_bias[: layer.rows[0]] = 100.0
    layer(torch.randn(2, 3, 8, 8)).square().sum().backward()
    assert not layer.offset_bias.grad[: layer.rows[0]].any()
    assert layer.offset_bias.grad[layer.rows[0] :].any()


@pytest.mark.parametrize("groups", [1, 2])
def test_a_square_is_a_convolution_with_a_dilation_of_its_own(groups):
    """With the same s everywhere it is torch's dilated convolution."""
    layer = oc.nn.DeformConv2d(
        4, 6, (3, 5), padding=(1, 2), shape="square", offset_groups=groups, dtype=torch.float64
    )
    with torch.no_grad():
        layer.offset_bias[: layer.rows[0]] = 2.0
    x = waves((2, 4, 9, 11))
    right = nn.functional.conv2d(
        x, layer.weight / 2, layer.bias, padding=(3, 6), dilation=3
    )  # d = 1 + s
    torch.testing.assert_close(layer(x), right)
    assert layer.rows[0] == groups


@pytest.mark.parametrize("extent", [None, (5, 3, 3)])
@pytest.mark.parametrize("own", [*oc.card("deform").variants.values(), *ROUNDED.values()], ids=str)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_from_conv_keeps_the_output_in_every_form(dim, own, extent):
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dim - 1]
    conv = plain(4, 6, (3, 1, 1)[:dim], stride=2, padding=1, groups=2).double()
    kind = oc.card("deform").layer(dim)
    layer = kind.from_conv(conv, extent and extent[:dim], offset_groups=2, **own)
    x = waves((2, 4, *(7, 6, 5)[:dim]))
    torch.testing.assert_close(layer(x), conv(x))
    layer(x).square().sum().backward()
    learns = own.get("shape") != "square" or extent is not None or dim > 1
    assert layer.offset_weight.grad.any() or not learns


def test_the_co_designs_layer_takes_over_a_depthwise_convolution():
    model = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 8, 1)).double()
    x = waves((2, 6, 7, 8))
    right = model(x)
    oc.swap_(model, "deform", where=lambda path, m: m.kernel_size != (1, 1), **ROUNDED["co-design"])
    assert isinstance(model[0], oc.nn.DeformConv2d)
    assert model[0].groups == 6
    torch.testing.assert_close(model(x), right)


def test_translation_moves_the_output_where_nothing_is_cut_off():
    layer = stirred(oc.nn.DeformConv2d(2, 3, 3, padding=1, stride=2, dtype=torch.float64))
    x = torch.zeros(1, 2, 40, 40, dtype=torch.float64)
    x[..., 14:24, 16:25] = waves((1, 2, 10, 9))
    y, moved = layer(x), layer(x.roll((4, -6), (2, 3)))
    inside = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(moved.roll((-2, 3), (2, 3))[inside], y[inside])


def test_the_generator_learns_at_a_tenth_of_the_rate():
    layer = oc.nn.DeformConv2d(2, 3, 3)
    rates = {id(p): g["lr"] for g in oc.param_groups(layer, lr=1.0) for p in g["params"]}
    found = {name: rates[id(p)] for name, p in layer.named_parameters()}
    assert found == {"weight": 1.0, "bias": 1.0, "offset_weight": 0.1, "offset_bias": 0.1}


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_places_are_not_rounded(autocast):
    """At pixel 1000, bfloat16 itself knows multiples of 8 only."""
    layer = stirred(oc.nn.DeformConv1d(2, 3, 3, padding=1).bfloat16())
    x = torch.randn(1, 2, 1024).bfloat16()
    right = oc.nn.DeformConv1d(2, 3, 3, padding=1)
    right.load_state_dict(layer.state_dict())
    if autocast:
        layer.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, right(x.float()).bfloat16(), rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    "own",
    [
        {"offset_groups": 2, "groups": 2, "bias": False, "stride": (2, 1), "dilation": (1, 2)},
        ROUNDED["co-design"] | {"padding": "same"},
    ],
    ids=str,
)
def test_an_onnx_file_may_hold_a_deform_conv_node(own):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    from onnx.reference import ReferenceEvaluator

    layer = oc.nn.DeformConv2d(4, 6, (3, 2), **({"padding": (1, 2)} | own))
    stirred(layer).eval().requires_grad_(False)
    batch = torch.export.Dim("batch")
    x = torch.randn(3, 4, 7, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's about itself
        program = deform_onnx.export(layer, (x,), dynamic_shapes=({0: batch},))
    model = program.model_proto
    onnx.checker.check_model(model)
    nodes = [node.op_type for node in model.graph.node]
    assert nodes.count("DeformConv") == 1
    assert not {"GatherElements", "Gather", "GatherND"} & set(nodes)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    for size in (1, 5):
        x = torch.randn(size, 4, 7, 8)
        (y,) = session.run(None, {name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), layer(x), rtol=1e-4, atol=1e-5)
    if layer.modulated:  # the evaluator of onnx 1.23 takes no empty mask
        (y,) = ReferenceEvaluator(model).run(None, {name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "dim", "held"), [("deform", 2, 1), ("deform", 1, 0), ("dcnv4", 2, 0)]
)
def test_programs_hold_the_operator_only_where_onnx_has_a_node(name, dim, held):
    layer = oc.create(name, 2, 3, 3, dim=dim).eval()
    x = torch.randn(2, 2, *[5] * dim)

    def count() -> int:
        program = torch.export.export(layer, (x,), strict=False)
        return sum("omniconv" in str(node.target) for node in program.graph.nodes)

    with deform_onnx.kept():
        assert count() == held
    assert count() == 0


X, W = torch.randn(2, 4, 7, 8), torch.randn(6, 4, 3, 3)
OFFSET, MASK = torch.randn(2, 36, 5, 6), torch.rand(2, 18, 5, 6)


def test_offset_groups_of_the_functional_are_the_offsets():
    both = oc.functional.deform_conv(X, OFFSET, W, mask=MASK)
    parts = [
        oc.functional.deform_conv(
            X[:, 2 * i : 2 * i + 2],
            OFFSET[:, 18 * i : 18 * i + 18],
            W[:, 2 * i : 2 * i + 2],
            mask=MASK[:, 9 * i : 9 * i + 9],
        )
        for i in range(2)
    ]
    torch.testing.assert_close(both, parts[0] + parts[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weight": W[0, 0]}, ValueError, r"weight must have 3, 4 or 5 axes \(outputs, inputs"),
        ({"weight": None}, TypeError, "weight must be a floating-point tensor, got NoneType"),
        ({"x": X[0]}, ValueError, r"x must have 4 axes, got shape \(4, 7, 8\)"),
        ({"x": X[:, :3]}, ValueError, "x must have in_channels=4 channels, got 3"),
        ({"offset": OFFSET[:, :7]}, ValueError, r"offset must have shape \(batch, offset groups x"),
        ({"offset": OFFSET[:, :0]}, ValueError, r"offset must have shape \(batch, offset groups x"),
        ({"offset": OFFSET[..., 1:]}, ValueError, r"offset must have shape \(2, 36, 5, 6\), got"),
        ({"offset": OFFSET.long()}, TypeError, "offset must be a floating-point tensor"),
        ({"offset": OFFSET.double()}, TypeError, "offset must have the dtype of x, torch.float32"),
        ({"offset": OFFSET.to("meta")}, ValueError, "offset must be on the device of x, cpu"),
        ({"mask": MASK[:, :9]}, ValueError, r"mask must have shape \(2, 18, 5, 6\), got"),
        ({"bias": W[0, 0, 0]}, ValueError, r"bias must have shape \(6,\), got"),
        ({"groups": 2}, ValueError, "x must have in_channels=8 channels, got 4"),
    ],
)
def test_wrong_arguments_of_the_functional_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        oc.functional.deform_conv(
            **({"x": X, "offset": OFFSET, "weight": W, "mask": MASK} | arguments)
        )
