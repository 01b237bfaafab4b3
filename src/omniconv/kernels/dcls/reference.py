r"""Dense DCLS kernels in plain torch: the definition.

.. math:: K(u) = \sum_k w_k \prod_a \phi_a(u_a - p_{ka})

with the footprints that ``omniconv.operators.standard.dcls`` states. Positions count from the
kernel's centre.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from omniconv.math.taps import PROFILES, scattered_taps, separable_taps

__all__ = ["INTERPOLATIONS", "NARROWEST", "dcls_reference"]

INTERPOLATIONS = ("bilinear", *PROFILES)
NARROWEST = {"gauss": 0.27, "triangle": 1.0}
"""The width of a footprint is this plus :math:`|s|`; at s = 0, :math:`|s|` has derivative 1."""


def dcls_reference(
    taps: Tensor,
    position: Tensor,
    width: Tensor | None,
    size: Sequence[int],
    interpolation: str,
) -> Tensor:
    """See :func:`omniconv.kernels.dcls.dcls`."""
    if width is None:
        return scattered_taps(taps, position, size)
    sigma = NARROWEST[interpolation] + torch.where(width < 0, -width, width)
    return separable_taps(taps, position, sigma, size, PROFILES[interpolation])
