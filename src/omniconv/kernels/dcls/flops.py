"""Floating-point operations of building DCLS kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from omniconv.math.taps import slice_rows

__all__ = ["dcls_flops"]


def dcls_flops(shape: Sequence[int], size: Sequence[int], interpolation: str) -> tuple[int, int]:
    """FLOPs (forward, backward) for taps of this shape, as the reference spends them.

    They count for the kernel too, which leaves out what is zero and builds profiles twice.
    """
    n, d = math.prod(shape), len(size)
    if interpolation == "bilinear":
        # place and cell per axis, a product and a difference per split tap, a sum per corner
        return n * (4 * d + 2 * (2**d - 1) + 2**d), n * (6 * (2**d - 1) - d)
    forward, backward = _separable(n, size, interpolation)
    slices = math.ceil(shape[0] / slice_rows(shape, size))
    grids = slices * sum(size)
    if slices > 1:  # each is built again
        backward += forward + grids
    # sigma = c + |width|
    return forward + grids + 2 * d * n, backward + 2 * d * n


def _separable(n: int, size: Sequence[int], interpolation: str) -> tuple[int, int]:
    """Profiles, their sums, the products that join them, and their gradients, for n taps."""
    per_entry, per_tap = {"gauss": (4, 3), "triangle": (3, 0)}[interpolation]
    entry_gradient, tap_gradient = {"gauss": (6, 7), "triangle": (3, 0)}[interpolation]
    forward, backward = 2 * n * math.prod(size), 4 * n * math.prod(size)
    for s in size:
        # distance, profile and its sum; clamped position and division
        forward += n * ((2 + per_entry) * s + 2 + per_tap)
        # besides: two uses of a profile are added, gradients summed for position and sigma
        backward += n * ((4 + entry_gradient) * s + 5 + tap_gradient)
    joined = 1
    for s in size[:-1]:
        joined *= s
        forward += n * joined
        backward += n * joined * (4 if s > 1 else 3)
    return forward, backward
