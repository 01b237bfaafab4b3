"""Floating-point operations of a position-varying depthwise convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["position_varying_flops"]


def position_varying_flops(
    x: Sequence[int],
    weight: Sequence[int],
    padding: Sequence[int] = (),
    softmax: bool = False,
    needed: Sequence[bool] = (True, True),
) -> tuple[int, int]:
    r"""FLOPs (forward, backward) for these shapes, as the reference spends them.

    They count for the kernel too, which adds gradients up in registers and not tensor by tensor.

    Args:
        x: (B, C, \*S).
        weight: (B or 1, G, \*K, \*S').
        padding: 2D ints, or nothing for none.
        softmax: Whether the weights are normalised over the taps.
        needed: Whether the gradients for x and for the weights are asked for.
    """
    dim = len(x) - 2
    taps, positions = math.prod(weight[2 : 2 + dim]), math.prod(weight[2 + dim :])
    images, outputs = x[0] * x[1], x[0] * x[1] * positions
    kernels = weight[0] * weight[1] * positions
    pads = padding or (0,) * (2 * dim)
    padded = [n + pads[2 * a] + pads[2 * a + 1] for a, n in enumerate(x[2:])]
    forward = (2 * taps - 1) * outputs + (5 * taps * kernels if softmax else 0)
    backward = 0
    # both factors of a product are scaled by addcmul's 1, but for the first tap's
    if needed[0]:
        backward += taps * outputs + (taps - 1) * (kernels + images * math.prod(padded))
    if needed[1]:
        backward += (2 * taps - 1) * outputs + (4 * taps * kernels if softmax else 0)
        backward += taps * outputs if kernels < outputs else 0
    return forward, backward
