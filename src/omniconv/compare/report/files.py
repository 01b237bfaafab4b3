"""Writes the report and the CSV, each whole or not at all.

The page loads nothing: styles and script are inlined and allowed by their hashes alone, pictures
are inline SVG or data URIs, and every value of the results is escaped.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omniconv.compare import whole

from . import formats
from .data import COSTS, Comparison, Row
from .read import read
from .svg import mark, picture
from .views import view

__all__ = ["LIMIT", "to_csv", "write_report"]

LIMIT = 1_000_000
"""The largest size of a report in bytes."""

_TEMPLATES = Path(__file__).parent / "templates"


def write_report(results: Mapping[str, Any], path: str | Path) -> None:
    """Write the report of `results` (the content of results.json) to `path`.

    Long runs lose detail (points of curves, pictures, then single trials) until the file has at
    most 1 MB.

    Raises:
        ValueError: `results` is not of schema 2.
        OSError: `path` cannot be written; a file already there is left as it was.
    """
    page = read(results)
    html = ""
    for detail in (1.0, 0.5, 0.25, 0.1, 0.0, -1.0):
        html = _render(page, detail)
        if len(html.encode()) <= LIMIT:
            break
    _write(path, html)


def to_csv(results: Mapping[str, Any], path: str | Path) -> None:
    """Write one line per trial to `path`, with the verdicts and the costs of its row.

    Text that a spreadsheet would take for a formula is preceded by an apostrophe.

    Raises:
        ValueError: `results` is not of schema 2.
        OSError: `path` cannot be written; a file already there is left as it was.
    """
    own = ("seed", "status", "score", "validation", "seconds", "reason", "id")
    beside = ("frontier_verdict", "frontier_score", "frontier_difference")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["row", "plain", "verdict", *beside, "lr", *own, *COSTS])
    for row in read(results).rows:
        common = (row.label, "yes" if row.plain else "no", row.verdict, *_beside(row), row.lr)
        for trial in row.trials:
            values = [*common, *(getattr(trial, name) for name in own)]
            table.writerow([_cell(value) for value in (*values, *row.cost.values())])
    _write(path, text.getvalue())


def _beside(row: Row) -> tuple[str | float | None, ...]:
    """Verdict against the frontier, the frontier's score and the difference to it."""
    found = row.standing
    if found is None:
        return None, None, None
    return found.verdict, found.score, found.change.mean if found.change else None


def _cell(value: Any) -> Any:
    risky = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t"))
    if risky:
        return f"'{value}"
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _write(path: str | Path, text: str) -> None:
    """`path` is the old file or the whole new one."""
    whole.write(Path(path), lambda file: file.write(text.encode()))


@cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _render(page: Comparison, detail: float) -> str:
    style, script = ((_TEMPLATES / f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
    return _template().render(
        page=page,
        words=formats,
        places=formats.decimals(page.metric),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        glyph=lambda slug: picture(12, 12, "", mark(slug, 6, 6, 4), class_="glyph"),
        **view(page, detail),
    )


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
