"""results.json: what the store knows about a plan, and the judgement; and the other files."""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import omniconv
from omniconv.compare import stats, whole
from omniconv.compare.cost import RATIOS
from omniconv.compare.driver import trial_ids
from omniconv.compare.identity import machine
from omniconv.compare.prepare import Prepared
from omniconv.compare.store import Store, Trial
from omniconv.tasks.classify import Metric

__all__ = ["assemble", "complete", "write"]


def assemble(
    prepared: Prepared, store: Store, costs: Sequence[Mapping[str, Any]], command: str
) -> dict[str, Any]:
    """The content of results.json, schema 1."""
    plan, metric, dataset = prepared.plan, prepared.metric, prepared.dataset
    ids = trial_ids(prepared)
    rows = []
    for index, row in enumerate(plan.rows):
        trials = {seed: store.trial(ids[index, seed]) for seed in plan.seeds}
        first = next(iter(trials.values()))
        rows.append(
            {"label": row.label, **row.to_json()}
            | {
                "swap": prepared.swaps[index],
                "cost": _cost(costs, index),
                "trials": [_trial(ids[index, seed], seed, trials[seed]) for seed in plan.seeds],
                "kernels": None if first is None else first.kernels,
            }
        )
    _judge(rows, metric)
    return {
        "schema": 1,
        "omniconv": omniconv.__version__,
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
        "plan": plan.to_json(),
        "metric": asdict(metric),
        "machine": machine(plan.threads),
        "data": {
            "name": dataset.name,
            "source": dataset.source,
            "licence": dataset.licence,
            "classes": len(dataset.classes),
            "sizes": dataset.sizes,
            "hash": f"sha256:{dataset.hash}",
        },
        "rows": rows,
    }


def _trial(id: str, seed: int, trial: Trial | None) -> dict[str, Any]:
    epochs = [] if trial is None else list(trial.epochs)
    return {
        "id": id,
        "seed": seed,
        "status": "failed" if trial is None else trial.status,
        "reason": None if trial is None else trial.reason,
        "score": None if trial is None else trial.score,
        "validation_score": epochs[-1]["validation_score"] if epochs else None,
        "seconds": sum(epoch["seconds"] for epoch in epochs) if epochs else None,
        "epochs": epochs,
    }


def _cost(costs: Sequence[Mapping[str, Any]], index: int) -> dict[str, Any] | None:
    """A row's costs with their ratios to the first row's; None where they are not known."""
    if not costs or "reason" in costs[index]:
        return None
    first = costs[0]
    ratio = {name: costs[index][name] / first[name] if first.get(name) else None for name in RATIOS}
    return {**costs[index], "ratio": ratio}


def _judge(rows: list[dict[str, Any]], metric: Metric) -> None:
    """Add score, difference and verdict to every row; the first one is the baseline."""
    scores = [_scores(row, metric.chance) for row in rows]
    changes = [_change(found, scores[0]) for found in scores]
    tested = {
        index: change.p
        for index, change in enumerate(changes)
        if index and change is not None and change.p is not None and change.enough
    }
    adjusted = dict(zip(tested, stats.holm(list(tested.values())), strict=True))
    for index, (row, change) in enumerate(zip(rows, changes, strict=True)):
        row["score"] = _estimate(list(scores[index].values()))
        row["difference"] = _difference(change, adjusted.get(index)) if index else None
        if row["score"] is None:
            row["verdict"] = "failed"
        elif index == 0:
            row["verdict"] = "baseline"
        else:
            better, margin = metric.higher_is_better, metric.margin
            row["verdict"] = stats.verdict(change, adjusted.get(index), margin, better)


def _change(row: Mapping[int, float], first: Mapping[int, float]) -> stats.Difference | None:
    """The paired comparison over the seeds that both rows have a score for."""
    common = [seed for seed in row if seed in first]
    return stats.difference([row[s] for s in common], [first[s] for s in common])


def _scores(row: Mapping[str, Any], chance: float) -> dict[int, float]:
    """Seed -> score; a diverged seed counts as chance level, a failed one not at all."""
    found = {}
    for trial in row["trials"]:
        if trial["status"] == "done":
            found[trial["seed"]] = trial["score"]
        elif trial["status"] == "diverged":
            found[trial["seed"]] = chance
    return found


def _estimate(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    mean, ends = statistics.fmean(values), stats.interval(values)
    return {"mean": mean, "interval": ends and list(ends), "n": len(values)}


def _difference(change: stats.Difference | None, p_holm: float | None) -> dict[str, Any] | None:
    if change is None:
        return None
    ends = change.interval and list(change.interval)
    return {"mean": change.mean, "interval": ends, "p": change.p, "p_holm": p_holm}


def complete(results: Mapping[str, Any]) -> bool:
    """Whether every trial came to its end and every cost is known."""
    return all(
        row["cost"] is not None and all(trial["status"] == "done" for trial in row["trials"])
        for row in results["rows"]
    )


def write(results: Mapping[str, Any], out: Path) -> None:
    """Write results.json, results.csv and report.html, each whole or not at all."""
    from omniconv.compare.report import to_csv, write_report

    text = json.dumps(results, indent=1, allow_nan=False).encode() + b"\n"
    whole.write(out / "results.json", lambda file: file.write(text))
    to_csv(results, out / "results.csv")
    write_report(results, out / "report.html")
