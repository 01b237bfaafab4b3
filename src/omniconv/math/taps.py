r"""Dense kernels from few taps at real positions.

.. math:: K(u) = \sum_k w_k \prod_a \phi_a(u_a - p_{ka})

Positions count from the kernel's centre, (S - 1) / 2 on an axis of size S, and are clamped to the
kernel's box. A clamped position has derivative 0 outside the box and 1 up to its border.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from omniconv.math.slices import in_slices

__all__ = ["PROFILES", "gauss", "scattered_taps", "separable_taps", "slice_rows", "triangle"]

Profile = Callable[[Tensor, Tensor], Tensor]
NEGLIGIBLE = 40.0
"""exp(-40) = 4e-18 is lost in any sum with 1; below it come denormals, which are slow."""
SLICE = 1 << 19
"""Profile entries that a slice of :func:`separable_taps` may hold."""


def scattered_taps(taps: Tensor, position: Tensor, size: Sequence[int]) -> Tensor:
    r"""Multilinear taps: each adds to the 2^d entries around it, :math:`\phi(x) = (1 - |x|)_+`.

    A tap on a grid point has the derivative of the cell above it, at the box's upper border of the
    cell below. Time and memory are linear in the number of taps.

    Args:
        taps: Weights (A, B, m).
        position: (A, B, d m): the m coordinates along the first axis, then those along the next.
        size: Sizes of the d axes.

    Returns:
        The kernel (A, B, \*size).
    """
    weights, offsets = [taps], [0]
    corner = torch.zeros((), dtype=torch.long, device=taps.device)
    for p, s in zip(_per_axis(position, size), size, strict=True):
        half = (s - 1) // 2
        place = p.clamp(-(s - 1) / 2, (s - 1) / 2) + (s - 1) / 2 % 1
        low = (place.detach().floor().long() + half).clamp(0, max(s - 2, 0))
        part = place - (low - half)
        upper = [w * part for w in weights]
        weights = [w - u for w, u in zip(weights, upper, strict=True)] + upper
        corner = corner * s + low
        offsets = [o * s + step for step in (0, min(s - 1, 1)) for o in offsets]
    kernel = taps.new_zeros(*taps.shape[:-1], math.prod(size))
    for w, offset in zip(weights, offsets, strict=True):
        kernel.scatter_add_(-1, corner + offset, w)
    return kernel.unflatten(-1, tuple(size))


def separable_taps(
    taps: Tensor, position: Tensor, sigma: Tensor, size: Sequence[int], profile: Profile
) -> Tensor:
    r"""Taps with a footprint as wide as the kernel, divided by its sum over the kernel.

    .. math:: K(u) = \sum_k \frac{w_k}{n_k} \prod_a \psi(u_a - p_{ka}, \sigma_{ka}), \quad
              n_k = \prod_a \sum_{u_a} \psi(u_a - p_{ka}, \sigma_{ka})

    The footprints are never formed: the profiles of the last axis are joined to the others' by a
    matrix product over the taps. Large kernels are built in slices, which the backward pass builds
    again.

    Args:
        taps: Weights (A, B, m).
        position: (A, B, d m), laid out as in :func:`scattered_taps`.
        sigma: Widths, shaped as ``position``.
        size: Sizes of the d axes.
        profile: One of ``PROFILES``: (distance, sigma) -> value.

    Returns:
        The kernel (A, B, \*size).
    """

    def build(taps: Tensor, position: Tensor, sigma: Tensor) -> Tensor:
        rows = []
        scale = taps
        for p, width, s in zip(
            _per_axis(position, size), _per_axis(sigma, size), size, strict=True
        ):
            centre = (s - 1) / 2
            grid = torch.arange(s, dtype=p.dtype, device=p.device).view(-1, 1, 1, 1) - centre
            rows.append(profile(grid - p.clamp(-centre, centre), width))  # (s, A, B, m)
            scale = scale / rows[-1].sum(0)
        left = scale.unsqueeze(0)
        for row in rows[:-1]:
            left = (left.unsqueeze(1) * row).flatten(0, 1)
        kernel = left.permute(1, 2, 0, 3) @ rows[-1].permute(1, 2, 3, 0)
        return kernel.flatten(-2).unflatten(-1, tuple(size))

    return in_slices(build, slice_rows(taps.shape, size), taps, position, sigma)


def slice_rows(shape: Sequence[int], size: Sequence[int]) -> int:
    """Rows of axis 0 that :func:`separable_taps` builds at once, for taps of this shape."""
    rows, columns, taps = shape
    entries = columns * taps * (sum(size) + math.prod(size[:-1]))
    return rows if rows * entries <= 2 * SLICE else max(1, SLICE // entries)


def gauss(distance: Tensor, sigma: Tensor) -> Tensor:
    r""":math:`\exp(-x^2 / 2\sigma^2)`, not below exp(-40)."""
    return torch.exp((distance * distance * (-0.5 / (sigma * sigma))).clamp(min=-NEGLIGIBLE))


def triangle(distance: Tensor, sigma: Tensor) -> Tensor:
    r""":math:`(\sigma - |x|)_+`; derivatives: of :math:`|x|` at 0: 0, of :math:`x_+` at 0: 1."""
    return (sigma - distance.abs()).clamp(min=0)


PROFILES: dict[str, Profile] = {"gauss": gauss, "triangle": triangle}


def _per_axis(values: Tensor, size: Sequence[int]) -> tuple[Tensor, ...]:
    """(A, B, d m) as d contiguous tensors (A, B, m): elementwise work runs along all of them."""
    return values.unflatten(-1, (len(size), -1)).movedim(-2, 0).contiguous().unbind(0)
