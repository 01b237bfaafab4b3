"""The figures of the report: interval strips, accuracy against latency, learning curves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from .data import Estimate, Metric, Row
from .labels import Box, place, shortened, text_width
from .svg import Drawing, Scale, element, focus, line, mark, padded, picture, polyline, text
from .words import decimals, fixed

STRIP = 180.0
_STRIP_HEIGHT = 30.0
_PANEL = (320.0, 176.0)


def score_range(rows: Sequence[Row], metric: Metric) -> tuple[float, float]:
    """The shared score axis: all intervals, but for a few that would crush the others."""
    spans = [row.score.span for row in rows if row.score]
    low, high = focus(spans)
    return padded(low, high, 0.07, 2 * (metric.margin or 0.5))


def strip_scale(rows: Sequence[Row], metric: Metric) -> Scale:
    """The axis of the table's interval column."""
    return Scale(*score_range(rows, metric), 8, STRIP - 8)


def strip_axis(scale: Scale) -> Drawing:
    """The tick labels at the head of the interval column."""
    marks = []
    for tick in scale.ticks(3):
        marks += [line(scale(tick), 15, scale(tick), 19, "tick")]
        marks += [text(f"{tick:g}", scale(tick), 11, "label", "middle")]
    return picture(STRIP, 20, "", *marks, class_="strip-axis")


def strip_ground(scale: Scale, first: Estimate | None, margin: float | None) -> Drawing:
    """What runs behind every strip: grid, the first row's mean and the margin around it."""
    parts = [line(scale(tick), 0, scale(tick), 10, "grid") for tick in scale.ticks(3)]
    if first:
        if margin:
            left, right = scale.clamp(first.mean - margin), scale.clamp(first.mean + margin)
            parts.append(
                element("rect", x=left, y=0, width=right - left, height=10, class_="margin")
            )
        parts.append(line(scale(first.mean), 0, scale(first.mean), 10, "reference"))
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {STRIP:g} 10",
        preserveAspectRatio="none",
        class_="strip-ground",
        aria_hidden="true",
    )


def strip(row: Row, scale: Scale) -> Drawing:
    """Mean and interval of one row as a dot on a line."""
    estimate, middle = row.score, _STRIP_HEIGHT / 2
    if estimate is None:
        return Drawing()
    low, high = estimate.span
    parts = []
    if high > scale.low and low < scale.high:
        ends = scale.clamp(low), scale.clamp(high)
        parts.append(line(ends[0], middle, ends[1], middle, f"bar v-{row.slug}"))
        for value, end in ((low, ends[0]), (high, ends[1])):
            if scale.holds(value) and low < high:
                parts.append(line(end, middle - 4, end, middle + 4, f"cap v-{row.slug}"))
    x = scale.clamp(estimate.mean)
    if scale.holds(estimate.mean):
        parts.append(mark(row.slug, x, middle, 4.6))
    else:
        side = -1 if estimate.mean < scale.low else 1
        parts.append(_beyond(x, middle, side, f"off v-{row.slug}"))
    return picture(STRIP, _STRIP_HEIGHT, "", *parts, class_="strip")


def _beyond(x: float, y: float, side: int, class_: str) -> Drawing:
    """A chevron at the edge: the value lies outside."""
    points = ((x + side * 2 - side * 5, y - 5), (x + side * 2, y), (x + side * 2 - side * 5, y + 5))
    return element("path", d=polyline(points), class_=class_)


def frontier(points: Sequence[tuple[float, float]], higher_is_better: bool) -> list[int]:
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
    shown = [row for row in rows if row.score and (row.cost[cost] or 0) > 0]
    if not shown:
        return Drawing()
    width, height, left, bottom, size = (960, 500, 52, 48, 13) if wide else (380, 400, 40, 46, 12)
    costs = [row.cost[cost] or 0.0 for row in shown]
    scores = [row.score.mean for row in shown if row.score]
    log = max(costs) > 6 * min(costs)
    if log:
        low, high = min(costs) / 1.35, max(costs) * 1.5
    else:
        low, high = padded(min(costs), max(costs), 0.12, 0.2 * max(costs))
    xs = Scale(max(low, 1e-9), high, left, width - 16, log)
    ys = Scale(*score_range(shown, metric), height - bottom, 50)
    spots = [(xs(x), ys.clamp(y)) for x, y in zip(costs, scores, strict=True)]

    parts = _axes(xs, ys, metric, axis, width, height, bottom)
    steps = _staircase(
        [
            spots[i]
            for i in frontier(list(zip(costs, scores, strict=True)), metric.higher_is_better)
        ],
        width - 16,
    )
    parts.append(element("path", d=polyline(steps), class_="frontier"))
    soft = [
        Box(min(a[0], b[0]) - 1, min(a[1], b[1]) - 1, max(a[0], b[0]) + 1, max(a[1], b[1]) + 1)
        for a, b in pairwise(steps)
    ]
    for row, (x, _) in zip(shown, spots, strict=True):
        if row.score:
            top, foot = (ys.clamp(end) for end in reversed(row.score.span))
            parts.append(line(x, top, x, foot, f"bar v-{row.slug}"))
            soft.append(Box(x - 2, top, x + 2, foot))
    names = [_caption(row, ys, metric, 44 if wide else 28) for row in shown]
    sizes = [(text_width(name, size) + 2, size + 3.0) for name in names]
    bounds = Box(left + 2, 20, width - 2, height - bottom - 2)
    for name, label, spot in zip(names, place(spots, sizes, soft, bounds), spots, strict=True):
        if label is None:
            continue
        if label.leader:
            parts.append(line(*spot, *label.leader, "leader"))
        parts.append(_name(name, label.box, spot[0]))
    for row, spot in zip(shown, spots, strict=True):
        parts.append(mark(row.slug, *spot, 6 if wide else 5))
    summary = f"{metric.name} against {axis} of {len(shown)} rows; the numbers are in the table"
    return picture(width, height, summary, *parts, class_="wide" if wide else "narrow")


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


def _axes(
    xs: Scale, ys: Scale, metric: Metric, axis: str, width: float, height: float, bottom: float
) -> list[Drawing]:
    floor, parts = height - bottom, []
    for tick in ys.ticks(6):
        parts += [line(xs.start, ys(tick), xs.end, ys(tick), "grid")]
        parts += [text(f"{tick:g}", xs.start - 8, ys(tick) + 4, "label", "end")]
    for tick in xs.ticks(7 if width > 500 else 4):
        parts += [line(xs(tick), floor, xs(tick), floor + 5, "tick")]
        parts += [text(f"{tick:g}", xs(tick), floor + 19, "label", "middle")]
    parts.append(line(xs.start, floor, xs.end, floor, "axis"))
    unit = f", {metric.unit}" if metric.unit else ""
    parts.append(text(f"{metric.name.capitalize()}{unit}", 0, 14, "title"))
    parts.append(
        text(f"{axis}, ms{', log scale' if xs.log else ''}", xs.end, height - 6, "title", "end")
    )
    return parts


def _staircase(spots: Sequence[tuple[float, float]], end: float) -> list[tuple[float, float]]:
    steps = [spots[0]]
    for x, y in spots[1:]:
        steps += [(x, steps[-1][1]), (x, y)]
    return [*steps, (end, steps[-1][1])]


Curve = Sequence[tuple[float, float]]


def mean_curve(row: Row) -> Curve:
    """Mean validation score over the seeds, per epoch."""
    values = defaultdict(list)
    for trial in row.trials:
        for epoch, score in trial.curve:
            values[epoch].append(score)
    return [(epoch, sum(found) / len(found)) for epoch, found in sorted(values.items())]


def thinned(curve: Curve, most: int) -> Curve:
    """At most about `most` points of a curve, the last one always among them."""
    step = max(1, -(-len(curve) // most))
    return [*curve[:-1:step], *curve[-1:]]


def curves(
    rows: Sequence[Row], metric: Metric, points: int
) -> tuple[Drawing, list[tuple[Row, Drawing]]]:
    """Learning curves, one panel a row: (shared drawing to put in the page once, panels).

    There are none where nothing ran for two epochs. A panel shows the row's seeds as thin lines,
    their mean as a thick one, the first row's mean dashed and the means of all others faint.
    Curves keep at most about `points` points.
    """
    means = [mean_curve(row) for row in rows]
    drawn = [curve for curve in means if curve]
    if max(map(len, drawn), default=0) < 2:
        return Drawing(), []
    width, height = _PANEL
    epochs = [epoch for curve in drawn for epoch, _ in curve]
    low, high = min(epochs), max(epochs)
    xs = Scale(low, high, 38, width - 50)
    values = sorted(score for curve in drawn for _, score in curve)
    rare = len(values) // 20
    worst, best = (rare, -1) if metric.higher_is_better else (0, -1 - rare)
    ends = padded(values[worst], values[best], 0.08, 2 * (metric.margin or 0.5))
    ys = Scale(*ends, height - 30, 10)

    def path(curve: Curve, class_: str) -> Drawing:
        at = [(xs(epoch), ys(score)) for epoch, score in thinned(curve, points)]
        if len(at) == 1:
            return element(
                "circle",
                cx=at[0][0],
                cy=at[0][1],
                r=3.6 if class_.startswith("mean") else 1.8,
                class_=f"{class_} alone",
            )
        return element("path", d=polyline(at), class_=class_) if at else Drawing()

    faint = [path(curve, "faint") for curve in means[1:]] + [path(means[0], "plain")]
    shared = element("g", *faint, id="all-curves")
    panels = []
    for row, mean in zip(rows, means, strict=True):
        if not mean:
            continue
        seeds = [path(trial.curve, f"seed v-{row.slug}") for trial in row.trials]
        inside = element(
            "svg",
            element("use", href="#all-curves"),
            *seeds,
            path(mean, f"mean v-{row.slug}"),
            x=0,
            y=0,
            width=width,
            height=height - 24,
            overflow="hidden",
        )
        end = fixed(mean[-1][1], decimals(metric))
        last = ys.clamp(mean[-1][1])
        frame = _panel_axes(xs, ys, width, height, low, high)
        label = text(end, xs(mean[-1][0]) + 7, last + 4, f"end v-{row.slug}")
        title = f"Validation {metric.name} per epoch of {row.label}, {end} at the end"
        panels.append((row, picture(width, height, title, *frame, inside, label)))
    return shared, panels


def _panel_axes(
    xs: Scale, ys: Scale, width: float, height: float, low: float, high: float
) -> list[Drawing]:
    parts = []
    for tick in ys.ticks(3):
        parts += [line(xs.start - 4, ys(tick), xs.end, ys(tick), "grid")]
        parts += [text(f"{tick:g}", xs.start - 8, ys(tick) + 4, "label", "end")]
    for where, words in ((low, f"{low:g}"), ((low + high) / 2, "epoch"), (high, f"{high:g}")):
        parts.append(text(words, xs(where), height - 6, "label", "middle"))
    return parts
