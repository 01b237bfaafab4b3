r"""Sums of outer products (CP form) of batches of tensors, and the nearest one to a tensor.

.. math:: T[a, u_0, u_1, \dots] = \sum_{r=1}^R \prod_j f_j[a, r, u_j]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["cp_nearest", "cp_product"]

SWEEPS = 100
CONVERGED = 1e-8
"""Alternating least squares stops where a sweep removes less than this share of the tensor."""


def cp_product(factors: Sequence[Tensor]) -> Tensor:
    """The tensors (A, n0, n1, ...) of factors (A, R, n0), (A, R, n1), ..."""
    left, *middle = factors
    if not middle:
        return left.sum(1)
    for factor in middle[:-1]:
        left = (left.unsqueeze(-1) * factor.unsqueeze(2)).flatten(2)
    shape = (len(left), *(factor.shape[2] for factor in factors))
    return torch.bmm(left.transpose(1, 2), middle[-1]).view(shape)


def cp_nearest(tensor: Tensor, rank: int) -> list[Tensor]:
    """Factors (A, rank, n) of a CP form near each of the tensors (A, n0, n1, ...) in least squares.

    Two axes: the nearest (truncated singular value decomposition). More axes: alternating least
    squares from the leading singular vectors of each unfolding, which finds a local minimum; exact
    where ``rank`` reaches the product of all sizes but the largest. All factors but the first have
    norm 1. Computed in float64.
    """
    tensor = tensor.double()
    sizes = tensor.shape[1:]
    largest = max(range(len(sizes)), key=lambda j: sizes[j])
    if rank >= math.prod(sizes) // max(sizes[largest], 1):
        return _normalised(_exact(tensor, rank, largest))
    unfolded = [tensor.movedim(1 + j, 1).flatten(2) for j in range(len(sizes))]
    factors = [tensor.new_zeros(len(tensor), rank, n) for n in sizes]
    order = [largest, *(j for j in range(len(sizes)) if j != largest)]
    for j in order[1:]:  # the first one to be solved for needs no start
        matrix = unfolded[j]
        vectors = torch.linalg.eigh(matrix @ matrix.mT)[1].flip(-1).mT
        # past the last vector they start again, shifted against the other axes
        index = [(r + j * (r // sizes[j])) % sizes[j] for r in range(rank)]
        factors[j] = vectors[:, index]
    total = float(tensor.square().sum())
    before = math.inf
    for _ in range(SWEEPS):
        for j in order:
            others = [factor for i, factor in enumerate(factors) if i != j]
            product, gram = others[0], others[0] @ others[0].mT
            for factor in others[1:]:
                product = (product.unsqueeze(-1) * factor.unsqueeze(2)).flatten(2)
                gram = gram * (factor @ factor.mT)
            factors[j] = torch.linalg.pinv(gram, hermitian=True) @ (product @ unfolded[j].mT)
        rest = float((tensor - cp_product(factors)).square().sum())
        if before - rest <= CONVERGED * total:
            break
        before = rest
    return _normalised(factors)


def _exact(tensor: Tensor, rank: int, axis: int) -> list[Tensor]:
    """One term per line along ``axis``: the line itself and unit vectors; the rest is 0."""
    sizes = list(tensor.shape[1:])
    others = [j for j in range(len(sizes)) if j != axis]
    lines = tensor.movedim(1 + axis, -1).reshape(len(tensor), -1, sizes[axis])
    factors = [tensor.new_zeros(len(tensor), rank, n) for n in sizes]
    factors[axis][:, : lines.shape[1]] = lines
    places = torch.arange(rank, device=tensor.device)
    for j in reversed(others):
        factors[j][:, torch.arange(rank, device=tensor.device), places % sizes[j]] = 1
        places = places // sizes[j]
    return factors


def _normalised(factors: list[Tensor]) -> list[Tensor]:
    """The same sum of products; all factors but the first have norm 1."""
    first, *others = factors
    for j, factor in enumerate(others):
        norm = factor.norm(dim=-1, keepdim=True)
        unit = torch.full_like(factor, factor.shape[-1] ** -0.5)
        first = first * norm
        others[j] = torch.where(norm > 0, factor / norm.clamp(min=1e-300), unit)
    return [first, *others]
