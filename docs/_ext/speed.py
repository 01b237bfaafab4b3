"""What ``omniconv bench`` measured, from the histories in ``docs/benchmarks``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markup import table, text

from omniconv.bench import KERNELS
from omniconv.bench.run import read
from omniconv.bench.table import digits
from omniconv.compare.report.svg import Drawing, Scale, element, line, mark, picture, tick_label
from omniconv.compare.report.svg import text as words

LABELS, WIDTH, ROW, FOOT = 330.0, 720.0, 15.0, 34.0
HEAD = ("", "MFLOP", "MB", "bound, ms", "ms", "reached", "best of torch, ms", "ours is")
KINDS = ("device", "suite", "dtype")


def pages(docs: Path) -> dict[str, str]:
    """Path in ``generated/`` -> content, for every kernel; the page of kernels takes them in."""
    folder = docs / "benchmarks"
    return {f"speed/{name}.md": page(read(folder / f"{name}.json")) for name in KERNELS}


def page(history: list[dict[str, Any]]) -> str:
    """The newest measurement of every device, suite and dtype."""
    newest = {tuple(entry["settings"][key] for key in KINDS): entry for entry in history}
    if not newest:
        return "Not measured yet.\n"
    return "\n".join(part for entry in newest.values() for part in _entry(entry))


def _entry(entry: dict[str, Any]) -> Iterator[str]:
    machine, chosen = entry["machine"], entry["settings"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['cpu_capability']}"
    said = f"{where}, torch {machine['torch']}, {entry['date'][:10]}"
    what = text(f"{chosen['suite']} suite, {chosen['dtype']}")
    yield f"**{what}** ({text(said)}).\n"
    for run in entry["runs"]:
        if run["ceilings"] and any("passes" in case for case in run["cases"]):
            yield from _run(run)


def _run(run: dict[str, Any]) -> Iterator[str]:
    ceilings = run["ceilings"]
    flops = ", ".join(f"{name} {v / 1e9:.0f}" for name, v in ceilings["flops"].items())
    copies = ", ".join(
        f"{v / 1e9:.0f} ({int(size) / 1e6:g} MB)" for size, v in ceilings["copies"].items()
    )
    threads = f"{run['threads']} thread{'s' if run['threads'] > 1 else ''}"
    yield f"{text(threads)}; ceilings {text(flops)} GFLOP/s; copies {text(copies)} GB/s.\n"
    yield f"```{{raw}} html\n{drawing(run)}\n```\n"
    rows = [_row(case, each) for case, each in _measured(run)]
    yield f"<details><summary>Figures</summary>\n\n{table(HEAD, rows)}\n</details>\n"


def _measured(run: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(case, each) for case in run["cases"] for each in case.get("passes", ())]


def _row(case: dict[str, Any], each: dict[str, Any]) -> list[str]:
    forms, best = each["forms"], each["best_torch"]
    return [
        f"{case['name']}, {case['layout']}: {each['name']}",
        digits(each["flops"] / 1e6),
        digits(each["bytes"] / 1e6),
        digits(each["bound_ms"]),
        digits(forms["omniconv"]["ms"]),
        f"{100 * each['reached']:.0f} %",
        "none" if best is None else f"{digits(forms[best]['ms'])} ({best.removeprefix('torch ')})",
        "" if best is None else f"{each['times_torch']:.1f} times as fast",
    ]


def drawing(run: dict[str, Any]) -> Drawing:
    """A line per pass, on a logarithmic scale: bound, our time, best time of torch."""
    measured = _measured(run)
    times = [t for _, each in measured for t in (each["bound_ms"], *_times(each))]
    scale = Scale(0.8 * min(times), 1.25 * max(times), LABELS, WIDTH - 16, log=True)
    height = FOOT + ROW * (len(measured) + len(run["cases"]))
    parts: list[Drawing] = []
    for tick in scale.ticks(7):
        parts.append(line(scale(tick), 4, scale(tick), height - FOOT + 4, "grid"))
        parts.append(words(tick_label(tick), scale(tick), height - 16, "label", "middle"))
    parts.append(words("milliseconds", scale.end, height - 2, "label", "end"))
    y = 0.0
    for case in run["cases"]:
        y += ROW
        parts.append(words(f"{case['name']}, {case['layout']}", 0, y, "case"))
        for each in case.get("passes", ()):
            y += ROW
            parts += _line(each, scale, y)
    legend = "Per pass: bound (line), omniconv (disc), best of torch (square), in milliseconds"
    return element("figure", picture(WIDTH, height, legend, *parts), class_="speed")


def _times(each: dict[str, Any]) -> list[float]:
    best = each["best_torch"]
    return [each["forms"][name]["ms"] for name in ("omniconv", best) if name]


def _line(each: dict[str, Any], scale: Scale, y: float) -> Iterator[Drawing]:
    middle = y - 4
    bound, *times = (scale(t) for t in (each["bound_ms"], *_times(each)))
    yield words(each["name"], 14, y, "label")
    yield line(bound, middle, max(times), middle, "span")
    yield line(bound, middle - 5, bound, middle + 5, "bound")
    for x, slug in zip(times, ("ours", "plain"), strict=False):
        yield mark(slug, x, middle, 4)
