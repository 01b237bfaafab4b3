"""Depthwise convolution with weights of their own at every position: reference and kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from omniconv.core import args
from omniconv.core.geometry import check_floating, output_size
from omniconv.kernels.backend import is_direct, kernel_for
from omniconv.kernels.position_varying import ops
from omniconv.kernels.position_varying.reference import position_varying_reference

__all__ = ["parse", "position_varying"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def position_varying(
    x: Tensor,
    weight: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | Sequence[Sequence[int]] = 0,
    dilation: int | Sequence[int] = 1,
    softmax: bool = False,
) -> Tensor:
    r"""A depthwise convolution whose weights differ from position to position.

    .. math:: y[b, c, p] = \sum_q w[b, g(c), q, p]\; x[b, c, p \cdot stride - lo + q \cdot dilation]

    with g(c) = c \* G // C, and x = 0 outside of the image.

    Args:
        x: (B, C, \*S); one to three spatial axes.
        weight: (B, G, \*K, \*S'), or (1, G, \*K, \*S') for weights that the batch shares. G divides
            C, and S' is the output size (S + lo + hi - dilation (K - 1) - 1) // stride + 1.
        stride: Steps between positions, an int or one per axis.
        padding: Zeros around x: an int, one per axis, or a pair (lo, hi) per axis.
        dilation: Steps between taps, an int or one per axis.
        softmax: Whether the weights of a position are first normalised by a softmax over all its
            taps, those outside of the image included.

    Returns:
        (B, C, \*S'), in the dtype and layout of ``x``; half-precision products are summed in
        float32.

    Raises:
        TypeError: ``x`` or ``weight`` is no floating-point tensor, or their dtypes differ.
        ValueError: Shapes, devices or arguments do not fit.
    """
    steps, pads, spread = parse("weight", x, weight, stride, padding, dilation)
    softmax = args.boolean("softmax", softmax)
    if kernel_for("position_varying", x, weight, dtypes=DTYPES, gpu_dtypes=GPU_DTYPES):
        run = ops.position_varying_direct if is_direct(x, weight) else ops.position_varying
        y: Tensor = run(x, weight, list(steps), list(pads), list(spread), softmax)
        return y
    return position_varying_reference(x, weight, steps, pads, spread, softmax)


def parse(
    name: str,
    x: Any,
    weight: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    shared: bool = True,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Check the arguments of :func:`position_varying`.

    Args:
        name: What the messages call ``weight``.
        x: See :func:`position_varying`, and so the others.
        weight: The weights.
        stride: Steps between positions.
        padding: Zeros around x.
        dilation: Steps between taps.
        shared: Whether one set of weights may serve the whole batch.

    Returns:
        Stride, padding (lo, hi of every axis, one after the other) and dilation.

    Raises:
        TypeError: As :func:`position_varying`.
        ValueError: As :func:`position_varying`.
    """
    check_floating("x", x)
    check_floating(name, weight)
    dim = x.dim() - 2
    if dim not in (1, 2, 3):
        raise ValueError(
            f"x must have 3, 4 or 5 axes (batch, channels, 1 to 3 spatial), "
            f"got shape {tuple(x.shape)}"
        )
    steps = args.ntuple("stride", stride, dim, 1)
    spread = args.ntuple("dilation", dilation, dim, 1)
    pads = args.pads("padding", padding, dim)
    if weight.dtype != x.dtype:
        raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {weight.dtype}")
    if weight.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {weight.device}")
    shape, batch = tuple(weight.shape), x.shape[0]
    fits = len(shape) == 2 + 2 * dim and 0 not in shape[1:]
    if not fits or not (shape[0] == batch or (shared and shape[0] == 1)):
        raise ValueError(
            f"{name} must have {2 + 2 * dim} axes (batch {batch}{' or 1' if shared else ''}, "
            f"groups, {dim} of the kernel, {dim} of the output), got shape {shape}"
        )
    if x.shape[1] % shape[1]:
        raise ValueError(
            f"{name} must have a number of groups that divides the {x.shape[1]} channels of x, "
            f"got {shape[1]}"
        )
    size = output_size(x.shape[2:], shape[2 : 2 + dim], steps, pads, spread)
    if shape[2 + dim :] != size:
        raise ValueError(
            f"{name} must have the output's spatial size {size} for x of size "
            f"{tuple(x.shape[2:])} and {name} of size {shape[2 : 2 + dim]}, "
            f"got {shape[2 + dim :]}"
        )
    return steps, pads, spread
