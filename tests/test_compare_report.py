"""The report is one safe, self-contained page that says what the results say."""

from __future__ import annotations

import base64
import copy
import csv
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from omniconv.compare.report import LIMIT, png, to_csv, write_report
from omniconv.compare.report.data import SLUGS, STANDINGS
from report_results import make_results

NASTY = (
    "</style></script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>é☃畳\u202e\x00\ud800"
)
PLAIN_TAGS = re.findall(
    r"\w+",
    "html head meta title style body header main footer section div p h1 h2 h3 dl dt dd b small "
    "span ul li figure figcaption table thead tbody tr th td button input label details summary "
    "pre code img script svg g path rect circle text use defs symbol image caption strong",
)


class Page(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._open = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag."""
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        """No tag is open."""
        self._open = ""

    def handle_data(self, data: str) -> None:
        """Add the text to the tag before it, and to the text of the page."""
        self.texts[self._open] = self.texts.get(self._open, "") + data
        if self._open not in ("style", "script"):
            self.texts["page"] = self.texts.get("page", "") + data

    def find(self, name: str) -> list[dict[str, str | None]]:
        """Attributes of all tags called `name`."""
        return [attributes for tag, attributes in self.tags if tag == name]


def render(results: dict[str, Any], folder: Path) -> str:
    write_report(results, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def map_leaves(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return {key: map_leaves(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [map_leaves(item, change) for item in value]
    return change(value)


def assert_harmless(source: str) -> Page:
    """Nothing runs or loads but our own style and script; nothing else got into the markup."""
    page = Page(source)
    assert {tag for tag, _ in page.tags} <= set(PLAIN_TAGS)
    assert len(page.find("script")) == len(page.find("style")) == 1
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("src", "href"):
            if name in attributes:
                target = attributes[name] or ""
                inside = re.fullmatch("#(all-curves|image-[0-9]+)", target)
                assert inside or target.startswith("data:image/png;base64,"), tag
    assert "url(" not in page.texts["style"]
    assert "@import" not in page.texts["style"]
    return page


def test_policy_allows_exactly_the_inlined_style_and_script(tmp_path: Path):
    page = assert_harmless(render(make_results(), tmp_path))
    policy = next(m["content"] or "" for m in page.find("meta") if m.get("http-equiv") is not None)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for name in ("style", "script"):
        digest = hashlib.sha256(page.texts[name].encode()).digest()
        assert rules[f"{name}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"


@pytest.mark.parametrize("verdicts", ["kept", "replaced"])
def test_every_text_of_the_results_is_escaped(tmp_path: Path, verdicts: str):
    known = {*SLUGS, *STANDINGS, "done", "swapped", "skipped"}
    kept = known if verdicts == "kept" else set()

    def change(value: Any) -> Any:
        return NASTY if isinstance(value, str) and value not in kept else value

    results = map_leaves(make_results(failing=1, points=3, screened=2), change)
    for row in results["rows"]:
        row["operator"], row["label"] = NASTY, f"{NASTY}({NASTY})"
        row["extras"] = {NASTY: 0.5}
    results["plan"][NASTY] = {NASTY: NASTY}
    page = assert_harmless(render(results, tmp_path))
    shown = NASTY.translate({0: "\ufffd", 0x202E: "\ufffd", 0xD800: "\ufffd"})
    text = page.texts["page"]
    assert text.count(shown) > 60
    assert not {"\x00", "\u202e", "\ud800"} & set(text)
    assert "&lt;" not in text
    assert "&amp;" not in text


def test_any_value_may_be_null_missing_or_not_finite(tmp_path: Path):
    whole = make_results(rows=5, seeds=1, points=2, size=2, screened=1)
    whole["rows"] = [whole["rows"][i] for i in (0, 3, 5)]

    def paths(value: Any, path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        items = value.items() if isinstance(value, dict) else enumerate(value[:1])
        found = []
        for key, item in items:
            found.append((*path, key))
            if isinstance(item, dict | list) and item:
                found += paths(item, (*path, key))
        return found

    places = [path for path in paths(whole, ()) if isinstance(path[-1], str)]
    assert len(places) > 130
    for path in places:
        if path == ("schema",):
            continue
        results = copy.deepcopy(whole)
        parent = results
        for key in path[:-1]:
            parent = parent[key]
        number = isinstance(parent[path[-1]], float)
        parent[path[-1]] = float("nan") if number else None
        text = Page(render(results, tmp_path)).texts["page"]
        assert not re.search(r"\b(nan|None|inf)\b", text), path
        del parent[path[-1]]
        render(results, tmp_path)


@pytest.mark.parametrize(
    ("shape", "most"),
    [
        ({"rows": 6, "seeds": 5, "points": 2}, 150_000),
        ({"rows": 1, "seeds": 1, "points": 1}, 60_000),
        ({"rows": 4, "seeds": 2, "points": 1, "failing": 1}, 100_000),
        ({"rows": 3, "failing": 3}, 60_000),
        ({"rows": 6, "seeds": 5, "points": 30, "task": "denoise"}, 150_000),
        ({"rows": 20, "seeds": 5, "points": 100, "size": 11, "failing": 2}, LIMIT),
        ({"rows": 40, "seeds": 25, "points": 150, "size": 9}, LIMIT),
        ({"rows": 150, "seeds": 60, "points": 9, "screened": 300}, LIMIT),
    ],
    ids=["default", "one", "quick", "failed", "denoise", "many", "huge", "absurd"],
)
def test_size(tmp_path: Path, shape: dict[str, int], most: int):
    source = render(make_results(**shape), tmp_path)
    assert len(source.encode()) <= most <= 1_000_000
    assert_harmless(source)


def test_the_page_holds_the_numbers(tmp_path: Path):
    results = make_results(rows=6, failing=1)
    results["rows"][1]["trials"][2].update(status="diverged", reason="loss is nan", score=10.0)
    text = Page(render(results, tmp_path)).texts["page"]
    row = results["rows"][4]
    low, high = row["score"]["interval"]
    expected = [
        "One of three operators beats the plain convolution",
        f"{row['score']['mean']:.1f}",
        f"[{low:.1f},\u00a0{high:.1f}]",
        "77.8 k",
        "×1.00",
        "dcls(kernel_size=5, taps=9)",
        "layer1.0.conv1",
        "loss is nan",
        "kernel_size 9 is larger than the input of 7 x 7",
        "0, 2, 4",
        "CC BY-SA 3.0",
        "3,000 train, 500 validation, 1,500 test",
        "AMD EPYC 7B13",
        "omniconv compare --plan default.yaml --out omniconv-report",
        "21 November 2026, 11:14 UTC",
        "0.048",
        "6 swapped",
        "2 epochs",
        "seed 1000, used for nothing else",
        "of 28 × 28 pixels",
        "6 tried, the best on validation is taken",
    ]
    assert [piece for piece in expected if piece not in text] == []


def test_the_plan_on_the_page_is_the_plan(tmp_path: Path):
    results = make_results()
    text = Page(render(results, tmp_path)).texts["page"]
    found = re.search(r'\{\n  "task".*?\n\}', text, re.DOTALL)
    assert found
    assert json.loads(found[0]) == results["plan"]


def test_every_row_has_a_sentence_and_gains_look_no_better_than_no_gains(tmp_path: Path):
    source = render(make_results(), tmp_path)
    section = source[source.index('id="verdicts-title"') : source.index('id="scatter-title"')]
    found = re.findall(r'<strong class="v-(\w+)">([^<]+)</strong>', section)
    assert [slug for slug, _ in found] == [
        *("equal", "equal", "gain", "equal", "loss", "loss"),
        *("gain", "undecided"),
    ]
    assert len(re.findall(r'class="mark v-', section)) == len(found)
    assert "about 14 seeds in all would decide" in section
    assert ">Plain networks</h3>" in section


def test_few_seeds_give_intervals_and_no_word_of_verdict(tmp_path: Path):
    source = render(make_results(seeds=3), tmp_path)
    section = source[source.index('id="verdicts-title"') : source.index('id="scatter-title"')]
    assert "<strong" not in section
    assert section.count("(three seeds, no verdict)") == 8
    assert ">Differences</h2>" in section
    assert not re.search(r'class="chip v-(gain|loss|equal|undecided)"', source)


def test_attention_marks_wrong_predictions_in_words_too(tmp_path: Path):
    results = make_results()
    source = render(results, tmp_path)
    page = Page(source)
    assert len(page.find("symbol")) == 6
    heads = [a["href"] for a in page.find("use") if (a["href"] or "").startswith("#image-")]
    assert len(heads) == 6 * 7
    wrong = re.findall(r'<td class="wrong">.*?</td>', source)
    assert len(wrong) == 1
    assert '>✗ </span>wave<span class="hidden"> (wrong)' in wrong[0]
    assert "Where the networks look" not in render(make_results(task="denoise"), tmp_path)


def test_receptive_fields_are_drawn_to_one_scale(tmp_path: Path):
    results = make_results()
    results["rows"][1]["pictures"]["receptive_field"] |= {"area": 0.0042}
    page = Page(render(results, tmp_path))
    fields = [found["src"] for found in page.find("img") if found.get("class") == "field"]
    assert len(fields) == 6
    assert fields[0] == png.shares(
        tuple(tuple(line) for line in results["rows"][0]["pictures"]["receptive_field"]["map"])
    )
    for percent in ("41", "0.42", "29"):
        assert f"{percent} % of 28 × 28 pixels" in page.texts["page"]


def test_tuning_shows_what_was_tried_and_taken(tmp_path: Path):
    source = render(make_results(), tmp_path)
    section = source[source.index('id="tuning-title"') : source.index('id="trials-title"')]
    assert section.count(", taken</small>") == 5
    assert section.count("the largest that was tried") == 2
    assert section.count("given by the plan") == 1
    assert "diverged<small>0.3</small>" in section
    assert [f">rate × {factor}<" in section for factor in ("1/3", 1, 3)] == [True] * 3
    given = render(make_results(tuned=False), tmp_path)
    assert given.count("given by the plan") == 6
    assert "rate ×" not in given


def test_a_screen_is_shown_apart_from_the_comparison(tmp_path: Path):
    source = render(make_results(screened=4), tmp_path)
    compared, rest = source.split('id="screen-title"')
    assert "condconv" not in compared
    assert "The best six went on, with new seeds." in rest
    names = re.findall(r'<th scope="row" class="row" data-sort="(\w+)', rest.split("</table>")[0])
    assert len(names) == 7
    assert set(names[3:]) == {"condconv", "ghost", "octave", "dynamic"}
    assert "screened out" not in render(make_results(), tmp_path)


def test_curves_count_what_the_budget_counts(tmp_path: Path):
    text = Page(render(make_results(task="denoise", points=20), tmp_path)).texts["page"]
    assert "Validation PSNR, dB, by step" in text
    assert "2,000" in text
    assert "epoch of conv" not in text
    assert "Classes" not in text
    assert "SSIM" in text
    assert (
        "Validation accuracy, %, by epoch" in Page(render(make_results(), tmp_path)).texts["page"]
    )


def test_a_trial_that_has_not_run_is_named(tmp_path: Path):
    results = make_results()
    trial = results["rows"][2]["trials"][4]
    trial.update(status="missing", score=None, validation_score=None, seconds=None, curve=[])
    text = Page(render(results, tmp_path)).texts["page"]
    assert "it has not run yet" in text
    assert "Every trial finished" not in text


def test_other_schemas_are_refused_in_one_sentence(tmp_path: Path):
    for results, found in ((make_results() | {"schema": 1}, "1"), ({}, "None"), ([], "'list'")):
        sentence = f"^results: schema is {found}; this report reads schema 2$"
        with pytest.raises(ValueError, match=sentence):
            write_report(results, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    old = render(make_results(rows=2), tmp_path)
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report(make_results(rows=1), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == old
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_csv_has_one_line_per_trial(tmp_path: Path):
    results = make_results(rows=3, seeds=4, failing=1)
    results["rows"][0]["label"] = '=HYPERLINK("x"), "y"\nz'
    to_csv(results, tmp_path / "trials.csv")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "trials.csv").read_text("utf-8"))))
    assert len(lines) == 12
    assert lines[0]["row"] == '\'=HYPERLINK("x"), "y"\nz'
    trial = results["rows"][1]["trials"][2]
    assert lines[6]["row"] == "conv(kernel_size=5)"
    assert float(lines[6]["score"]) == trial["score"]
    assert (lines[6]["seed"], lines[6]["id"]) == ("2", trial["id"])
    assert (lines[6]["plain"], lines[6]["verdict"], lines[6]["frontier_verdict"]) == (
        "yes",
        "too few seeds",
        "",
    )
    assert lines[6]["parameters"] == str(results["rows"][1]["cost"]["parameters"])
    assert (lines[9]["status"], lines[9]["score"], lines[9]["step_ms"]) == ("diverged", "", "")


def test_csv_has_the_verdict_against_the_frontier(tmp_path: Path):
    results = make_results()
    to_csv(results, tmp_path / "trials.csv")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "trials.csv").read_text("utf-8"))))
    standing = results["rows"][5]["frontier"]
    assert lines[25]["frontier_verdict"] == "below"
    assert float(lines[25]["frontier_score"]) == standing["score"]
    assert float(lines[25]["frontier_difference"]) == standing["mean"]
    assert lines[25]["flops_backward"] == str(results["rows"][5]["cost"]["flops_backward"])
