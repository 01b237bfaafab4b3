"""Kernels of grouped convolutions in another grouping."""

from __future__ import annotations

import torch
from torch import Tensor

from omniconv.core import args

__all__ = ["join_groups"]


def join_groups(kernel: Tensor, before: int, after: int) -> Tensor:
    """The kernel with ``after`` groups that does what ``kernel`` does with ``before``.

    Args:
        kernel: (O, I/before, *size).
        before: Groups of ``kernel``.
        after: Number of groups, a divisor of ``before``.

    Returns:
        (O, I/after, *size): the same blocks, 0 between channels that were apart.

    Raises:
        ValueError: ``after`` does not divide ``before``.
    """
    args.divisor("groups", after, **{"conv.groups": before})
    joined = before // after
    if joined == 1:
        return kernel
    blocks = kernel.flatten(2).unflatten(0, (after, joined, -1))
    _, _, rows, columns, taps = blocks.shape
    every = torch.arange(joined)
    wide = blocks.new_zeros(after, joined, rows, joined, columns, taps)
    wide[:, every, :, every] = blocks.transpose(0, 1)
    return wide.view(kernel.shape[0], joined * columns, *kernel.shape[2:])
