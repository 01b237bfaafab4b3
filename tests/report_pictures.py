"""Made-up pictures for the tests of the report: kernels, receptive fields, attention."""

from __future__ import annotations

import math
import random
from functools import cache
from typing import Any

_SIDE = 28
_SHAPES = ("ring", "bar", "cross", "wave", "disc", "frame")


def kernels(operator: str, kind: str, size: int, draw: random.Random) -> list[dict[str, Any]]:
    """Sixteen oriented kernels of each of three layers; involution has none."""
    extent = 3 if operator == "weighted" else size
    layers = []
    for layer in ("layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv2"):
        found = [_kernel(operator, extent, draw) for _ in range(16)]
        shown = None if operator == "involution" else found
        layers.append({"layer": layer, "type": kind, "kernels": shown})
    return layers


def _kernel(operator: str, extent: int, draw: random.Random) -> list[list[float]]:
    angle, shift = draw.uniform(0, math.pi), draw.uniform(-0.8, 0.8)
    return [
        [_weight(operator, x, y, extent, angle, shift, draw) for x in range(extent)]
        for y in range(extent)
    ]


def _weight(
    operator: str, x: int, y: int, extent: int, angle: float, shift: float, draw: random.Random
) -> float:
    if operator == "dcls" and draw.random() < 0.45:
        return 0.0
    u, v = ((2 * t - extent + 1) / extent for t in (x, y))
    across = u * math.cos(angle) + v * math.sin(angle) + shift
    return 0.3 * math.sin(3 * across) * math.exp(-u * u - v * v) + draw.gauss(0, 0.04)


@cache
def receptive_field(reach: float) -> dict[str, Any]:
    """A bell of width `reach`, ragged as measured ones are."""
    draw = random.Random(round(1000 * reach))
    shares = []
    for y in range(_SIDE):
        v = (2 * y - _SIDE + 1) / _SIDE
        row = []
        for x in range(_SIDE):
            u = (2 * x - _SIDE + 1) / _SIDE
            row.append(math.exp(-(u * u + v * v) / (reach * reach)) * draw.uniform(0.4, 1.0))
        shares.append(row)
    peak = max(map(max, shares))
    whole = sum(map(sum, shares))
    held, count = 0.0, 0
    for value in sorted((value for row in shares for value in row), reverse=True):
        held, count = held + value, count + 1
        if held >= 0.95 * whole:
            break
    return {
        "map": [[value / peak for value in row] for row in shares],
        "height": _SIDE,
        "width": _SIDE,
        "area": count / _SIDE**2,
    }


def attention(operator: str, seed: int) -> list[dict[str, Any]]:
    """Six drawings; the networks of involution take the third for another."""
    found = []
    for index, shape in enumerate(_SHAPES):
        draw = random.Random(100 * seed + index)
        wrong = index == 2 and operator == "involution"
        spot = draw.uniform(-0.4, 0.4), draw.uniform(-0.4, 0.4)
        found.append(
            {
                "image": _drawn(shape),
                "map": _blob(*spot),
                "label": shape,
                "predicted": "wave" if wrong else shape,
            }
        )
    return found


@cache
def _drawn(shape: str) -> list[list[Any]]:
    return [[_pixel(shape, x, y) for x in range(_SIDE)] for y in range(_SIDE)]


def _pixel(shape: str, x: int, y: int) -> Any:
    u, v = ((2 * t - _SIDE + 1) / _SIDE for t in (x, y))
    r = math.hypot(u, v)
    distance = {
        "ring": abs(r - 0.6),
        "bar": abs(u - 0.4 * v),
        "cross": min(abs(u - v), abs(u + v)),
        "wave": abs(v - 0.4 * math.sin(5 * u)),
        "disc": max(0.0, r - 0.45),
        "frame": abs(max(abs(u), abs(v)) - 0.65),
    }[shape]
    strength = round(255 * math.exp(-((distance / 0.14) ** 2)))
    return [strength, round(0.8 * strength), 40] if shape == "disc" else strength


def _blob(x: float, y: float) -> list[list[float]]:
    centre = [(2 * t - _SIDE + 1) / _SIDE for t in range(_SIDE)]
    return [[math.exp(-((u - x) ** 2 + (v - y) ** 2) / 0.15) for u in centre] for v in centre]
