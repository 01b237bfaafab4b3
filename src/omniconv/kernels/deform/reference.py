r"""Deformable convolution in plain torch: the definition.

.. math::
    s_{c,q,p} &= \tilde x_c(p \cdot \text{stride} - \text{lo} + q \cdot \text{dilation}
                 + \text{offset}_{o(c), q, p}) \\
    y_{o,p} &= b_o + \sum_{c, q} W_{o,c,q}\, m_{o(c), q, p}\, s_{c,q,p}
    \quad\text{or, without } W, \quad y_{c,p} = \sum_q m_{o(c), q, p}\, s_{c,q,p}

x~ is x, zero outside of its grid, interpolated multilinearly. At whole coordinates its derivative
is that of the cell above, [n, n + 1). An offset of NaN makes the outputs that it reaches NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["deform_reference"]


def deform_reference(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    offset_groups: int,
) -> Tensor:
    """See :func:`omniconv.kernels.deform.deform`; ``padding`` has two entries per axis."""
    wide = torch.promote_types(x.dtype, torch.float32)
    out = offset.shape[2:]
    places = _places(offset.to(wide), x.shape[2:], kernel_size, stride, padding, dilation)
    m = None if mask is None else mask.to(wide).unflatten(1, (offset_groups, -1)).flatten(3)
    s = _samples(x.to(wide), places, m)  # (B, C, Q, P)
    if weight is None:
        return s.sum(2).unflatten(2, out).to(x.dtype)
    columns = s.unflatten(1, (groups, -1)).flatten(2, 3)
    rows = weight.to(wide).flatten(1).unflatten(0, (groups, -1))
    y = torch.einsum("gok,bgkp->bgop", rows, columns).flatten(1, 2)
    if bias is not None:
        y = y + bias.to(wide).unsqueeze(-1)
    return y.unflatten(2, out).to(x.dtype)


def _places(
    offset: Tensor,
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[Tensor]:
    """Coordinates (B, offset groups, Q, P) along each axis.

    They are clamped to [-1, S], whose ends are the nearest places from where on x~ is zero.
    """
    dim, out = len(kernel_size), offset.shape[2:]
    taps = torch.Size(kernel_size).numel()
    parts = offset.unflatten(1, (-1, taps, dim)).flatten(4).unbind(3)
    places = []
    for a in range(dim):
        q = torch.arange(kernel_size[a], device=offset.device) * dilation[a] - padding[2 * a]
        p = torch.arange(out[a], device=offset.device) * stride[a]
        q = q.view([-1 if i == a else 1 for i in range(dim)]).expand(*kernel_size).reshape(-1, 1)
        p = p.view([-1 if i == a else 1 for i in range(dim)]).expand(out).reshape(1, -1)
        places.append((parts[a] + (q + p)).clamp(-1, size[a]))
    return places


def _samples(x: Tensor, places: Sequence[Tensor], mask: Tensor | None) -> Tensor:
    """x~ at these places, times the mask: (B, C, Q, P)."""
    offset_groups, taps, points = places[0].shape[1:]
    size = [s + 3 for s in x.shape[2:]]  # zeros from -1 to S + 1: every corner is in memory
    x = F.pad(x, [1, 2] * len(places)).unflatten(1, (offset_groups, -1)).flatten(3)
    corner = torch.zeros((), dtype=torch.long, device=x.device)
    weights = [] if mask is None else [mask]
    for place, s in zip(places, size, strict=True):
        low = place.detach().floor()
        part = place - low
        sides = (1 - part, part)
        # NaN: any corner, times weights that are NaN
        corner = corner * s + torch.where(low >= -1, low, -1).long() + 1
        weights = [w * side for w in weights for side in sides] if weights else list(sides)
    steps = [0]
    for s in size:
        steps = [step * s + up for step in steps for up in (0, 1)]
    total: Tensor | None = None
    for step, w in zip(steps, weights, strict=True):
        index = (corner + step).flatten(2).unsqueeze(2).expand(-1, -1, x.shape[2], -1)
        term = x.gather(3, index) * w.flatten(2).unsqueeze(2)
        total = term if total is None else total + term
    assert total is not None
    return total.flatten(1, 2).unflatten(2, (taps, points))
