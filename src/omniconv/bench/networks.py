"""Networks whose depthwise layers ``oc.accelerate_`` speeds up, as their papers have them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["convmixer", "convnext", "large_kernels"]

Parts = list[nn.Module]


class _Residual(nn.Sequential):
    """``x + f(x)``."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + super().forward(x)
        return found


class _Together(nn.Module):
    """The sum of layers side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (branch(x) for branch in self.branches)
        for other in others:
            first = first + other
        return first


class _ChannelsLast(nn.Sequential):
    """Layers that take the channels as their last axis."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = super().forward(x.permute(0, 2, 3, 1))
        return found.permute(0, 3, 1, 2)


class _Scale(nn.Module):
    """A factor per channel, the last axis."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _depthwise(channels: int, extent: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, extent, padding=extent // 2, groups=channels, bias=bias)


def convnext(depths: Sequence[int] = (3, 3, 9, 3), width: int = 96) -> nn.Module:
    """ConvNeXt of Liu et al. (CVPR 2022), tiny by default; without stochastic depth."""

    def norm(channels: int) -> nn.Module:
        return nn.LayerNorm(channels, eps=1e-6)

    parts: Parts = [nn.Conv2d(3, width, 4, stride=4), _ChannelsLast(norm(width))]
    for stage, depth in enumerate(depths):
        c = width * 2**stage
        if stage:
            parts += [_ChannelsLast(norm(c // 2)), nn.Conv2d(c // 2, c, 2, stride=2)]
        for _ in range(depth):
            wide = (nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))
            parts.append(_Residual(_depthwise(c, 7), _ChannelsLast(norm(c), *wide, _Scale(c))))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm(c), nn.Linear(c, 1000))
    return nn.Sequential(*parts, *head)


def convmixer(width: int = 256, depth: int = 8, extent: int = 9) -> nn.Module:
    """ConvMixer-256/8 of Trockman and Kolter (2022) for CIFAR-10: patches of 1, kernels of 9."""
    parts: Parts = [nn.Conv2d(3, width, 1), nn.GELU(), nn.BatchNorm2d(width)]
    for _ in range(depth):
        parts.append(_Residual(_depthwise(width, extent), nn.GELU(), nn.BatchNorm2d(width)))
        parts += [nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def large_kernels(width: int, depth: int, *extents: int) -> nn.Module:
    """Blocks of RepLKNet (Ding et al., CVPR 2022), with the depthwise layers of these extents.

    More than one are the branches of a re-parameterised layer while it is trained. GELU replaces
    ReLU, at whose kink a rounding decides on a gradient.
    """

    def normed(layer: nn.Conv2d) -> nn.Module:
        return nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels))

    def narrow(inputs: int, outputs: int) -> nn.Module:
        return normed(nn.Conv2d(inputs, outputs, 1, bias=False))

    parts: Parts = []
    for _ in range(depth):
        sides = _Together(*(normed(_depthwise(width, extent, bias=False)) for extent in extents))
        mix = (narrow(width, width), nn.GELU(), sides, nn.GELU(), narrow(width, width))
        feed = (narrow(width, 4 * width), nn.GELU(), narrow(4 * width, width))
        parts += [_Residual(nn.BatchNorm2d(width), *mix), _Residual(nn.BatchNorm2d(width), *feed)]
    return nn.Sequential(*parts)
