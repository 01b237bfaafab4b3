"""The residual network for small images of He et al. 2015 (arXiv:1512.03385), section 4.2.

One 3x3 convolution, three stages of n basic blocks with w, 2w and 4w channels (the second and
third stage begin with stride 2), the mean over space and one linear layer: 6n + 2 weighted layers.
Shortcuts have no parameters (option "A"): where the shape changes, every second pixel is taken and
the missing channels are zeros, half of them before and half after the others.

Shapes: ``(B, in_channels, H, W) -> (B, classes)`` for any H and W.
Cost at width 16 and 3x32x32: ResNet-20 has 269,722 parameters and 40.6 M multiply-adds, ResNet-56
853,018 and 125.5 M (the paper's table 6: 0.27 M and 0.85 M parameters).
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.core import args

__all__ = ["MAX_DEPTH", "Block", "ResNet", "nearest_depth", "resnet"]

MAX_DEPTH = 1202
"""The deepest network of the paper."""


def nearest_depth(depth: int) -> int:
    """The depth 6n + 2 (n from 1 to 200) that is nearest to ``depth``."""
    return min(max(6 * round((depth - 2) / 6) + 2, 8), MAX_DEPTH)


def shortcut(x: Tensor, channels: int, stride: int) -> Tensor:
    """Option "A": every ``stride``-th pixel, zero channels around it until there are ``channels``.

    Args:
        x: ``(B, C, H, W)``.
        channels: Channels of the result, at least C.
        stride: Step over rows and columns.

    Returns:
        ``(B, channels, ceil(H / stride), ceil(W / stride))``; ``x`` itself where nothing changes.
    """
    missing = channels - x.shape[1]
    if stride > 1:
        x = x[:, :, ::stride, ::stride]
    if missing:
        x = F.pad(x, (0, 0, 0, 0, missing // 2, missing - missing // 2))
    return x


class Block(nn.Module):
    """Basic block: ``relu(x' + bn2(conv2(relu(bn1(conv1(x))))))`` with x' the shortcut of x."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.channels = out_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + shortcut(x, self.channels, self.stride))


class ResNet(nn.Module):
    """CIFAR ResNet of depth 6n + 2; keys conv1, bn1, layer1..3.<i>.{conv1,bn1,conv2,bn2}, linear.

    Convolutions start from Kaiming's normal distribution, the linear layer from torch's default.

    Args:
        depth: Number of weighted layers, 6n + 2 from 8 to 1202.
        in_channels: Channels of the images.
        classes: Number of logits.
        width: Channels of the first stage; the others have two and four times as many.

    Raises:
        ValueError: ``depth`` is not 6n + 2, or a number is below 1.
        TypeError: A number is not an int.
    """

    task: ClassVar[str] = "classify"
    body: ClassVar[tuple[str, ...]] = ("layer*",)
    """The convolutions that an operator replaces: those of the blocks, all but the first one."""

    def __init__(
        self, depth: int, *, in_channels: int = 3, classes: int = 10, width: int = 16
    ) -> None:
        super().__init__()
        depth = args.integer("depth", depth)
        if depth != nearest_depth(depth):
            raise ValueError(
                f"depth must be 6 n + 2 (8, 14, 20, ..., {MAX_DEPTH}), got {depth} "
                f"(nearest: {nearest_depth(depth)})"
            )
        in_channels = args.positive_int("in_channels", in_channels)
        classes = args.positive_int("classes", classes)
        width = args.positive_int("width", width)
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(blocks, width, width, stride=1)
        self.layer2 = _stage(blocks, width, 2 * width, stride=2)
        self.layer3 = _stage(blocks, 2 * width, 4 * width, stride=2)
        self.linear = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        """The map before the mean over space: ``(B, 4 width, ceil(H / 4), ceil(W / 4))``."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of the images ``(B, in_channels, H, W)``."""
        return self.linear(self.features(x).mean((2, 3)))


def _stage(blocks: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """``blocks`` blocks; the first one changes channels and resolution."""
    rest = (Block(out_channels, out_channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(Block(in_channels, out_channels, stride), *rest)


def resnet(depth: int, *, in_channels: int = 3, classes: int = 10, width: int = 16) -> ResNet:
    """A :class:`ResNet`; ``resnet(20)`` is the published ResNet-20 for CIFAR-10."""
    return ResNet(depth, in_channels=in_channels, classes=classes, width=width)
