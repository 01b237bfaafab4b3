"""The tables of the report beside the main one: tuning, screening, trials, layers, conditions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .data import Comparison, Row, Searched, Tried
from .formats import budget, count, date, grouped, significant


@dataclass(frozen=True)
class Tuned:
    """A row of the tuning table: what was tried, which of it was taken, and a remark."""

    row: Row
    tried: tuple[tuple[Tried, bool], ...]
    remark: str


@dataclass(frozen=True)
class Tuning:
    """The tuning table: a heading per try, a line per row."""

    heads: tuple[str, ...]
    lines: tuple[Tuned, ...]
    note: str


def tuning(page: Comparison) -> Tuning | None:
    """How learning rates came about; None where no row has one."""
    rows = [row for row in page.everything if row.tuning is not None or row.lr is not None]
    if not rows:
        return None
    most = max(len(row.tuning or ()) for row in rows)
    run = page.tuning or {}
    factors = run.get("factors") or ()
    heads = [f"rate {_factor(value)}" for value in factors]
    if len(heads) != most:
        heads = [f"try {index + 1}" for index in range(most)]
    known = []
    if run.get("budget"):
        known.append(f"{budget(run['budget'])} each")
    if run.get("seed") is not None:
        known.append(f"seed {run['seed']}, used for nothing else")
    note = ""
    if most:
        note = "The same short runs for every row whose rate was not given"
        note += f" ({', '.join(known)})" if known else ""
        note += f"; the best on validation is taken. Numbers are validation {page.metric.name}"
        note += f", {page.metric.unit}." if page.metric.unit else "."
    return Tuning(tuple(heads), tuple(_tuned(row) for row in rows), note)


def _factor(value: Any) -> str:
    if isinstance(value, float) and abs(value - 1 / 3) < 0.001:
        return "× 1/3"
    return f"× {value:g}" if isinstance(value, int | float) else f"× {value}"


def _tuned(row: Row) -> Tuned:
    if row.tuning is None:
        return Tuned(row, (), "given by the plan")
    tried = tuple((run, run.lr is not None and run.lr == row.lr) for run in row.tuning)
    rates = [run.lr for run in row.tuning if run.lr is not None]
    remark = ""
    if not any(run.score is not None for run in row.tuning):
        remark = "no try gave a score"
    elif len(rates) > 1 and row.lr in (min(rates), max(rates)):
        end = "smallest" if row.lr == min(rates) else "largest"
        remark = f"the {end} that was tried: one beyond may be better"
    return Tuned(row, tried, remark)


def searches(page: Comparison) -> list[tuple[Row, list[Searched], str]]:
    """The densities that were tried, best first, with a summary, for each row with a search."""
    found = []
    for row in page.everything:
        if row.searched:
            runs = sorted(row.searched, key=lambda run: _rank(run.score, page.metric.sense))
            found.append((row, runs, f"{len(runs)} tried, the best on validation is taken"))
    return found


def density(run: Searched) -> str:
    """ "0.51, 0.25"."""
    return ", ".join(significant(value) for value in run.density) or "–"


def screen(page: Comparison) -> tuple[str, list[Row]] | None:
    """What the exploratory runs gave, best first; None where there was no screen."""
    rows = [row for row in page.everything if row.screened]
    if not rows:
        return None
    rows.sort(key=lambda r: _rank(r.screened.score if r.screened else None, page.metric.sense))
    run = page.screen or {}
    seed = f", seed {run['seed']}" if run.get("seed") is not None else ""
    kept = f"The best {count(run['keep'])} went on" if isinstance(run.get("keep"), int) else ""
    note = f"One exploratory run of each operator{seed}; no verdicts. "
    return f"{note}{kept or 'The best went on'}, with new seeds.", rows


def _rank(score: float | None, sense: int) -> float:
    return float("inf") if score is None else -sense * score


def facts(page: Comparison) -> list[tuple[str, str]]:
    """The strip of small facts under the headline; what is unknown is left out."""
    plan, data, machine = page.plan, page.data, page.machine
    width = f", width {plan['width']}" if plan.get("width") else ""
    seeds = plan.get("seeds")
    cores = f", {machine['cores']} cores" if machine.get("cores") else ""
    found = (
        ("Task", plan.get("task")),
        ("Data", data.get("name") or plan.get("data")),
        ("Backbone", f"{plan['backbone']}{width}" if plan.get("backbone") else None),
        ("Seeds", str(len(seeds)) if isinstance(seeds, list) else None),
        ("Budget", budget(plan.get("budget"))),
        ("Date", date(page.created)),
        ("Machine", f"{machine['cpu']}{cores}" if machine.get("cpu") else None),
    )
    return [(name, str(value)) for name, value in found if value not in (None, "")]


def layers(row: Row) -> list[dict[str, str]]:
    """The swap report of a row, equal lines joined."""
    groups: dict[tuple[str, ...], list[str]] = {}
    columns = ("before", "after", "status", "reason", "weights")
    for layer in row.swap:
        key = tuple(layer.get(column, "") for column in columns)
        groups.setdefault(key, []).append(layer.get("path", ""))
    return [
        {**dict(zip(columns, key, strict=True)), "paths": ", ".join(paths)}
        for key, paths in groups.items()
    ]


def tally(row: Row) -> str:
    """ "5 swapped, 1 skipped"."""
    found = Counter(layer.get("status", "") for layer in row.swap)
    return ", ".join(f"{number} {status}" for status, number in found.items())


def stopped(page: Comparison, longest: int) -> list[dict[str, Any]]:
    """Trials that did not finish, those of one row and reason together, and missing costs."""
    groups: dict[tuple[int, str, str], list[str]] = {}
    for index, row in enumerate(page.rows):
        for trial in row.trials:
            if trial.status != "done":
                seed = "–" if trial.seed is None else str(trial.seed)
                reason = trial.reason
                if len(reason) > longest:
                    reason = reason[:longest] + " …"
                groups.setdefault((index, trial.status, reason), []).append(seed)
        if row.cost_reason:
            groups[index, "costs not measured", row.cost_reason[:longest]] = ["–"]
    return [
        {"row": page.rows[index], "status": status, "reason": reason, "seeds": ", ".join(seeds)}
        for (index, status, reason), seeds in groups.items()
    ]


def plan_text(plan: Mapping[str, Any]) -> str:
    """The plan as JSON, one line per key and per row."""
    lines = []
    for key, value in plan.items():
        shown = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            items = (json.dumps(item, ensure_ascii=False) for item in value)
            shown = "[\n    " + ",\n    ".join(items) + "\n  ]"
        lines.append(f"  {json.dumps(key, ensure_ascii=False)}: {shown}")
    return "{\n" + ",\n".join(lines) + "\n}"


def data(page: Comparison) -> list[tuple[str, Any]]:
    """Name, source and licence of the data, and its splits."""
    found = page.data
    sizes = found.get("sizes") or {}
    splits = ", ".join(
        f"{grouped(size)} {name}" for name, size in sizes.items() if size is not None
    )
    return [
        *((name.capitalize(), found.get(name)) for name in ("name", "source", "licence")),
        ("Classes", found.get("classes") or None),
        ("Splits", splits),
        ("Hash", found.get("hash")),
    ]


def machine(page: Comparison) -> list[tuple[str, Any]]:
    """The machine and the versions."""
    names = {
        "cpu": "CPU",
        "gpu": "GPU",
        "cores": "Cores",
        "threads": "Threads",
        "memory_gb": "Memory, GB",
        "cpu_capability": "Instructions",
        "allocator": "Allocator",
        "platform": "Platform",
        "python": "Python",
        "torch": "PyTorch",
        "numpy": "NumPy",
    }
    found = [(title, page.machine.get(name)) for name, title in names.items()]
    return [*found, ("omniconv", page.version)]
