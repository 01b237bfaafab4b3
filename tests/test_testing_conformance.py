"""The conformance page is what the generator writes from the cards of today."""

from __future__ import annotations

import datetime
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from omniconv import _index, testing
from omniconv.testing import PROPERTIES
from omniconv.testing.case import GROUPS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = ROOT / "tools" / "generate_conformance.py"
    spec = importlib.util.spec_from_file_location("generate_conformance", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")


def test_rows_columns_and_reasons_are_todays(tool: ModuleType, page: str):
    again = "run python tools/generate_conformance.py --no-run"
    assert tool.render(tool.read(page)) == page, again


def test_every_cell_ran_or_is_left_out_with_a_reason(tool: ModuleType, page: str):
    cells = tool.read(page)
    assert {operator for operator, _ in cells} == set(_index.OPERATORS)
    today = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=1)
    for operator in _index.OPERATORS:
        ran: dict[str, list[testing.Case]] = {}
        for case in testing.cases(operator, 3):
            if not case.skip:
                ran.setdefault(case.property, []).append(case)
        for name, cases in ran.items():
            tier, forms, date = tool.CELL.fullmatch(cells[operator, name]).groups()
            known = PROPERTIES[name].tier
            assert known <= int(tier)
            assert int(tier) == 1 or known > 1
            assert int(forms) == (1 if tier == "2" else len(cases)), (operator, name)
            assert datetime.date.fromisoformat(date) <= today
    assert tool.NOT_RUN not in page


def test_every_property_belongs_to_a_group_of_the_page(page: str):
    assert {known.group for known in PROPERTIES.values()} == set(GROUPS)
    for name, known in PROPERTIES.items():
        assert f"- `{name}`: {known.claim.replace('``', '`')}\n" in page
        assert known.claim.endswith(".")


def test_a_run_replaces_its_own_cells_and_keeps_the_others(
    tool: ModuleType, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy = tmp_path / "conformance.md"
    old = page.replace("2026-", "2025-")
    copy.write_text(old, encoding="utf-8")
    monkeypatch.setattr(tool, "PAGE", copy)
    cell = {("weighted", "flops"): "1 × 12, 2031-01-01"}
    monkeypatch.setattr(tool, "run", lambda operator, tier, properties: cell)
    monkeypatch.setattr("sys.argv", ["generate_conformance.py", "--operators", "weighted"])
    assert tool.main() == 0
    before, after = tool.read(old), tool.read(copy.read_text(encoding="utf-8"))
    assert after == before | cell


def test_a_failing_property_leaves_the_page_alone(
    tool: ModuleType, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(operator: str, tier: int, properties: list[str]) -> dict:
        raise AssertionError("the card says 3")

    copy = tmp_path / "conformance.md"
    copy.write_text(page, encoding="utf-8")
    monkeypatch.setattr(tool, "PAGE", copy)
    monkeypatch.setattr(tool, "run", fail)
    monkeypatch.setattr("sys.argv", ["generate_conformance.py"])
    with pytest.raises(AssertionError, match="the card says 3"):
        tool.main()
    assert copy.read_text(encoding="utf-8") == page


def test_a_run_says_tier_forms_and_day(tool: ModuleType):
    cells = tool.run("involution", 2, ["signature", "channels_last", "fold", "export"])
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    assert cells == {
        ("involution", "channels_last"): f"1 × 4, {today}",
        ("involution", "signature"): f"1 × 6, {today}",
        ("involution", "export"): f"2 × 1, {today}",
    }
