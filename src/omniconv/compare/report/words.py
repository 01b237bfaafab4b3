"""The words and numbers of the report: the headline, the sentences, number formats."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Sequence

from .data import Comparison, Estimate, Metric, Row

_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SEEDS_NEEDED = 5


def count(n: int, noun: str = "") -> str:
    """`n` in words up to ten, with its noun: "two seeds"."""
    word = _WORDS[n] if n < len(_WORDS) else f"{n:,}"
    return f"{word} {noun}{'' if n == 1 else 's'}" if noun else word


def decimals(metric: Metric) -> int:
    """Decimal places of a score: enough to see the relevance margin."""
    if not metric.margin or metric.margin <= 0:
        return 1
    return min(6, max(1, math.ceil(-math.log10(metric.margin))))


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
    """A score in one phrase: "96.1 % (95.0 to 97.2)"."""
    places = decimals(metric)
    text = f"{fixed(estimate.mean, places)} {metric.unit}".rstrip()
    return text + interval(estimate, places)


def interval(estimate: Estimate, places: int, *, sign: bool = False) -> str:
    """The interval in brackets, empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    low, high = (fixed(end, places, sign=sign) for end in (estimate.low, estimate.high))
    return f" ({low} to {high})"


def reference(rows: Sequence[Row]) -> str:
    """How sentences call the first row."""
    return "the plain convolution" if rows[0].plain else rows[0].label


def headline(page: Comparison) -> tuple[str, str]:
    """The answer: one sentence, and a second one that supports it."""
    rows, metric = page.rows, page.metric
    if not any(row.score for row in rows):
        return "No row finished, so there is nothing to compare.", "The reasons are listed below."
    base, others = reference(rows), rows[1:]
    if not others:
        alone = f"{rows[0].label}: {metric.name} {_score(rows[0], metric)}."
        return "One row alone: there is nothing to compare it with.", alone
    if rows[0].score is None:
        return f"{_upper(base)} did not finish, so nothing can be judged against it.", ""
    tally = Counter(row.slug for row in others)
    gains = tally["gain"]
    if gains:
        return _gain_sentence(gains, len(others), base), _support(page, tally)
    if tally["undecided"] + tally["equal"] + tally["loss"] == 0:
        return (
            ("Too few seeds for a verdict.", _few(page))
            if tally["few"]
            else (
                f"Nothing but {base} finished.",
                f"It reached {_score(rows[0], metric)} {metric.name}.",
            )
        )
    if tally["undecided"]:
        return f"No alternative is shown to beat {base}.", _support(page, tally)
    margin = f"{metric.margin or 0:g} {metric.points}".rstrip()
    return f"No alternative was better than {base} by more than {margin}.", _support(page, tally)


def _score(row: Row, metric: Metric) -> str:
    return score(row.score, metric) if row.score else "no score"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _gain_sentence(gains: int, total: int, base: str) -> str:
    if gains == total:
        subject = (
            "The one alternative beats" if total == 1 else f"All {count(total)} alternatives beat"
        )
        return f"{subject} {base}."
    verb = "beats" if gains == 1 else "beat"
    return f"{_upper(count(gains))} of {count(total)} alternatives {verb} {base}."


def _support(page: Comparison, tally: Counter[str]) -> str:
    metric = page.metric
    sense = 1 if metric.higher_is_better else -1
    winners = [row for row in page.rows[1:] if row.slug == "gain" and row.difference]
    best = max(winners, key=lambda row: sense * _change(row), default=None)
    parts = []
    if best and best.difference:
        places = decimals(metric)
        size = fixed(best.difference.mean, places, sign=True)
        tail = interval(best.difference, places, sign=True)
        lead = "The largest gain is" if len(winners) > 1 else "It is"
        parts.append(f"{lead} {best.label}: {size} {metric.points}".rstrip() + f"{tail}.")
    phrases = (
        ("equal", "{} without a relevant difference"),
        ("loss", "{} worse"),
        ("undecided", "{} undecided"),
        ("few", "{} with too few seeds"),
        ("failed", "{} failed"),
    )
    rest = [phrase.format(count(tally[slug])) for slug, phrase in phrases if tally[slug]]
    if rest:
        parts.append(f"{'The others' if best else 'Of the alternatives'}: {', '.join(rest)}.")
    return " ".join(parts)


def _change(row: Row) -> float:
    return row.difference.mean if row.difference else 0.0


def _few(page: Comparison) -> str:
    seeds = len(page.plan.get("seeds") or ())
    ran = f"{_upper(count(seeds, 'seed'))} {'was' if seeds == 1 else 'were'} run, "
    tail = "until then only the numbers below speak."
    return f"{ran if seeds else ''}at least {count(_SEEDS_NEEDED)} are needed; {tail}"


def method(page: Comparison) -> list[str]:
    """How the numbers came about, one sentence or two per point; what is unknown is left out."""
    plan, metric, machine = page.plan, page.metric, page.machine
    points = [
        "The network of the last epoch is scored on the test split, once. Learning curves are of "
        "the validation split; nothing is ever chosen by test data.",
    ]
    optimizer = plan.get("optimizer") or {}
    named = {"epochs": plan.get("epochs"), "batch size": plan.get("batch_size")}
    settings = [f"{k} {v}" for k, v in (named | optimizer).items() if v is not None and k != "name"]
    kinds = [str(kind) for kind in (optimizer.get("name"), plan.get("dtype")) if kind]
    if settings:
        points.append(
            f"Every network trains alike: {', '.join([*kinds, *settings])}. Learning rates stand "
            f"in the table of trials."
        )
    threads = machine.get("threads") or plan.get("threads")
    allocator = f", memory allocator {machine['allocator']}" if machine.get("allocator") else ""
    points.append(
        "Each trial runs in a process of its own, one at a time"
        + (f", threads {threads}" if threads else "")
        + f"{allocator}."
    )
    margin = f"{metric.margin or 0:g} {metric.points}".rstrip()
    points.append(
        f"Rows are compared with the first row seed by seed (paired t, Holm's correction over all "
        f"rows). Gain or loss: significant at 5 %. No relevant difference: the 95 % interval lies "
        f"within ±{margin}. Otherwise undecided; below {count(_SEEDS_NEEDED, 'seed')} there is no "
        f"verdict."
    )
    if metric.chance is not None:
        points.append(
            f"A seed that diverges counts as chance level, {metric.chance:g} {metric.unit}".rstrip()
            + "."
        )
    folded = ", ".join(dict.fromkeys(row.name for row in page.rows if row.folded))
    points.append(
        "Costs are measured once per row, apart from the training runs. FLOPs count two per "
        "multiply-add, forward, for one sample; step and peak memory are of one training step"
        + (f"; latency is after folding to a plain convolution for {folded}." if folded else ".")
    )
    return points
