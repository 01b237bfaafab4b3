"""The report in a real browser: it loads nothing, says nothing on the console, sorts, fits."""

from __future__ import annotations

import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from omniconv.compare.report import write_report
from report_results import make_results

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
WIDTHS = (390, 1280)
PROBE = """<!doctype html><iframe src="report.html" width="390" height="3000"></iframe>
<iframe src="report.html" width="1280" height="3000"></iframe><pre></pre>
<script>onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(({contentWindow: frame}) => {
    const page = frame.document, table = page.querySelector("table.sortable");
    const labels = () => [...table.tBodies[0].rows].map((row) => row.cells[0].dataset.sort);
    const orders = [labels()], sorts = [];
    for (const column of [1, 1, 0]) {
      const head = table.querySelector(`[data-column="${column}"]`);
      head.querySelector("button").click();
      orders.push(labels());
      sorts.push(table.querySelectorAll("[aria-sort]").length, head.getAttribute("aria-sort"));
    }
    const boxes = [...page.querySelectorAll(".name")].map((label) => label.getBoundingClientRect());
    const shown = boxes.filter((box) => box.width > 0);
    const clashes = shown.filter((a, i) => shown.some((b, j) => i < j && a.left < b.right
      && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom)).length;
    return {
      orders, sorts, clashes, names: shown.length,
      buttons: [...table.querySelectorAll("th button")].filter((b) => b.tabIndex === 0).length,
      overflow: page.documentElement.scrollWidth - frame.innerWidth,
      clipped: table.parentElement.scrollWidth - table.parentElement.clientWidth,
      resources: frame.performance.getEntriesByType("resource").map((entry) => entry.name),
      images: [...page.images].filter((image) => image.naturalWidth < 28).length,
      looks: [...page.querySelectorAll("symbol image, .look image")].filter((image) =>
        !image.getAttribute("href").startsWith("data:image/png")).length,
      regions: [...page.querySelectorAll("table")].filter((found) =>
        found.parentElement.tabIndex !== 0 || found.parentElement.role !== "region"
        || !(found.parentElement.ariaLabel || page.getElementById(
          found.parentElement.getAttribute("aria-labelledby")))
        || !found.caption).length,
      scopes: page.querySelectorAll("th:not([scope])").length,
      escaped: [...page.querySelectorAll("table")].filter((found) => found.parentElement.clientWidth
        > frame.innerWidth).length,
      ink: frame.getComputedStyle(page.body).color,
    };
  });
  document.querySelector("pre").textContent = JSON.stringify(found);
};</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a line on stderr."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def chromium(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run the browser with a new profile and without any service of its own."""
    command = [
        BROWSER or "",
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", *flags),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def browse(folder: Path, *flags: str) -> tuple[list[dict[str, Any]], str]:
    """What the probe page finds in both frames, and what the browser wrote to stderr."""
    (folder / "probe.html").write_text(PROBE, encoding="utf-8")
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        page = f"http://127.0.0.1:{server.server_address[1]}/probe.html"
        try:
            done = chromium(folder, *flags, "--virtual-time-budget=4000", "--dump-dom", page)
        finally:
            server.shutdown()
            thread.join()
    found = re.search(r"<pre>(.+?)</pre>", done.stdout)
    assert found, done.stdout[-500:] + done.stderr[-2000:]
    return json.loads(html.unescape(found[1])), done.stderr


pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


def test_the_page_loads_nothing_sorts_and_fits(tmp_path: Path):
    results = make_results(rows=7, failing=1)
    write_report(results, tmp_path / "report.html")
    frames, log = browse(tmp_path)
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    labels = [row["label"] for row in results["rows"]]
    scored = [row for row in results["rows"] if row["score"]]
    rising = [row["label"] for row in sorted(scored, key=lambda row: row["score"]["mean"])]
    failed = [row["label"] for row in results["rows"] if not row["score"]]
    assert len(frames) == len(WIDTHS)
    for frame, width in zip(frames, WIDTHS, strict=True):
        start, falling, back, names = frame["orders"]
        assert start == labels
        assert falling == rising[::-1] + failed
        assert back == rising + failed
        assert names != start
        assert sorted(names) == sorted(labels)
        assert frame["sorts"] == [1, "descending", 1, "ascending", 1, "ascending"]
        assert frame["buttons"] == 12
        assert frame["looks"] == frame["regions"] == frame["scopes"] == frame["escaped"] == 0
        assert frame["resources"] == []
        assert frame["overflow"] <= 0, width
        assert frame["images"] == 0
        assert frame["clashes"] == 0, width
        assert frame["names"] >= len(scored) - (width < 400)
    assert frames[1]["clipped"] <= 0


def test_many_labels_keep_apart_in_dark_too(tmp_path: Path):
    write_report(make_results(rows=20, points=6), tmp_path / "report.html")
    frames, _ = browse(tmp_path, "--blink-settings=preferredColorScheme=0")
    for frame in frames:
        assert frame["clashes"] == 0
        assert frame["overflow"] <= 0
        red, *_ = map(int, re.findall(r"\d+", frame["ink"]))
        assert red > 200
    assert frames[1]["names"] >= 18


def test_it_prints_all_of_it(tmp_path: Path):
    results = make_results()
    results["plan"]["rows"] *= 40
    write_report(results, tmp_path / "report.html")
    target = tmp_path / "report.pdf"
    source = (tmp_path / "report.html").as_uri()
    log = chromium(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={target}", source).stderr
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    pages = re.findall(rb"/Type /Page\b", target.read_bytes())
    assert len(pages) > 16, "the plan, which is folded on the screen, fills some alone"
