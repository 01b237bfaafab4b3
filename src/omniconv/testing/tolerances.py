"""How far apart two evaluations of one formula may be: the only table of tolerances.

An error is measured against the largest expected magnitude of the tensor it occurs in, so that
cancellation in single entries does not matter. It may be

    roundings * eps(dtype) + sqrt(length) * eps(accumulator)

where ``roundings`` counts results that are rounded to the dtype on the way (kernel, products,
output, gradients passed on), ``length`` the terms of the longest sum, and the accumulator is the
type such sums are formed in (float32 at least). Loosening an entry needs its reason in the commit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["TABLE", "require", "require_equal", "require_near", "tolerance"]

TABLE: dict[torch.dtype, tuple[int, torch.dtype]] = {
    torch.float64: (32, torch.float64),
    torch.float32: (8, torch.float32),
    torch.bfloat16: (4, torch.float32),
    torch.float16: (4, torch.float32),
}
"""dtype -> (roundings, accumulator)."""


def tolerance(dtype: torch.dtype, length: int) -> float:
    """Allowed error relative to the largest expected magnitude."""
    roundings, accumulator = TABLE[dtype]
    sums = math.sqrt(max(length, 1)) * torch.finfo(accumulator).eps
    return roundings * torch.finfo(dtype).eps + sums


def require(condition: bool, message: str) -> None:
    """Fail with ``message`` unless ``condition`` holds."""
    if not condition:
        raise AssertionError(message)


def require_near(
    what: str,
    actual: Tensor,
    expected: Tensor,
    *,
    length: int,
    dtype: torch.dtype | None = None,
    scale: float | None = None,
) -> None:
    """Fail unless two tensors have one shape and agree within the table's tolerance.

    Args:
        what: Name for the message.
        actual: The tensor under test.
        expected: The right values, of ``actual``'s dtype or a wider one.
        length: Terms of the longest sum behind an entry.
        dtype: Row of the table (default: ``actual``'s dtype).
        scale: What the error is measured against (default: the largest expected magnitude).
    """
    require(
        actual.shape == expected.shape,
        f"{what} has shape {tuple(actual.shape)}, expected {tuple(expected.shape)}",
    )
    if actual.numel() == 0:
        return
    wide = expected.detach().double()
    scale = float(wide.abs().max()) if scale is None else scale
    error = float((actual.detach().double() - wide).abs().max())
    exact = torch.float64 if not actual.is_floating_point() else actual.dtype
    limit = tolerance(dtype or exact, length) * scale
    require(
        error <= limit,
        f"{what} differs by {error:.3g} where {limit:.3g} is allowed (at scale {scale:.3g})",
    )


def require_equal(what: str, actual: Tensor, expected: Tensor) -> None:
    """Fail unless two tensors agree in dtype, shape and every bit."""
    same = actual.dtype == expected.dtype and torch.equal(actual, expected)
    require(same, f"{what} must be the same to the last bit, and is not")
