"""The results of a bench as text of at most 100 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omniconv.core.table import text_table

__all__ = ["digits", "show", "show_choice"]

HEAD = ("", "ms", "quartiles", "bound", "reached", "best of torch", "ms", "ours is")
LEFT = (0, 5)


def show(results: dict[str, Any]) -> str:
    """Every kernel's figures, the machine and its ceilings above them."""
    machine, chosen = results["machine"], results["settings"]
    head = ""
    if machine:
        where = machine.get("gpu") or f"{machine['cpu']}, {machine['cpu_capability']}"
        head = f"{where}; torch {machine['torch']}; allocator {machine['allocator']}; "
    parts = [f"{head}{chosen['suite']} suite, {chosen['dtype']}"]
    parts += ["\n".join(_run(found)) for found in results["runs"]]
    return "\n\n".join(parts)


def _run(found: dict[str, Any]) -> Iterator[str]:
    threads = found["threads"]
    yield f"{found['kernel']}, {threads} thread{'s' if threads > 1 else ''}"
    if found["ceilings"]:
        yield _ceilings(found["ceilings"])
    if found["reason"]:
        yield f"  failed: {found['reason']}"
    if not found["cases"] and not found["reason"]:
        yield "  no cases of this suite, dtype and layout"
    passes = [each for case in found["cases"] for each in case.get("passes", ())]
    lines = iter(_aligned([list(HEAD), *map(_row, passes)]))
    if passes:
        yield next(lines)
    for case in found["cases"]:
        yield f"{case['name']}, {case['layout']}"
        for each in case.get("passes", ()):
            yield next(lines)
            if beside := _beside(each):
                yield f"    {beside}"
        if "reason" in case:
            yield f"  FAILED, no times: {case['reason']}"


def _ceilings(ceilings: dict[str, Any]) -> str:
    flops = ", ".join(f"{name} {v / 1e9:.0f}" for name, v in ceilings["flops"].items())
    copies = ", ".join(
        f"{v / 1e9:.0f} at {int(moved) / 1e6:g} MB" for moved, v in ceilings["copies"].items()
    )
    return f"ceilings: {flops} GFLOP/s; copy, GB/s: {copies}"


def _row(each: dict[str, Any]) -> list[str]:
    forms, best = each["forms"], each["best_torch"]
    ours = forms["omniconv"]
    return [
        f"  {each['name']}" + ("" if each["operators"] else " (torch)"),
        digits(ours["ms"]),
        f"{digits(ours['low'])}-{digits(ours['high'])}",
        digits(each["bound_ms"]),
        f"{100 * each['reached']:.0f} %",
        "-" if best is None else best.removeprefix("torch "),
        "-" if best is None else digits(forms[best]["ms"]),
        "-" if best is None else f"{each['times_torch']:.2f}x",
    ]


def _beside(each: dict[str, Any]) -> str:
    """Peers and yardsticks: their time, and how many times ours it is."""
    ours = each["forms"]["omniconv"]["ms"]
    others = ((name, f["ms"]) for name, f in each["forms"].items() if f["kind"] != "form")
    shown = [f"{name} {digits(ms)} ms ({ms / ours:.2f} of ours)" for name, ms in others]
    if each["saved"] is not None:
        shown.append(f"{100 * each['saved']:.0f} % of what torch's layers take is saved")
    return ", ".join(shown)


def show_choice(tuned: dict[str, Any]) -> str:
    """The table of ways that the tuning left, and where."""
    rows = [("pass, layout, images", "ways, from so many taps inside the image on")]
    for key, steps in tuned["table"].items():
        ways = ", ".join(f"{way} from {least:.0f}" for least, way in steps)
        rows.append((key, ways))
    return "\n".join([*text_table(rows, left=2), "", f"Kept in {tuned['path']}"])


def digits(value: float) -> str:
    """Three significant digits, no exponent."""
    for limit, places in ((0.1, 4), (1, 3), (10, 2), (100, 1)):
        if value < limit:
            return f"{value:.{places}f}"
    return f"{value:.0f}"


def _aligned(rows: list[list[str]]) -> list[str]:
    """Lines of a table; the columns ``LEFT`` are aligned left, the others right."""
    padded = [list(row) for row in rows]
    for column in LEFT:
        width = max(len(row[column]) for row in rows)
        for row in padded:
            row[column] = row[column].ljust(width)
    return text_table(padded, left=1)
