"""What was measured here: the costs of operators, and their rows in the studies."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markup import Markdown, link, table, text

from omniconv.compare.report import formats
from omniconv.compare.report.data import Comparison, Row
from omniconv.compare.report.read import number, read

RATIOS = {
    "parameters": "parameters",
    "flops_forward": "FLOPs",
    "step": "training step",
    "latency": "latency, folded",
    "layer_latency": "latency, unfolded",
    "peak_bytes": "memory of a step",
}
"""Ratio in the file of costs -> its name on pages."""

MACHINE = ("cpu", "capability", "gpu", "threads", "torch", "dtype")

UNMEASURED = "not measured yet"


@dataclass(frozen=True)
class Finding:
    """One row of a study."""

    study: Markdown
    row: str
    difference: str
    verdict: str
    frontier: str


class Evidence:
    """Everything under ``docs`` that was measured.

    Args:
        docs: The documentation's folder.
        up: The way from a page to that folder, such as ``../..``.
    """

    def __init__(self, docs: Path, up: str = "../..") -> None:
        self.studies: dict[str, list[Finding]] = {}
        for path in sorted(docs.glob("studies/*/results.json")):
            results = json.loads(path.read_text(encoding="utf-8"))
            study = _title(path.parent, up)
            page = read(results)
            for raw, row in zip(results["rows"], page.everything, strict=True):
                if not row.plain and row.verdict != "baseline":
                    self.studies.setdefault(raw["operator"], []).append(_finding(study, row, page))
        path = docs / "benchmarks" / "operators.json"
        self.measured: Mapping[str, Any] = (
            json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        )

    def ratios(self, name: str) -> dict[str, str]:
        """Cost of an operator -> its ratio to the plain convolution's; empty if not measured."""
        entry = self.measured.get("operators", {}).get(name) or {}
        found = {title: number(entry.get(key)) for key, title in RATIOS.items()}
        return {title: formats.ratio(value) for title, value in found.items() if value is not None}

    def cost(self, name: str) -> str:
        """The measured costs of an operator as a table, with what they were measured on."""
        ratios = self.ratios(name)
        if not ratios:
            return f"Time and memory: {UNMEASURED}."
        entry, machine = self.measured["operators"][name], self.measured.get("machine") or {}
        size = " x ".join(map(str, entry.get("input") or ()))
        own = ", ".join(f"{key}={value!r}" for key, value in (entry.get("arguments") or {}).items())
        where = ", ".join(f"{key} {machine[key]}" for key in MACHINE if machine.get(key))
        note = (
            "Measured, as ratios to the plain convolution of kernel 3 with the same channels"
            f"{f'; input {size}' if size else ''}{f'; {own}' if own else ''}"
            f"{f'; {where}' if where else ''}."
        )
        return f"{text(note)}\n\n{table(list(ratios), [list(ratios.values())])}"

    def found(self, name: str) -> str:
        """The rows of an operator in the studies as a table."""
        rows = [
            (f.study, f.row, f.difference, f.verdict, f.frontier)
            for f in self.studies.get(name, [])
        ]
        head = ("study", "row", "against the layer replaced", "verdict", "plain, as fast")
        if not rows:
            return "**Here.** No study has a row of it yet."
        return f"**Here**, in small studies:\n\n{table(head, rows)}"


def _title(folder: Path, up: str) -> Markdown:
    """The name of a study, with a link where it has a page."""
    page = folder.with_suffix(".md")
    if not page.exists():
        return text(folder.name)
    title = re.search(r"^# (.+)$", page.read_text(encoding="utf-8"), re.M)
    return link(title[1] if title else folder.name, f"{up}/studies/{page.name}")


def _finding(study: Markdown, row: Row, page: Comparison) -> Finding:
    change = formats.change(row.difference, page.metric) if row.difference else "none"
    return Finding(
        study=study,
        row=row.label,
        difference=f"{page.metric.name} {change}",
        verdict=row.verdict,
        frontier=row.standing.verdict if row.standing else "not judged",
    )
