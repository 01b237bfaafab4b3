r"""Position-varying depthwise convolution in plain torch: the definition.

.. math:: y[b, c, p] = \sum_q w[b, g(c), q, p]\; x[b, c, p \cdot stride - lo + q \cdot dilation]
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from omniconv.math.shift import shifted

__all__ = ["position_varying_reference"]


def position_varying_reference(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    softmax: bool,
) -> Tensor:
    """See :func:`omniconv.kernels.position_varying.position_varying`; ``padding`` has 2D ints."""
    dim = len(stride)
    extent, size = weight.shape[2 : 2 + dim], weight.shape[2 + dim :]
    exact = torch.promote_types(x.dtype, torch.float32)
    kernels = weight.to(exact).flatten(2, 1 + dim)
    if softmax:
        kernels = kernels.softmax(2)
    pairs = [padding[2 * axis : 2 * axis + 2] for axis in reversed(range(dim))]
    padded = F.pad(x, [p for pair in pairs for p in pair]) if any(padding) else x
    grouped = padded.to(exact).unflatten(1, (weight.shape[1], -1))
    y = None
    for tap, kernel in zip(itertools.product(*map(range, extent)), kernels.unbind(2), strict=True):
        values = shifted(grouped, tap, size, stride, dilation)
        factor = kernel.unsqueeze(2)
        y = values * factor if y is None else y.addcmul_(values, factor)
    assert y is not None  # a kernel has at least one tap
    return y.flatten(1, 2).to(x.dtype)
