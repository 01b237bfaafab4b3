"""Numbers, units and dates as the report writes them."""

from __future__ import annotations

import datetime
import math
import re

from .data import Estimate, Metric

_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(n: int, noun: str = "") -> str:
    """`n` in words up to ten, with its noun: "two seeds"."""
    word = _WORDS[n] if n < len(_WORDS) else f"{n:,}"
    return f"{word} {noun}{'' if n == 1 else 's'}" if noun else word


def decimals(metric: Metric) -> int:
    """Decimal places of a score: enough to see the relevance margin."""
    if not metric.margin or metric.margin <= 0:
        return 1
    return min(6, max(1, math.ceil(-math.log10(metric.margin / 2))))


def fixed(value: float | None, places: int, *, sign: bool = False) -> str:
    """`value` with a true minus sign, `sign` adding a plus; "–" where there is none."""
    if value is None:
        return "–"
    text = f"{value:{'+' if sign else ''},.{places}f}"
    return (f"{0:.{places}f}" if float(text.replace(",", "")) == 0 else text).replace("-", "−")


def significant(value: float | None, digits: int = 3) -> str:
    """`value` to `digits` significant digits, never in exponent form."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    places = digits - 1 - int(f"{value:.{digits - 1}e}".split("e")[1])
    return fixed(round(value, places), max(0, places))


def quantity(value: float | None, unit: str = "") -> str:
    """`value` with an SI prefix: 78.1 k, 12.4 M, 46.2 MB."""
    if value is None:
        return "–"
    for size, prefix in _PREFIXES:
        if abs(value) >= 0.9995 * size:
            return f"{significant(value / size)} {prefix}{unit}"
    return f"{value:,.0f} {unit}".rstrip()


def grouped(value: object) -> str:
    """A whole number with thousands separators; anything else as it is."""
    return f"{value:,}" if isinstance(value, int) else str(value)


def ratio(value: float | None) -> str:
    """A ratio to the first row: ×1.52; empty where there is none."""
    return (
        "" if value is None else f"×{significant(value, 3) if value < 9.995 else f'{value:,.0f}'}"
    )


def duration(seconds: float | None) -> str:
    """Seconds as 4.1 s, 3 min 20 s or 2 h 5 min."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def probability(value: float | None) -> str:
    """A p value, never zero."""
    if value is None:
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def date(created: str) -> str:
    """An ISO time as "21 November 2026, 11:14 UTC"; other text as it is."""
    try:
        moment = datetime.datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = f" {moment.tzname()}" if moment.tzinfo else ""
    return f"{moment.day} {moment:%B %Y, %H:%M}{zone}"


def score(estimate: Estimate, metric: Metric) -> str:
    """A score in one phrase: "96.1 % [95.0, 97.2]"."""
    places = decimals(metric)
    text = f"{fixed(estimate.mean, places)} {metric.unit}".rstrip()
    return text + interval(estimate, places)


def change(estimate: Estimate, metric: Metric) -> str:
    """A difference in one phrase: "+1.1 points [+0.6, +1.6]"."""
    places = decimals(metric)
    size = f"{fixed(estimate.mean, places, sign=True)} {metric.points}".rstrip()
    return size + interval(estimate, places, sign=True)


def interval(estimate: Estimate, places: int, *, sign: bool = False) -> str:
    """The interval in brackets after a space, empty where there is none; it breaks over no line."""
    if estimate.low is None or estimate.high is None:
        return ""
    low, high = (fixed(end, places, sign=sign) for end in (estimate.low, estimate.high))
    return f" [{low},\u00a0{high}]"


def budget(value: object) -> str:
    """ "1000steps" as "1,000 steps"; anything else as it is."""
    found = re.fullmatch(r"(\d{1,15})\s*([a-z]+)", str(value))
    if found is None:
        return "" if value is None else str(value)
    amount = int(found[1])
    return f"{amount:,} {found[2].removesuffix('s') if amount == 1 else found[2]}"


def margin(metric: Metric) -> str:
    """The relevance margin with its unit: "0.5 points"."""
    return f"{metric.margin or 0:g} {metric.points}".rstrip()


def capital(text: str) -> str:
    """`text` as a sentence begins."""
    return text[:1].upper() + text[1:]
