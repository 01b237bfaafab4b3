"""The plain networks of Simonyan and Zisserman 2015 (arXiv:1409.1556), "VGG".

Five stages of 3x3 convolutions with w, 2w, 4w, 8w and 8w channels (w = 64), each followed by the
maximum over 2x2 pixels. Layouts 11, 13, 16 and 19 are the paper's A, B, D and E, named by their
weighted layers with three linear ones; 8 has one convolution per stage, for studies on a CPU.

Two heads. The default is that of small images: the mean over space and one linear layer, batch
normalisation after each convolution. ``classic=True`` is the paper's: no normalisation and three
layers of 4096, 4096 and ``classes`` units, written as convolutions (7x7, 1x1, 1x1), which are
the linear ones on 224x224; larger images get the mean of the class scores over all positions, the
paper's dense evaluation (section 3.2).

Shapes: ``(B, in_channels, H, W) -> (B, classes)`` for any H and W; the classic head needs a map of
7x7, so images of 193x193. Pools round odd sizes up, which at multiples of 32 changes nothing.

Cost of the default form at 3x32x32, 10 classes: VGG-11 has 9,231,114 parameters, VGG-13 9,416,010,
VGG-16 14,728,266, VGG-19 20,040,522. Of the classic form at 3x224x224, 1000 classes, in millions of
parameters and giga multiply-adds: A 132.9 and 7.6, B 133.0 and 11.3, D 138.4 and 15.5, E 143.7 and
19.6 (the paper's table 2: 133, 133, 138 and 144 million).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.core import args

__all__ = ["LAYOUTS", "VGG", "vgg"]

LAYOUTS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Depth -> convolutions in each stage."""

MAP = 7
HIDDEN = 64
SMALLEST = 193


class VGG(nn.Module):
    """VGG; keys stem.{conv,bn}, layer1..5.<i>.{conv,bn}, linear; classic: fc1, fc2, fc3.

    The first convolution is the stem; ``layer1`` to ``layer5`` hold the others of their stage.
    Convolutions start from Kaiming's normal distribution and zero biases, linear layers from
    torch's default.

    Args:
        depth: 8, 11, 13, 16 or 19.
        in_channels: Channels of the images.
        classes: Number of logits.
        width: Channels of the first stage; the others have 2, 4, 8 and 8 times as many, the
            classic head's hidden layers 64 times.
        classic: The paper's form: no batch normalisation, three fully connected layers.

    Raises:
        ValueError: Another depth, a number below 1, or images too small for the classic head.
        TypeError: A number is not an int, or ``classic`` not a bool.
    """

    task: ClassVar[str] = "classify"
    body: ClassVar[tuple[str, ...]] = ("layer*",)
    """The convolutions that an operator replaces: all but the first one and the head's."""

    def __init__(
        self,
        depth: int,
        *,
        in_channels: int = 3,
        classes: int = 10,
        width: int = 64,
        classic: bool = False,
    ) -> None:
        super().__init__()
        depth = args.integer("depth", depth)
        if depth not in LAYOUTS:
            raise ValueError(f"depth must be one of {_listed()}, got {depth}")
        in_channels = args.positive_int("in_channels", in_channels)
        classes = args.positive_int("classes", classes)
        width = args.positive_int("width", width)
        self.classic = args.boolean("classic", classic)
        self.stem = _conv(in_channels, width, norm=not classic)
        channels = width
        for stage, count in enumerate(LAYOUTS[depth]):
            wide = width * min(2**stage, 8)
            convs = []
            for _ in range(count - (stage == 0)):
                convs.append(_conv(channels, wide, norm=not classic))
                channels = wide
            self.add_module(f"layer{stage + 1}", nn.Sequential(*convs))
        if classic:
            self.fc1 = nn.Conv2d(channels, HIDDEN * width, MAP)
            self.fc2 = nn.Conv2d(HIDDEN * width, HIDDEN * width, 1)
            self.fc3 = nn.Conv2d(HIDDEN * width, classes, 1)
        else:
            self.linear = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def features(self, x: Tensor) -> Tensor:
        """The map before the last pool: ``(B, 8 width, ceil(H / 16), ceil(W / 16))``."""
        x = self.stem(x)
        for stage in range(1, 6):
            x = self.get_submodule(f"layer{stage}")(x if stage == 1 else _pool(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of the images ``(B, in_channels, H, W)``."""
        if self.classic and min(x.shape[-2:]) < SMALLEST:
            raise ValueError(
                f"images must be at least {SMALLEST}x{SMALLEST} for the classic head, "
                f"got {x.shape[-2]}x{x.shape[-1]}"
            )
        x = _pool(self.features(x))
        if not self.classic:
            return self.linear(x.mean((2, 3)))
        x = F.dropout(F.relu(self.fc1(x)), training=self.training)
        x = F.dropout(F.relu(self.fc2(x)), training=self.training)
        return self.fc3(x).mean((2, 3))


def _conv(in_channels: int, out_channels: int, norm: bool) -> nn.Sequential:
    """A 3x3 convolution with a bias, batch normalisation if ``norm``, ReLU."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv"] = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    if norm:
        parts["bn"] = nn.BatchNorm2d(out_channels)
    parts["relu"] = nn.ReLU()
    return nn.Sequential(parts)


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, ceil_mode=True)


def _listed() -> str:
    return ", ".join(map(str, LAYOUTS))


def vgg(
    depth: int,
    *,
    in_channels: int = 3,
    classes: int = 10,
    width: int = 64,
    classic: bool = False,
) -> VGG:
    """A :class:`VGG`; ``vgg(16, classes=1000, classic=True)`` is the paper's configuration D."""
    return VGG(depth, in_channels=in_channels, classes=classes, width=width, classic=classic)
