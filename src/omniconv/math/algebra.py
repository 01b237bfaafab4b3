"""Multiplication tables of algebras over the real numbers.

A table ``T`` of an n-dimensional algebra has shape (n, n, n): the product of a and x has the
components ``(a x)_p = sum_{s, q} T[s, p, q] a_s x_q``, so that ``T[s]`` is the matrix of
multiplication by the s-th unit from the left.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ALGEBRAS", "multiplication_table"]

ALGEBRAS: dict[str, int] = {"real": 1, "complex": 2, "quaternion": 4, "octonion": 8}
"""Name -> dimension."""


def multiplication_table(algebra: str) -> Tensor:
    """The table of one of ``ALGEBRAS``, float64, on the CPU.

    Each algebra doubles the one before it (Cayley and Dickson): pairs multiply as
    ``(a, b)(c, d) = (a c - d* b, d a + b c*)``. The units of quaternions are 1, i, j, k = i j.

    >>> multiplication_table("complex").tolist()
    [[[1.0, 0.0], [0.0, 1.0]], [[0.0, -1.0], [1.0, 0.0]]]
    """
    n = ALGEBRAS[algebra]
    table = torch.zeros(n, n, n, dtype=torch.float64, device="cpu")
    for s in range(n):
        for q in range(n):
            p, sign = _product(s, q, n)
            table[s, p, q] = sign
    return table


def _product(s: int, q: int, n: int) -> tuple[int, int]:
    """The unit that the units ``s`` and ``q`` of the n-dimensional algebra give, and its sign."""
    if n == 1:
        return 0, 1
    half = n // 2
    a, c = s % half, q % half
    conjugate = {True: 1, False: -1}  # of a unit: itself if it is 1, else its negative
    if s < half and q < half:
        return _product(a, c, half)
    if s < half:  # (a, 0)(0, d) = (0, d a)
        p, sign = _product(c, a, half)
        return half + p, sign
    if q < half:  # (0, b)(c, 0) = (0, b c*)
        p, sign = _product(a, c, half)
        return half + p, sign * conjugate[c == 0]
    p, sign = _product(c, a, half)  # (0, b)(0, d) = (-d* b, 0)
    return p, -sign * conjugate[c == 0]
