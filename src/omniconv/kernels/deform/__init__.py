"""Deformable convolution, with a weight or as a sum over taps: reference, CPU and GPU kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from omniconv.core import args
from omniconv.core.geometry import output_size
from omniconv.kernels.backend import is_direct, kernel_for
from omniconv.kernels.deform import ops
from omniconv.kernels.deform.onnx import keeps_node
from omniconv.kernels.deform.reference import deform_reference

__all__ = ["deform"]

SIZES = range(1, 4)
"""Numbers of axes that the kernel knows."""
GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def deform(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int] | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | Sequence[Sequence[int]] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    offset_groups: int = 1,
) -> Tensor:
    r"""Deformable convolution: each tap of each output reads x at a place of its own.

    .. math:: y_{o,p} = b_o + \sum_{c,q} W_{o,c,q}\, m_{o(c),q,p}\,
              \tilde x_c(p \cdot \text{stride} - \text{lo} + q \cdot \text{dilation}
              + \text{offset}_{o(c),q,p})

    x~ is x, zero outside of its grid, interpolated multilinearly; o(c) is the offset group of
    channel c. Without a weight W is left out, and so is the sum over c: y has the channels of x.
    At whole coordinates the derivative is that of the cell above, [n, n + 1). Samples far outside
    are 0, also where an offset is infinite; an offset of NaN makes what it reaches NaN.

    Args:
        x: (B, C, \*S) with one to three axes.
        offset: In pixels of x, (B, offset_groups Q D, \*S'), for Q taps and D axes: the axes of
            the first tap of the first group, then those of its next tap, as torchvision has it.
        mask: (B, offset_groups Q, \*S'); None stands for ones.
        weight: (O, C/groups, \*K), or None.
        bias: (O,), with a weight only.
        kernel_size: K, needed where there is no weight.
        stride: One int, or one per axis.
        padding: Zeros around x: one int, one per axis, or a pair (below, above) per axis.
        dilation: One int, or one per axis.
        groups: Channel groups of the weight.
        offset_groups: Groups of channels that share offsets and mask.

    Returns:
        (B, O, \*S') or, without a weight, (B, C, \*S').

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: The shapes do not fit; the message names the argument.
    """
    dim = x.dim() - 2
    if dim < 1:
        raise ValueError(f"x must have shape (B, C, *S), got {tuple(x.shape)}")
    if weight is not None:
        if weight.dim() != x.dim():
            raise ValueError(
                f"weight must have {x.dim()} axes for x of shape {tuple(x.shape)}, "
                f"got {tuple(weight.shape)}"
            )
        shape = tuple(weight.shape[2:])
        if kernel_size is not None and args.ntuple("kernel_size", kernel_size, dim, 1) != shape:
            raise ValueError(f"kernel_size must be the weight's, {shape}, got {kernel_size}")
        kernel = shape
    elif kernel_size is None:
        raise ValueError("kernel_size must be given where there is no weight")
    else:
        kernel = args.ntuple("kernel_size", kernel_size, dim, 1)
    window = (
        list(kernel),
        list(args.ntuple("stride", stride, dim, 1)),
        list(args.pads("padding", padding, dim)),
        list(args.ntuple("dilation", dilation, dim, 1)),
    )
    _check(x, offset, mask, weight, bias, window, groups, offset_groups)
    arguments = (x, offset, mask, weight, bias, *window, groups, offset_groups)
    if keeps_node(dim, weight):
        return ops.deform(*arguments)
    tensors = [t for t in arguments[:5] if t is not None]
    if dim in SIZES and kernel_for("deform", *tensors, gpu_dtypes=GPU_DTYPES):
        run = ops.deform_direct if is_direct(*tensors) else ops.deform
        return run(*arguments)
    return deform_reference(*arguments)


def _check(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    window: tuple[list[int], ...],
    groups: int,
    offset_groups: int,
) -> None:
    channels, taps = x.shape[1], math.prod(window[0])
    args.divisor("offset_groups", offset_groups, channels=channels)
    out = output_size(x.shape[2:], *window)
    if any(s < 1 for s in out):
        raise ValueError(f"x of shape {tuple(x.shape)} is smaller than the kernel {window[0]}")
    wanted = {"offset": (offset, offset_groups * taps * len(out))}
    if mask is not None:
        wanted["mask"] = (mask, offset_groups * taps)
    for name, (tensor, depth) in wanted.items():
        if tensor.shape != (x.shape[0], depth, *out):
            raise ValueError(
                f"{name} must have shape {(x.shape[0], depth, *out)}, got {tuple(tensor.shape)}"
            )
    if weight is None:
        if groups != 1 or bias is not None:
            raise ValueError("groups and bias need a weight")
        return
    args.divisor("groups", groups, channels=channels, out_channels=weight.shape[0])
    if weight.shape[1] * groups != channels:
        raise ValueError(
            f"weight must have {channels // groups} input channels for x of {channels} channels "
            f"and groups={groups}, got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
