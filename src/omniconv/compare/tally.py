"""Where a comparison stands: scores so far, and how long it will still take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from omniconv.compare.driver import Event
from omniconv.compare.schedule import Job, Schedule

__all__ = ["Tally"]

START = 2.0
"""Seconds until a trial's process trains."""

TRIAL_GUESS = 8.0
"""Seconds of a trial, until one has been seen."""

COSTS_GUESS = 30.0
"""Seconds of the cost phase."""


class Tally:
    """The state of a run, kept up by its events.

    Attributes:
        scores: Per row, the scores of its finished trials of the full budget.
        jobs: The trials that have ended in any way.
        current: The trial at work.
        costs: Whether the cost phase has come.
    """

    def __init__(self, schedule: Schedule, clock: Callable[[], float] = time.monotonic) -> None:
        self.schedule = schedule
        self.clock = clock
        self.scores: list[list[float]] = [[] for _ in schedule.rows]
        self.jobs: list[Job] = []
        self.current: Job | None = None
        self.costs = False
        self.finished = False
        self._seconds: list[list[float]] = [[] for _ in schedule.rows]
        self._began = clock()
        self._share = 0.0

    @property
    def total(self) -> int:
        """Number of trials; fewer where a screen or a search ends early."""
        return len(self.jobs) + sum(1 for _ in self.schedule.left(self.jobs))

    def ended(self, row: int) -> int:
        """Number of the row's trials of the full budget that have ended."""
        return sum(job.row == row and job.stage == "train" for job in self.jobs)

    def take(self, event: Event) -> None:
        """Note what happened."""
        job = event.job
        if event.kind == "begin":
            self.current, self._began, self._share = job, self.clock(), 0.0
        elif event.kind == "step":
            self._share = event.record["done"]
        elif event.kind == "leg" and job is not None:
            self._share = event.record["at"] / (self.schedule.plan.budget.amount * job.weight)
        elif event.kind in ("kept", "end") and job is not None:
            self.jobs.append(job)
            if event.record["status"] == "done":
                if job.stage == "train":
                    self.scores[job.row].append(event.record["score"])
                if event.kind == "end":
                    took = self.clock() - self._began
                    self._seconds[job.row].append(max(took - START, 0.1) / job.weight)
            self.current = None
        elif event.kind == "cost" and not self.costs:
            self.costs, self._began = True, self.clock()
        elif event.kind == "costs":
            self.finished = True

    def share(self, row: int) -> float:
        """What share of a row's work is done."""
        done = sum(job.weight for job in self.jobs if job.row == row)
        left = sum(weight for other, weight in self.schedule.left(self.jobs) if other == row)
        at_work = self.current is not None and self.current.row == row
        part = self._share * self.current.weight if self.current and at_work else 0.0
        return (done + part) / (done + left) if done + left else 1.0

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

        def each(row: int, weight: float) -> float:
            known = self._seconds[row]
            return START + weight * (statistics.fmean(known) if known else typical)

        seconds = COSTS_GUESS + sum(each(*entry) for entry in self.schedule.left(self.jobs))
        if self.current is not None:
            seconds -= min(self.elapsed(), each(self.current.row, self.current.weight))
        return seconds
