"""What the template of the report fills in, section by section."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from . import figures, words
from .data import Comparison, Kernels, Row
from .kernels import largest, pictures
from .svg import Drawing

_KERNEL_BYTES = 320_000
_CURVE_POINTS = 120


def view(page: Comparison, detail: float) -> dict[str, Any]:
    """The template's variables; `detail` (1 to 0) is the share of long curves and kernels kept."""
    rows, metric = page.rows, page.metric
    answer, support = words.headline(page)
    shared, panels = figures.curves(rows, metric, max(12, int(_CURVE_POINTS * detail)))
    return {
        "answer": answer,
        "support": support,
        "facts": _facts(page),
        "batch": _batch(page),
        **_strips(page),
        "scatters": _scatters(page),
        "shared": shared,
        "panels": panels,
        "single": [] if panels else _single(page),
        "kernels": _kernels(page, int(_KERNEL_BYTES * detail)),
        "layers": [(row, _layers(row), _tally(row)) for row in rows if row.swap],
        "seeds": sorted({t.seed for row in rows for t in row.trials if t.seed is not None}),
        "trials": {(i, trial.seed): trial for i, row in enumerate(rows) for trial in row.trials},
        "stopped": _stopped(page),
        "method": words.method(page),
        "data": _data(page),
        "machine": _machine(page),
        "plan": _plan(page.plan),
    }


def _batch(page: Comparison) -> int | None:
    return next((row.batch for row in page.rows if row.batch), None)


def _strips(page: Comparison) -> dict[str, Any]:
    """The interval column: its axis, what runs behind it, and one strip a row."""
    if not any(row.score for row in page.rows):
        return {"axis": "", "ground": "", "strips": [""] * len(page.rows)}
    scale = figures.strip_scale(page.rows, page.metric)
    return {
        "axis": figures.strip_axis(scale),
        "ground": figures.strip_ground(scale, page.rows[0].score, page.metric.margin),
        "strips": [figures.strip(row, scale) for row in page.rows],
    }


def _single(page: Comparison) -> list[str]:
    """Mean validation scores, in words, where a single epoch leaves no curve."""
    ends = [(row.label, figures.mean_curve(row)[-1:]) for row in page.rows]
    places = words.decimals(page.metric)
    return [f"{label} {words.fixed(end[0][1], places)}" for label, end in ends if end]


def _scatters(page: Comparison) -> list[dict[str, str | Drawing]]:
    """Accuracy against latency at both batch sizes, each for wide and for narrow screens."""
    found = []
    for cost, name in (
        ("latency_n_ms", f"batch {_batch(page) or 'N'}"),
        ("latency_1_ms", "batch 1"),
    ):
        axis = f"Latency at {name}"
        wide, narrow = (
            figures.scatter(page.rows, page.metric, cost, axis, wide=wide) for wide in (True, False)
        )
        if wide:
            found.append({"name": name, "wide": wide, "narrow": narrow})
    return found


def _facts(page: Comparison) -> list[tuple[str, str]]:
    """The strip of small facts under the headline; what is unknown is left out."""
    plan, data, machine = page.plan, page.data, page.machine
    width = f", width {plan['width']}" if plan.get("width") else ""
    seeds = plan.get("seeds")
    cores = f", {machine['cores']} cores" if machine.get("cores") else ""
    facts = (
        ("Task", plan.get("task")),
        ("Data", data.get("name") or plan.get("data")),
        ("Backbone", f"{plan['backbone']}{width}" if plan.get("backbone") else None),
        ("Seeds", str(len(seeds)) if isinstance(seeds, list) else None),
        ("Epochs", plan.get("epochs")),
        ("Date", words.date(page.created)),
        ("Machine", f"{machine['cpu']}{cores}" if machine.get("cpu") else None),
    )
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def _layers(row: Row) -> list[dict[str, str]]:
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


def _tally(row: Row) -> str:
    """ "5 swapped, 1 skipped"."""
    tally = Counter(layer.get("status", "") for layer in row.swap)
    return ", ".join(f"{number} {status}" for status, number in tally.items())


def _stopped(page: Comparison) -> list[dict[str, Any]]:
    """Trials that did not finish, those of one row with the same reason together."""
    groups: dict[tuple[int, str, str], list[str]] = {}
    for index, row in enumerate(page.rows):
        for trial in row.trials:
            if trial.status != "done":
                seed = "–" if trial.seed is None else str(trial.seed)
                groups.setdefault((index, trial.status, trial.reason), []).append(seed)
    return [
        {"row": page.rows[index], "status": status, "reason": reason, "seeds": ", ".join(seeds)}
        for (index, status, reason), seeds in groups.items()
    ]


def _plan(plan: Mapping[str, Any]) -> str:
    """The plan as JSON, one line per key and per row."""
    lines = []
    for key, value in plan.items():
        shown = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            items = (json.dumps(item, ensure_ascii=False) for item in value)
            shown = "[\n    " + ",\n    ".join(items) + "\n  ]"
        lines.append(f"  {json.dumps(key, ensure_ascii=False)}: {shown}")
    return "{\n" + ",\n".join(lines) + "\n}"


def _data(page: Comparison) -> list[tuple[str, Any]]:
    data = page.data
    sizes = data.get("sizes") or {}
    splits = ", ".join(
        f"{words.grouped(size)} {name}" for name, size in sizes.items() if size is not None
    )
    names = ("name", "source", "licence", "classes")
    return [
        *((name.capitalize(), data.get(name)) for name in names),
        ("Splits", splits),
        ("Hash", data.get("hash")),
    ]


def _machine(page: Comparison) -> list[tuple[str, Any]]:
    names = {
        "cpu": "CPU",
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


def _kernels(page: Comparison, budget: int) -> list[dict[str, Any]]:
    """The kernel pictures: every row gets its share of `budget`, every layer its share of that."""
    rows = [row for row in page.rows if row.kernels]
    found = []
    for row in rows:
        for entry in row.kernels:
            shown = pictures(entry.kernels, budget // len(rows) // len(row.kernels))
            found.append({"row": row, "entry": entry, "shown": shown, "note": _note(entry, shown)})
    return found


def _note(entry: Kernels, shown: Sequence[str]) -> str:
    """What the caption says about the pictures, or about their absence."""
    if not entry.kernels:
        return "no single kernel: it depends on the input"
    if not shown:
        return "too large to show here; the values are in results.json"
    bound = f"full colour at ±{words.significant(largest(entry.kernels), 2)}"
    if len(shown) == len(entry.kernels):
        return bound
    return f"{bound}; {len(shown)} of {len(entry.kernels)} kernels"
