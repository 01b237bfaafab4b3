"""Convolutions with a given kernel: torch's own, or the depthwise kernel where it is one.

Layers and operators reach the depthwise kernel through these functions only, so that one choice
decides for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from omniconv.core import compat
from omniconv.core.geometry import ConvArguments
from omniconv.kernels.depthwise import depthwise

__all__ = ["convolution", "convolve", "convolve_as"]

CALLS: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)

torch.fx.wrap("convolution")  # a symbolic trace holds the call, whose choices it could not follow


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    r"""``F.conv1d``, ``F.conv2d`` or ``F.conv3d``, as the rank of ``weight`` says.

    Arguments and shapes are torch's. Where every channel is a group of its own
    :func:`omniconv.kernels.depthwise.depthwise` computes it, which is the same to rounding.
    """
    pads = _pads(weight, stride, padding, dilation)
    if pads is not None and _is_depthwise(x, weight, groups):
        return _depthwise(x, weight, bias, stride, pads, dilation)
    y: Tensor = CALLS[weight.dim() - 3](x, weight, bias, stride, padding, dilation, groups)
    return y


def convolve_as(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What ``layer``, an ``nn.ConvNd`` and not transposed, computes with this kernel and bias."""
    if layer.padding_mode == "zeros":
        padding = layer.padding
    else:
        x = F.pad(x, compat.reversed_padding(layer), mode=layer.padding_mode)
        padding = 0
    return convolution(x, weight, bias, layer.stride, padding, layer.dilation, layer.groups)


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, geometry: ConvArguments) -> Tensor:
    """The convolution with the geometry's stride, padding (and mode), dilation and groups.

    Args:
        x: (B, C, *size) or unbatched (C, *size).
        kernel: (O, C/groups, *kernel_size); O need not be the geometry's.
        bias: (O,) or None.
        geometry: All other arguments; not transposed.
    """
    g = geometry
    if g.padding_mode == "zeros" and _is_depthwise(x, kernel, g.groups):
        return _depthwise(x, kernel, bias, g.stride, g.pads, g.dilation)
    if g.padding_mode == "zeros" and all(before == after for before, after in g.pads):
        padding = tuple(before for before, _ in g.pads)
        return convolution(x, kernel, bias, g.stride, padding, g.dilation, g.groups)
    if x.dim() == g.dim + 1:
        return convolve(x.unsqueeze(0), kernel, bias, g).squeeze(0)
    return convolution(g.pad(x), kernel, bias, g.stride, 0, g.dilation, g.groups)


def _is_depthwise(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether each of several channels is a group of its own, and the shapes fit."""
    dim = weight.dim() - 2
    if dim not in (1, 2, 3) or x.dim() not in (dim + 1, dim + 2) or weight.shape[1] != 1:
        return False
    return 1 < groups == x.shape[-dim - 1] and not len(weight) % groups


def _depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    pads: int | Sequence[int] | Sequence[tuple[int, int]],
    dilation: int | Sequence[int],
) -> Tensor:
    if x.dim() < weight.dim():
        return depthwise(x.unsqueeze(0), weight, bias, stride, pads, dilation).squeeze(0)
    return depthwise(x, weight, bias, stride, pads, dilation)


def _pads(
    weight: Tensor,
    stride: int | Sequence[int],
    padding: int | str | Sequence[int],
    dilation: int | Sequence[int],
) -> int | Sequence[int] | Sequence[tuple[int, int]] | None:
    """The padding in numbers; None where torch refuses the word."""
    if not isinstance(padding, str):
        return padding
    if padding == "valid":
        return 0
    strides = (stride,) if isinstance(stride, int) else stride
    if padding != "same" or any(s != 1 for s in strides):
        return None
    size = weight.shape[2:]
    steps = (dilation,) * len(size) if isinstance(dilation, int) else dilation
    totals = [d * (k - 1) for d, k in zip(steps, size, strict=True)]
    return [(total // 2, total - total // 2) for total in totals]
