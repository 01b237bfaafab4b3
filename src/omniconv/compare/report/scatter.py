"""Score against latency, with the frontier of plain networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .data import Metric, Row
from .formats import decimals, fixed
from .labels import Box, place, shortened, text_width
from .strips import score_range
from .svg import Drawing, Scale, element, line, mark, padded, picture, polyline, text, tick_label

Point = tuple[float, float]
_STEPS = 16
LEGEND = {
    "baseline": "the layer replaced",
    "plain": "other plain networks",
    "gain": "better than plain networks of the same latency",
    "equal": "level with them",
    "loss": "worse",
    "undecided": "undecided",
    "few": "no verdict",
    "outside": "faster than all of them",
    "operator": "operators",
}
"""What the marks of the figure mean, by their names."""


@dataclass(frozen=True)
class _Frame:
    """Sizes of a figure, for wide or for narrow screens."""

    width: float
    height: float
    left: float
    bottom: float
    font: float
    longest: int
    mark: float
    class_: str


_WIDE = _Frame(960, 480, 52, 48, 13, 44, 6, "wide")
_NARROW = _Frame(380, 400, 40, 46, 12, 28, 5, "narrow")


def marks(rows: Sequence[Row], cost: str) -> list[str]:
    """The name of each row's mark; verdicts hold at the latency they were judged at only."""
    judged = cost == "latency_n_ms"
    found = []
    for index, row in enumerate(rows):
        if row.plain or index == 0:
            found.append("plain" if index else "baseline")
        else:
            found.append(row.standing.slug if judged and row.standing else "operator")
    return found


def frontier(points: Sequence[Point], higher_is_better: bool) -> list[int]:
    """Indices of the points no other beats in both cost (first) and score, by rising cost."""
    sense = 1 if higher_is_better else -1
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -sense * points[i][1]))
    best, kept = float("-inf"), []
    for index in order:
        if sense * points[index][1] > best:
            best = sense * points[index][1]
            kept.append(index)
    return kept


def scatter(rows: Sequence[Row], metric: Metric, cost: str, axis: str, *, wide: bool) -> Drawing:
    """Score against the cost named `cost`; empty where no row has both."""
    drawn = [
        (row, name)
        for row, name in zip(rows, marks(rows, cost), strict=True)
        if row.score and (row.cost[cost] or 0) > 0
    ]
    if not drawn:
        return Drawing()
    shown, names = [row for row, _ in drawn], [name for _, name in drawn]
    frame = _WIDE if wide else _NARROW
    points = [(row.cost[cost] or 0.0, row.score.mean) for row in shown if row.score]
    xs = _costs([x for x, _ in points], frame)
    ys = Scale(*score_range(shown, metric), frame.height - frame.bottom, 44)
    spots = [(xs(x), ys.clamp(y)) for x, y in points]
    parts = _axes(xs, ys, metric, axis, frame)
    plain = [point for row, point in zip(shown, points, strict=True) if row.plain]
    soft: list[Box] = []
    if plain:
        path = _path([plain[i] for i in frontier(plain, metric.higher_is_better)], xs, ys)
        parts.append(element("path", d=polyline(path), class_="frontier"))
        parts.append(element("path", d=polyline((path[-1], (xs.end, path[-1][1]))), class_="tail"))
        soft += [_around(a, b) for a, b in pairwise([*path, (xs.end, path[-1][1])])]
    for row, name, (x, _) in zip(shown, names, spots, strict=True):
        if row.score:
            top, foot = (ys.clamp(end) for end in reversed(row.score.span))
            parts.append(line(x, top, x, foot, f"bar v-{name}"))
            soft.append(Box(x - 2, top, x + 2, foot))
    parts += _labels(shown, spots, soft, ys, metric, frame)
    for name, spot in zip(names, spots, strict=True):
        parts.append(mark(name, *spot, frame.mark))
    summary = f"{metric.name} against {axis} of {len(shown)} rows; the numbers are in the table"
    return picture(frame.width, frame.height, summary, *parts, class_=frame.class_)


def _costs(costs: Sequence[float], frame: _Frame) -> Scale:
    """The axis of costs, by logarithm where they differ much."""
    log = max(costs) > 6 * min(costs)
    if log:
        low, high = min(costs) / 1.35, max(costs) * 1.5
    else:
        low, high = padded(min(costs), max(costs), 0.12, 0.2 * max(costs))
    return Scale(max(low, 1e-9), high, frame.left, frame.width - 16, log)


def _path(corners: Sequence[Point], xs: Scale, ys: Scale) -> list[Point]:
    """The frontier on the page: scores are interpolated linearly in the logarithm of the cost."""
    found = [corners[0]]
    for (x1, y1), (x2, y2) in pairwise(corners):
        shares = [step / _STEPS for step in range(1, _STEPS + 1)]
        found += [(x1 * (x2 / x1) ** t, y1 + t * (y2 - y1)) for t in shares]
    return [(xs(x), ys.clamp(y)) for x, y in found]


def _around(a: Point, b: Point) -> Box:
    (x1, y1), (x2, y2) = a, b
    return Box(min(x1, x2) - 1, min(y1, y2) - 1, max(x1, x2) + 1, max(y1, y2) + 1)


def _labels(
    rows: Sequence[Row],
    spots: Sequence[Point],
    soft: Sequence[Box],
    ys: Scale,
    metric: Metric,
    frame: _Frame,
) -> list[Drawing]:
    """The names of the points, with leader lines where they lie far off."""
    captions = [_caption(row, ys, metric, frame.longest) for row in rows]
    sizes = [(text_width(caption, frame.font) + 2, frame.font + 3.0) for caption in captions]
    bounds = Box(frame.left + 2, 20, frame.width - 2, frame.height - frame.bottom - 2)
    parts = []
    labels = place(spots, sizes, soft, bounds)
    for caption, label, spot in zip(captions, labels, spots, strict=True):
        if label is None:
            continue
        if label.leader:
            parts.append(line(*spot, *label.leader, "leader"))
        parts.append(_name(caption, label.box, spot[0]))
    return parts


def _name(content: str, box: Box, x: float) -> Drawing:
    """A label in its box, set close to its point at `x`."""
    base = box.bottom - 4
    if box.right <= x:
        return text(content, box.right - 1, base, "name", "end")
    if box.left >= x:
        return text(content, box.left + 1, base, "name")
    return text(content, (box.left + box.right) / 2, base, "name", "middle")


def _caption(row: Row, ys: Scale, metric: Metric, longest: int) -> str:
    name = shortened(row.label, longest)
    if row.score is None or ys.holds(row.score.mean):
        return name
    way = "↓" if row.score.mean < ys.low else "↑"
    return f"{name} {fixed(row.score.mean, decimals(metric))} {way}"


def _axes(xs: Scale, ys: Scale, metric: Metric, axis: str, frame: _Frame) -> list[Drawing]:
    floor, parts = frame.height - frame.bottom, []
    for tick in ys.ticks(6):
        parts += [line(xs.start, ys(tick), xs.end, ys(tick), "grid")]
        parts += [text(tick_label(tick), xs.start - 8, ys(tick) + 4, "label", "end")]
    for tick in xs.ticks(7 if frame is _WIDE else 4):
        parts += [line(xs(tick), floor, xs(tick), floor + 5, "tick")]
        parts += [text(tick_label(tick), xs(tick), floor + 19, "label", "middle")]
    parts.append(line(xs.start, floor, xs.end, floor, "axis"))
    unit = f", {metric.unit}" if metric.unit else ""
    parts.append(text(f"{metric.title}{unit}", 0, 14, "title"))
    scale = ", log scale" if xs.log else ""
    parts.append(text(f"{axis}, ms{scale}", xs.end, frame.height - 6, "title", "end"))
    return parts
