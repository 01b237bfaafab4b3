"""The interval column of the table: means and intervals on one axis."""

from __future__ import annotations

from collections.abc import Sequence

from .data import Estimate, Metric, Row
from .svg import (
    Drawing,
    Scale,
    element,
    focus,
    line,
    mark,
    padded,
    picture,
    polyline,
    text,
    tick_label,
)

STRIP = 150.0
_STRIP_HEIGHT = 30.0


def score_range(rows: Sequence[Row], metric: Metric) -> tuple[float, float]:
    """The shared score axis: all intervals, but for a few that would crush the others.

    An axis of percentages ends at 0 and 100, wherever an interval does.
    """
    found = [row.score for row in rows if row.score]
    low, high = padded(*focus([e.span for e in found]), 0.07, 2 * (metric.margin or 0.5))
    if metric.unit == "%" and all(0 <= e.mean <= 100 for e in found):
        return max(low, 0.0), min(high, 100.0)
    return low, high


def strip_scale(rows: Sequence[Row], metric: Metric) -> Scale:
    """The axis of the table's interval column."""
    return Scale(*score_range(rows, metric), 8, STRIP - 8)


def strip_axis(scale: Scale) -> Drawing:
    """The tick labels at the head of the interval column."""
    marks = []
    for tick in scale.ticks(3):
        marks += [line(scale(tick), 15, scale(tick), 19, "tick")]
        marks += [text(tick_label(tick), scale(tick), 11, "label", "middle")]
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
