"""Every operator passes the conformance matrix.

Tiers 1 and 2 run always. Tier 3 runs for all operators with ``OMNICONV_TIER=3`` (make test-full);
in continuous integration for those whose file changed, and for ten more by the day's date.
"""

from __future__ import annotations

import datetime
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import omniconv as oc
from omniconv import _index, testing

ROOT = Path(__file__).parents[1]
DAILY = 10


def changed_files(root: Path = ROOT) -> set[str]:
    """Files that differ from the main branch, or on it from the commit before; none without git."""

    def git(*arguments: str) -> str:
        run = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=False
        )
        return run.stdout.strip() if run.returncode == 0 else ""

    head = git("rev-parse", "HEAD")
    base = git("merge-base", "HEAD", "origin/main") or git("merge-base", "HEAD", "main")
    if base in ("", head):
        base = git("rev-parse", "HEAD~1")
    return set(git("diff", "--name-only", base).splitlines()) if base else set()


def due(names: list[str], day: datetime.date, count: int = DAILY) -> set[str]:
    """The operators whose turn it is: ``count`` of them a day, all of them in turn."""
    start = day.toordinal() * count % max(len(names), 1)
    return {(names + names)[start + i] for i in range(min(count, len(names)))}


def full_tier() -> set[str]:
    """Operators that run in tier 3."""
    if os.environ.get("OMNICONV_TIER") == "3":
        return set(_index.OPERATORS)
    if not os.environ.get("CI"):
        return set()
    files = changed_files()
    touched = {
        name
        for name, module in _index.OPERATORS.items()
        if f"src/{module.replace('.', '/')}.py" in files
    }
    return touched | due(sorted(_index.OPERATORS), datetime.datetime.now(datetime.UTC).date())


def _cases() -> Iterator[testing.Case]:
    full = full_tier()
    for name in sorted(_index.OPERATORS):
        yield from testing.cases(name, tier=3 if name in full else 2)


@pytest.mark.parametrize("case", list(_cases()), ids=str)
def test_matrix(case: testing.Case):
    reason = case.skip or case.missing
    if reason:
        pytest.skip(reason)
    case.run()


def test_every_operator_is_in_the_matrix():
    assert {name for name in oc.list_operators() if ":" not in name} == set(_index.OPERATORS)


def test_ten_operators_a_day_reach_all_of_them_in_turn():
    names = [f"operator{i}" for i in range(37)]
    day = datetime.date(2026, 1, 30)
    turns = [due(names, day + datetime.timedelta(days=i)) for i in range(37)]
    assert {len(turn) for turn in turns} == {10}
    assert set.union(*turns[:4]) == set(names)
    assert due(names[:5], day) == set(names[:5])
    assert due([], day) == set()


def test_files_changed_since_the_merge_base_are_found(tmp_path: Path):
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
        subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    def commit(name: str) -> None:
        (tmp_path / name).write_text(name, encoding="utf-8")
        git("add", name)
        git("commit", "-q", "-m", name)

    assert changed_files(tmp_path) == set()
    git("init", "-q", "-b", "main")
    commit("one")
    assert changed_files(tmp_path) == set()
    commit("two")
    assert changed_files(tmp_path) == {"two"}
    git("checkout", "-q", "-b", "topic")
    commit("three")
    commit("four")
    assert changed_files(tmp_path) == {"three", "four"}
