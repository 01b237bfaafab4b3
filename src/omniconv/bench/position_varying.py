"""Cases of the kernel ``position_varying``: windows weighed by kernels of their own.

Involution (K = 7, 16 channels share a kernel), LS convolution (K = 3, 8 channels), local relation
(a softmax over K = 7) and TVConv (every channel its own kernels, which the batch shares).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from omniconv.bench.case import (
    Ask,
    Call,
    Case,
    Pass,
    bytes_of,
    gradients,
    in_layout,
    step,
    taps_inside,
)
from omniconv.kernels.position_varying import position_varying
from omniconv.kernels.position_varying.reference import position_varying_reference

__all__ = ["cases"]


@dataclass(frozen=True)
class _Shape:
    """One case; ``padding`` has a pair for every axis, and None keeps the size (odd kernels)."""

    batch: int
    channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    groups: int
    shared: bool = False
    softmax: bool = False
    stride: int = 1
    dilation: int = 1
    padding: tuple[tuple[int, int], ...] | None = None

    @property
    def dim(self) -> int:
        return len(self.size)

    @property
    def pads(self) -> tuple[tuple[int, int], ...]:
        return self.padding or tuple((self.dilation * (k // 2),) * 2 for k in self.kernel)

    @property
    def output(self) -> tuple[int, ...]:
        return tuple(
            (n + sum(pair) - self.dilation * (k - 1) - 1) // self.stride + 1
            for n, k, pair in zip(self.size, self.kernel, self.pads, strict=True)
        )

    @property
    def flops(self) -> int:
        """Two for every tap inside the image."""
        taps = (
            taps_inside(n, k, self.stride, pair, self.dilation)
            for n, k, pair in zip(self.size, self.kernel, self.pads, strict=True)
        )
        return 2 * self.batch * self.channels * math.prod(taps)

    def __str__(self) -> str:
        extent, kernel = " x ".join(map(str, self.size)), " x ".join(map(str, self.kernel))
        words = [
            f"{self.batch} x {self.channels} x {extent}, K = {kernel}",
            f"{self.groups} groups",
        ]
        words += ["softmax"] * self.softmax + ["shared by the batch"] * self.shared
        words += [f"stride {self.stride}"] * (self.stride > 1)
        words += [f"dilation {self.dilation}"] * (self.dilation > 1)
        return ", ".join(words)


SHAPES: dict[str, tuple[_Shape, ...]] = {
    "default": (
        _Shape(8, 64, (56, 56), (7, 7), 4),
        _Shape(8, 64, (56, 56), (3, 3), 8),
        _Shape(8, 64, (56, 56), (7, 7), 8, softmax=True),
        _Shape(8, 64, (56, 56), (3, 3), 64, shared=True),
    ),
    "large": (
        _Shape(8, 64, (56, 56), (13, 13), 4),
        _Shape(2, 96, (112, 112), (7, 7), 6),
        _Shape(2, 32, (16, 28, 28), (3, 3, 3), 4),
    ),
    "odd": (
        _Shape(3, 21, (31, 29), (4, 5), 3, stride=2, padding=((1, 0), (3, 1))),
        _Shape(2, 12, (17, 19), (3, 3), 12, dilation=3, padding=((2, 4), (3, 3))),
        _Shape(5, 10, (501,), (9,), 2, softmax=True),
        _Shape(2, 6, (7, 9, 8), (3, 2, 3), 2, shared=True, padding=((1, 1), (1, 0), (0, 2))),
    ),
}


def cases(ask: Ask) -> Iterator[Case]:
    """The suite's shapes."""
    for shape in SHAPES[ask.suite]:
        yield Case(str(shape), partial(_passes, ask, shape))


def _unfolded(shape: _Shape, x: Tensor, weight: Tensor) -> Tensor:
    """Every window copied out, weighed and summed: the form of involution's released code."""
    flat = weight.flatten(2, 1 + shape.dim)
    kernels = (flat.softmax(2) if shape.softmax else flat).unsqueeze(2)
    padded = F.pad(x, [p for pair in reversed(shape.pads) for p in pair])
    if shape.dim == 2:
        columns = F.unfold(padded, shape.kernel, shape.dilation, 0, shape.stride)
    else:
        for axis, k in enumerate(shape.kernel):
            windows = padded.unfold(2 + axis, shape.dilation * (k - 1) + 1, shape.stride)
            padded = windows[..., :: shape.dilation]
        columns = padded.flatten(2 + shape.dim).movedim(-1, 2)
    values = columns.reshape(len(x), shape.groups, -1, flat.shape[2], *shape.output)
    return (values * kernels).sum(3).flatten(1, 2)


def _passes(ask: Ask, shape: _Shape) -> list[Pass]:
    sets = 1 if shape.shared else shape.batch
    x = ask.tensor(shape.batch, shape.channels, *shape.size)
    kernels = (sets, shape.groups, *shape.kernel, *shape.output)
    weight = ask.tensor(sets, math.prod(kernels[1 : 2 + shape.dim]), *shape.output)
    weight = weight.unflatten(1, kernels[1 : 2 + shape.dim])
    grad = ask.tensor(shape.batch, shape.channels, *shape.output, seed=1)
    ones = (1,) * shape.dim
    stride, dilation = [shape.stride * i for i in ones], [shape.dilation * i for i in ones]
    pads = [p for pair in shape.pads for p in pair]

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return position_varying(x, weight, stride, shape.pads, dilation, shape.softmax)

    def shifted(x: Tensor, weight: Tensor) -> Tensor:
        return position_varying_reference(x, weight, stride, pads, dilation, shape.softmax)

    unfolded = partial(_unfolded, shape)
    plain: dict[str, Callable[..., Tensor]] = {"unfold": unfolded, "shifted": shifted}
    fast = {name: torch.compile(form) for name, form in plain.items()}

    def leaves(layout: str, wanted: tuple[bool, bool]) -> list[Tensor]:
        flat = in_layout(weight.detach().flatten(1, 1 + shape.dim), layout)
        given = (in_layout(x, layout), flat.unflatten(1, kernels[1 : 2 + shape.dim]))
        return [t.detach().requires_grad_(w) for t, w in zip(given, wanted, strict=True)]

    def reference() -> tuple[Tensor, ...]:
        exact = [t.double().requires_grad_() for t in (x, weight)]
        found: tuple[Tensor, ...] = step(shifted, *exact, grad=grad.double())()
        return found

    def one(form: Callable[..., Tensor], run: Callable[..., Call], *wanted: bool) -> Call:
        @cache
        def made() -> Call:  # at its first call: a form may be compiled for this
            return run(form, *leaves(ask.layout, (wanted[0], wanted[1])), grad=grad)

        return lambda: made()()

    def forward(form: Callable[..., Tensor], *given: Tensor, grad: Tensor) -> Call:
        return lambda: form(*given)

    images, kernel = bytes_of(x, grad), bytes_of(weight)
    taps, flops = math.prod(shape.kernel), shape.flops
    sums = shape.channels // shape.groups * (shape.batch if shape.shared else 1)

    def a_pass(name: str, run: Callable[..., Call], wanted: str, part: slice) -> Pass:
        both = ("x" in wanted, "w" in wanted)
        reads_weights = name != "weight gradient" or shape.softmax
        moved = images + kernel * (both[1] + reads_weights)
        return Pass(
            name=name,
            ours=one(ours, run, *both),
            torch={key: one(form, run, *both) for key, form in plain.items()},
            compiled={key: one(form, run, *both) for key, form in fast.items()},
            reference=lambda: reference()[part],
            flops=flops * (3 if name == "step" else 1),
            bytes=moved + (images if name == "step" else 0),
            length=max(taps, sums) if both[1] else taps,
        )

    return [
        a_pass("forward", forward, "", slice(0, 1)),
        a_pass("input gradient", gradients, "x", slice(1, 2)),
        a_pass("weight gradient", gradients, "w", slice(2, 3)),
        a_pass("step", step, "xw", slice(0, 3)),
    ]
