"""Floating-point operations of depthwise convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["depthwise_flops"]


def depthwise_flops(output: Sequence[int], kernel_size: Sequence[int]) -> int:
    r"""Of y (B, C m, \*S') and of either gradient: two per tap, those outside of x too."""
    return 2 * math.prod(output) * math.prod(kernel_size)
