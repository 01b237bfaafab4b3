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
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omniconv.compare.report import LIMIT, to_csv, write_report
from omniconv.compare.report.data import SLUGS, read
from omniconv.compare.report.figures import frontier, thinned
from omniconv.compare.report.kernels import data_uri, pictures
from omniconv.compare.report.labels import Box, place
from omniconv.compare.report.svg import Scale, focus
from omniconv.compare.report.words import headline, quantity, ratio, significant
from report_results import make_results

NASTY = (
    "</style></script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>é☃畳\u202e\x00\ud800"
)
PLAIN_TAGS = re.findall(
    r"\w+",
    "html head meta title style body header main footer section div p h1 h2 h3 dl dt dd b small "
    "span ul li figure figcaption table thead tbody tr th td button input label details summary "
    "pre code img script svg g path rect circle text use defs",
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
                assert target == "#all-curves" or target.startswith("data:image/png;base64,"), tag
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
    kept = {*SLUGS, "done", "swapped", "skipped"} if verdicts == "kept" else set()

    def change(value: Any) -> Any:
        return NASTY if isinstance(value, str) and value not in kept else value

    results = map_leaves(make_results(failing=1, epochs=3), change)
    for row in results["rows"]:
        row["operator"], row["label"] = NASTY, f"{NASTY}({NASTY})"
    results["plan"][NASTY] = {NASTY: NASTY}
    page = assert_harmless(render(results, tmp_path))
    shown = NASTY.translate({0: "\ufffd", 0x202E: "\ufffd", 0xD800: "\ufffd"})
    text = page.texts["page"]
    assert text.count(shown) > 60
    assert not {"\x00", "\u202e", "\ud800"} & set(text)
    assert "&lt;" not in text
    assert "&amp;" not in text


def test_any_value_may_be_null_missing_or_not_finite(tmp_path: Path):
    whole = make_results(rows=2, seeds=1, epochs=2, size=2)

    def paths(value: Any, path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        items = value.items() if isinstance(value, dict) else enumerate(value[:1])
        found = []
        for key, item in items:
            found.append((*path, key))
            if isinstance(item, dict | list) and item:
                found += paths(item, (*path, key))
        return found

    places = [path for path in paths(whole, ()) if isinstance(path[-1], str)]
    assert len(places) > 100
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
        ({"rows": 6, "seeds": 5, "epochs": 2}, 120_000),
        ({"rows": 1, "seeds": 1, "epochs": 1}, 60_000),
        ({"rows": 4, "seeds": 2, "epochs": 1, "failing": 1}, 90_000),
        ({"rows": 3, "failing": 3}, 60_000),
        ({"rows": 20, "seeds": 5, "epochs": 100, "size": 11, "failing": 2}, LIMIT),
        ({"rows": 40, "seeds": 25, "epochs": 150, "size": 9}, LIMIT),
    ],
    ids=["default", "one", "quick", "failed", "many", "huge"],
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
        "Two of five alternatives beat the plain convolution.",
        f"{row['score']['mean']:.1f}",
        f"{low:.1f} to {high:.1f}",
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
    ]
    assert [piece for piece in expected if piece not in text] == []


def test_the_plan_on_the_page_is_the_plan(tmp_path: Path):
    results = make_results()
    text = Page(render(results, tmp_path)).texts["page"]
    found = re.search(r'\{\n  "task".*?\n\}', text, re.DOTALL)
    assert found
    assert json.loads(found[0]) == results["plan"]


def verdicts(*found: str, seeds: int = 5) -> tuple[str, str]:
    results = make_results(rows=len(found), seeds=seeds)
    for row, verdict in zip(results["rows"], found, strict=True):
        row["verdict"] = verdict
        if verdict == "failed":
            row["score"] = row["difference"] = None
    return headline(read(results))


def test_headline():
    same = "no relevant difference"
    assert verdicts("baseline", "gain")[0] == "The one alternative beats the plain convolution."
    assert verdicts("baseline", "gain", "gain")[0].startswith("All two alternatives beat")
    answer, support = verdicts("baseline", "gain", "loss", "failed")
    assert answer == "One of three alternatives beats the plain convolution."
    assert support.startswith("It is conv(kernel_size=5): +")
    assert support.endswith("The others: one worse, one failed.")
    answer, support = verdicts("baseline", same, "loss")
    assert answer == "No alternative was better than the plain convolution by more than 0.5 points."
    assert support == "Of the alternatives: one without a relevant difference, one worse."
    assert verdicts("baseline", same, "undecided")[0].startswith("No alternative is shown to beat")
    few = verdicts("baseline", "too few seeds", "too few seeds", seeds=2)
    assert few[0] == "Too few seeds for a verdict."
    assert few[1].startswith("Two seeds were run, at least five are needed")
    assert verdicts("failed", "failed")[0].startswith("No row finished")
    assert verdicts("failed", "undecided")[0].startswith("The plain convolution did not finish")
    assert verdicts("baseline")[0].startswith("One row alone")
    assert verdicts("baseline", "failed")[0] == "Nothing but the plain convolution finished."


def test_the_largest_gain_is_the_best_one_of_a_score_where_less_is_better():
    results = make_results(rows=3)
    results["metric"].update(name="error", higher_is_better=False)
    for row, mean in zip(results["rows"][1:], (-0.7, -2.0), strict=True):
        row["verdict"], row["difference"]["mean"] = "gain", mean
    assert "conv(width=1.5): −2.0 points" in headline(read(results))[1]


def test_number_formats():
    assert [quantity(v) for v in (None, 12, 999, 77_754, 999_900, 18.9e6)] == [
        "–",
        "12",
        "999",
        "77.8 k",
        "1.00 M",
        "18.9 M",
    ]
    assert [significant(v) for v in (0, 0.00123, 0.84, 61.04, 119.6, 1234.5)] == [
        "0",
        "0.00123",
        "0.840",
        "61.0",
        "120",
        "1,230",
    ]
    assert [ratio(v) for v in (None, 1.0, 2.307, 12.4)] == ["", "×1.00", "×2.31", "×12"]


def test_other_schemas_are_refused_in_one_sentence(tmp_path: Path):
    for results, found in ((make_results() | {"schema": 2}, "2"), ({}, "None"), ([], "'list'")):
        with pytest.raises(ValueError, match=f"^results: schema is {found}; this report reads"):
            write_report(results, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full_disk(path: Path, text: str, **_: Any) -> None:
        path.write_bytes(text[:100].encode())
        raise OSError(28, "No space left on device")

    old = render(make_results(rows=2), tmp_path)
    monkeypatch.setattr(Path, "write_text", full_disk)
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
    assert lines[6]["parameters"] == str(results["rows"][1]["cost"]["parameters"])
    assert (lines[9]["status"], lines[9]["score"], lines[9]["step_ms"]) == ("diverged", "", "")


def test_frontier_is_what_nothing_beats():
    points = [(1.0, 90.0), (2.0, 95.0), (2.0, 94.0), (3.0, 93.0), (4.0, 96.0), (1.0, 80.0)]
    assert frontier(points, True) == [0, 1, 4]
    assert frontier(points, False) == [5]


def test_an_outlier_does_not_crush_the_axis_and_the_first_row_stays():
    close = [(94.0, 95.0), (95.0, 96.0), (95.5, 96.5)]
    assert focus([*close, (9.0, 11.0)]) == (94.0, 96.5)
    assert focus([(9.0, 11.0), *close]) == (9.0, 96.5)
    assert focus([*close, (90.0, 91.0)]) == (90.0, 96.5)
    assert focus(close[:1]) == (94.0, 95.0)


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [
        (0.0, 1.0, False),
        (94.37, 96.11, False),
        (0.001, 0.0013, False),
        (0.8, 7.0, True),
        (3.0, 900.0, True),
        (0.02, 5e5, True),
    ],
)
def test_ticks_are_round_and_within(low: float, high: float, log: bool):
    scale = Scale(low, high, 0, 100, log)
    ticks = scale.ticks(5)
    assert 2 <= len(ticks) <= 9
    assert all(scale.holds(tick) for tick in ticks)
    assert all(len(f"{tick:g}".replace(".", "").strip("0")) <= 3 for tick in ticks)
    assert scale(scale.low) == 0
    assert scale(scale.high) == pytest.approx(100)


def test_labels_do_not_overlap():
    draw = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in draw.uniform((300, 180), (480, 300), (24, 2))]
    placed = place(points, [(150.0, 16.0)] * 24, [], Box(0, 0, 960, 480))
    found = [label.box for label in placed if label]
    assert len(found) >= 22
    assert all(a.overlap(b) == 0 for a, b in combinations(found, 2))
    marks = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    assert all(box.overlap(mark) == 0 for box in found for mark in marks)
    assert all(box.inside(Box(0, 0, 960, 480)) for box in found)


def test_curves_keep_their_ends():
    curve = [(float(epoch), epoch / 7) for epoch in range(1000)]
    for most in (12, 120, 5000):
        short = thinned(curve, most)
        assert (short[0], short[-1]) == (curve[0], curve[-1])
        assert len(short) <= most + 1
    assert thinned(curve[:1], 12) == curve[:1]


def test_kernel_pictures_show_sign_and_strength():
    image = pytest.importorskip("PIL.Image", reason="reads the PNG back with pillow")
    kernel = [[-0.5, 0.0, 0.25], [0.5, -0.125, 0.0]]
    _, content = data_uri(kernel, 0.5).split(",")
    with image.open(io.BytesIO(base64.b64decode(content))) as picture:
        pixels = np.asarray(picture.convert("RGBA")).astype(int)
    assert pixels.shape == (24, 36, 4)
    shown = pixels[6::12, 6::12]
    signed = np.where(shown[..., 2] > shown[..., 0], 1, -1) * shown[..., 3] / 255
    np.testing.assert_allclose(signed * 0.5, kernel, atol=0.002)


def test_kernel_pictures_stay_within_their_budget():
    kernels = np.random.default_rng(0).normal(size=(16, 9, 9)).tolist()
    everything = pictures(kernels, 10**6)
    assert len(everything) == 16
    some = pictures(kernels, 5000)
    assert 0 < len(some) < 16
    assert sum(map(len, some)) <= 5000
