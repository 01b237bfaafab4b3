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
from omniconv.compare.driver import cost_id
from omniconv.compare.identity import machine
from omniconv.compare.prepare import Prepared
from omniconv.compare.schedule import Progress, Schedule
from omniconv.compare.store import Store, Trial

__all__ = ["assemble", "complete", "write"]

FRONTIER_WORDS = {"gain": "above", "loss": "below", "no relevant difference": "level"}


CLOCK_NOISE = 1.15
"""Latencies of one and the same network, as two rows measure it, differ by up to this factor."""


def assemble(
    prepared: Prepared,
    store: Store,
    command: str,
    costs: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The content of results.json, schema 2, from what the store holds.

    Args:
        prepared: The plan.
        store: Its store.
        command: What was typed.
        costs: The costs of this run, where some could not be measured; default: the store's.
    """
    plan, metric = prepared.plan, prepared.metric
    schedule = Schedule(prepared, store.trial)
    for _ in schedule.jobs():
        pass
    if costs is None:
        costs = store.cost(cost_id(schedule)) or ()
    measured = iter(costs)
    known = [next(measured, None) if progress.kept else None for progress in schedule.rows]
    rows = []
    for index, progress in enumerate(schedule.rows):
        trials = {seed: store.trial(id) for seed, id in progress.trials.items()}
        first = trials.get(plan.seeds[0])
        rows.append(
            {"label": plan.rows[index].label, **progress.row.to_json()}
            | {
                "search": progress.search,
                "plain": progress.row.plain,
                "swap": prepared.swaps[index],
                "tuning": progress.tuning,
                "screened": progress.screened,
                "cost": _cost(known[index], known[0]),
                "cost_reason": (known[index] or {}).get("reason"),
                "trials": [_trial(id, seed, trials[seed]) for seed, id in progress.trials.items()],
                "extras": _extras(list(trials.values())),
                "pictures": None if first is None else first.pictures,
            }
        )
    _judge(rows, schedule.rows, prepared)
    tuned = any(progress.tuning is not None for progress in schedule.rows)
    return {
        "schema": 2,
        "omniconv": omniconv.__version__,
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
        "plan": plan.to_json(),
        "unit": plan.budget.unit,
        "tuning": plan.to_json()["tuning"] if tuned else None,
        "screen": asdict(plan.screen) if plan.screen and schedule.screened else None,
        "metric": asdict(metric),
        "machine": machine(plan.threads),
        "data": dict(prepared.data),
        "rows": rows,
    }


def _trial(id: str, seed: int, trial: Trial | None) -> dict[str, Any]:
    curve = [] if trial is None else list(trial.curve)
    return {
        "id": id,
        "seed": seed,
        "status": "missing" if trial is None else trial.status,
        "reason": None if trial is None else trial.reason,
        "score": None if trial is None else trial.score,
        "validation_score": curve[-1]["validation_score"] if curve else None,
        "seconds": sum(leg["seconds"] for leg in curve) if curve else None,
        "kernels": None if trial is None else trial.kernels,
        "curve": curve,
    }


def _cost(cost: Mapping[str, Any] | None, first: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A row's costs with their ratios to the first row's; None where they are not known."""
    if cost is None or "reason" in cost:
        return None
    base = first or {}
    ratio = {name: cost[name] / base[name] if base.get(name) else None for name in RATIOS}
    return {**cost, "ratio": ratio}


def _extras(trials: Sequence[Trial | None]) -> dict[str, float]:
    """Means of the further figures over the seeds that are done."""
    found = [trial.extras for trial in trials if trial is not None and trial.extras]
    names = found[0] if found else {}
    return {name: statistics.fmean(extras[name] for extras in found) for name in names}


def _judge(rows: list[dict[str, Any]], progress: Sequence[Progress], prepared: Prepared) -> None:
    """Add score, difference, verdict and place on the frontier to every row."""
    metric = prepared.metric
    scores = [_scores(row, metric.chance) for row in rows]
    for row, found in zip(rows, scores, strict=True):
        row["score"] = _estimate(list(found.values()))
        row["difference"], row["verdict"], row["frontier"] = None, "failed", None
    others = [index for index in range(1, len(rows)) if scores[index]]
    pairs = [(scores[index], scores[0]) for index in others]
    for index, verdict in zip(others, _verdicts(pairs, prepared), strict=True):
        rows[index]["difference"], rows[index]["verdict"] = verdict
    for row, known in zip(rows, progress, strict=True):
        if not known.kept:
            row["verdict"] = "screened out"
    if scores[0]:
        rows[0]["verdict"] = "baseline"
    _place(rows, scores, prepared)


def _verdicts(
    pairs: Sequence[tuple[Mapping[int, float], Mapping[int, float]]],
    prepared: Prepared,
    among: Sequence[int] | None = None,
) -> list[tuple[dict[str, Any] | None, str]]:
    """Difference and word of each pair (scores of a row, scores of its reference).

    ``among``: of how many that the same scores cannot tell apart each reference was chosen.
    """
    metric = prepared.metric
    return [
        (_difference(found), found.word)
        for found in stats.judge(pairs, metric.margin, metric.higher_is_better, among)
    ]


def _place(
    rows: list[dict[str, Any]], scores: Sequence[Mapping[int, float]], prepared: Prepared
) -> None:
    """Compare every operator with the plain networks at its own latency."""

    latency: dict[int, float] = {
        index: row["cost"]["latency_n_ms"]
        for index, row in enumerate(rows)
        if row["cost"] is not None and scores[index]
    }
    plain = [index for index in latency if rows[index]["plain"]]
    points = [(latency[index], scores[index]) for index in plain]
    placed: list[tuple[int, list[int], dict[int, float]]] = []
    among: list[int] = []
    for index, own in latency.items():
        row = rows[index]
        if row["plain"] or not points:
            continue
        fastest = min(point[0] for point in points)
        place = fastest if own < fastest <= own * CLOCK_NOISE else own
        found = stats.at_latency(points, place, prepared.metric.higher_is_better)
        if found is None:
            row["frontier"] = {"latency_ms": own, "between": [], "verdict": "outside"}
        elif found[1].keys() & scores[index].keys():
            placed.append((index, [plain[i] for i in found[0]], found[1]))
            among.append(stats.rivals(points, place, prepared.metric.higher_is_better))
    pairs = [(scores[index], reference) for index, _, reference in placed]
    verdicts = _verdicts(pairs, prepared, among)
    for (index, used, reference), (difference, word) in zip(placed, verdicts, strict=True):
        rows[index]["frontier"] = {
            "latency_ms": latency[index],
            "between": [rows[i]["label"] for i in used],
            "score": statistics.fmean(reference.values()),
            **(difference or {}),
            "verdict": FRONTIER_WORDS.get(word, word),
        }


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


def _difference(found: stats.Judgement) -> dict[str, Any] | None:
    change = found.difference
    if change is None:
        return None
    return {
        "mean": change.mean,
        "interval": change.interval and list(change.interval),
        "p": change.p,
        "p_holm": found.p_holm,
        "n": change.n,
        "seeds_to_decide": found.seeds_to_decide,
    }


def complete(results: Mapping[str, Any]) -> bool:
    """Whether every trial came to its end and every cost is known."""
    return all(
        row["cost"] is not None and all(trial["status"] == "done" for trial in row["trials"])
        for row in results["rows"]
        if row["verdict"] != "screened out"
    )


def write(results: Mapping[str, Any], out: Path) -> None:
    """Write results.json, results.csv and report.html, each whole or not at all."""
    from omniconv.compare.report import to_csv, write_report

    text = json.dumps(results, indent=1, allow_nan=False).encode() + b"\n"
    whole.write(out / "results.json", lambda file: file.write(text))
    to_csv(results, out / "results.csv")
    write_report(results, out / "report.html")
