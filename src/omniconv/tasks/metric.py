"""What the networks of a task are scored by."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Metric"]


@dataclass(frozen=True)
class Metric:
    """A score of a network on a split.

    Attributes:
        name: Name for people.
        unit: Its unit.
        higher_is_better: Direction.
        chance: Score of a network that has learned nothing.
        margin: Smallest difference that matters.
    """

    name: str
    unit: str
    higher_is_better: bool
    chance: float
    margin: float
