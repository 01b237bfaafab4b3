"""Windows over a grid as shifted, strided slices: views, no copy of the input per tap."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

__all__ = ["shifted", "window_sum"]


def shifted(
    x: Tensor,
    tap: Sequence[int],
    size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The values under one tap of every window, ``x[..., p * stride + tap * dilation]``, a view.

    Args:
        x: (..., *S), padded already.
        tap: The tap's index on each spatial axis.
        size: Number of windows p on each axis.
        stride: Steps between windows.
        dilation: Steps between taps.
    """
    index = [
        slice(t * d, t * d + (n - 1) * s + 1, s)
        for t, n, s, d in zip(tap, size, stride, dilation, strict=True)
    ]
    at: Any = (..., *index)
    return x[at]


def window_sum(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Sums over the windows of a convolution, one axis after the other.

    Only additions: whole numbers stay exact (below 2^24 in float32), and a sum of values that are
    not negative is 0 only where all of them are. A convolution with ones promises neither.

    Args:
        x: (..., *S), padded already.
        kernel_size: Extent of the windows on each axis.
        stride: Steps between windows.
        dilation: Steps between taps.
    """
    dim = len(kernel_size)
    for axis, (k, s, d) in enumerate(zip(kernel_size, stride, dilation, strict=True)):
        line = x.movedim(axis - dim, -1)
        count = (line.shape[-1] - d * (k - 1) - 1) // s + 1
        taps = (shifted(line, (t,), (count,), (s,), (d,)) for t in range(k))
        x = reduce(torch.add, taps).movedim(-1, axis - dim)
    return x
