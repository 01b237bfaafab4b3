"""One plain sentence a row: against the layer it replaced, and against the frontier."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .data import Comparison, Estimate, Metric, Row
from .formats import capital, change, count, decimals, fixed, interval, significant

_SAME = "a plain network of the same latency"


@dataclass(frozen=True)
class Clause:
    """Half a sentence: `lead` is the verdict, shown in the colour and with the mark of `slug`."""

    slug: str
    lead: str
    rest: str

    def __str__(self) -> str:
        """The words alone."""
        return self.lead + self.rest


@dataclass(frozen=True)
class Sentence:
    """The verdict of one row: its clauses, and what a reader may want to know besides."""

    row: Row
    clauses: tuple[Clause, ...]
    note: str

    def __str__(self) -> str:
        """The words alone."""
        return f"{self.row.label}: {'; '.join(map(str, self.clauses))}."


def sentence(row: Row, page: Comparison) -> Sentence:
    """The verdict of `row`."""
    found = (against_first(row, page), against_frontier(row, page))
    first, *rest = (clause for clause in found if clause)
    started = replace(first, lead=capital(first.lead))
    return Sentence(row, (started, *rest), _note(row, page))


def against_first(row: Row, page: Comparison) -> Clause:
    """A row against the layer it replaced."""
    metric, base, found = page.metric, page.rows[0].label, row.difference
    if row.verdict == "failed":
        reason = next((trial.reason for trial in row.trials if trial.reason), "")
        short = reason if len(reason) <= 160 else reason[:158].rstrip() + " …"
        return Clause(row.slug, "failed", f": {short.rstrip('.')}" if short else "")
    if row.verdict in ("gain", "loss"):
        amount, bracket = _amount(found, metric)
        lead = f"{row.verdict} of {amount}" if amount else row.verdict
        return Clause(row.slug, lead, f"{bracket} {'over' if row.slug == 'gain' else 'to'} {base}")
    if row.verdict == "no relevant difference":
        return Clause(row.slug, row.verdict, f" to {base}{_colon(found, metric)}")
    if row.verdict == "too few seeds":
        return Clause("few", "", _few(found, metric, base))
    return Clause("undecided", "undecided", f" against {base}{_colon(found, metric)}{_more(found)}")


def against_frontier(row: Row, page: Comparison) -> Clause | None:
    """A row against plain networks of its own latency; None where that was not judged."""
    standing, metric = row.standing, page.metric
    if standing is None:
        return None
    found, slug = standing.change, standing.slug
    if standing.verdict in ("above", "below"):
        amount, bracket = _amount(found, metric)
        word = "better" if standing.verdict == "above" else "worse"
        lead = f"{amount} {word}".lstrip()
        return Clause(slug, lead, f"{bracket} than {_SAME}")
    if standing.verdict == "level":
        return Clause(slug, "level", f" with {_SAME}{_colon(found, metric)}")
    if standing.verdict == "outside":
        return Clause(slug, "faster than every plain network", ": none to compare with")
    if standing.verdict == "too few seeds":
        return Clause("few", "", _few(found, metric, _SAME))
    return Clause(
        "undecided", "undecided", f" against {_SAME}{_colon(found, metric)}{_more(found)}"
    )


def _amount(found: Estimate | None, metric: Metric) -> tuple[str, str]:
    """The size of a difference without its sign, and its interval turned the same way."""
    if found is None:
        return "", ""
    places, low, high = decimals(metric), found.low, found.high
    if found.mean < 0 and low is not None and high is not None:
        low, high = -high, -low
    size = f"{fixed(abs(found.mean), places)} {metric.points}".rstrip()
    return size, interval(Estimate(abs(found.mean), low, high), places)


def _colon(found: Estimate | None, metric: Metric) -> str:
    return f": {change(found, metric)}" if found else ""


def _more(found: Estimate | None) -> str:
    """What it would take to decide."""
    if found is None or found.seeds_to_decide is None:
        return ""
    return f", about {found.seeds_to_decide:,} seeds in all would decide"


def _few(found: Estimate | None, metric: Metric, other: str) -> str:
    if found is None:
        return f"no seed in common with {other}"
    seeds = f"{count(found.n, 'seed')}, " if found.n else ""
    return f"{change(found, metric)} to {other} ({seeds}no verdict)"


def _note(row: Row, page: Comparison) -> str:
    """The row's latency and what the frontier has there."""
    standing = row.standing
    if standing is None or standing.latency is None:
        return ""
    batch = f" at batch {row.batch}" if row.batch else ""
    text = f"{significant(standing.latency)} ms{batch}"
    if standing.score is None:
        return text
    number = f"{fixed(standing.score, decimals(page.metric))} {page.metric.unit}".rstrip()
    if len(standing.between) == 2:
        return f"{text}; plain networks there, between {' and '.join(standing.between)}: {number}"
    return f"{text}; {standing.between[0]} has {number}" if standing.between else text
