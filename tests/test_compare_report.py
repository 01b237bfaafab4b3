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

from omniconv.compare.report import LIMIT, png, to_csv, write_report
from omniconv.compare.report.curves import thinned
from omniconv.compare.report.data import SLUGS, STANDINGS, Kernels
from omniconv.compare.report.labels import Box, place
from omniconv.compare.report.scatter import frontier
from omniconv.compare.report.svg import Scale, focus
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


def test_other_schemas_are_refused_in_one_sentence(tmp_path: Path):
    for results, found in ((make_results() | {"schema": 1}, "1"), ({}, "None"), ([], "'list'")):
        sentence = f"^results: schema is {found}; this report reads schema 2$"
        with pytest.raises(ValueError, match=sentence):
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


def pixels(uri: str) -> np.ndarray:
    image = pytest.importorskip("PIL.Image", reason="reads the PNG back with pillow")
    _, content = uri.split(",")
    with image.open(io.BytesIO(base64.b64decode(content))) as picture:
        return np.asarray(picture.convert("RGBA")).astype(int)


def test_kernel_pictures_show_sign_and_strength():
    kernel = ((-0.5, 0.0, 0.25), (0.5, -0.125, 0.0), (0.1, 0.2, 0.3))
    blank = ((0.0, 0.0, 0.0),) * 3
    found = pixels(png.kernels(Kernels("a", "b", (blank,) * 8 + (kernel,)), 9))
    assert found.shape == (36 + 5 + 36, 8 * (36 + 5) - 5, 4)
    assert not found[36:41].any()
    assert not found[:, 36:41].any()
    shown = found[41 + 6 :: 12, 6:36:12]
    grey = (shown == (128, 132, 128, 26)).all(-1)
    assert (grey == (np.asarray(kernel) == 0)).all()
    signed = np.where(shown[..., 2] > shown[..., 0], 1, -1) * shown[..., 3] / 255 * ~grey
    np.testing.assert_allclose(signed * 0.5, kernel, atol=0.5 / 15 / 2 + 0.002)


def test_heat_and_shares_grow_with_the_value():
    values = tuple(i / 20 for i in range(21))
    for draw, power in ((png.heat, 1.0), (png.shares, 0.5)):
        opacity = pixels(draw((values, values)))[0, :, 3]
        assert opacity[0] == 0
        assert (np.diff(opacity) >= 0).all()
        np.testing.assert_allclose(opacity / opacity[-1], np.asarray(values) ** power, atol=0.04)


@pytest.mark.parametrize("levels", [16, 64])
def test_images_keep_their_pixels(levels: int):
    draw = np.random.default_rng(0)
    for shape in ((7, 5), (7, 5, 3)):
        image = draw.integers(0, 256, shape)
        lines = [[tuple(p) if isinstance(p, list) else p for p in line] for line in image.tolist()]
        found = pixels(png.image(lines, levels))[..., :3]
        wanted = image if len(shape) == 3 else np.repeat(image[..., None], 3, -1)
        assert abs(found - wanted).max() <= 255 / (levels - 1) / 2 + 1
