"""The driver: one trial after the other, each in a fresh process, then the costs.

What the store already holds is not done again; everything new is in the store before it is told.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omniconv.compare import whole, worker
from omniconv.compare.cost import SECONDS, TIMINGS
from omniconv.compare.identity import identify
from omniconv.compare.schedule import Job, Schedule
from omniconv.compare.store import Store

__all__ = ["Event", "cost_id", "drive"]


@dataclass(frozen=True)
class Event:
    """Something happened.

    Attributes:
        kind: ``kept`` (a trial that the store holds), ``begin``, ``step``, ``leg`` or ``end`` of a
            trial; ``cost`` (a row's costs are being measured, or all rows are timed) and ``costs``
            (they are known).
        row: Index of the row.
        job: The trial.
        record: What there is to say: see :mod:`omniconv.compare.trial`.
    """

    kind: str
    row: int | None = None
    job: Job | None = None
    record: dict[str, Any] = field(default_factory=dict)


def cost_id(schedule: Schedule) -> str:
    """Id of the costs: they depend on no seed, and are measured for all rows together."""
    prepared = schedule.prepared
    operators = [row.operator for row in prepared.plan.rows]
    content = _cost_job(schedule)
    return identify("cost", content, operators, prepared.data["hash"], prepared.environment)


def _cost_job(schedule: Schedule) -> dict[str, Any]:
    plan = schedule.plan
    points = [plan.point(progress.row) for progress in schedule.rows if progress.kept]
    for point in points:
        point["row"] = {k: v for k, v in point["row"].items() if k not in ("lr", "search")}
        for name in ("budget", "optimizer"):
            del point[name]
    shared = {"batch": plan.batch_size, "threads": plan.threads, "backend": plan.backend}
    return {"points": points, **shared}


def drive(schedule: Schedule, store: Store, out: Path) -> Generator[Event]:
    """Do all that the store does not hold yet; yields what happens.

    Interrupted anywhere, a second call goes on and ends in the same numbers.
    """
    work = out / "checkpoints"
    data = work / "data.pt"
    written = False

    def samples() -> str:
        nonlocal written
        if not written:
            assert schedule.prepared.dataset is not None
            work.mkdir(exist_ok=True)
            for leftover in work.glob(".*"):
                leftover.unlink()
            whole.save_data(data, schedule.plan.task, schedule.prepared.dataset)
            written = True
        return str(data)

    for job in schedule.jobs():
        trial = store.trial(job.id)
        if trial is not None and trial.final:
            record = {"status": trial.status, "score": trial.score, "reason": trial.reason}
            yield Event("kept", job.row, job, record | _validation(trial.curve))
        else:
            yield from _trial(
                store, job, samples(), work / f"{job.id}.pt", schedule.plan.time_limit
            )
    id = cost_id(schedule)
    known = store.cost(id)
    if known is None:
        yield from _costs(schedule, store, id, samples())
    else:
        yield Event("costs", record={"rows": known})
    shutil.rmtree(work, ignore_errors=True)


def _trial(
    store: Store, job: Job, data: str, checkpoint: Path, time_limit: float
) -> Generator[Event]:
    """Run one trial; its curve and its end are in the store when they are told."""
    store.begin(job.id, job.point | {"seed": job.seed, "test": job.test})
    yield Event("begin", job.row, job)
    task = {
        "point": job.point,
        "seed": job.seed,
        "test": job.test,
        "data": data,
        "checkpoint": str(checkpoint),
    }
    last: list[dict[str, Any]] = []
    with closing(worker.run("compare.trial", task, job.point["threads"], time_limit)) as events:
        for event in events:
            kind, record = event["event"], {k: v for k, v in event.items() if k != "event"}
            if kind == "leg":
                store.add_leg(job.id, record)
                last = [record]
            if kind in ("end", "failed"):
                record = {"status": "failed", **record}
                store.end(job.id, **record)
                checkpoint.unlink(missing_ok=True)
                kind, record = "end", record | _validation(last)
            yield Event(kind, job.row, job, record)


def _validation(curve: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last score on validation, for those who watch."""
    return {"validation_score": curve[-1]["validation_score"] if curve else None}


def _costs(schedule: Schedule, store: Store, id: str, data: str) -> Generator[Event]:
    """Measure the costs of all rows; one that takes the process down is left out of a new try."""
    job = _cost_job(schedule) | {"data": data}
    indices = [index for index, progress in enumerate(schedule.rows) if progress.kept]
    skipped: dict[int, str] = {}
    rows: list[dict[str, Any]] = []
    limit = schedule.plan.time_limit + TIMINGS * SECONDS
    while not rows:
        current: int | None = None
        asked = {**job, "skip": skipped}
        with closing(worker.run("compare.cost", asked, job["threads"], limit)) as events:
            for event in events:
                if event["event"] in ("row", "times"):
                    current = event.get("row")
                    yield Event("cost", None if current is None else indices[current])
                elif event["event"] == "end":
                    rows = event["rows"]
                elif current is None or current in skipped:
                    rows = [{"reason": event["reason"]} for _ in indices]
                else:
                    skipped[current] = event["reason"]
    if not any("reason" in row for row in rows):
        store.add_cost(id, rows)
    yield Event("costs", record={"rows": rows})
