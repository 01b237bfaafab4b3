"""The only file that touches private names of torch."""

from __future__ import annotations

from typing import Any

from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

ConvNd = _ConvNd
"""The common base class of torch's six convolution layers."""

ConvTransposeNd = _ConvTransposeNd
"""The common base class of torch's three transposed convolution layers."""


def set_reversed_padding(module: Any, pads: tuple[tuple[int, int], ...]) -> None:
    """Set what ``nn.ConvNd.forward`` hands to ``F.pad`` for a padding mode other than zeros."""
    module._reversed_padding_repeated_twice = [p for pair in reversed(pads) for p in pair]
