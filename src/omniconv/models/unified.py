r"""The four-stage network of Hu et al. 2022 (arXiv:2211.05781) in which only the mixer differs.

Everything around the spatial token mixer (STM) is fixed, so that mixers can be compared. Block:

.. math::
    z = x + \gamma_1 \odot \mathrm{STM}(n(x)), \qquad y = z + \gamma_2 \odot \mathrm{MLP}(n(z))

with n the normalisation over channels, an MLP of ratio 4 with GELU, and gamma starting at 1e-6.
Stem: two 3x3 convolutions of stride 2 to half and all of the first stage's channels, n after each,
GELU between them. Stages are joined by a 3x3 convolution of stride 2 and n, and end with n.
Head: 1x1 convolution to 1.5 times the channels, batch norm, GELU, mean over space, linear layer.

The default mixer is the one of the paper's U-ConvNeXt: 1x1 convolution, depthwise 7x7, 1x1.

Shapes: ``(B, in_channels, H, W) -> (B, classes)`` for any H and W.

Cost at 3x224x224 with 1000 classes, from the official code's networks; the official page says about
4.5, 30, 50 and 100 million parameters:

=======  ==============  =======  ===========  ====================
name     depths          width    parameters   10^9 multiply-adds
=======  ==============  =======  ===========  ====================
micro    (3, 3, 8, 3)       32      4,439,624                  0.65
tiny     (2, 2, 9, 2)       96     31,912,360                  5.00
small    (2, 2, 24, 2)      96     54,393,640                  9.39
base     (2, 2, 24, 2)     128     95,865,576                 16.62
=======  ==============  =======  ===========  ====================

``unified`` without a size is a network of ours for images of 32x32 and short training: depths
(1, 1, 3, 1), width 16, a stem without stride, gamma from 1 and torch's initial weights (with gamma
at 1e-6 the mixers of a network that is trained for a few epochs hardly count). Left out:
stochastic depth, which only training has, and the official code's other mixers (halo,
shifted-window and global attention, DCNv3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.core import args
from omniconv.models.norm import LayerNorm2d

__all__ = ["SIZES", "DepthwiseMixer", "UnifiedBackbone", "unified"]

STAGES = 4


class Size(NamedTuple):
    """Blocks in each stage, channels of the first one, stride of the stem, initial values."""

    depths: tuple[int, int, int, int]
    width: int
    stride: int = 4
    scale: float = 1e-6
    std: float | None = 0.02


SIZES = {
    "unified": Size((1, 1, 3, 1), 16, stride=1, scale=1.0, std=None),
    "unified-micro": Size((3, 3, 8, 3), 32),
    "unified-tiny": Size((2, 2, 9, 2), 96),
    "unified-small": Size((2, 2, 24, 2), 96),
    "unified-base": Size((2, 2, 24, 2), 128),
}
"""The networks that :func:`unified` makes."""

STRIDES = {1: (1, 1), 2: (2, 1), 4: (2, 2)}


class DepthwiseMixer(nn.Module):
    """1x1 convolution, depthwise convolution ``spatial``, 1x1 convolution.

    Args:
        dim: Channels.
        kernel_size: Extent of the depthwise kernel, an odd number.
    """

    def __init__(self, dim: int, kernel_size: int = 7) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(dim, dim, 1)
        self.spatial = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_out(self.spatial(self.proj_in(x)))


class Block(nn.Module):
    """``z = x + scale1 mixer(norm1(x)); y = z + scale2 mlp(norm2(z))``."""

    def __init__(self, dim: int, scale: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(dim)
        self.mixer: nn.Module = nn.Identity()
        self.scale1 = nn.Parameter(torch.full((1, dim, 1, 1), scale))
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.expand = nn.Linear(dim, 4 * dim)
        self.reduce = nn.Linear(4 * dim, dim)
        self.scale2 = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mixer(self.norm1(x))
        if mixed.shape != x.shape:
            raise ValueError(
                f"mixer must keep the shape {tuple(x.shape)} of its input, "
                f"got {tuple(mixed.shape)} from {type(self.mixer).__name__}"
            )
        x = (x + self.scale1 * mixed).permute(0, 2, 3, 1)
        x = x + self.scale2 * self.reduce(F.gelu(self.expand(self.norm2(x))))
        return x.permute(0, 3, 1, 2)


class UnifiedBackbone(nn.Module):
    """The unified network; keys stem, downs.<i>, layer1..4.<i>, norms.<i>, head, linear.

    A mixer given by the caller starts as it was made.

    Args:
        depths: Blocks in each of the four stages.
        dims: Channels of each of the four stages.
        mixer: ``mixer(dim)`` makes the module ``(B, dim, H, W) -> (B, dim, H, W)`` of a block with
            ``dim`` channels; None for :class:`DepthwiseMixer`.
        in_channels: Channels of the images.
        classes: Number of logits.
        stride: Of the stem: 4 as published, or 2 or 1 for small images.
        scale: Where gamma starts.
        std: Standard deviation of the normal distribution, cut at 2, from which convolutions and
            linear layers start, with zero biases; None for torch's default.

    Attributes:
        body: What an operator comparison replaces: the depthwise convolution between the mixer's
            projections, or with a mixer of the caller's own all in it.

    Raises:
        ValueError: Not four stages, or a number out of range, or a mixer that changes the shape.
        TypeError: An argument of another type, or a mixer that makes no module.
    """

    task: ClassVar[str] = "classify"

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        mixer: Callable[[int], nn.Module] | None = None,
        *,
        in_channels: int = 3,
        classes: int = 10,
        stride: int = 4,
        scale: float = 1e-6,
        std: float | None = 0.02,
    ) -> None:
        super().__init__()
        blocks, channels = _four("depths", depths), _four("dims", dims)
        if mixer is not None and not callable(mixer):
            raise TypeError(f"mixer must be a function of dim or None, got {args.show(mixer)}")
        in_channels = args.positive_int("in_channels", in_channels)
        classes = args.positive_int("classes", classes)
        stride = args.integer("stride", stride)
        if stride not in STRIDES:
            raise ValueError(f"stride must be 1, 2 or 4, got {stride}")
        scale = args.real("scale", scale)
        std = None if std is None else args.real("std", std, minimum=0)
        self.body: tuple[str, ...] = ("*.mixer.spatial",) if mixer is None else ("*.mixer*",)
        first, second = STRIDES[stride]
        half = max(1, channels[0] // 2)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, half, 3, stride=first, padding=1),
            LayerNorm2d(half),
            nn.GELU(),
            nn.Conv2d(half, channels[0], 3, stride=second, padding=1),
            LayerNorm2d(channels[0]),
        )
        self.downs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), LayerNorm2d(after)
            )
            for before, after in pairwise(channels)
        )
        wide = 3 * channels[-1] // 2
        self.norms = nn.ModuleList(LayerNorm2d(dim) for dim in channels)
        self.head = nn.Sequential(
            nn.Conv2d(channels[-1], wide, 1, bias=False), nn.BatchNorm2d(wide), nn.GELU()
        )
        self.linear = nn.Linear(wide, classes)
        for stage, (count, dim) in enumerate(zip(blocks, channels, strict=True), 1):
            made = (Block(dim, scale) for _ in range(count))
            self.add_module(f"layer{stage}", nn.Sequential(*made))
        if mixer is None:
            self._fill(DepthwiseMixer)
        if std is not None:
            self.apply(partial(_initialise, std))
        if mixer is not None:
            self._fill(mixer)

    def _fill(self, mixer: Callable[[int], nn.Module]) -> None:
        for module in self.modules():
            if isinstance(module, Block):
                made = mixer(module.norm1.normalized_shape[0])
                if not isinstance(made, nn.Module):
                    raise TypeError(f"mixer must make an nn.Module, got {args.show(made)}")
                module.mixer = made

    def features(self, x: Tensor) -> Tensor:
        """The map before the mean over space: ``(B, 1.5 dims[3], h, w)``, stride 8 x ``stride``."""
        x = self.stem(x)
        for stage in range(STAGES):
            x = x if stage == 0 else self.downs[stage - 1](x)
            x = self.norms[stage](self.get_submodule(f"layer{stage + 1}")(x))
        return self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of the images ``(B, in_channels, H, W)``."""
        return self.linear(self.features(x).mean((2, 3)))


def _initialise(std: float, module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _four(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be {STAGES} ints, one per stage, got {args.show(value)}")
    if len(value) != STAGES:
        raise ValueError(f"{name} must be {STAGES} ints, one per stage, got {args.show(value)}")
    return tuple(args.positive_int(f"{name}[{i}]", v) for i, v in enumerate(value))


def unified(
    name: str = "unified",
    *,
    in_channels: int = 3,
    classes: int = 10,
    width: int | None = None,
    mixer: Callable[[int], nn.Module] | None = None,
) -> UnifiedBackbone:
    """A :class:`UnifiedBackbone` in one of the ``SIZES``.

    Args:
        name: ``unified`` (for small images), or ``unified-micro``, ``-tiny``, ``-small``, ``-base``
            as published.
        in_channels: Channels of the images.
        classes: Number of logits.
        width: Channels of the first stage; the others have 2, 4 and 8 times as many. None for the
            size's own.
        mixer: As for :class:`UnifiedBackbone`.
    """
    size = SIZES[args.choice("name", name, SIZES)]
    width = size.width if width is None else args.positive_int("width", width)
    dims = [width * 2**stage for stage in range(STAGES)]
    return UnifiedBackbone(
        size.depths,
        dims,
        mixer,
        in_channels=in_channels,
        classes=classes,
        stride=size.stride,
        scale=size.scale,
        std=size.std,
    )
