"""What this machine can do at most, measured in the run whose times are held against it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["Ceilings", "measure_ceilings"]

REPEATS = 8
LEAST_SECONDS = 0.02
"""A ceiling is the best of ``REPEATS`` turns, each of calls that take so long together."""

COPIES_MB = {"cpu": (1, 4, 16, 64, 256), "cuda": (4, 32, 256, 2048)}
"""Megabytes that a copy reads and writes."""

SIZES = {"cpu": (1024, 2), "cuda": (8192, 64)}
"""Side of the matrices, images of the convolution."""


@dataclass(frozen=True)
class Ceilings:
    """The machine's best.

    Attributes:
        flops: Work -> FLOP/s, of the dtype asked for: ``"gemm"`` and ``"convolution"``, a dense
            7x7 one of 64 channels.
        copies: Bytes read and written -> bytes per second, rising.
    """

    flops: dict[str, float]
    copies: dict[int, float]

    @property
    def most_flops(self) -> float:
        """FLOP/s of the fastest work."""
        return max(self.flops.values())

    def bandwidth(self, size: int) -> float:
        """Bytes per second of the smallest copy that moves at least ``size`` bytes."""
        fitting = (speed for moved, speed in self.copies.items() if moved >= size)
        return next(fitting, list(self.copies.values())[-1])

    def bound(self, flops: int, size: int) -> tuple[float, str]:
        """Seconds that this work takes at least, and ``"FLOPs"`` or ``"bytes"``: what limits it."""
        compute, move = flops / self.most_flops, size / self.bandwidth(size)
        return (compute, "FLOPs") if compute > move else (move, "bytes")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"flops": self.flops, "copies": {str(k): v for k, v in self.copies.items()}}


def measure_ceilings(
    dtype: torch.dtype = torch.float32, device: str = "cpu", *, scale: int = 1
) -> Ceilings:
    """Measure them, with torch's threads as they are set.

    Args:
        dtype: Of matrices and convolution.
        device: ``"cpu"`` or ``"cuda"``.
        scale: What all sizes are divided by, for a quick and rough answer.
    """
    side, images = (max(1, size // scale) for size in SIZES[device])
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    x = torch.randn(images, 64, 56, 56, device=device).to(dtype)
    weight = torch.randn(64, 64, 7, 7, device=device).to(dtype)
    with torch.no_grad():
        flops = {
            "gemm": 2 * side**3 / _seconds(lambda: a @ b, device),
            "convolution": _convolution(x, weight, device),
        }
        copies = {}
        for megabytes in COPIES_MB[device]:
            source = torch.ones(megabytes * 125_000 // scale, device=device)  # half of it
            target = torch.empty_like(source)
            moved = 8 * source.numel()
            copies[moved] = moved / _seconds(partial(target.copy_, source), device)
    return Ceilings(flops, copies)


def _convolution(x: torch.Tensor, weight: torch.Tensor, device: str) -> float:
    """FLOP/s of a dense convolution, in its better layout; taps outside the image do not count."""
    inside = sum(min(p + 4, 56) - max(p - 3, 0) for p in range(56))
    formats = (torch.contiguous_format, torch.channels_last)
    forms = [[t.contiguous(memory_format=f) for t in (x, weight)] for f in formats]
    calls = (partial(F.conv2d, *form, padding=3) for form in forms)
    best = min(_seconds(call, device) for call in calls)
    return 2 * len(x) * 64 * 64 * inside**2 / best


def _seconds(call: Callable[[], object], device: str) -> float:
    """Of one call, in the best turn."""

    def turn(calls: int) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    turn(1)
    calls = max(1, round(LEAST_SECONDS / max(turn(1), 1e-6)))
    return min(turn(calls) for _ in range(REPEATS)) / calls
