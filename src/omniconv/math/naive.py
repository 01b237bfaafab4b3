"""Convolution by its definition, one output position and one tap at a time.

The reference that operators are tested against. It is slow, differentiable and shares no code
with torch's convolutions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from omniconv.core.geometry import ConvArguments

__all__ = ["at", "naive_convolution", "naive_pad", "windows"]


def at(index: Iterable[int]) -> Any:
    """The index of one spatial position in (B, C, *size)."""
    return (slice(None), slice(None), *index)


def naive_pad(x: Tensor, geometry: ConvArguments) -> Tensor:
    """``x`` (B, C, *size) padded one axis at a time by looking indices up."""
    for axis, (before, after) in enumerate(geometry.pads):
        n = x.shape[2 + axis]
        slices = []
        for i in range(-before, n + after):
            if 0 <= i < n:
                source = i
            elif geometry.padding_mode == "zeros":
                source = None
            elif geometry.padding_mode == "replicate":
                source = min(max(i, 0), n - 1)
            elif geometry.padding_mode == "circular":
                source = i % n
            else:
                source = -i if i < 0 else 2 * (n - 1) - i
            piece = x.select(2 + axis, 0 if source is None else source)
            slices.append(torch.zeros_like(piece) if source is None else piece)
        x = torch.stack(slices, 2 + axis)
    return x


def windows(
    x: Tensor, geometry: ConvArguments
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], Tensor]]:
    """Every (output position, tap, values (B, C) under it) of an input (B, C, *size)."""
    padded = naive_pad(x, geometry)
    for position in itertools.product(*map(range, geometry.output_size(x.shape[2:]))):
        for tap in itertools.product(*map(range, geometry.kernel_size)):
            index = [
                p * s + t * d
                for p, s, t, d in zip(
                    position, geometry.stride, tap, geometry.dilation, strict=True
                )
            ]
            yield position, tap, padded[at(index)]


def naive_convolution(
    x: Tensor, kernel: Tensor, bias: Tensor | None, geometry: ConvArguments
) -> Tensor:
    """torch's convolution (plain or transposed) of ``x`` with ``kernel``, from its definition.

    Args:
        x: (B, C, *size) or unbatched (C, *size).
        kernel: (O, C/groups, *kernel_size), transposed (C, O/groups, *kernel_size).
        bias: (O,) or None.
        geometry: All other arguments.
    """
    if x.dim() == geometry.dim + 1:
        return naive_convolution(x.unsqueeze(0), kernel, bias, geometry).squeeze(0)
    g = geometry.groups
    size = geometry.output_size(x.shape[2:])
    cells = {p: x.new_zeros(x.shape[0], geometry.out_channels) for p in _positions(size)}
    if geometry.transposed:
        for source in _positions(x.shape[2:]):
            values = x[at(source)].unflatten(1, (g, -1))
            for tap in _positions(geometry.kernel_size):
                target = tuple(
                    p * s + t * d - b
                    for p, s, t, d, (b, _) in zip(
                        source,
                        geometry.stride,
                        tap,
                        geometry.dilation,
                        geometry.pads,
                        strict=True,
                    )
                )
                if target in cells:
                    w = kernel[at(tap)].unflatten(0, (g, -1))
                    product = (values.unsqueeze(-1) * w).sum(2)  # (B, g, O/g)
                    cells[target] = cells[target] + product.flatten(1)
    else:
        for position, tap, values in windows(x, geometry):
            w = kernel[at(tap)].unflatten(0, (g, -1))  # (g, O/g, C/g)
            product = (w * values.unflatten(1, (g, 1, -1))).sum(-1)
            cells[position] = cells[position] + product.flatten(1)
    y = torch.stack(list(cells.values()), -1) if cells else x.new_zeros(0)
    y = y.unflatten(-1, size)
    return y if bias is None else y + bias.view(-1, *[1] * geometry.dim)


def _positions(size: tuple[int, ...] | torch.Size) -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, size))
