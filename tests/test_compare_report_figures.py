"""The figures of the report: the frontier, axes, labels, curves, pictures."""

from __future__ import annotations

import base64
import io
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from omniconv.compare.report import png, write_report
from omniconv.compare.report.curves import thinned
from omniconv.compare.report.data import Kernels
from omniconv.compare.report.labels import Box, place
from omniconv.compare.report.pictures import fitting
from omniconv.compare.report.read import read
from omniconv.compare.report.scatter import frontier
from omniconv.compare.report.strips import score_range
from omniconv.compare.report.svg import Scale, focus, tick_label
from report_results import make_results


def test_the_frontier_is_drawn_where_rows_are_compared_with_it(tmp_path: Path):
    results = make_results(rows=6)
    # conv, 5 x 5 and width 1.5: the last is slower than 5 x 5 and worse, so no part of the frontier
    for row, latency, mean in zip(
        results["rows"], (4, 16, 20, 8, 12, 30), (90, 94, 91, 92, 93, 94), strict=True
    ):
        row["cost"]["latency_n_ms"] = float(latency)
        row["score"] = {"mean": float(mean), "interval": None, "n": 5}
    write_report(results, tmp_path / "report.html")
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    path, tail = (
        np.asarray([pair.split() for pair in found.split("L")], float)
        for found in re.findall(r'<path d="M([^"]*)" class="(?:frontier|tail)"', source)[:2]
    )
    wide = source[source.index('class="wide"') : source.index('class="narrow"')]
    marks = re.findall(r'class="mark v-(\w+)" transform="translate\(([0-9.]+) ([0-9.]+)\)', wide)
    spots = [np.asarray((x, y), float) for _, x, y in marks]
    assert [name for name, *_ in marks[:4]] == ["baseline", "plain", "plain", "equal"]
    assert path.shape == (17, 2)
    np.testing.assert_allclose(path[[0, -1]], spots[:2], atol=0.11)
    # half way in log latency (8 ms between 4 and 16) the score is half way too: weighted lies on it
    height = path[0, 1] + (path[-1, 1] - path[0, 1]) / 2
    np.testing.assert_allclose(path[8, 1], height, atol=0.1)
    np.testing.assert_allclose(path[8], spots[3], atol=0.11)
    assert (tail[:, 1] == path[-1, 1]).all()


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


def test_an_axis_of_percentages_ends_at_0_and_100():
    results = make_results(rows=2)
    for row, mean in zip(results["rows"], (5.0, 97.0), strict=True):
        row["score"] = {"mean": mean, "interval": [mean - 30, mean + 30], "n": 2}
    page = read(results)
    assert score_range(page.rows, page.metric) == (0.0, 100.0)
    results["metric"]["unit"] = "dB"
    page = read(results)
    low, high = score_range(page.rows, page.metric)
    assert low < -25
    assert high > 127
    assert [tick_label(v) for v in (-20.0, 0.5, 20_000.0)] == ["−20", "0.5", "20,000"]


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


def test_kernel_pictures_stay_within_their_budget():
    values = np.random.default_rng(0).normal(size=(16, 9, 9)).tolist()
    entry = Kernels("a", "b", tuple(tuple(map(tuple, kernel)) for kernel in values))
    whole = png.kernels(entry, 16)
    assert fitting(entry, len(whole)) == (whole, 16)
    some, shown = fitting(entry, len(whole) - 1)
    assert shown == 8
    assert len(some) < len(whole)
    assert fitting(entry, 100) == ("", 0)
