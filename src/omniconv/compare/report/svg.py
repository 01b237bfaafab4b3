"""Small parts for hand-built SVG: elements, scales, ticks, marks.

Every attribute and every text is escaped here; nothing else in the report writes markup by hand.
Colours come from the page's style sheet through classes, so that one drawing serves light, dark
and print.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_MARKS = {
    "baseline": "M0 -1.25L1.25 0L0 1.25L-1.25 0Z",
    "gain": "M0 -1.2L1.15 .85L-1.15 .85Z",
    "loss": "M0 1.2L1.15 -.85L-1.15 -.85Z",
    "failed": "M-.9 -.9L.9 .9M-.9 .9L.9 -.9",
    "plain": "M-.9 -.9L.9 -.9L.9 .9L-.9 .9Z",
    "outside": "M0 -1.25L1.25 0L0 1.25L-1.25 0Z",
}
_CIRCLE = "M-1 0A1 1 0 1 1 1 0A1 1 0 1 1 -1 0Z"


class Drawing(str):
    """Finished markup: neither `element` nor a template escapes it again."""

    def __html__(self) -> str:
        """What templates ask for before they escape."""
        return str(self)


def element(name: str, *children: str, **attributes: str | float | None) -> Drawing:
    """One SVG element; its attributes and those children that are no `Drawing` are escaped.

    An attribute of None is left out. Underscores in names become hyphens; `class_` is `class`.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None:
            continue
        shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        parts.append(f'{key.rstrip("_").replace("_", "-")}="{html.escape(shown)}"')
    inner = "".join(c if isinstance(c, Drawing) else html.escape(c) for c in children)
    tag = " ".join(parts)
    return Drawing(f"<{tag}>{inner}</{name}>" if inner else f"<{tag}/>")


def text(content: str, x: float, y: float, class_: str, anchor: str = "start") -> Drawing:
    """A line of text."""
    align = None if anchor == "start" else anchor
    return element("text", content, x=x, y=y, class_=class_, text_anchor=align)


def tick_label(value: float) -> str:
    """A round number with a true minus sign and, from 10,000 on, grouped."""
    shown = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:g}"
    return shown.replace("-", "−")


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Drawing:
    """A straight line."""
    return element("path", d=polyline(((x1, y1), (x2, y2))), class_=class_)


def polyline(points: Iterable[tuple[float, float]]) -> str:
    """Path data through `points`, to a tenth of a unit."""
    pairs = (f"{x:.1f} {y:.1f}".replace(".0", "") for x, y in points)
    return "M" + "L".join(pairs)


def mark(slug: str, x: float, y: float, size: float) -> Drawing:
    """The mark of a verdict: shape and colour say the same thing."""
    shape = element("path", d=_MARKS.get(slug, _CIRCLE), vector_effect="non-scaling-stroke")
    place = f"translate({x:.1f} {y:.1f}) scale({size:g})"
    return element("g", shape, class_=f"mark v-{slug}", transform=place)


def picture(width: float, height: float, label: str, *children: str, class_: str = "") -> Drawing:
    """An `<svg>` that screen readers announce as an image with `label`; no label hides it."""
    return element(
        "svg",
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        class_=class_ or None,
        role="img" if label else None,
        aria_label=label or None,
        aria_hidden=None if label else "true",
    )


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [start, end], linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The coordinate of `value`."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def clamp(self, value: float) -> float:
        """The coordinate of `value`, moved to the nearer end when it lies outside."""
        return self(min(max(value, self.low), self.high))

    def holds(self, value: float) -> bool:
        """Whether `value` lies within."""
        return self.low <= value <= self.high

    def ticks(self, about: int) -> list[float]:
        """Round values within, roughly `about` of them."""
        if self.log:
            return _log_ticks(self.low, self.high, about)
        step = _round_step((self.high - self.low) / max(about, 1))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]


def _round_step(raw: float) -> float:
    size = 10.0 ** math.floor(math.log10(raw))
    return next(factor * size for factor in (1, 2, 5, 10) if factor * size >= 0.75 * raw)


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(found) <= max(about, 2):
            break
    return found


def padded(low: float, high: float, share: float, least: float) -> tuple[float, float]:
    """[low, high] widened by `share` of its length on both sides, at least `least` long."""
    extra = max((high - low) * share, (least - (high - low)) / 2)
    return low - extra, high + extra


def focus(spans: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The range that shows `spans`, leaving out the few that would crush all the others.

    At most a third of them is left out, never the first, and only where that makes the range
    less than a fifth as long.
    """
    whole = min(a for a, _ in spans), max(b for _, b in spans)
    for dropped in range(1, len(spans) // 3 + 1):
        rising = sorted(spans[1:], key=sum)
        for rest in (rising[dropped:], rising[:-dropped]):
            kept = [spans[0], *rest]
            low, high = min(a for a, _ in kept), max(b for _, b in kept)
            if 5 * (high - low) < whole[1] - whole[0]:
                return low, high
    return whole
