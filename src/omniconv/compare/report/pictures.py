"""What the networks look like inside: kernels, receptive fields, attention.

All pictures together keep to a budget; what does not fit is left out and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import png
from .data import Attention, Comparison, Field, Kernels, Row
from .formats import fixed, significant
from .svg import Drawing, element, picture

_KERNEL_BYTES = 300_000
_FIELD_BYTES = 100_000
_ATTENTION_BYTES = 300_000
_LEFT_OUT = "left out to keep this file small; the values are in results.json"


def kernels(page: Comparison, detail: float) -> list[tuple[Row, list[dict[str, object]]]]:
    """One picture a layer; every row has its share of the budget, every layer its share of that."""
    rows = [row for row in page.rows if row.kernels]
    found = []
    for row in rows:
        budget = int(_KERNEL_BYTES * detail) // len(rows) // len(row.kernels)
        drawn: list[dict[str, object]] = []
        for entry in row.kernels:
            uri, shown = fitting(entry, budget)
            note = _kernel_note(entry, shown)
            drawn.append({"entry": entry, "uri": uri, "shown": shown, "note": note})
        found.append((row, drawn))
    return found


def fitting(entry: Kernels, budget: int) -> tuple[str, int]:
    """The picture of as many kernels as the budget allows, in full lines."""
    shown = len(entry.kernels)
    while shown:
        uri = png.kernels(entry, shown)
        if len(uri) <= budget:
            return uri, shown
        shown = min(shown - 1, shown * budget // len(uri)) // png.PER_LINE * png.PER_LINE
    return "", 0


def _kernel_note(entry: Kernels, shown: int) -> str:
    """What the caption says about the pictures, or about their absence."""
    if not entry.kernels:
        return "no single kernel: it depends on the input"
    if not shown:
        return _LEFT_OUT
    bound = f"full colour at ±{significant(png.largest(entry), 2)}"
    return bound if shown == len(entry.kernels) else f"{bound}; {shown} of {len(entry.kernels)}"


def fields(page: Comparison, detail: float) -> list[dict[str, object]]:
    """The effective receptive fields, drawn alike."""
    found: list[dict[str, object]] = []
    left = int(_FIELD_BYTES * detail)
    for row in page.rows:
        if row.field is None:
            continue
        uri = png.shares(row.field.map)
        left -= len(uri)
        shown = uri if left >= 0 else ""
        found.append({"row": row, "uri": shown, "area": _area(row.field), "size": _size(row.field)})
    return found


def _area(field: Field) -> str:
    if field.area is None:
        return "–"
    share = 100 * field.area
    return f"{fixed(share, 0) if share >= 9.5 else significant(share, 2)} %"


def _size(field: Field) -> str:
    if field.height is None or field.width is None:
        return "the input"
    return f"{field.height} × {field.width} pixels"


@dataclass(frozen=True)
class Attended:
    """The table of attention: a head per image, a line per row, and the images drawn once."""

    symbols: Drawing
    heads: tuple[tuple[Drawing, str], ...]
    lines: tuple[tuple[Row, tuple[tuple[Drawing, Attention] | None, ...]], ...]
    note: str


def attention(page: Comparison, detail: float) -> Attended | None:
    """Where each row's network looked; None where there is nothing to show."""
    rows = [row for row in page.rows if any(_drawable(item) for item in row.attention)]
    if not rows:
        return None
    columns = max(len(row.attention) for row in rows)
    everything = columns
    levels = 64 if detail > 0.5 else 16
    while columns:
        found = _attended(rows, columns, levels)
        if _length(found) <= _ATTENTION_BYTES * detail:
            break
        columns //= 2
    if not columns:
        return Attended(Drawing(), (), (), f"{everything} images a row, {_LEFT_OUT}")
    note = "" if columns == everything else f"{everything - columns} images a row are {_LEFT_OUT}."
    return Attended(found.symbols, found.heads, found.lines, note)


def _drawable(item: Attention) -> bool:
    return bool(item.image and item.map)


def _attended(rows: list[Row], columns: int, levels: int) -> Attended:
    symbols: dict[object, tuple[str, Drawing]] = {}

    def base(item: Attention) -> Drawing:
        if item.image not in symbols:
            name = f"image-{len(symbols)}"
            inside = _stretched(png.image(item.image, levels))
            symbols[item.image] = (name, element("symbol", inside, id=name, viewBox="0 0 8 8"))
        return element("use", href=f"#{symbols[item.image][0]}", width=8, height=8)

    heads: list[tuple[Drawing, str]] = []
    for index in range(columns):
        first = next((r.attention[index] for r in rows if _at(r, index)), None)
        drawn = picture(8, 8, "", base(first), class_="look") if first else Drawing()
        heads.append((drawn, first.label if first else ""))
    lines = []
    for row in rows:
        cells: list[tuple[Drawing, Attention] | None] = []
        for index in range(columns):
            item = _at(row, index)
            if item is None:
                cells.append(None)
                continue
            over = _stretched(png.heat(item.map))
            cells.append((picture(8, 8, "", base(item), over, class_="look"), item))
        lines.append((row, tuple(cells)))
    drawn = element("defs", *(symbol for _, symbol in symbols.values()))
    return Attended(drawn, tuple(heads), tuple(lines), "")


def _at(row: Row, index: int) -> Attention | None:
    item = row.attention[index] if index < len(row.attention) else None
    return item if item and _drawable(item) else None


def _stretched(uri: str) -> Drawing:
    return element("image", href=uri, width=8, height=8, preserveAspectRatio="none")


def _length(found: Attended) -> int:
    cells = (len(cell[0]) for _, line in found.lines for cell in line if cell)
    return len(found.symbols) + sum(cells)
