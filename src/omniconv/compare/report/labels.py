"""Places labels beside points so that no two of them overlap."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_RADII = (9, 14, 22, 32, 44, 58, 74, 92, 112, 136, 164, 196)
_ANGLES = (0, 180, -90, 90, -35, 35, -145, 145, -65, 65, -115, 115)
_FAR = 15


@dataclass(frozen=True)
class Box:
    """An axis-aligned rectangle."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Area shared with `other`."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)

    def inside(self, other: Box) -> bool:
        """Whether `other` contains this box."""
        across = other.left <= self.left and self.right <= other.right
        return across and other.top <= self.top and self.bottom <= other.bottom


@dataclass(frozen=True)
class Label:
    """A placed label: its box, and the end of its leader line where it lies far from its point."""

    box: Box
    leader: tuple[float, float] | None


def text_width(content: str, size: float) -> float:
    """A generous estimate of the width of `content` in a sans-serif face of `size`."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in content)
    capitals = sum(char.isupper() or char in "mwMW%=+@" for char in content)
    return size * (0.55 * (len(content) - wide - capitals) + 0.78 * capitals + 1.05 * wide)


def shortened(content: str, longest: int) -> str:
    """`content` cut to `longest` characters, an ellipsis at the end."""
    return content if len(content) <= longest else content[: longest - 1].rstrip(" ,(") + "…"


def place(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    soft: Sequence[Box],
    bounds: Box,
) -> list[Label | None]:
    """A box for each point's label, or None where none is free.

    Labels keep clear of each other and of every point; they avoid `soft` (error bars, lines)
    where they can, and stay within `bounds`. The most crowded points choose first.
    """
    taken = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    placed: list[Label | None] = [None] * len(points)
    for index in sorted(range(len(points)), key=lambda i: _room(points, i)):
        best: tuple[float, Label] | None = None
        for cost, label in _candidates(points[index], sizes[index]):
            if not label.box.inside(bounds) or any(label.box.overlap(box) for box in taken):
                continue
            hidden = sum(label.box.overlap(box) for box in soft)
            total = cost + 2 * hidden + 40 * _crossings(points[index], label, taken)
            if best is None or total < best[0]:
                best = total, label
        if best:
            placed[index] = best[1]
            taken.append(best[1].box)
    return placed


def _room(points: Sequence[tuple[float, float]], index: int) -> float:
    others = (math.dist(points[index], p) for i, p in enumerate(points) if i != index)
    return min(others, default=math.inf)


def _candidates(point: tuple[float, float], size: tuple[float, float]) -> list[tuple[float, Label]]:
    found = []
    for radius in _RADII:
        for preference, angle in enumerate(_ANGLES):
            x = point[0] + radius * math.cos(math.radians(angle))
            y = point[1] + radius * math.sin(math.radians(angle))
            width, height = size
            side = 0.5 if abs(angle) == 90 else float(abs(angle) > 90)
            top = y - height / 2 + (height / 2 - 2) * math.sin(math.radians(angle))
            box = Box(x - side * width, top, x + (1 - side) * width, top + height)
            end = (min(max(point[0], box.left), box.right), min(max(point[1], top), box.bottom))
            leader = end if radius > _FAR else None
            found.append((2.0 * radius + preference, Label(box, leader)))
    return found


def _crossings(point: tuple[float, float], label: Label, taken: Sequence[Box]) -> int:
    """How many boxes other than the point's own the leader line runs through."""
    if label.leader is None:
        return 0
    steps = [index / 12 for index in range(1, 12)]
    (x1, y1), (x2, y2) = point, label.leader
    spots = [(x1 + t * (x2 - x1), y1 + t * (y2 - y1)) for t in steps]
    own = Box(x1 - 6, y1 - 6, x1 + 6, y1 + 6)
    return sum(
        any(b.left < x < b.right and b.top < y < b.bottom for x, y in spots)
        for b in taken
        if b != own
    )
