"""Families of functions of one variable, one member at a time and elementwise."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from omniconv.core import args
from omniconv.core.geometry import check_floating

__all__ = [
    "BASES",
    "GRIDS",
    "bspline",
    "centres",
    "chebyshev",
    "cox_de_boor",
    "gaussian",
    "gram",
    "gram_factor",
    "kan_basis",
    "on_grid",
    "parse_grid",
]

BASES = ("bspline", "rbf", "chebyshev", "gram")
GRIDS: dict[str, tuple[int, tuple[float, float]]] = {
    "bspline": (5, (-1.0, 1.0)),
    "rbf": (8, (-2.0, 2.0)),
}
"""grid_size and grid_range of the official code."""


def bspline(x: Tensor, degree: int) -> Tensor:
    r"""The B-spline of a degree over knots at distance 1, centred at 0.

    .. math::
        M_k(x) = \frac{1}{k!} \sum_{0 \le j < (k+1)/2} (-1)^j \binom{k+1}{j}
            \Big(\tfrac{k+1}{2} - |x| - j\Big)_+^k

    It is positive for :math:`|x| < (k+1)/2` and 0 elsewhere; its integer shifts add up to 1. The
    knots of odd degrees are the integers. From degree 2 on it has a continuous derivative; the
    second one is given as 0 at x = 0.

    Args:
        x: Any shape.
        degree: k, at least 1.
    """
    inner = (degree + 1) / 2 - x.abs()
    y = inner.relu().pow(degree) * (1 / math.factorial(degree))
    for j in range(1, (degree + 2) // 2):
        factor = (-1) ** j * math.comb(degree + 1, j) / math.factorial(degree)
        y = y + (inner - j).relu().pow(degree) * factor
    return y


def gaussian(x: Tensor) -> Tensor:
    """exp(-x^2)."""
    return (-(x * x)).exp()


def chebyshev(x: Tensor, degree: int) -> Tensor:
    """The Chebyshev polynomial of the first kind: T_0 = 1, T_1 = x, T_n = 2 x T_{n-1} - T_{n-2}."""
    if degree == 0:
        return torch.ones_like(x)
    before: Tensor | float = 1.0
    value = x
    for _ in range(2, degree + 1):
        before, value = value, 2 * (x * value) - before
    return value


def gram(x: Tensor, degree: int, beta: Tensor) -> Tensor:
    """The polynomial P_n of P_0 = 1, P_1 = x, P_n = x P_{n-1} - beta[n-2] P_{n-2}.

    Args:
        x: Any shape.
        degree: n, at least 0.
        beta: At least n - 1 numbers.
    """
    if degree == 0:
        return torch.ones_like(x)
    before: Tensor | None = None
    value = x
    for b in beta[: degree - 1].unbind():
        before, value = value, x * value - (b if before is None else b * before)
    return value


def gram_factor(n: int) -> float:
    """(2n+1) n^2 (4n^2-1) / (n+1)^2: what torch-conv-kan multiplies its n-th trained number by."""
    return (2 * n + 1) * n**2 * (4 * n**2 - 1) / (n + 1) ** 2


def cox_de_boor(x: Tensor, degree: int, intervals: int, ends: tuple[float, float]) -> list[Tensor]:
    """B-splines by their recursion over the knots."""
    step = (ends[1] - ends[0]) / intervals
    knots = [ends[0] + i * step for i in range(-degree, intervals + degree + 1)]
    values = [((x >= a) & (x < b)).to(x.dtype) for a, b in pairwise(knots)]
    for k in range(1, degree + 1):
        values = [
            (x - knots[i]) / (knots[i + k] - knots[i]) * values[i]
            + (knots[i + k + 1] - x) / (knots[i + k + 1] - knots[i + 1]) * values[i + 1]
            for i in range(len(values) - 1)
        ]
    return values


def centres(
    basis: str, degree: int, grid_size: int, grid_range: tuple[float, float]
) -> tuple[list[float], float]:
    """Centres c_i and scale h of the functions on a grid."""
    low, high = grid_range
    if basis == "rbf":
        step = (high - low) / (grid_size - 1)
        return [low + i * step for i in range(grid_size)], step
    step = (high - low) / grid_size
    return [low + (i - (degree - 1) / 2) * step for i in range(grid_size + degree)], step


def kan_basis(
    x: Tensor,
    basis: str = "bspline",
    *,
    degree: int = 3,
    grid_size: int | None = None,
    grid_range: tuple[float, float] | None = None,
    beta: Tensor | None = None,
) -> list[Tensor]:
    """All basis functions of x, each shaped as x (the table of the KAN convolution's module).

    Args:
        x: Any shape. The polynomials are evaluated at tanh x.
        basis: "bspline", "rbf", "chebyshev" or "gram".
        degree: Of splines, at least 1; highest of polynomials; "rbf" has none.
        grid_size: Intervals (bspline, default 5) or centres (rbf, default 8, at least 2).
        grid_range: Ends of the grid, default (-1, 1) for bspline, (-2, 2) for rbf.
        beta: (degree - 1,), for gram; default 0.

    Raises:
        TypeError: x is no floating-point tensor, or an argument of a wrong type.
        ValueError: An argument does not fit; the message names it.
    """
    check_floating("x", x)
    args.choice("basis", basis, BASES)
    args.positive_int("degree", degree)
    grid = parse_grid(basis, grid_size, grid_range)
    if grid:
        points, step = centres(basis, degree, *grid)
        return [on_grid(x, basis, degree, centre, step) for centre in points]
    t = x.tanh()
    if basis == "chebyshev":
        return [chebyshev(t, i) for i in range(degree + 1)]
    beta = t.new_zeros(degree - 1) if beta is None else beta
    check_floating("beta", beta)
    if beta.shape != (degree - 1,):
        raise ValueError(f"beta must have shape ({degree - 1},), got {tuple(beta.shape)}")
    return [gram(t, i, beta) for i in range(degree + 1)]


def parse_grid(basis: str, size: Any, ends: Any) -> tuple[int, tuple[float, float]] | None:
    """grid_size and grid_range, checked; None for a basis without a grid."""
    for name, value in (("grid_size", size), ("grid_range", ends)):
        if value is not None and basis not in GRIDS:
            raise ValueError(
                f"{name} must be left out with basis={basis!r}, got {args.show(value)}"
            )
    if basis not in GRIDS:
        return None
    usual, span = GRIDS[basis]
    count = usual if size is None else args.integer("grid_size", size, 2)
    if ends is None:
        return count, span
    if not isinstance(ends, (tuple, list)) or len(ends) != 2:
        raise ValueError(
            f"grid_range must be two numbers, the first one smaller, got {args.show(ends)}"
        )
    low, high = (args.real(f"grid_range[{i}]", end) for i, end in enumerate(ends))
    if low >= high:
        raise ValueError(
            f"grid_range must be two numbers, the first one smaller, got {args.show(ends)}"
        )
    return count, (low, high)


def on_grid(x: Tensor, basis: str, degree: int, centre: float, step: float) -> Tensor:
    """One spline or Gaussian of a grid."""
    u = (x - centre) * (1 / step)
    return gaussian(u) if basis == "rbf" else bspline(u, degree)
