"""The driver: one trial after the other, each in a fresh process, then the costs.

What the store already holds is not done again; everything new is in the store before it is told.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omniconv.compare import whole, worker
from omniconv.compare.identity import identify
from omniconv.compare.prepare import Prepared
from omniconv.compare.store import Store

__all__ = ["Event", "cost_id", "drive", "trial_ids"]


@dataclass(frozen=True)
class Event:
    """Something happened.

    Attributes:
        kind: ``kept`` (a trial that the store holds), ``begin``, ``step``, ``epoch`` or ``end`` of
            a trial; ``cost`` (a row's costs are being measured, or all rows are timed) and
            ``costs`` (they are known).
        row: Index of the row.
        seed: Seed of the trial.
        record: What there is to say: see :mod:`omniconv.compare.trial`.
    """

    kind: str
    row: int | None = None
    seed: int | None = None
    record: dict[str, Any] = field(default_factory=dict)


def trial_ids(prepared: Prepared) -> dict[tuple[int, int], str]:
    """(row index, seed) -> id, in the order in which they run."""
    plan, points = prepared.plan, prepared.plan.points()
    return {
        (index, seed): identify(
            "trial",
            points[index] | {"seed": seed},
            [plan.rows[index].operator],
            prepared.dataset.hash,
        )
        for index, seed in plan.trials()
    }


def cost_id(prepared: Prepared) -> str:
    """Id of the costs: they depend on no seed, and are measured for all rows together."""
    operators = [row.operator for row in prepared.plan.rows]
    return identify("cost", _cost_job(prepared), operators, prepared.dataset.hash)


def _cost_job(prepared: Prepared) -> dict[str, Any]:
    points = prepared.plan.points()
    for point in points:
        point["row"] = {key: value for key, value in point["row"].items() if key != "lr"}
        for name in ("epochs", "optimizer"):
            del point[name]
    return {"points": points, "batch": prepared.plan.batch_size, "threads": prepared.plan.threads}


def drive(prepared: Prepared, store: Store, out: Path) -> Generator[Event]:
    """Do all that the store does not hold yet; yields what happens.

    Interrupted anywhere, a second call goes on and ends in the same numbers.
    """
    ids = trial_ids(prepared)
    work = out / "checkpoints"
    data = work / "data.pt"
    open_trials = {}
    for (row, seed), id in ids.items():
        trial = store.trial(id)
        if trial is not None and trial.final:
            yield Event("kept", row, seed, {"status": trial.status, "score": trial.score})
        else:
            open_trials[row, seed] = id
    costs = cost_id(prepared)
    if open_trials or store.cost(costs) is None:
        work.mkdir(exist_ok=True)
        for leftover in work.glob(".*"):
            leftover.unlink()
        whole.save_dataset(data, prepared.dataset)
    points = prepared.plan.points()
    for (row, seed), id in open_trials.items():
        job = {"point": points[row], "seed": seed, "data": str(data)}
        yield from _trial(store, id, job, work / f"{id}.pt", row, prepared.plan.threads)
    known = store.cost(costs)
    if known is None:
        yield from _costs(prepared, store, costs, data)
    else:
        yield Event("costs", record={"rows": known})
    shutil.rmtree(work, ignore_errors=True)


def _trial(
    store: Store, id: str, job: dict[str, Any], checkpoint: Path, row: int, threads: int
) -> Generator[Event]:
    """Run one trial; its epochs and its end are in the store when they are told."""
    seed = job["seed"]
    store.begin(id, job["point"] | {"seed": seed})
    yield Event("begin", row, seed)
    job = {**job, "checkpoint": str(checkpoint)}
    with closing(worker.run("trial", job, threads)) as events:
        for event in events:
            kind, record = event["event"], {k: v for k, v in event.items() if k != "event"}
            if kind == "epoch":
                store.add_epoch(id, record)
            if kind in ("end", "failed"):
                record = {"status": "failed", **record}
                store.end(id, **record)
                checkpoint.unlink(missing_ok=True)
                kind = "end"
            yield Event(kind, row, seed, record)


def _costs(prepared: Prepared, store: Store, id: str, data: Path) -> Generator[Event]:
    """Measure the costs of all rows; one that takes the process down is left out of a new try."""
    job = _cost_job(prepared) | {"data": str(data)}
    skipped: dict[int, str] = {}
    rows: list[dict[str, Any]] = []
    while not rows:
        current: int | None = None
        with closing(worker.run("cost", {**job, "skip": skipped}, job["threads"])) as events:
            for event in events:
                if event["event"] in ("row", "times"):
                    current = event.get("row")
                    yield Event("cost", current)
                elif event["event"] == "end":
                    rows = event["rows"]
                elif current is None or current in skipped:
                    rows = [{"reason": event["reason"]} for _ in prepared.plan.rows]
                else:
                    skipped[current] = event["reason"]
    if not any("reason" in row for row in rows):
        store.add_cost(id, rows)
    yield Event("costs", record={"rows": rows})
