"""Learning curves, one panel a row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from .data import Metric, Row
from .formats import decimals, fixed
from .svg import Drawing, Scale, element, line, padded, picture, polyline, text, tick_label

Curve = Sequence[tuple[float, float]]
_PANEL = (320.0, 176.0)


def mean_curve(row: Row) -> Curve:
    """Mean validation score over the seeds, per epoch or step."""
    values = defaultdict(list)
    for trial in row.trials:
        for at, score in trial.curve:
            values[at].append(score)
    return [(at, sum(found) / len(found)) for at, found in sorted(values.items())]


def thinned(curve: Curve, most: int) -> Curve:
    """At most about `most` points of a curve, the last one always among them."""
    step = max(1, -(-len(curve) // most))
    return [*curve[:-1:step], *curve[-1:]]


def curves(
    rows: Sequence[Row], metric: Metric, unit: str, points: int, seeds: bool = True
) -> tuple[Drawing, list[tuple[Row, Drawing]]]:
    """Learning curves, one panel a row: (shared drawing to put in the page once, panels).

    There are none where nothing has two points. A panel shows the row's seeds as thin lines (unless
    `seeds` is false), their mean as a thick one, the first row's mean dashed and the means of all
    others faint. Curves keep at most about `points` points.
    """
    means = [mean_curve(row) for row in rows]
    drawn = [curve for curve in means if curve]
    if max(map(len, drawn), default=0) < 2:
        return Drawing(), []
    width, height = _PANEL
    places = [at for curve in drawn for at, _ in curve]
    low, high = min(places), max(places)
    xs = Scale(low, high, 38, width - 50)
    values = sorted(score for curve in drawn for _, score in curve)
    rare = len(values) // 20
    worst, best = (rare, -1) if metric.higher_is_better else (0, -1 - rare)
    ends = padded(values[worst], values[best], 0.08, 2 * (metric.margin or 0.5))
    ys = Scale(*ends, height - 30, 10)

    def path(curve: Curve, class_: str) -> Drawing:
        at = [(xs(place), ys(score)) for place, score in thinned(curve, points)]
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
        thin = [path(trial.curve, f"seed v-{row.slug}") for trial in row.trials if seeds]
        inside = element(
            "svg",
            element("use", href="#all-curves"),
            *thin,
            path(mean, f"mean v-{row.slug}"),
            x=0,
            y=0,
            width=width,
            height=height - 24,
            overflow="hidden",
        )
        end = fixed(mean[-1][1], decimals(metric))
        last = ys.clamp(mean[-1][1])
        frame = _panel_axes(xs, ys, height, unit)
        label = text(end, xs(mean[-1][0]) + 7, last + 4, f"end v-{row.slug}")
        title = f"Validation {metric.name} per {unit} of {row.label}, {end} at the end"
        panels.append((row, picture(width, height, title, *frame, inside, label)))
    return shared, panels


def _panel_axes(xs: Scale, ys: Scale, height: float, unit: str) -> list[Drawing]:
    parts = []
    for tick in ys.ticks(3):
        parts += [line(xs.start - 4, ys(tick), xs.end, ys(tick), "grid")]
        parts += [text(tick_label(tick), xs.start - 8, ys(tick) + 4, "label", "end")]
    middle = (xs.low + xs.high) / 2
    for where, words in ((xs.low, f"{xs.low:,.0f}"), (middle, unit), (xs.high, f"{xs.high:,.0f}")):
        parts.append(text(words, xs(where), height - 6, "label", "middle"))
    return parts
