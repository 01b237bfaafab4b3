"""Where a comparison stands: scores so far, and how long it will still take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from omniconv.compare.driver import Event
from omniconv.compare.plan import Plan

__all__ = ["Tally"]

TRIAL_GUESS = 8.0
"""Seconds of a trial, until one has been seen."""

COSTS_GUESS = 30.0
"""Seconds of the cost phase."""


class Tally:
    """The state of a run, kept up by its events.

    Attributes:
        scores: Per row, the scores of its finished trials.
        ended: Per row, the number of trials that have ended in any way.
        current: (row index, seed) of the trial at work.
        costs: Whether the cost phase has come.
    """

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self.plan = plan
        self.clock = clock
        self.scores: list[list[float]] = [[] for _ in plan.rows]
        self.ended = [0] * len(plan.rows)
        self.current: tuple[int, int] | None = None
        self.costs = False
        self.finished = False
        self._seconds: list[list[float]] = [[] for _ in plan.rows]
        self._began = clock()
        self._share = 0.0

    @property
    def total(self) -> int:
        """Number of trials."""
        return len(self.plan.rows) * len(self.plan.seeds)

    @property
    def done(self) -> int:
        """Number of trials that have ended."""
        return sum(self.ended)

    def take(self, event: Event) -> None:
        """Note what happened."""
        if event.kind == "begin" and event.row is not None and event.seed is not None:
            self.current, self._began, self._share = (event.row, event.seed), self.clock(), 0.0
        elif event.kind == "step":
            self._share = event.record["done"]
        elif event.kind == "epoch":
            self._share = event.record["epoch"] / self.plan.epochs
        elif event.kind in ("kept", "end") and event.row is not None:
            self.ended[event.row] += 1
            if event.record["status"] == "done":
                self.scores[event.row].append(event.record["score"])
                if event.kind == "end":
                    self._seconds[event.row].append(self.clock() - self._began)
            self.current = None
        elif event.kind == "cost" and not self.costs:
            self.costs, self._began = True, self.clock()
        elif event.kind == "costs":
            self.finished = True

    def share(self, row: int) -> float:
        """What share of a row's trials is done."""
        part = self._share if self.current is not None and self.current[0] == row else 0.0
        return (self.ended[row] + part) / len(self.plan.seeds)

    def elapsed(self) -> float:
        """Seconds since the present trial began."""
        return self.clock() - self._began

    def left(self) -> float:
        """Seconds until the end, estimated from the trials so far."""
        if self.finished:
            return 0.0
        if self.costs:
            return max(1.0, COSTS_GUESS - self.elapsed())
        seen = [second for row in self._seconds for second in row]
        typical = statistics.fmean(seen) if seen else TRIAL_GUESS
        seconds = COSTS_GUESS
        for row, known in enumerate(self._seconds):
            each = statistics.fmean(known) if known else typical
            seconds += each * (len(self.plan.seeds) - self.ended[row])
        if self.current is not None:
            row = self.current[0]
            each = statistics.fmean(self._seconds[row]) if self._seconds[row] else typical
            seconds -= min(self.elapsed(), each)
        return seconds
