"""Convolutions go to the depthwise kernel where they are depthwise, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import omniconv as oc
from omniconv.core.geometry import ConvArguments
from omniconv.kernels import convolve
from omniconv.kernels.convolve import convolution

CALLS = (F.conv1d, F.conv2d, F.conv3d)
NAMES = [name for name in oc.list_operators() if ":" not in name]
CHANNELS = 12


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The paddings that the functional of the depthwise kernel is called with."""
    found: list[Any] = []
    original = convolve.depthwise

    def spied(x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, *rest: Any) -> Any:
        found.append(padding)
        return original(x, weight, bias, stride, padding, *rest)

    monkeypatch.setattr(convolve, "depthwise", spied)
    return found


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize(
    ("channels", "groups", "outputs", "depthwise"),
    [(4, 4, 4, True), (4, 4, 8, True), (4, 2, 4, False), (4, 1, 4, False), (1, 1, 4, False)],
)
def test_the_same_numbers_as_torchs(dim, channels, groups, outputs, depthwise, calls):
    x = torch.randn(2, channels, *(9, 8, 7)[:dim], dtype=torch.float64)
    weight = torch.randn(outputs, channels // groups, *(2, 3, 1)[:dim], dtype=torch.float64)
    bias = torch.randn(outputs, dtype=torch.float64)
    rests = [
        (bias, 2, 1, 1, groups),
        (None, 1, "same", 3, groups),
        (bias, (3, 2, 1)[:dim], "valid", 1, groups),
        (None, 1, (2, 1, 0)[:dim], (1, 2, 1)[:dim], groups),
    ]
    for rest in rests:
        for given in (x, x[0]):
            wanted = CALLS[dim - 1](given, weight, *rest)
            torch.testing.assert_close(convolution(given, weight, *rest), wanted)
    assert len(calls) == (2 * len(rests) if depthwise else 0)


def test_what_torch_refuses_is_refused(calls):
    x, weight = torch.randn(2, 4, 5, 5), torch.randn(4, 1, 3, 3)
    for wrong in (
        lambda: convolution(x, weight, None, 2, "same", 1, 4),
        lambda: convolution(x, weight, None, 1, "full", 1, 4),
        lambda: convolution(x, torch.randn(6, 1, 3, 3), None, 1, 0, 1, 4),
        lambda: convolution(x[:, :3], weight, None, 1, 0, 1, 4),
        lambda: convolution(x[0, 0], weight, None, 1, 0, 1, 4),
        lambda: convolution(x, torch.randn(4, 1, 7, 7), None, 1, 0, 1, 4),
        lambda: convolution(x.double(), weight, None, 1, 0, 1, 4),
    ):
        with pytest.raises((RuntimeError, ValueError)):
            wrong()


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_uneven_padding_of_a_layers_geometry_is_the_kernels(mode, calls):
    own = {"kernel_size": 4, "padding": "same", "padding_mode": mode, "groups": 4}
    geometry = ConvArguments.parse(2, 4, 4, **own)
    x, weight = torch.randn(2, 4, 9, 9), torch.randn(4, 1, 4, 4)
    wanted = F.conv2d(geometry.pad(x), weight, groups=4)
    for given, y in ((x, wanted), (x[0], wanted[0])):
        torch.testing.assert_close(convolve.convolve(given, weight, None, geometry), y)
    assert calls == [((1, 2), (1, 2)) if mode == "zeros" else 0] * 2


@pytest.mark.parametrize("name", NAMES)
def test_a_card_names_the_depthwise_kernel_where_the_operator_uses_it(name, calls):
    card = oc.card(name)
    if card.role not in ("conv", "mixer", "masked", "resampler"):
        pytest.skip(f"is called otherwise than layer(x), as role {card.role}")
    channels = CHANNELS * card.channel_multiple({})
    for variant in card.variants.values():
        for groups in (channels, 1):
            try:
                layer = oc.create(
                    name, channels, channels, 3, padding=1, groups=groups, dim=2, **variant
                )
            except ValueError:  # its own arguments do not allow so many groups
                continue
            layer.eval()(torch.randn(2, channels, 5, 5))
    assert bool(calls) == ("depthwise" in card.kernels)
