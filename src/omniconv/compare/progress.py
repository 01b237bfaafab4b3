"""What is seen while a comparison runs, and the table at its end.

A live table where standard error is a terminal, else one line per trial.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from omniconv.compare.driver import Event
from omniconv.compare.schedule import Job, Schedule
from omniconv.compare.stats import interval
from omniconv.compare.tally import Tally
from omniconv.core.table import text_table

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["final_table", "show"]

REFRESH = 4
"""Pictures of the live table per second."""


class Display(Protocol):
    """Takes events as they come."""

    def __call__(self, event: Event) -> None: ...


@contextmanager
def show(schedule: Schedule, enabled: bool, stream: TextIO | None = None) -> Iterator[Display]:
    """A display of the events on ``stream`` (default: standard error) for as long as the block."""
    stream = sys.stderr if stream is None else stream
    tally = Tally(schedule)
    if not enabled:
        yield tally.take
    elif stream.isatty():
        with _live(tally, stream):
            yield tally.take
    else:
        yield _Lines(tally, stream)


class _Lines:
    """One line per trial."""

    def __init__(self, tally: Tally, stream: TextIO) -> None:
        self.tally = tally
        self.stream = stream

    def __call__(self, event: Event) -> None:
        first_cost = event.kind == "cost" and not self.tally.costs
        seconds = self.tally.elapsed()
        self.tally.take(event)
        if first_cost:
            self.say("measuring costs")
        elif event.kind in ("kept", "end") and event.job is not None:
            took = "kept from before" if event.kind == "kept" else f"{seconds:.1f} s"
            self.say(
                f"{len(self.tally.jobs)}/{self.tally.total} {_name(self.tally, event.job)}: "
                f"{self.outcome(event)}, {took}; about {_duration(self.tally.left())} left"
            )

    def outcome(self, event: Event) -> str:
        """How a trial ended."""
        end, metric = event.record, self.tally.schedule.prepared.metric
        if end["status"] == "done":
            score = end.get("score")
            value = end["validation_score"] if score is None else score
            shown = f"{value:.{_digits(metric.unit)}f} {metric.unit}"
            return shown if score is not None else f"{shown} on validation"
        return end["status"] + (f" ({end['reason']})" if end.get("reason") else "")

    def say(self, text: str) -> None:
        """Write one line at once."""
        print(text, file=self.stream, flush=True)


def _name(tally: Tally, job: Job) -> str:
    """What a trial is, for people."""
    label = tally.schedule.plan.rows[job.row].label
    what = {"tune": f"trying {job.note}", "search": f"trying {job.note}", "screen": "screen"}
    return f"{label}, {what.get(job.stage, f'seed {job.seed}')}"


@contextmanager
def _live(tally: Tally, stream: TextIO) -> Iterator[None]:
    from rich.console import Console
    from rich.live import Live

    with Live(
        get_renderable=lambda: _picture(tally),
        console=Console(file=stream),
        refresh_per_second=REFRESH,
        transient=True,
    ):
        yield


def _picture(tally: Tally) -> Group:
    """The live table and the line below it."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    plan, metric = tally.schedule.plan, tally.schedule.prepared.metric
    table = Table("row", "", "seeds", f"{metric.name}, {metric.unit}", box=None)
    for index, row in enumerate(plan.rows):
        at_work = tally.current is not None and tally.current.row == index
        table.add_row(
            Text(row.label, style="bold" if at_work else ""),
            ProgressBar(total=1.0, completed=tally.share(index), width=20),
            Text(f"{tally.ended(index)}/{len(plan.seeds)}", justify="right"),
            Text(_so_far(tally.scores[index], _digits(metric.unit)), justify="right"),
        )
    doing = "measuring costs"
    if not tally.costs:
        count = f"trial {min(len(tally.jobs) + 1, tally.total)} of {tally.total}"
        doing = f"{count}: {_name(tally, tally.current)}" if tally.current else count
    return Group(table, Text(f"{doing}, about {_duration(tally.left())} left", style="dim"))


def _digits(unit: str) -> int:
    """Decimals of a score."""
    return 1 if unit == "%" else 2


def _so_far(scores: list[float], digits: int) -> str:
    if not scores:
        return ""
    ends = interval(scores)
    half = f" ± {(ends[1] - ends[0]) / 2:.{digits}f}" if ends else ""
    return f"{statistics.fmean(scores):.{digits}f}{half}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def final_table(results: Mapping[str, Any]) -> str:
    """The results as a text table, and the reasons of what failed."""
    unit = results["metric"]["unit"]
    digits = _digits(unit)
    head = ("row", f"{results['metric']['name']}, {unit}", "difference", "verdict", "frontier")
    table = [(*head, "parameters", "latency")]
    for row in results["rows"]:
        cost = row["cost"]
        latency = f"latency_{'n' if cost and cost['batch'] > 1 else '1'}_ms"
        frontier = row["frontier"]
        undecided = row["verdict"] == "undecided" and row["difference"]["seeds_to_decide"]
        table.append(
            (
                row["label"],
                _estimate(row["score"], digits, ""),
                _estimate(row["difference"], digits, "+"),
                row["verdict"] + (f" ({undecided} seeds?)" if undecided else ""),
                frontier["verdict"] if frontier else "",
                _ratio(cost, "parameters"),
                _ratio(cost, latency),
            )
        )
    lines = text_table(table)
    for row in results["rows"]:
        failed = [trial for trial in row["trials"] if trial["reason"]]
        reasons = {trial["reason"]: trial for trial in reversed(failed)}
        lines += [
            f"{row['label']}, seed {trial['seed']}: {trial['status']}: {reason}"
            for reason, trial in reasons.items()
        ]
        if row["cost_reason"]:
            lines.append(f"{row['label']}, costs: {row['cost_reason']}")
    return "\n".join(lines)


def _estimate(value: Mapping[str, Any] | None, digits: int, sign: str) -> str:
    if value is None:
        return ""
    text = f"{value['mean']:{sign}.{digits}f}"
    if value["interval"]:
        low, high = value["interval"]
        text += f" ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"
    return text


def _ratio(cost: Mapping[str, Any] | None, name: str) -> str:
    ratio = cost["ratio"][name] if cost else None
    return "" if ratio is None else f"x{ratio:.2f}"
