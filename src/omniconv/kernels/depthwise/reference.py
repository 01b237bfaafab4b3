r"""Depthwise convolution and its gradients in torch's own convolutions: the definition.

.. math:: y[b, o, p] = b_o + \sum_q w[o, 0, q] \, x[b, o // m, p s - lo + q d]

with zeros outside of ``x`` and ``m`` outputs per input channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["depthwise_input_reference", "depthwise_reference", "depthwise_weight_reference"]

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


def depthwise_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """See :func:`omniconv.kernels.depthwise.depthwise`; ``padding`` is (lo, hi) of every axis."""
    pads, rest = split(padding)
    if any(rest):
        x = F.pad(x, rest)
    convolve = CONVOLUTIONS[x.dim() - 3]
    found: Tensor = convolve(x, weight, bias, list(stride), pads, list(dilation), x.shape[1])
    return found


def depthwise_input_reference(
    grad: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    r"""The gradient for x (B, C, \*size) from that for y, m = 1."""
    pads, rest = split(padding)
    # torch computes in the layout of this x, of which it reads the sizes only
    batch, channels = grad.shape[:2]
    x = grad.new_empty(batch, channels, *padded(size, rest))
    if not grad.is_contiguous() and grad.movedim(1, -1).is_contiguous():
        x = grad.new_empty(batch, *x.shape[2:], channels).movedim(-1, 1)
    found = _backward(grad, x, weight, stride, pads, dilation, 0)
    for axis, (low, length) in enumerate(zip(rest[-2::-2], size, strict=True)):
        found = found.narrow(2 + axis, low, length)
    return found


def depthwise_weight_reference(
    grad: Tensor,
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    r"""The gradient for the weight (C m, 1, \*kernel_size) from that for y."""
    pads, rest = split(padding)
    if any(rest):
        x = F.pad(x, rest)
    weight = x.new_empty(grad.shape[1], 1, *kernel_size)
    return _backward(grad, x, weight, stride, pads, dilation, 1)


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    pads: Sequence[int],
    dilation: Sequence[int],
    which: int,
) -> Tensor:
    mask = [which == 0, which == 1, False]
    none = [0] * len(stride)
    found: Tensor = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, pads, dilation, False, none, x.shape[1], mask
    )[which]
    return found


def split(padding: Sequence[int]) -> tuple[list[int], list[int]]:
    """What torch's convolution pads on both sides, and the rest as ``F.pad`` takes it."""
    lows, highs = padding[::2], padding[1::2]
    both = [min(pair) for pair in zip(lows, highs, strict=True)]
    sides = list(zip(lows, highs, both, strict=True))
    return both, [side for low, high, b in reversed(sides) for side in (low - b, high - b)]


def padded(size: Sequence[int], rest: Sequence[int]) -> list[int]:
    """The sizes after ``F.pad`` by ``rest``."""
    pairs = zip(size, rest[-2::-2], rest[-1::-2], strict=True)
    return [length + low + high for length, low, high in pairs]
