"""Dense kernels from few taps at real positions: reference, and a kernel for the CPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from omniconv.kernels.backend import is_direct, kernel_for
from omniconv.kernels.dcls import ops
from omniconv.kernels.dcls.reference import INTERPOLATIONS, NARROWEST, dcls_reference

__all__ = ["INTERPOLATIONS", "NARROWEST", "dcls"]

SIZES = range(1, 4)
"""Numbers of axes that the kernel knows."""


def dcls(
    taps: Tensor,
    position: Tensor,
    width: Tensor | None,
    size: Sequence[int],
    interpolation: str,
) -> Tensor:
    r"""The dense kernel of taps at real positions.

    Args:
        taps: Weights (O, I/groups, m).
        position: (O, I/groups, d m), from the kernel's centre.
        width: Widths s, shaped as ``position``; None for ``"bilinear"``.
        size: The kernel's d sizes.
        interpolation: ``"bilinear"``, ``"gauss"`` or ``"triangle"``.

    Returns:
        (O, I/groups, \*size).
    """
    tensors = (taps, position) if width is None else (taps, position, width)
    if len(size) in SIZES and kernel_for("dcls", *tensors):
        run = ops.dcls_direct if is_direct(*tensors) else ops.dcls
        return run(taps, position, width, size, interpolation)
    return dcls_reference(taps, position, width, size, interpolation)
