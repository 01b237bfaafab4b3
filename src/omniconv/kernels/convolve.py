"""torch's convolution of a tensor with any kernel, on a layer's geometry."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from omniconv.core.geometry import ConvArguments

__all__ = ["convolve"]


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, geometry: ConvArguments) -> Tensor:
    """torch's convolution with the geometry's stride, padding (and mode), dilation and groups.

    Args:
        x: (B, C, *size) or unbatched (C, *size).
        kernel: (O, C/groups, *kernel_size); O need not be the geometry's.
        bias: (O,) or None.
        geometry: All other arguments; not transposed.
    """
    g = geometry
    call = (F.conv1d, F.conv2d, F.conv3d)[g.dim - 1]
    if g.padding_mode == "zeros" and all(before == after for before, after in g.pads):
        padding = tuple(before for before, _ in g.pads)
        return call(x, kernel, bias, g.stride, padding, g.dilation, g.groups)
    if x.dim() == g.dim + 1:
        return convolve(x.unsqueeze(0), kernel, bias, g).squeeze(0)
    return call(g.pad(x), kernel, bias, g.stride, 0, g.dilation, g.groups)
