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
from omniconv.compare.prepare import Prepared
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
def show(prepared: Prepared, enabled: bool, stream: TextIO | None = None) -> Iterator[Display]:
    """A display of the events on ``stream`` (default: standard error) for as long as the block."""
    stream = sys.stderr if stream is None else stream
    tally = Tally(prepared.plan)
    if not enabled:
        yield tally.take
    elif stream.isatty():
        with _live(prepared, tally, stream):
            yield tally.take
    else:
        yield _Lines(prepared, tally, stream)


class _Lines:
    """One line per trial."""

    def __init__(self, prepared: Prepared, tally: Tally, stream: TextIO) -> None:
        self.prepared = prepared
        self.tally = tally
        self.stream = stream

    def __call__(self, event: Event) -> None:
        first_cost = event.kind == "cost" and not self.tally.costs
        seconds = self.tally.elapsed()
        self.tally.take(event)
        if first_cost:
            self.say("measuring costs")
        elif event.kind in ("kept", "end"):
            end = event.record
            unit = self.prepared.metric.unit
            outcome = f"{end['score']:.1f} {unit}" if end["status"] == "done" else end["status"]
            if end.get("reason"):
                outcome += f" ({end['reason']})"
            took = "kept from before" if event.kind == "kept" else f"{seconds:.1f} s"
            label = self.prepared.plan.rows[event.row or 0].label
            self.say(
                f"{self.tally.done}/{self.tally.total} {label}, seed {event.seed}: {outcome}, "
                f"{took}; about {_duration(self.tally.left())} left"
            )

    def say(self, text: str) -> None:
        """Write one line at once."""
        print(text, file=self.stream, flush=True)


@contextmanager
def _live(prepared: Prepared, tally: Tally, stream: TextIO) -> Iterator[None]:
    from rich.console import Console
    from rich.live import Live

    with Live(
        get_renderable=lambda: _picture(prepared, tally),
        console=Console(file=stream),
        refresh_per_second=REFRESH,
        transient=True,
    ):
        yield


def _picture(prepared: Prepared, tally: Tally) -> Group:
    """The live table and the line below it."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table("row", "", "seeds", f"{prepared.metric.name}, {prepared.metric.unit}", box=None)
    seeds = len(prepared.plan.seeds)
    for index, row in enumerate(prepared.plan.rows):
        at_work = tally.current is not None and tally.current[0] == index
        table.add_row(
            Text(row.label, style="bold" if at_work else ""),
            ProgressBar(total=1.0, completed=tally.share(index), width=20),
            Text(f"{tally.ended[index]}/{seeds}", justify="right"),
            Text(_so_far(tally.scores[index]), justify="right"),
        )
    doing = "measuring costs" if tally.costs else f"trial {min(tally.done + 1, tally.total)}"
    doing += "" if tally.costs else f" of {tally.total}"
    return Group(table, Text(f"{doing}, about {_duration(tally.left())} left", style="dim"))


def _so_far(scores: list[float]) -> str:
    if not scores:
        return ""
    ends = interval(scores)
    half = f" ± {(ends[1] - ends[0]) / 2:.1f}" if ends else ""
    return f"{statistics.fmean(scores):.1f}{half}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def final_table(results: Mapping[str, Any]) -> str:
    """The results as a text table, and the reasons of what failed."""
    unit = results["metric"]["unit"]
    head = ("row", f"{results['metric']['name']}, {unit}", "difference", "verdict")
    table = [(*head, "parameters", "latency")]
    for row in results["rows"]:
        cost = row["cost"]
        latency = f"latency_{'n' if cost and cost['batch'] > 1 else '1'}_ms"
        table.append(
            (
                row["label"],
                _estimate(row["score"], ""),
                _estimate(row["difference"], "+"),
                row["verdict"],
                _ratio(cost, "parameters"),
                _ratio(cost, latency),
            )
        )
    lines = text_table(table)
    for row in results["rows"]:
        reasons = {trial["reason"]: trial for trial in row["trials"] if trial["reason"]}
        lines += [
            f"{row['label']}, seed {trial['seed']}: {trial['status']}: {reason}"
            for reason, trial in reasons.items()
        ]
    return "\n".join(lines)


def _estimate(value: Mapping[str, Any] | None, sign: str) -> str:
    if value is None:
        return ""
    text = f"{value['mean']:{sign}.1f}"
    if value["interval"]:
        low, high = value["interval"]
        text += f" ({low:{sign}.1f} to {high:{sign}.1f})"
    return text


def _ratio(cost: Mapping[str, Any] | None, name: str) -> str:
    ratio = cost["ratio"][name] if cost else None
    return "" if ratio is None else f"x{ratio:.2f}"
