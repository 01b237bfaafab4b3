"""Means, intervals and verdicts. Pure functions of numbers.

Seeds are paired: trials of the same seed see the same batches, so rows are compared by the
differences seed by seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["FEWEST_SEEDS", "Difference", "difference", "holm", "interval", "verdict"]

LEVEL = 0.05
FEWEST_SEEDS = 5
"""Below this there is no verdict."""


@dataclass(frozen=True)
class Difference:
    """Mean difference to the first row over the common seeds.

    Attributes:
        mean: Mean of the paired differences.
        interval: Its 95 % interval; None for fewer than two seeds.
        p: Two-sided p value of the paired t test; None for fewer than two seeds.
        n: Number of common seeds.
    """

    mean: float
    interval: tuple[float, float] | None
    p: float | None
    n: int

    @property
    def enough(self) -> bool:
        """Whether there are enough seeds for a verdict."""
        return self.n >= FEWEST_SEEDS


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean: m -+ t(n - 1) s / sqrt(n); None for fewer than two values."""
    from scipy.special import stdtrit

    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, 1 - LEVEL / 2)) * error
    return mean - half, mean + half


def difference(row: Sequence[float], first: Sequence[float]) -> Difference | None:
    """The paired comparison of two rows, seed by seed in the same order; None without seeds."""
    from scipy.special import stdtr

    changes = [a - b for a, b in zip(row, first, strict=True)]
    if not changes:
        return None
    mean, n = statistics.fmean(changes), len(changes)
    if n < 2:
        return Difference(mean, None, None, n)
    error = statistics.stdev(changes) / math.sqrt(n)
    p = 2 * float(stdtr(n - 1, -abs(mean) / error)) if error else float(mean == 0)
    return Difference(mean, interval(changes), p, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: at most 5 % of all families hold one false rejection at 0.05."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def verdict(
    change: Difference | None, p_holm: float | None, margin: float, higher_is_better: bool
) -> str:
    """The word for a row.

    ``no relevant difference`` where the whole interval lies within the margin, even if it leaves
    out 0; else ``gain`` or ``loss`` where the adjusted p value is at most 0.05; else
    ``undecided``. Fewer than five common seeds give ``too few seeds``.
    """
    if change is None or change.interval is None or p_holm is None or not change.enough:
        return "too few seeds"
    low, high = change.interval
    if -margin <= low and high <= margin:
        return "no relevant difference"
    if p_holm <= LEVEL:
        return "gain" if (change.mean > 0) == higher_is_better else "loss"
    return "undecided"
