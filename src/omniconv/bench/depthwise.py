"""Cases of the kernel ``depthwise``: kernels of 3 to 63 entries along an axis, bands, volumes.

torch's own layers stand beside Fourier transforms, where these can do it. Beyond
``MOST_TAPS`` torch's layers take seconds and transforms are far ahead, so that only these run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from omniconv.bench.case import (
    LAYOUTS,
    Ask,
    Call,
    Case,
    Pass,
    bytes_of,
    gradients,
    in_layout,
    lazily,
    step,
    taps_inside,
)
from omniconv.kernels.depthwise import depthwise
from omniconv.kernels.depthwise.fourier import fourier, fourier_input, fourier_weight
from omniconv.kernels.depthwise.reference import depthwise_reference

__all__ = ["cases"]

MOST_TAPS = 1500
TRANSFORMED = 80
"""From so many taps on the float64 reference is by transforms, too."""


@dataclass(frozen=True)
class _Shape:
    """One case; ``padding`` has a pair for every axis, and None keeps the size (odd kernels)."""

    batch: int
    channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    multiplier: int = 1
    stride: int = 1
    dilation: int = 1
    padding: tuple[tuple[int, int], ...] | None = None

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
        axes = zip(self.size, self.kernel, self.pads, strict=True)
        taps = (taps_inside(n, k, self.stride, pair, self.dilation) for n, k, pair in axes)
        return 2 * self.batch * self.channels * self.multiplier * math.prod(taps)

    @property
    def transforms(self) -> bool:
        """Whether Fourier transforms can do it."""
        return self.stride == self.dilation == self.multiplier == 1

    def __str__(self) -> str:
        extent, kernel = " x ".join(map(str, self.size)), " x ".join(map(str, self.kernel))
        words = [f"{self.batch} x {self.channels} x {extent}, K = {kernel}"]
        words += [f"{self.multiplier} kernels a channel"] * (self.multiplier > 1)
        words += [f"stride {self.stride}"] * (self.stride > 1)
        words += [f"dilation {self.dilation}"] * (self.dilation > 1)
        return ", ".join(words)


SHAPES: dict[str, tuple[_Shape, ...]] = {
    "default": tuple(_Shape(8, 64, (56, 56), (k, k)) for k in (3, 7, 13, 31, 51)),
    "large": (
        _Shape(8, 64, (56, 56), (63, 63)),
        _Shape(8, 64, (56, 56), (1, 31)),
        _Shape(8, 64, (56, 56), (31, 1)),
        _Shape(2, 96, (112, 112), (7, 7)),
        _Shape(8, 256, (4096,), (63,)),
        _Shape(2, 32, (16, 56, 56), (5, 5, 5)),
    ),
    "odd": (
        _Shape(3, 5, (31, 29), (4, 5), 3, stride=2, padding=((1, 0), (3, 1))),
        _Shape(2, 17, (17, 19), (3, 7), dilation=3, padding=((2, 4), (9, 9))),
        _Shape(5, 33, (23, 14), (1, 13)),
        _Shape(4, 10, (501,), (9,)),
        _Shape(2, 6, (7, 9, 8), (3, 2, 3), padding=((1, 1), (1, 0), (0, 2))),
    ),
}


def cases(ask: Ask) -> Iterator[Case]:
    """The suite's shapes."""
    for shape in SHAPES[ask.suite]:
        yield Case(str(shape), partial(_passes, ask, shape))


def _passes(ask: Ask, shape: _Shape) -> list[Pass]:
    outputs = shape.channels * shape.multiplier
    x = ask.tensor(shape.batch, shape.channels, *shape.size)
    weight = ask.tensor(outputs, 1, *shape.kernel)
    grad = ask.tensor(shape.batch, outputs, *shape.output, seed=1)
    pads = [p for pair in shape.pads for p in pair]
    stride, dilation = [shape.stride] * len(shape.size), [shape.dilation] * len(shape.size)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return depthwise(x, weight, None, shape.stride, shape.pads, shape.dilation)

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return depthwise_reference(x, weight, None, stride, pads, dilation)

    def forward(form: Callable[..., Tensor], *given: Tensor, grad: Tensor) -> Call:
        return lambda: form(*given)

    def in_form(
        form: Callable[..., Tensor],
        run: Callable[..., Call],
        layout: str,
        wanted: tuple[bool, bool],
    ) -> Call:
        given = (in_layout(t, layout).detach() for t in (x, weight))
        leaves = [t.requires_grad_(w) for t, w in zip(given, wanted, strict=True)]
        return run(form, *leaves, grad=in_layout(grad, layout))

    def by_transforms(name: str, *given: Tensor) -> tuple[Tensor, ...]:
        x, weight, grad = given
        made = {
            "forward": lambda: fourier(x, weight, None, pads),
            "input gradient": lambda: fourier_input(grad, weight, shape.size, pads),
            "weight gradient": lambda: fourier_weight(grad, x, shape.kernel, pads),
        }
        return tuple(made[one]() for one in ([name] if name in made else made))

    def reference(name: str, run: Callable[..., Call], wanted: tuple[bool, bool]) -> object:
        exact = [t.double() for t in (x, weight, grad)]
        if shape.transforms and math.prod(shape.kernel) > TRANSFORMED:
            return by_transforms(name, *exact)
        leaves = [t.requires_grad_(w) for t, w in zip(exact, wanted, strict=False)]
        return run(plain, *leaves, grad=exact[2])()

    def a_pass(name: str, run: Callable[..., Call], *wanted: bool) -> Pass:
        both = (wanted[0], wanted[1])
        forms: dict[str, Call] = {}
        if math.prod(shape.kernel) <= MOST_TAPS:
            forms = {layout: in_form(plain, run, layout, both) for layout in LAYOUTS}
        if shape.transforms:
            forms["fft"] = partial(
                by_transforms, name, *(t.contiguous() for t in (x, weight, grad))
            )
        passes = 3 if name == "step" else 1
        lengths = {"forward": taps, "input gradient": taps * shape.multiplier}
        return Pass(
            name=name,
            ours=in_form(ours, run, ask.layout, both),
            torch=forms,
            compiled={
                layout: lazily(partial(in_form, torch.compile(plain), run, layout, both))
                for layout in forms
                if layout in LAYOUTS
            },
            reference=partial(reference, name, run, both),
            flops=passes * shape.flops,
            bytes=(2 if name == "step" else 1) * bytes_of(x, weight, grad),
            length=lengths.get(name, shape.batch * math.prod(shape.output)),
        )

    taps = math.prod(shape.kernel)
    return [
        a_pass("forward", forward, False, False),
        a_pass("input gradient", gradients, True, False),
        a_pass("weight gradient", gradients, False, True),
        a_pass("step", step, True, True),
    ]
