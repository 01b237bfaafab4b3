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
from omniconv.bench.networks import convmixer, convnext, large_kernels
from omniconv.surgery import where
from omniconv.surgery.accelerate import accelerate_

__all__ = ["cases"]

NETWORKS: dict[str, dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]] = {
    "default": {
        "ConvNeXt-tiny": (convnext, (2, 3, 224, 224)),
        "ConvMixer-256/8": (convmixer, (8, 3, 32, 32)),
        "4 blocks of 13x13 + 5x5": (partial(large_kernels, 128, 4, 13, 5), (8, 128, 28, 28)),
        "2 blocks of 31x31": (partial(large_kernels, 64, 2, 31), (2, 64, 56, 56)),
    },
    "large": {
        "ConvNeXt-tiny": (convnext, (16, 3, 224, 224)),
        "8 blocks of 31x31 + 5x5": (partial(large_kernels, 128, 8, 31, 5), (8, 128, 28, 28)),
    },
    "odd": {
        "ConvNeXt, 1 block a stage": (partial(convnext, (1, 1), 8), (2, 3, 37, 45)),
        "1 block of 5x5 + 3x3": (partial(large_kernels, 12, 1, 5, 3), (3, 12, 29, 21)),
    },
}
"""Name -> network, shape of its input."""


def cases(ask: Ask) -> Iterator[Case]:
    """The suite's networks, in float32: gates are for what rounds a few times only."""
    if ask.dtype != torch.float32:
        return
    for name, (build, shape) in NETWORKS[ask.suite].items():
        size = " x ".join(map(str, shape))
        yield Case(f"{name}, {size}", partial(_passes, ask, build, shape))


def _passes(ask: Ask, build: Callable[[], nn.Module], shape: tuple[int, ...]) -> list[Pass]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().to(ask.device, ask.dtype)
    x = ask.tensor(*shape)
    plain = {layout: _laid(copy.deepcopy(model), layout) for layout in LAYOUTS}
    fast = copy.deepcopy(plain[ask.layout])
    accelerate_(fast)
    free = {layout: _without(copy.deepcopy(m)) for layout, m in plain.items()}
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        grad = ask.tensor(*model(x).shape)
    parameters = bytes_of(*model.parameters())
    return [
        Pass(
            name="step",
            ours=_step(fast, x, grad),
            torch={layout: _step(m, in_layout(x, layout), grad) for layout, m in plain.items()},
            reference=lambda: _step(exact, x.double(), grad.double())(),
            flops=count_flops(model, x, backward=True).total,
            bytes=2 * parameters + 2 * bytes_of(x),
            length=_length(model, shape),
            yardsticks={f"free {n}": _step(m, in_layout(x, n), grad) for n, m in free.items()},
        )
    ]


def _laid(model: nn.Module, layout: str) -> nn.Module:
    last = layout == "channels_last"
    return model.to(memory_format=torch.channels_last) if last else model  # type: ignore[call-overload]


def _without(model: nn.Module) -> nn.Module:
    """The network without its depthwise layers."""
    found = [name for name, m in model.named_modules() if where.depthwise(name, m)]
    for name in found:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())
    return model


def _step(model: nn.Module, x: Tensor, grad: Tensor) -> Call:
    """Output, and the gradients of the input and of depthwise kernels; it makes all of them."""
    x = x.detach().requires_grad_()
    kernels = [m.weight for name, m in model.named_modules() if where.depthwise(name, m)]
    shown = [x, *kernels]
    others = [p for p in model.parameters() if not any(p is k for k in kernels)]

    def run() -> tuple[Any, ...]:
        y = model(x)
        found = torch.autograd.grad(y, [*shown, *others], grad)
        return (y.detach(), *found[: len(shown)])

    return run


def _length(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Terms of all sums, one after the other: every layer's, and its gradients' over the images."""
    weights = [p.shape[1:] for p in model.parameters() if p.dim() > 1]
    return sum(map(math.prod, weights)) + len(weights) * math.prod(shape)
