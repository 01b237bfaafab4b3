"""The answer on top of the report: one sentence, and what supports it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .data import Comparison, Row
from .formats import capital, change, count, margin, score

SEEDS_NEEDED = 5
_SAME = "a plain network of the same latency"


def reference(rows: Sequence[Row]) -> str:
    """How sentences call the first row."""
    return "the plain convolution" if rows[0].label == "conv" else rows[0].label


def headline(page: Comparison) -> tuple[str, str]:
    """The answer: one sentence, and further ones that support it."""
    rows, judged = page.rows, page.operators
    if not any(row.score for row in rows):
        return "No row finished, so there is nothing to compare.", "The reasons are listed below."
    base = reference(rows)
    if not judged:
        return "One row alone: there is nothing to compare it with.", _scored(rows[0], page)
    if rows[0].score is None:
        return f"{capital(base)} did not finish, so nothing can be judged against it.", ""
    tally = Counter(row.slug for row in judged)
    if not tally["gain"] + tally["undecided"] + tally["equal"] + tally["loss"]:
        if tally["few"]:
            return "Too few seeds for a verdict.", _few(page)
        return f"Nothing but {base} finished.", _scored(rows[0], page)
    answer = _gains(page, base) if tally["gain"] else _no_gain(page, base, tally)
    return answer, " ".join(filter(None, [_best(page), _others(page, tally), _plain(page)]))


def _scored(row: Row, page: Comparison) -> str:
    found = score(row.score, page.metric) if row.score else "no score"
    return f"{row.label}: {page.metric.name} {found}."


def _noun(page: Comparison) -> str:
    return "alternative" if page.operators[0].plain else "operator"


def _gains(page: Comparison, base: str) -> str:
    """ "One of three operators beats the plain convolution, but not a plain network of ..." """
    judged = page.operators
    gains = [row for row in judged if row.slug == "gain"]
    if len(judged) == 1:
        subject = judged[0].label
    elif len(gains) == len(judged):
        subject = f"All {count(len(judged))} {_noun(page)}s"
    else:
        subject = f"{capital(count(len(gains)))} of {count(len(judged), _noun(page))}"
    verb = "beats" if len(gains) == 1 else "beat"
    return f"{subject} {verb} {base}{_beside(gains)}."


def _beside(gains: Sequence[Row]) -> str:
    """How those that gain stand against the frontier."""
    standings = [row.standing.verdict if row.standing else "" for row in gains]
    if set(standings) <= {"", "too few seeds", "outside"}:
        return ""
    above, one = standings.count("above"), len(gains) == 1
    if above:
        return f" and {_SAME}" if above == len(gains) else f", {count(above)} of them {_SAME} too"
    decided = set(standings) <= {"level", "below"}
    if one:
        return f", but {'not' if decided else 'is not shown to beat'} {_SAME}"
    return f", but none {'beats' if decided else 'is shown to beat'} {_SAME}"


def _no_gain(page: Comparison, base: str, tally: Counter[str]) -> str:
    judged = page.operators
    one = len(judged) == 1
    subject = f"{judged[0].label} is not" if one else f"No {_noun(page)} is"
    how, by = "shown to beat", ""
    if not tally["undecided"]:
        how, by = "better than", f" by more than {margin(page.metric)}"
    above = sum(row.standing is not None and row.standing.verdict == "above" for row in judged)
    beside = ""
    if above:
        some = "" if one else f"{count(above)} "
        beside = f", but {some}{'beats' if above == 1 else 'beat'} {_SAME}"
    return f"{subject} {how} {base}{by}{beside}."


def _best(page: Comparison) -> str:
    """The largest gain."""
    gains = [
        (page.metric.sense * row.difference.mean, row.label, change(row.difference, page.metric))
        for row in page.operators
        if row.slug == "gain" and row.difference
    ]
    if not gains:
        return ""
    _, label, size = max(gains)
    if len(page.operators) == 1:
        return f"The gain: {size}."
    return f"{'The largest gain' if len(gains) > 1 else 'It'} is {label}: {size}."


def _others(page: Comparison, tally: Counter[str]) -> str:
    """How many came out otherwise."""
    phrases = (
        ("equal", "{} without a relevant difference"),
        ("loss", "{} worse"),
        ("undecided", "{} undecided"),
        ("few", "{} with too few seeds"),
        ("failed", "{} failed"),
    )
    rest = [phrase.format(count(tally[slug])) for slug, phrase in phrases if tally[slug]]
    if not rest:
        return ""
    lead = "The others" if tally["gain"] else f"Of the {_noun(page)}s"
    return f"{lead}: {', '.join(rest)}."


def _plain(page: Comparison) -> str:
    """Whether a plain network has the best score of all."""
    scores = {i: row.score.mean for i, row in enumerate(page.rows) if row.score}
    best = max(scores, key=lambda i: (page.metric.sense * scores[i], -i))
    if best == 0 or not page.rows[best].plain or page.operators[0].plain:
        return ""
    row = page.rows[best]
    found = score(row.score, page.metric) if row.score else ""
    return f"The best score is that of a plain network, {row.label}: {found}."


def _few(page: Comparison) -> str:
    seeds = page.plan.get("seeds")
    number = len(seeds) if isinstance(seeds, list) else 0
    ran = f"{capital(count(number, 'seed'))} {'was' if number == 1 else 'were'} run, "
    tail = "until then only the numbers below speak."
    return f"{ran if number else ''}at least {count(SEEDS_NEEDED)} are needed; {tail}"
