r"""Depthwise convolution in one to three axes: reference, kernels, and the choice between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from omniconv.core import args
from omniconv.core.geometry import output_size
from omniconv.kernels.backend import is_direct, kernel_for
from omniconv.kernels.depthwise import ops
from omniconv.kernels.depthwise.reference import depthwise_reference

__all__ = ["DTYPES", "depthwise"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | Sequence[tuple[int, int]] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    r"""Convolve every channel with kernels of its own.

    .. math:: y[b, o, p] = b_o + \sum_q w[o, 0, q] \, x[b, o // m, p s - lo + q d]

    Args:
        x: (B, C, \*S) with one to three spatial axes, contiguous or channels-last.
        weight: (C m, 1, \*K): m kernels for every channel.
        bias: (C m), or None.
        stride: Of the places, for all axes or each.
        padding: Zeros around x: one number for all sides, one for each axis, or a pair (before,
            after) for each axis.
        dilation: Of the taps, for all axes or each.

    Returns:
        (B, C m, \*S') in the layout of x, S' = (S + lo + hi - d (K - 1) - 1) // s + 1.

    Raises:
        ValueError: A shape, stride, padding or dilation does not fit.
        TypeError: An argument is no int or sequence of ints.
    """
    dim = x.dim() - 2
    if dim not in (1, 2, 3):
        raise ValueError(f"x must be (B, C, *S) with one to three axes, got {list(x.shape)}")
    channels = x.shape[1]
    fits = weight.dim() == x.dim() and weight.shape[1] == 1
    if not fits or not channels or weight.shape[0] % channels:
        raise ValueError(
            f"weight must be (C m, 1, *K) for C={channels} and {dim} axes, got {list(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({weight.shape[0]},), got {list(bias.shape)}")
    strides = args.ntuple("stride", stride, dim, 1)
    dilations = args.ntuple("dilation", dilation, dim, 1)
    pads = args.pads("padding", padding, dim)
    size = output_size(x.shape[2:], weight.shape[2:], strides, pads, dilations)
    if any(n < 1 for n in size):
        raise ValueError(
            f"kernel {list(weight.shape[2:])} with dilation {dilations} is larger than "
            f"the padded x {list(x.shape[2:])}"
        )
    autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    if autocast and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    tensors = (x, weight) if bias is None else (x, weight, bias)
    arguments = (x, weight, bias, strides, pads, dilations)
    if kernel_for("depthwise", *tensors, dtypes=DTYPES, gpu_dtypes=GPU_DTYPES):
        return (ops.depthwise_direct if is_direct(*tensors) else ops.depthwise)(*arguments)
    return depthwise_reference(*arguments)
