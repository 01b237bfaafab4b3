r"""The restoration network of Chen, Chu, Zhang and Sun 2022 (arXiv:2204.04676), "NAFNet".

A U-shaped network without nonlinear activation functions. Its block, on c channels:

.. math::
    z = x + \beta \odot V_3\, s(g(D(V_1\, n(x)))), \qquad
    y = z + \gamma \odot V_5\, g(V_4\, n(z))

with n the normalisation over channels, V 1x1 convolutions (V_1 and V_4 to 2c channels), D a
depthwise 3x3 convolution, g(a, b) = a b the gate of the two halves of the channels, and
s(u) = u (S mean(u) + b) the simplified channel attention; beta and gamma start at 0. A level of the
encoder ends with a 2x2 convolution of stride 2 that doubles the channels, one of the decoder begins
with a 1x1 convolution and a pixel shuffle that halve them, and adds the encoder's map. The network
adds its input: it estimates the negative noise.

Shapes: ``(B, in_channels, H, W) -> (B, in_channels, H, W)`` for any H and W; images are padded with
zeros, below and to the right, to multiples of 2 to the number of levels.

Cost at 3x256x256, parameters and multiply-adds of convolutions (published, with biases and pools
counted too: 16.25 G and 63.6 G for SIDD):

==========================================  =======  ===========  ========
arrangement (encoder, middle, decoder)       width   parameters   10^9
==========================================  =======  ===========  ========
SIDD: (2, 2, 4, 8), 12, (2, 2, 2, 2)           32     29,159,715    16.05
the same                                       64    115,982,915    63.24
GoPro: (1, 1, 1, 28), 1, (1, 1, 1, 1)          32     17,111,907    15.96
the same                                       64     67,888,835    63.05
small: (1, 1, 1, 1), 1, (1, 1, 1, 1)           16      1,137,203     1.30
==========================================  =======  ===========  ========

Keys are those of the official code, so its weights load. Its inference with local statistics (TLC)
is not part of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.core import args
from omniconv.models.norm import LayerNorm2d

__all__ = ["ARRANGEMENTS", "NAFBlock", "NAFNet", "nafnet"]

ARRANGEMENTS = {
    "nafnet": ((1, 1, 1, 1), 1, (1, 1, 1, 1)),
    "nafnet-sidd": ((2, 2, 4, 8), 12, (2, 2, 2, 2)),
    "nafnet-gopro": ((1, 1, 1, 28), 1, (1, 1, 1, 1)),
}
"""Name -> blocks in each level of the encoder, in the middle, in each level of the decoder."""


def gate(x: Tensor) -> Tensor:
    """The product of the two halves of the channels: ``(B, 2C, H, W) -> (B, C, H, W)``."""
    first, second = x.chunk(2, dim=1)
    return first * second


class Attention(nn.Sequential):
    """Simplified channel attention: ``x (S mean(x) + b)``; keys 1.weight and 1.bias."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x)


class NAFBlock(nn.Module):
    """The block above on ``channels`` channels; ``conv2`` is its spatial convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.norm1 = LayerNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, wide, 1)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.sca = Attention(channels)
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.norm2 = LayerNorm2d(channels)
        self.conv4 = nn.Conv2d(channels, wide, 1)
        self.conv5 = nn.Conv2d(channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(self.norm1(x)))
        x = x + self.conv3(self.sca(gate(y))) * self.beta
        return x + self.conv5(gate(self.conv4(self.norm2(x)))) * self.gamma


class NAFNet(nn.Module):
    """NAFNet; keys intro, encoders, downs, middle_blks, ups, decoders, ending.

    Convolutions start from torch's default.

    Args:
        encoder: Blocks in each level of the encoder, from the finest.
        middle: Blocks between encoder and decoder.
        decoder: Blocks in each level of the decoder, from the coarsest; as many levels.
        in_channels: Channels of the images.
        width: Channels of the finest level; each next one has twice as many.

    Raises:
        ValueError: The numbers of levels differ, or a number is out of range.
        TypeError: A number is not an int.
    """

    task: ClassVar[str] = "denoise"
    body: ClassVar[tuple[str, ...]] = ("*.conv2",)
    """The convolutions that an operator replaces: the depthwise 3x3 one of each block, the only
    spatial ones but those that change channels or resolution."""

    def __init__(
        self,
        encoder: Sequence[int] = (1, 1, 1, 1),
        middle: int = 1,
        decoder: Sequence[int] = (1, 1, 1, 1),
        *,
        in_channels: int = 3,
        width: int = 16,
    ) -> None:
        super().__init__()
        down, up = _counts("encoder", encoder), _counts("decoder", decoder)
        if len(down) != len(up):
            raise ValueError(
                f"decoder must have as many levels as encoder={down}, got {args.show(decoder)}"
            )
        middle = args.integer("middle", middle, minimum=0)
        in_channels = args.positive_int("in_channels", in_channels)
        channels = args.positive_int("width", width)
        self.intro = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.ending = nn.Conv2d(channels, in_channels, 3, padding=1)
        self.encoders, self.decoders = nn.ModuleList(), nn.ModuleList()
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for blocks in down:
            self.encoders.append(_level(blocks, channels))
            self.downs.append(nn.Conv2d(channels, 2 * channels, 2, stride=2))
            channels *= 2
        self.middle_blks = _level(middle, channels)
        for blocks in up:
            widen = nn.Conv2d(channels, 2 * channels, 1, bias=False)
            self.ups.append(nn.Sequential(widen, nn.PixelShuffle(2)))
            channels //= 2
            self.decoders.append(_level(blocks, channels))

    def forward(self, x: Tensor) -> Tensor:
        """The restored images, of the same shape."""
        height, width = x.shape[-2:]
        step = 2 ** len(self.encoders)
        x = F.pad(x, (0, -width % step, 0, -height % step))
        y = self.intro(x)
        kept = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            kept.append(encoder(y))
            y = down(kept[-1])
        y = self.middle_blks(y)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            y = decoder(up(y) + kept.pop())
        return (self.ending(y) + x)[:, :, :height, :width]


def _counts(name: str, value: Any) -> tuple[int, ...]:
    """Blocks per level, at least one level."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
        raise TypeError(f"{name} must be a sequence of ints, one per level, got {args.show(value)}")
    return tuple(args.integer(f"{name}[{i}]", v, minimum=0) for i, v in enumerate(value))


def _level(blocks: int, channels: int) -> nn.Sequential:
    return nn.Sequential(*(NAFBlock(channels) for _ in range(blocks)))


def nafnet(name: str = "nafnet", *, in_channels: int = 3, width: int | None = None) -> NAFNet:
    """A :class:`NAFNet` in one of the ``ARRANGEMENTS``.

    Args:
        name: ``nafnet`` (one block per level, width 16), ``nafnet-sidd`` (the paper's denoiser)
            or ``nafnet-gopro`` (its deblurrer), both of width 32.
        in_channels: Channels of the images.
        width: Channels of the finest level; None for the above.
    """
    encoder, middle, decoder = ARRANGEMENTS[args.choice("name", name, ARRANGEMENTS)]
    if width is None:
        width = 16 if name == "nafnet" else 32
    return NAFNet(encoder, middle, decoder, in_channels=in_channels, width=width)
