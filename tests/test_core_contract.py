"""The constructor contract: torch's arguments, sizes, padding and errors, for every operator."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from torch import nn

import omniconv as oc
from omniconv.core.geometry import ConvArguments, check_input
from omniconv.core.layer import ConvLayer, plain_class, transfer
from omniconv.math.naive import naive_convolution, naive_pad

GEOMETRIES = [
    {"kernel_size": k, "stride": s, "padding": p, "dilation": d, "padding_mode": mode}
    for k, s, d in itertools.product((1, 2, (3, 2)), (1, (2, 3)), (1, (1, 2)))
    for p, mode in (
        (0, "zeros"),
        ((2, 1), "zeros"),
        ("valid", "replicate"),
        ("same", "zeros"),
        ("same", "reflect"),
        ((1, 2), "reflect"),
        ((2, 0), "circular"),
        ((5, 1), "replicate"),
    )
    if not (p == "same" and s != 1)
]
TRANSPOSED = [
    {"kernel_size": k, "stride": s, "padding": p, "dilation": d, "output_padding": o}
    for k, s, p, d, o in itertools.product(
        (1, (3, 2)), (2, (2, 3)), (0, (1, 0)), (1, (1, 2)), (0, (1, 0))
    )
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's own
@pytest.mark.parametrize("arguments", GEOMETRIES, ids=str)
def test_sizes_and_padding_are_torchs(arguments: dict[str, Any]):
    geometry = ConvArguments.parse(2, 2, 3, **arguments)
    plain = nn.Conv2d(2, 3, **arguments, dtype=torch.float64)
    for size in ((6, 5), (7, 9)):
        x = torch.randn(2, 2, *size, dtype=torch.float64)
        expected = plain(x)
        assert geometry.output_size(size) == tuple(expected.shape[2:])
        torch.testing.assert_close(
            naive_convolution(x, plain.weight, plain.bias, geometry), expected
        )
        torch.testing.assert_close(naive_pad(x, geometry), geometry.pad(x))
        assert geometry.pad(x).shape[2:] == tuple(
            n + before + after for n, (before, after) in zip(size, geometry.pads, strict=True)
        )


@pytest.mark.parametrize("arguments", TRANSPOSED, ids=str)
def test_sizes_of_transposed_layers_are_torchs(arguments: dict[str, Any]):
    geometry = ConvArguments.parse(2, 4, 6, **arguments, groups=2, transposed=True)
    plain = nn.ConvTranspose2d(4, 6, **arguments, groups=2, dtype=torch.float64)
    x = torch.randn(2, 4, 4, 3, dtype=torch.float64)
    expected = plain(x)
    assert geometry.output_size((4, 3)) == tuple(expected.shape[2:])
    torch.testing.assert_close(naive_convolution(x, plain.weight, plain.bias, geometry), expected)


@pytest.mark.parametrize(("mode", "limit"), [("reflect", 4), ("circular", 5), ("replicate", 99)])
def test_borders_can_be_padded_as_far_as_torch_pads_them(mode: str, limit: int):
    def layer(padding: int) -> Any:
        return oc.create("weighted", 1, 1, 1, padding=padding, padding_mode=mode, dim=1)

    x = torch.randn(1, 1, 5)
    assert layer(limit)(x).shape == (1, 1, 5 + 2 * limit)
    if limit < 99:
        with pytest.raises(RuntimeError):
            layer(limit + 1).fold()(x)
        message = f"size 5 on axis 0 allows padding up to {limit}, got padding {limit + 1}"
        with pytest.raises(ValueError, match=message):
            layer(limit + 1)(x)


class _Smallest(ConvLayer):
    """The least that a convolution of one's own must write."""

    dim = 2

    def setup(self, factory: dict[str, Any], *, own: int = 1) -> None:
        self.scale = nn.Parameter(torch.empty(1, **factory))
        self.own = own

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)
        self.reset_bias()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        check_input(self, input, self.scale)
        return input * self.scale


def test_a_layer_of_ones_own_gets_torchs_constructor():
    layer = _Smallest(2, 2, (3, 2), (1, 2), (1, 0), 1, 2, False, "reflect", own=5)
    g = layer.geometry
    assert (g.kernel_size, g.stride, g.padding, g.groups) == ((3, 2), (1, 2), (1, 0), 2)
    assert (layer.own, layer.bias, layer.padding_mode) == (5, None, "reflect")
    assert _Smallest.own_arguments() == ("own",)
    assert repr(layer) == (
        "_Smallest(2, 2, kernel_size=(3, 2), stride=(1, 2), padding=(1, 0), groups=2, bias=False, "
        "padding_mode=reflect)"
    )
    plain = repr(_Smallest(2, 2, 3, dilation=2))
    assert plain == "_Smallest(2, 2, kernel_size=(3, 3), stride=(1, 1), dilation=(2, 2))"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _Smallest(2, 2), r"_Smallest: missing a required argument: 'kernel_size'"),
        (
            lambda: _Smallest(2, 2, 3, kernal=1),
            r"_Smallest: got an unexpected keyword argument 'kernal'",
        ),
        (lambda: _Smallest(2, 2, 3, strid=2), r"'strid' \(did you mean 'stride'\?\)"),
        (lambda: _Smallest(2, 2, 3, kernel_size=3), r"multiple values for argument 'kernel_size'"),
    ],
)
def test_a_call_that_does_not_fit_the_signature_names_the_argument(call: Any, message: str):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_base_class_without_setup_says_what_to_write():
    class Nothing(ConvLayer):
        dim = 1

    with pytest.raises(NotImplementedError, match=r"Nothing must define setup\(\)"):
        Nothing(1, 1, 1)


def test_an_absent_device_is_refused_by_name():
    for device in ("nowhere", "cuda:99", 3.5, "cpu:x"):
        with pytest.raises(ValueError, match="device must name a device of this machine"):
            _Smallest(2, 2, 3, device=device)


def test_under_autocast_the_inputs_type_is_free():
    layer = _Smallest(2, 2, 3)
    x = torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"the layer's dtype torch\.float32, got"):
        layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": "same", "stride": (1, 2)}, "padding='same' needs stride 1, got stride=(1, 2)"),
        ({"padding": "same", "stride": (2, 1)}, "padding='same' needs stride 1, got stride=(2, 1)"),
        ({"groups": 4}, "groups must divide out_channels=6, got 4"),
        ({"groups": 3}, "groups must divide in_channels=4, got 3"),
        ({"padding_mode": "constant"}, "padding_mode must be one of 'zeros', 'reflect', "),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        ConvArguments.parse(2, 4, 6, 3, **arguments)


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ({"output_padding": 1}, False),
        ({"output_padding": 1, "stride": 2}, True),
        ({"output_padding": 2, "stride": 2}, False),
        ({"output_padding": 1, "dilation": 2}, True),
        ({"output_padding": 2, "dilation": 2}, False),
        ({"output_padding": (0, 1), "stride": (2, 1)}, False),
        ({"output_padding": (1, 0), "stride": (2, 1)}, True),
    ],
)
def test_output_padding_is_allowed_where_torch_allows_it(arguments: dict[str, Any], allowed: bool):
    plain = nn.ConvTranspose2d(1, 1, 3, **arguments)
    x = torch.zeros(1, 1, 3, 3)
    if allowed:
        g = ConvArguments.parse(2, 1, 1, 3, **arguments, transposed=True)
        assert g.output_size((3, 3)) == plain(x).shape[2:]
    else:
        with pytest.raises(RuntimeError):
            plain(x)
        with pytest.raises(ValueError, match="output_padding must be smaller than stride or dil"):
            ConvArguments.parse(2, 1, 1, 3, **arguments, transposed=True)


GROWN = [
    (dim, transposed, padding, dilation)
    for dim in (1, 2, 3)
    for transposed in (False, True)
    for padding in (0, 1, *(() if transposed else ("same", "valid")))
    for dilation in (1, 2)
]


@pytest.mark.parametrize(("dim", "transposed", "padding", "dilation"), GROWN)
def test_a_larger_extent_keeps_the_output_grid(
    dim: int, transposed: bool, padding: Any, dilation: int
):
    conv = plain_class(dim, transposed)(2, 3, 3, padding=padding, dilation=dilation).double().eval()
    conv.requires_grad_(False)
    x = torch.randn(2, 2, *(9, 8, 7)[:dim], dtype=torch.float64)
    cls = oc.card("weighted").layer(dim, transposed)
    layer = cls.from_conv(conv, extent=7)
    assert layer.kernel_size == (7,) * dim
    torch.testing.assert_close(layer(x), conv(x))
    assert not layer.training
    assert not any(p.requires_grad for p in layer.parameters())
    assert next(layer.parameters()).dtype == torch.float64


def test_the_new_layer_is_where_the_old_one_is():
    conv = nn.Conv2d(2, 3, 3, device="meta", dtype=torch.bfloat16)
    layer = oc.nn.WeightedConv2d.from_conv(conv, extent=5)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}


def test_an_extent_per_axis_grows_each_axis_by_its_own():
    conv = nn.Conv2d(2, 3, (3, 5), padding=(1, 0))
    layer, margins = transfer(oc.nn.WeightedConv2d, conv, (5, 5))
    assert layer.kernel_size == (5, 5)
    assert layer.padding == (2, 0)
    assert margins == [0, 0, 1, 1]


OWN = [name for name in oc.list_operators() if ":" not in name]
"""Operators that come with omniconv."""


@pytest.mark.parametrize("name", [n for n in OWN if oc.card(n).role != "resampler"])
def test_every_operator_refuses_the_wrong_layer_and_extent(name: str):
    cls: Any = oc.card(name).classes[2]
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=1 if oc.card(name).mixes_channels else 4)
    for wrong in (nn.Conv1d(4, 4, 3), nn.Linear(4, 4), nn.ConvTranspose2d(4, 4, 3), None, 3):
        with pytest.raises(TypeError, match=r"conv must be an nn\.Conv2d, got"):
            cls.from_conv(wrong)
    for extent in (1, 2, 4, (3, 4), (5, 1)):
        with pytest.raises(ValueError, match=r"extent must be the kernel's \(3, 3\) or larger"):
            cls.from_conv(conv, extent=extent)
    for extent in (2.5, "5", (5, 5, 5), 0):
        with pytest.raises((TypeError, ValueError), match="extent must be"):
            cls.from_conv(conv, extent=extent)
    with pytest.raises(TypeError, match="no_such_argument"):
        cls.from_conv(conv, no_such_argument=1)
