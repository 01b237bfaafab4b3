"""The literature table: what of 352 published systems omniconv has, as ``literature.tsv`` says.

The table is the source of truth; this module only reads it. A test imports every public name and
collects every test the table mentions.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

STATUSES = ("works", "partial", "absent")


@dataclass(frozen=True)
class System:
    """One published system and its state here.

    Attributes:
        id: its number, 1 to 352.
        name: the short name its authors use.
        title: the publication's title.
        status: ``works``, ``partial`` or ``absent``.
        names: the public names that realise it, importable from ``omniconv``.
        tests: pytest node ids, relative to the repository, that show it.
        left: what is left to do; for an absent system, why it is absent.
    """

    id: int
    name: str
    title: str
    status: str
    names: tuple[str, ...]
    tests: tuple[str, ...]
    left: str


@cache
def systems() -> tuple[System, ...]:
    """All systems, ordered by id.

    Raises:
        ValueError: a row has a column too few or too many, or a status that is not one of
            ``works``, ``partial``, ``absent``; the message names the line.
    """
    text = files("omniconv").joinpath("literature.tsv").read_text(encoding="utf-8")
    return tuple(_rows(text))


def counts() -> dict[str, int]:
    """How many systems have each status, in the order of :data:`STATUSES`."""
    return {status: sum(s.status == status for s in systems()) for status in STATUSES}


def _rows(text: str) -> Iterator[System]:
    reader = csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    columns = next(reader)
    for line, cells in enumerate(reader, start=2):
        if len(cells) != len(columns):
            raise ValueError(
                f"literature.tsv, line {line}: {len(cells)} columns, expected {len(columns)}"
            )
        row = dict(zip(columns, cells, strict=True))
        if row["status"] not in STATUSES:
            raise ValueError(
                f"literature.tsv, line {line}: status {row['status']!r}, "
                f"expected one of {', '.join(STATUSES)}"
            )
        yield System(
            id=int(row["id"]),
            name=row["name"],
            title=row["title"],
            status=row["status"],
            names=_split(row["names"]),
            tests=_split(row["tests"]),
            left=row["left"],
        )


def _split(cell: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in cell.split(",") if part.strip())
