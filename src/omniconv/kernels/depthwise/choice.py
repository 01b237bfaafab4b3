"""Which way computes a pass of a depthwise convolution: the kernel, torch in either layout, FFT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from omniconv.kernels.depthwise.fourier import fourier, fourier_input, fourier_weight
from omniconv.kernels.depthwise.reference import (
    depthwise_input_reference,
    depthwise_reference,
    depthwise_weight_reference,
)

__all__ = ["BY_TORCH", "LAYOUTS", "PASSES", "WAYS", "taps_inside", "way"]

PASSES = ("forward", "input", "weight")
LAYOUTS = ("contiguous", "channels_last")
WAYS = ("kernel", *LAYOUTS, "fft")

Ints = Sequence[int]
Steps = tuple[tuple[float, str], ...]
"""Ways, each from a number of taps on."""

SHIPPED: dict[str, Steps] = {
    f"{name} {layout}": ((0, "kernel"),) for name in PASSES for layout in LAYOUTS
}


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of every place lie together, and those of neighbours side by side."""
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def in_layout(x: Tensor, layout: str) -> Tensor:
    """``x`` in this layout."""
    if layout == "contiguous":
        return x.contiguous()
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def layout_of(x: Tensor) -> str:
    """The layout of ``x``, ``"contiguous"`` for all but channels-last ones."""
    return LAYOUTS[is_channels_last(x)]


def taps_inside(size: Ints, kernel: Ints, padding: Ints, stride: Ints, dilation: Ints) -> float:
    """How many taps of the kernel lie inside x, on average over y."""
    found = 1.0
    pads = zip(padding[::2], padding[1::2], strict=True)
    for n, k, (lo, hi), s, d in zip(size, kernel, pads, stride, dilation, strict=True):
        places = (n + lo + hi - d * (k - 1) - 1) // s + 1
        inside = 0
        for v in range(k):
            first = max(-((v * d - lo) // s), 0)
            last = min((n - 1 + lo - v * d) // s, places - 1)
            inside += max(last - first + 1, 0)
        found *= inside / max(places, 1)
    return found


def way(
    name: str, x: Tensor, size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> str:
    """The way of the pass ``name`` for x (B, C, \\*size) in the layout of the tensor ``x``."""
    return "kernel"


class Way(NamedTuple):
    """The three passes, with the operators' arguments."""

    forward: Callable[..., Tensor]
    input: Callable[..., Tensor]
    weight: Callable[..., Tensor]


def _by_torch(layout: str) -> Way:
    """torch's convolution in this layout, whatever that of the tensors."""

    def forward(x: Tensor, *rest: object) -> Tensor:
        return in_layout(depthwise_reference(in_layout(x, layout), *rest), layout_of(x))

    def by_input(grad: Tensor, *rest: object) -> Tensor:
        found = depthwise_input_reference(in_layout(grad, layout), *rest)
        return in_layout(found, layout_of(grad))

    def by_weight(grad: Tensor, x: Tensor, *rest: object) -> Tensor:
        found = depthwise_weight_reference(in_layout(grad, layout), in_layout(x, layout), *rest)
        return found.contiguous()

    return Way(forward, by_input, by_weight)


def _by_fourier() -> Way:
    def forward(x: Tensor, weight: Tensor, bias: Tensor, _: Ints, pads: Ints, __: Ints) -> Tensor:
        return in_layout(fourier(x, weight, bias, pads), layout_of(x))

    def by_input(grad: Tensor, weight: Tensor, size: Ints, _: Ints, pads: Ints, __: Ints) -> Tensor:
        return in_layout(fourier_input(grad, weight, size, pads), layout_of(grad))

    def by_weight(grad: Tensor, x: Tensor, size: Ints, _: Ints, pads: Ints, __: Ints) -> Tensor:
        return fourier_weight(grad, x, size, pads).contiguous()

    return Way(forward, by_input, by_weight)


BY_TORCH = {**{layout: _by_torch(layout) for layout in LAYOUTS}, "fft": _by_fourier()}
"""The ways without the kernel."""
