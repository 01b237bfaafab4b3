"""Floating-point operations of deformable convolution, as the reference spends them.

They count for the kernels too, which read fewer corners at the borders and, backward, interpolate
again instead of keeping the samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["backward_flops", "forward_flops"]

Shape = Sequence[int]


def forward_flops(
    x: Shape,
    offset: Shape,
    mask: Shape | None,
    weight: Shape | None,
    bias: Shape | None,
    kernel_size: Sequence[int],
) -> int:
    """FLOPs for arguments of these shapes."""
    dim, corners, places, samples = _sizes(x, offset, kernel_size)
    # place, clamp, floor, two sides along each axis, and the weights of the corners
    per_place = 5 * dim + _products(dim, mask)
    found = places * per_place + samples * (2 * corners - 1)
    if weight is None:
        return found + samples
    points = math.prod(offset[2:])
    outputs = x[0] * weight[0] * points
    return found + 2 * x[0] * points * math.prod(weight) + (0 if bias is None else outputs)


def backward_flops(
    x: Shape,
    offset: Shape,
    mask: Shape | None,
    weight: Shape | None,
    kernel_size: Sequence[int],
    needed: Sequence[bool],
) -> int:
    """FLOPs of the gradients that are ``needed``: to x, offset, mask, weight."""
    dim, corners, places, samples = _sizes(x, offset, kernel_size)
    found = 0
    if weight is not None:
        product = 2 * x[0] * math.prod(offset[2:]) * math.prod(weight)
        found += product * (any(needed[:3]) + needed[3])
    if needed[0]:
        padded = x[0] * x[1] * math.prod(s + 3 for s in x[2:])
        found += 2 * corners * samples + (corners - 1) * padded
    if needed[1] or needed[2]:
        found += corners * samples * (1 if samples == places else 2)
        # two per product; a sum for all uses of a weight or side but one; 1 - part
        products = _products(dim, mask)
        sides = sum(2 * (2**a - 1) for a in range(dim))
        found += places * (2 * products + products // 2 + sides + 2 * dim)
    return found


def _sizes(x: Shape, offset: Shape, kernel_size: Sequence[int]) -> tuple[int, int, int, int]:
    """Axes, corners of a cell, places where x is sampled, and samples."""
    dim, points = len(kernel_size), x[0] * math.prod(offset[2:])
    places, samples = points * (offset[1] // dim), points * x[1] * math.prod(kernel_size)
    return dim, 2**dim, places, samples


def _products(dim: int, mask: Shape | None) -> int:
    """Of the sides of a cell, that make the weights of its corners."""
    return 2 ** (dim + 1) - (4 if mask is None else 2)
