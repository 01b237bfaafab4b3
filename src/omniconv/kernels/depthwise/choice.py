"""Which way computes a pass of a depthwise convolution: the kernel, torch in either layout, FFT."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from omniconv.kernels.cache import CacheUnusable, find, find_or_make
from omniconv.kernels.depthwise.fourier import fourier, fourier_input, fourier_weight
from omniconv.kernels.depthwise.reference import (
    depthwise_input_reference,
    depthwise_reference,
    depthwise_weight_reference,
)

__all__ = ["BY_TORCH", "LAYOUTS", "PASSES", "WAYS", "Way", "table", "taps_inside", "tune", "way"]

PASSES = ("forward", "input", "weight")
LAYOUTS = ("contiguous", "channels_last")
WAYS = ("kernel", *LAYOUTS, "fft")

SIZES = {"small": (256, 10), "large": (64, 56)}
"""Channels and image sizes that :func:`tune` measures."""

LARGE = 400
"""Places from which on an image is large."""

LANES = 16
"""Channels that a vector of float32 holds."""

Ints = Sequence[int]
Steps = list[tuple[float, str]]
"""Ways, each from so many taps inside the image on."""

SHIPPED: dict[str, Steps] = {
    "forward contiguous small": [(0, "contiguous"), (32, "kernel")],
    "forward contiguous large": [(0, "kernel")],
    "forward channels_last small": [(0, "channels_last"), (20, "kernel")],
    "forward channels_last large": [(0, "channels_last"), (30, "kernel")],
    "input contiguous small": [(0, "kernel")],
    "input contiguous large": [(0, "kernel")],
    "input channels_last small": [(0, "channels_last"), (15, "kernel")],
    "input channels_last large": [(0, "kernel")],
    "weight contiguous small": [(0, "contiguous"), (7.8, "kernel")],
    "weight contiguous large": [(0, "kernel")],
    "weight channels_last small": [(0, "channels_last"), (15, "kernel")],
    "weight channels_last large": [(0, "channels_last"), (15, "kernel")],
}
"""Of a pass, layout and size of images; measured on a Zen 5 with AVX-512, one thread."""

TUNED = "depthwise-choice.json"
"""The file in the cache's folder that takes the place of ``SHIPPED``."""

EXTENTS = (1, 3, 5, 7, 9, 13, 19, 31, 51)
"""Of the kernels that :func:`tune` measures."""

MARGIN = 1.05
"""How much faster than the kernel another way must be to be chosen."""


@cache
def table() -> dict[str, Steps]:
    """The ways of every pass and layout: what :func:`tune` left in the cache, else ``SHIPPED``."""
    try:
        path = find(TUNED)
        found: dict[str, Steps] = json.loads(path.read_text()) if path else {}
        known = all(w in WAYS for steps in found.values() for _, w in steps)
    except (CacheUnusable, OSError, ValueError, TypeError, AttributeError):
        return SHIPPED
    return found if known and found.keys() == SHIPPED.keys() else SHIPPED


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


@lru_cache(1024)
def taps_inside(size: tuple[int, ...], kernel: tuple[int, ...], padding: tuple[int, ...]) -> float:
    """How many taps of the kernel lie inside the image on average, for stride and dilation 1."""
    found = 1.0
    for n, k, lo, hi in zip(size, kernel, padding[::2], padding[1::2], strict=True):
        places = n + lo + hi - k + 1
        found *= sum(max(min(n + lo - v, places) - max(lo - v, 0), 0) for v in range(k)) / places
    return found


def way(
    name: str,
    x: Tensor,
    outputs: int,
    size: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> str:
    r"""The way of the pass ``name`` for images of ``size`` in the layout of the tensor ``x``.

    The table holds for float32, stride 1, dilation 1, one kernel per channel, and channels that
    fill vectors; else the kernel computes. FFT takes no padding that the kernel does not reach.
    """
    fills = x.shape[1] == outputs >= LANES
    if not fills or x.dtype != torch.float32 or any(n != 1 for n in (*stride, *dilation)):
        return "kernel"
    taps = taps_inside(tuple(size), tuple(kernel), tuple(padding))
    found = "kernel"
    extent = "small" if math.prod(size) < LARGE else "large"
    for least, chosen in table()[f"{name} {layout_of(x)} {extent}"]:
        if taps >= least:
            found = chosen
    reach = [k - 1 for k in kernel for _ in range(2)]
    if found == "fft" and any(p > r for p, r in zip(padding, reach, strict=True)):
        return "kernel"
    return found


class Way(NamedTuple):
    """The three passes, with the operators' arguments."""

    forward: Callable[..., Tensor]
    input: Callable[..., Tensor]
    weight: Callable[..., Tensor]


def _by_torch(layout: str) -> Way:
    """torch's convolution in this layout, whatever that of the tensors."""

    def forward(x: Tensor, *rest: Any) -> Tensor:
        return in_layout(depthwise_reference(in_layout(x, layout), *rest), layout_of(x))

    def by_input(grad: Tensor, *rest: Any) -> Tensor:
        found = depthwise_input_reference(in_layout(grad, layout), *rest)
        return in_layout(found, layout_of(grad))

    def by_weight(grad: Tensor, x: Tensor, *rest: Any) -> Tensor:
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


def tune(kernel: Way, seconds: float = 0.3) -> Path:
    """Measure all ways on this machine, in this process's number of threads, and keep the table.

    Args:
        kernel: The kernel's way (``omniconv.kernels.depthwise.ops.KERNEL``).
        seconds: For each pass, layout and extent.

    Returns:
        The table's file, which every later process reads.

    Raises:
        CacheUnusable: There is no folder that it can be kept in.
    """
    found = {key: _steps(key, kernel, seconds) for key in SHIPPED}
    old = find(TUNED)
    if old:
        old.unlink()
    path = find_or_make(TUNED, lambda part: _write(part, json.dumps(found, indent=1)))
    table.cache_clear()
    return path


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n")


def _steps(key: str, kernel: Way, seconds: float) -> Steps:
    name, layout, images = key.split()
    channels, side = SIZES[images]
    steps: Steps = []
    for extent in EXTENTS:
        pad = extent // 2
        size, taps, pads = (side, side), (extent, extent), (pad, pad, pad, pad)
        x = in_layout(torch.randn(4, channels, *size), layout)
        weight = torch.randn(channels, 1, *taps)
        geometry = ([1, 1], list(pads), [1, 1])
        given: tuple[Any, ...] = {
            "forward": (x, weight, None, *geometry),
            "input": (x, weight, list(size), *geometry),
            "weight": (x, x, list(taps), *geometry),
        }[name]
        calls = {w: getattr(ways, name) for w, ways in {"kernel": kernel, **BY_TORCH}.items()}
        took = _measure(calls, given, seconds)
        best = min(took, key=lambda w: took[w] * (1 if w == "kernel" else MARGIN))
        if not steps or steps[-1][1] != best:
            steps.append((0 if not steps else taps_inside(size, taps, pads) * 0.8, best))
    return steps


def _measure(
    calls: dict[str, Callable[..., Tensor]], given: tuple[Any, ...], seconds: float
) -> dict[str, float]:
    """Median seconds of interleaved calls; ways ten times slower than the best run once."""
    took: dict[str, list[float]] = {w: [] for w in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not all(took.values()):
        best = min((min(t) for t in took.values() if t), default=0.0)
        for w, call in calls.items():
            if took[w] and min(took[w]) > 10 * best:
                continue
            start = time.perf_counter()
            call(*given)
            took[w].append(time.perf_counter() - start)
    return {w: sorted(t)[len(t) // 2] for w, t in took.items()}
