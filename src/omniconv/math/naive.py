"""Convolution by its definition, one position at a time.

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


def at(index: Iterable[int | slice]) -> Any:
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


def windows(x: Tensor, geometry: ConvArguments) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Every (output position, values (B, C, *kernel_size) under the kernel) of (B, C, *size)."""
    padded = naive_pad(x, geometry)
    for position in _positions(geometry.output_size(x.shape[2:])):
        yield position, padded[_under(position, geometry)]


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
    size = geometry.output_size(x.shape[2:])
    # (groups, O/groups, C/groups, taps), transposed (groups, C/groups, O/groups, taps)
    w = kernel.unflatten(0, (geometry.groups, -1)).flatten(3)
    if geometry.transposed:
        reach = [d * (k - 1) for d, k in zip(geometry.dilation, geometry.kernel_size, strict=True)]
        extent = [
            (n - 1) * s + r + 1 + o
            for n, s, r, o in zip(
                x.shape[2:], geometry.stride, reach, geometry.output_padding, strict=True
            )
        ]
        canvas = x.new_zeros(x.shape[0], geometry.out_channels, *extent)
        for position in _positions(x.shape[2:]):
            values = x[at(position)].unflatten(1, (geometry.groups, -1, 1, 1))
            spread = (values * w).sum(2).flatten(1, 2)
            canvas[_under(position, geometry)] += spread.unflatten(-1, geometry.kernel_size)
        inside = (slice(b, b + n) for (b, _), n in zip(geometry.pads, size, strict=True))
        y = canvas[at(inside)]
    else:
        cells = []
        for _, under in windows(x, geometry):
            values = under.unflatten(1, (geometry.groups, 1, -1)).flatten(4)
            cells.append((values * w).sum((-1, -2)).flatten(1))
        y = torch.stack(cells, -1).unflatten(-1, size)
    return y if bias is None else y + bias.view(-1, *[1] * geometry.dim)


def _under(position: tuple[int, ...], geometry: ConvArguments) -> Any:
    """The index of the entries under the kernel's taps at a position."""
    return at(
        slice(p * s, p * s + d * (k - 1) + 1, d)
        for p, s, d, k in zip(
            position, geometry.stride, geometry.dilation, geometry.kernel_size, strict=True
        )
    )


def _positions(size: tuple[int, ...] | torch.Size) -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, size))
