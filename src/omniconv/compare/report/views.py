"""What the template of the report fills in, section by section."""

from __future__ import annotations

from typing import Any

from . import pictures, strips, tables
from .curves import curves, mean_curve
from .data import Comparison
from .formats import decimals, fixed
from .headline import headline
from .method import method, statistics
from .scatter import LEGEND, marks, scatter
from .svg import Drawing
from .verdicts import Sentence, sentence

_CURVE_POINTS = 120


def view(page: Comparison, detail: float) -> dict[str, Any]:
    """The template's variables.

    `detail`, 1 to 0, is the share of long curves and of pictures that is kept; below 0 curves,
    layers and single trials are left out too.
    """
    rows, whole = page.rows, detail >= 0
    answer, support = headline(page)
    points = max(12, int(_CURVE_POINTS * detail))
    drawn = rows if whole else ()
    shared, panels = curves(drawn, page.metric, page.unit, points, detail > 0)
    return {
        "answer": answer,
        "support": support,
        "facts": tables.facts(page),
        "sentences": _sentences(page),
        "judged": any(row.slug not in ("baseline", "few", "failed") for row in rows),
        "statistics": statistics(page),
        "batch": _batch(page),
        **_strips(page),
        "scatters": _scatters(page),
        "shared": shared,
        "panels": panels,
        "single": [] if panels or not whole else _single(page),
        "kernels": pictures.kernels(page, max(detail, 0.0)),
        "fields": pictures.fields(page, max(detail, 0.0)),
        "attention": pictures.attention(page, max(detail, 0.0)),
        "tuning": tables.tuning(page),
        "screen": tables.screen(page),
        "searches": tables.searches(page),
        "density": tables.density,
        "extras": list(dict.fromkeys(name for row in rows for name in row.extras)),
        "layers": [(r, tables.layers(r), tables.tally(r)) for r in drawn if r.swap],
        "seeds": sorted({t.seed for row in drawn for t in row.trials if t.seed is not None}),
        "trials": {(i, trial.seed): trial for i, row in enumerate(drawn) for trial in row.trials},
        "stopped": tables.stopped(page, 2000 if detail == 1 else 160)[: None if whole else 200],
        "whole": whole,
        "method": method(page),
        "data": tables.data(page),
        "machine": tables.machine(page),
        "plan": tables.plan_text(page.plan),
    }


def _batch(page: Comparison) -> int | None:
    return next((row.batch for row in page.rows if row.batch), None)


def _sentences(page: Comparison) -> list[tuple[str, list[Sentence]]]:
    """The verdicts, operators apart from plain networks; none where there is no first score."""
    rows = page.rows
    if len(rows) < 2 or rows[0].score is None:
        return []
    groups = (
        ("Operators", [row for row in rows[1:] if not row.plain]),
        ("Plain networks", [row for row in rows[1:] if row.plain]),
    )
    return [(name, [sentence(row, page) for row in found]) for name, found in groups if found]


def _strips(page: Comparison) -> dict[str, Any]:
    """The interval column: its axis, what runs behind it, and one strip a row."""
    if not any(row.score for row in page.rows):
        return {"axis": "", "ground": "", "strips": [""] * len(page.rows)}
    scale = strips.strip_scale(page.rows, page.metric)
    return {
        "axis": strips.strip_axis(scale),
        "ground": strips.strip_ground(scale, page.rows[0].score, page.metric.margin),
        "strips": [strips.strip(row, scale) for row in page.rows],
    }


def _single(page: Comparison) -> list[str]:
    """Mean validation scores, in words, where a single point leaves no curve."""
    ends = [(row.label, mean_curve(row)[-1:]) for row in page.rows]
    places = decimals(page.metric)
    return [f"{label} {fixed(end[0][1], places)}" for label, end in ends if end]


def _scatters(page: Comparison) -> list[dict[str, Any]]:
    """Score against latency at both batch sizes, each for wide and for narrow screens."""
    found = []
    for cost, name in (
        ("latency_n_ms", f"batch {_batch(page) or 'N'}"),
        ("latency_1_ms", "batch 1"),
    ):
        wide, narrow = (_scatter(page, cost, name, wide) for wide in (True, False))
        if wide:
            used = set(marks(page.rows, cost))
            legend = [(slug, words) for slug, words in LEGEND.items() if slug in used]
            found.append({"name": name, "wide": wide, "narrow": narrow, "legend": legend})
    return found


def _scatter(page: Comparison, cost: str, name: str, wide: bool) -> Drawing:
    return scatter(page.rows, page.metric, cost, f"Latency at {name}", wide=wide)
