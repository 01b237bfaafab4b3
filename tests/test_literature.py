"""literature.tsv is complete, and every claim in it can be followed."""

from __future__ import annotations

import ast
from functools import cache
from operator import attrgetter
from pathlib import Path

import pytest

import omniconv
from omniconv import literature

ROOT = Path(__file__).parents[1]
SYSTEMS = literature.systems()
PRESENT = [system for system in SYSTEMS if system.status != "absent"]


@cache
def _test_functions(path: Path) -> set[str]:
    """Names of the test functions and ``Class::method`` pairs that pytest collects from a file."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)}
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


def test_all_352_systems_are_listed_once_and_in_order():
    assert [system.id for system in SYSTEMS] == list(range(1, 353))
    assert all(system.name and system.title for system in SYSTEMS)
    assert sum(literature.counts().values()) == 352


def test_the_five_operators_of_the_first_release_are_present():
    assert {27, 28, 34, 50, 96, 191} <= {system.id for system in PRESENT}


@pytest.mark.parametrize("system", PRESENT, ids=lambda system: f"{system.id}-{system.name}")
def test_what_is_claimed_is_there(system: literature.System):
    assert system.names, "a system that works or partly works names what realises it"
    for name in system.names:
        attrgetter(name)(omniconv)
    assert system.tests, "a system that works or partly works names the tests that show it"
    for test in system.tests:
        path, _, node = test.partition("::")
        assert node.partition("[")[0] in _test_functions(ROOT / path), f"no test {test}"


@pytest.mark.parametrize("name", omniconv.list_operators())
def test_a_card_and_its_rows_agree(name: str):
    card = omniconv.card(name)
    layers = {layer.__name__ for layer in (*card.classes.values(), *card.transposed.values())}
    rows = [system for system in SYSTEMS if system.id in card.rows]
    assert len(rows) == len(card.rows)
    for row in rows:
        assert row.status != "absent"
        assert layers <= set(row.names), f"row {row.id} lacks {layers - set(row.names)}"


@pytest.mark.parametrize("status", literature.STATUSES)
def test_a_status_says_what_is_left(status: str):
    for system in (s for s in SYSTEMS if s.status == status):
        assert bool(system.left) == (status != "works"), f"row {system.id}: {system.left!r}"
        if status == "absent":
            assert not system.names + system.tests, f"row {system.id} is absent, yet shown"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1\ta\tb\tabsent\t\t", "literature.tsv, line 2: 6 columns, expected 7"),
        ("1\ta\tb\tdone\t\t\tx", "literature.tsv, line 2: status 'done', expected one of works"),
    ],
)
def test_a_malformed_row_is_named(row: str, message: str):
    header = "id\tname\ttitle\tstatus\tnames\ttests\tleft\n"
    with pytest.raises(ValueError, match=message):
        tuple(literature._rows(header + row))
