"""Cases of ``oc.accelerate_``: training steps of whole networks, plain and accelerated.

Beside them the same network runs with every depthwise layer an ``nn.Identity``: what is faster than
that, no depthwise kernel can give. ``saved`` is the share of the difference that was gained.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from omniconv.analysis.flops import count_flops
from omniconv.bench.case import LAYOUTS, Ask, Call, Case, Pass, bytes_of, in_layout
from omniconv.surgery import where
from omniconv.surgery.accelerate import accelerate_

__all__ = ["cases"]

Parts = list[nn.Module]


class Residual(nn.Module):
    """``x + f(x)``, or a sum of branches."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape that the branches keep."""
        for branch in self.branches:
            x = x + branch(x)
        return x


class Branches(Residual):
    """Layers side by side, such as a large kernel and a small one while they are trained."""

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the branches."""
        return torch.stack([branch(x) for branch in self.branches]).sum(0)


class ChannelsLast(nn.Module):
    """Layers that take the channels as the last axis."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.inside = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W)."""
        found: Tensor = self.inside(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return found


def _depthwise(channels: int, extent: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, extent, padding=extent // 2, groups=channels)


def _convnext(depths: tuple[int, ...] = (3, 3, 9, 3), width: int = 96) -> nn.Sequential:
    """ConvNeXt (tiny): 7x7 depthwise, norm, two 1-wide layers four times as wide in between."""
    parts: Parts = [nn.Conv2d(3, width, 4, stride=4), ChannelsLast(nn.LayerNorm(width))]
    for stage, depth in enumerate(depths):
        c = width * 2**stage
        if stage:
            parts += [ChannelsLast(nn.LayerNorm(c // 2)), nn.Conv2d(c // 2, c, 2, stride=2)]
        for _ in range(depth):
            wide = [nn.LayerNorm(c), nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c)]
            parts.append(Residual(nn.Sequential(_depthwise(c, 7), ChannelsLast(*wide))))
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 1000))


def _convmixer(width: int = 256, depth: int = 8, extent: int = 5) -> nn.Sequential:
    """ConvMixer-256/8 with patches of 2x2, as its paper has it for CIFAR-10."""
    parts: Parts = [nn.Conv2d(3, width, 2, stride=2), nn.GELU(), nn.BatchNorm2d(width)]
    for _ in range(depth):
        mixer = (_depthwise(width, extent), nn.GELU(), nn.BatchNorm2d(width))
        parts += [Residual(nn.Sequential(*mixer))]
        parts += [nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def _large(width: int, depth: int, extents: tuple[int, ...]) -> nn.Sequential:
    """Blocks of 1x1, depthwise layers of these extents side by side, and 1x1."""
    parts: Parts = [nn.Conv2d(3, width, 4, stride=4)]
    for _ in range(depth):
        sides: Parts = [
            nn.Sequential(_depthwise(width, extent), nn.BatchNorm2d(width)) for extent in extents
        ]
        inside = (nn.Conv2d(width, width, 1), nn.GELU(), Branches(*sides), nn.GELU())
        parts.append(Residual(nn.Sequential(*inside, nn.Conv2d(width, width, 1))))
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


NETWORKS: dict[str, tuple[tuple[str, Callable[[], nn.Sequential], tuple[int, ...]], ...]] = {
    "default": (
        ("ConvNeXt-tiny", _convnext, (4, 3, 224, 224)),
        ("ConvMixer-256/8", _convmixer, (32, 3, 32, 32)),
        (
            "13x13 + 5x5 in training, 4 blocks of 128",
            partial(_large, 128, 4, (13, 5)),
            (4, 3, 112, 112),
        ),
        ("31x31, 4 blocks of 64", partial(_large, 64, 4, (31,)), (2, 3, 224, 224)),
    ),
    "large": (
        (
            "31x31 + 5x5 in training, 8 blocks of 128",
            partial(_large, 128, 8, (31, 5)),
            (4, 3, 224, 224),
        ),
    ),
    "odd": (
        ("ConvNeXt, 1 block a stage", partial(_convnext, (1, 1), 8), (2, 3, 37, 45)),
        ("5x5 + 3x3, 1 block of 12", partial(_large, 12, 1, (5, 3)), (3, 3, 29, 21)),
    ),
}
"""Name, network, shape of the images."""


def cases(ask: Ask) -> Iterator[Case]:
    """The suite's networks, in float32: gates are for what rounds a few times only."""
    if ask.dtype != torch.float32:
        return
    for name, build, shape in NETWORKS[ask.suite]:
        size = " x ".join(map(str, shape))
        yield Case(f"{name}, {size}", partial(_passes, ask, build, shape))


def _passes(ask: Ask, build: Callable[[], nn.Sequential], shape: tuple[int, ...]) -> list[Pass]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().to(ask.device, ask.dtype)
    x = ask.tensor(*shape).requires_grad_()
    plain = {layout: _laid(copy.deepcopy(model), layout) for layout in LAYOUTS}
    fast = copy.deepcopy(plain[ask.layout])
    accelerate_(fast)
    free = _without(copy.deepcopy(plain[ask.layout]))
    exact = copy.deepcopy(model).double()
    parameters = bytes_of(*model.parameters())
    return [
        Pass(
            name="step",
            ours=_step(fast, x),
            torch={layout: _step(m, in_layout(x.detach(), layout)) for layout, m in plain.items()},
            reference=lambda: _step(exact, x.detach().double())(),
            flops=count_flops(model, x, backward=True).total,
            bytes=2 * parameters + 2 * bytes_of(x),
            length=_length(model, shape),
            yardsticks={"free": _step(free, x)},
        )
    ]


def _laid(model: nn.Module, layout: str) -> nn.Module:
    last = layout == "channels_last"
    return model.to(memory_format=torch.channels_last) if last else model  # type: ignore[call-overload, no-any-return]


def _without(model: nn.Module) -> nn.Module:
    """The network without its depthwise layers."""
    found = [name for name, m in model.named_modules() if where.depthwise(name, m)]
    for name in found:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())
    return model


def _step(model: nn.Module, x: Tensor) -> Call:
    """Output, and the gradients of the input and of depthwise kernels; it makes all of them."""
    x = x.detach().requires_grad_()
    kernels = [m.weight for name, m in model.named_modules() if where.depthwise(name, m)]
    shown = [x, *kernels]
    others = [p for p in model.parameters() if not any(p is k for k in kernels)]

    def run() -> tuple[Any, ...]:
        y = model(x)
        found = torch.autograd.grad(y.square().mean(), [*shown, *others])
        return (y.detach(), *found[: len(shown)])

    return run


def _length(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Terms of all sums, one after the other: every layer's, and its gradients' over the images."""
    weights = [p.shape[1:] for p in model.parameters() if p.dim() > 1]
    return sum(map(math.prod, weights)) + len(weights) * math.prod(shape)
