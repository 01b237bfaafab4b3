"""The denoiser of Zhang, Zuo, Chen, Meng and Zhang 2017 (arXiv:1608.03981), "DnCNN".

    y = x - f(x),  f = conv, relu, (depth - 2) x [conv, batch norm, relu], conv

All convolutions are 3x3; f estimates the noise. The paper's DnCNN-S (one noise level) has depth 17
and a receptive field of 35x35, DnCNN-B (blind) depth 20; both have 64 channels.

Shapes: ``(B, in_channels, H, W) -> (B, in_channels, H, W)`` for any H and W.

Cost at width 64: depth 17 in grey has 556,096 parameters (556,032 without the first convolution's
bias) and 554,112 multiply-adds per pixel; depth 20 in colour 669,376 and 667,008. The paper states
layers and widths, no counts; these follow from them.

The official PyTorch code gives the first convolution a bias, as here (the MATLAB one the last too),
and batch normalisation an epsilon of 1e-4 and nearly no memory; it starts from orthogonal matrices.
Here the norm has torch's defaults, and convolutions start from Kaiming's distribution as in the
paper.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.core import args

__all__ = ["MAX_DEPTH", "DnCNN", "dncnn"]

MAX_DEPTH = 100


class Layer(nn.Module):
    """``relu(bn(conv(x)))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class DnCNN(nn.Module):
    """DnCNN; keys first, layers.<i>.{conv,bn}, last.

    Args:
        depth: Number of convolutions, from 3 to 100.
        in_channels: Channels of the images: 1 for grey, 3 for colour.
        width: Channels of all inner maps.

    Raises:
        ValueError: A number is out of range.
        TypeError: A number is not an int.
    """

    task: ClassVar[str] = "denoise"
    body: ClassVar[tuple[str, ...]] = ("layers.*",)
    """The convolutions that an operator replaces: those from ``width`` to ``width`` channels. The
    first and the last one change the number of channels, which mixers cannot."""

    def __init__(self, depth: int = 17, *, in_channels: int = 1, width: int = 64) -> None:
        super().__init__()
        depth = args.integer("depth", depth, minimum=3, maximum=MAX_DEPTH)
        in_channels = args.positive_int("in_channels", in_channels)
        width = args.positive_int("width", width)
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.layers = nn.Sequential(*(Layer(width) for _ in range(depth - 2)))
        self.last = nn.Conv2d(width, in_channels, 3, padding=1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if self.first.bias is not None:
            nn.init.zeros_(self.first.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The denoised images: ``x`` less the estimated noise."""
        return x - self.last(self.layers(F.relu(self.first(x))))


def dncnn(depth: int = 17, *, in_channels: int = 1, width: int = 64) -> DnCNN:
    """A :class:`DnCNN`; ``dncnn(17)`` is the paper's DnCNN-S, ``dncnn(20)`` its DnCNN-B."""
    return DnCNN(depth, in_channels=in_channels, width=width)
