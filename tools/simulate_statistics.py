"""Simulate the verdicts of ``omniconv compare`` and write the tables of ``docs/statistics.md``.

Every number comes from 20,000 draws or more with seeds of its own, so a run writes the same page
again. Takes three minutes; the exit code says whether every rate that is promised holds.

    python tools/simulate_statistics.py                 # all tables
    python tools/simulate_statistics.py gain level      # these
"""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtr

from omniconv.compare.stats import Decision, decide

PAGE = Path(__file__).resolve().parents[1] / "docs" / "statistics.md"
DRAWS = 20_000
ALLOWED = 0.055
ROWS, SEEDS = (1, 3, 6, 10), (5, 10, 20)
# the deviations over seeds of the baseline and, repeated in turn, of the rows
SPREADS = {
    "equal": (1.0, (1.0,)),
    "unequal": (1.0, (0.3, 1.0, 3.0)),
    "steady baseline": (0.01, (1.0,)),
    "noisy baseline": (5.0, (0.5, 1.0, 2.0)),
}
# kinds of families: spread and correlation over seeds; between equal rows correlation cancels
CASES = [(spread, 0.0) for spread in SPREADS] + [("unequal", 0.9), ("noisy baseline", 0.9)]
# true differences in margins, repeated in turn
EFFECTS = {
    "all 0": (0.0,),
    "all at the margin": (1.0,),
    "at both margins": (1.0, -1.0),
    "0 and margin": (0.0, 1.0),
    "0, both margins, between": (0.0, 1.0, 0.5, -1.0),
    "one at 0, the others large": (0.0, *[5.0] * 9),
    "one at the margin, the others large": (1.0, *[-5.0] * 9),
    "0 and just relevant": (0.0, 1.5),
}
MARGINS = (1.0, 3.5, 7.0)
"""Margins, in standard errors of the first row's difference."""
TAILS = ("normal", "Student's t, 3 degrees", "1 of 20 trials diverges")

Array = np.ndarray[Any, Any]
Moments = tuple[Array, Array]


def scores(shape: tuple[int, ...], tails: str, draw: np.random.Generator) -> Array:
    """Noise over seeds of mean 0 (diverging trials: of the same mean in every row)."""
    if tails == TAILS[1]:
        return draw.standard_t(3, shape)
    noise = draw.standard_normal(shape)
    return noise - 20 * (draw.random(shape) < 0.05) if tails == TAILS[2] else noise


def moments(
    k: int, n: int, spread: str, correlation: float, tails: str = TAILS[0], draws: int = DRAWS
) -> Moments:
    """Mean and standard error of the differences of k rows without effect, (draws, k).

    Score of a row: deviation x (sqrt(c) shared + sqrt(1 - c) own), c the correlation over seeds.
    """
    draw = np.random.default_rng(
        [k, n, list(SPREADS).index(spread), int(10 * correlation), TAILS.index(tails)]
    )
    first, others = SPREADS[spread]
    deviations = np.resize(others, k)[:, None]
    shared = scores((draws, 1, n), tails, draw) * math.sqrt(correlation)
    own = scores((draws, k + 1, n), tails, draw) * math.sqrt(1 - correlation)
    changes = deviations * (shared + own[:, 1:]) - first * (shared + own[:, :1])
    return changes.mean(-1), changes.std(-1, ddof=1) / math.sqrt(n)


def true_error(n: int, spread: str, correlation: float) -> float:
    """Standard error of the first row's difference."""
    first, (other, *_) = SPREADS[spread]
    return math.sqrt((first**2 + other**2 - 2 * correlation * first * other) / n)


def words(decision: Decision, mean: Array) -> tuple[Array, Array, Array]:
    """Whether each row is called a gain, a loss, level; in the order of precedence of `judge`."""
    level = decision.level <= 0.05
    changed = ~level & (decision.changed <= 0.05)
    return changed & (mean > 0), changed & (mean < 0), level


def false(called: tuple[Array, Array, Array], effect: Any, margin: float) -> Array:
    """Whether a row is called what it is not."""
    gain, loss, level = called
    return (
        (gain & (effect <= 0))
        | (loss & (effect >= 0))
        | (level & (np.abs(effect) >= margin * (1 - 1e-9)))
    )


def error_rates(
    k: int,
    n: int,
    spread: str,
    correlation: float,
    tails: str = TAILS[0],
    effects: Sequence[str] = tuple(EFFECTS),
    margins: Sequence[float] = MARGINS,
    rule: Any = decide,
) -> Iterator[tuple[float, str]]:
    """Share of families with a false statement, and the configuration, for each configuration."""
    mean, error = moments(k, n, spread, correlation, tails)
    for name, size in itertools.product(effects, margins):
        margin = size * true_error(n, spread, correlation)
        effect = np.resize(EFFECTS[name], k) * margin
        called = words(rule(mean + effect, error, n, margin), mean + effect)
        rate = float(false(called, effect, margin).any(-1).mean())
        yield rate, f"{name}; margin {size:g} errors; {spread}; correlation {correlation:g}"


# --- simpler rules, to show what they would do -----------------------------------------------


def each_interval(mean: Array, error: Array, n: int, margin: float) -> Decision:
    """Holm for gain and loss; level where the row's own 95 % interval lies within the margin."""
    level = 2 * decide(mean[..., None], error[..., None], n, margin).level[..., 0]
    return Decision(decide(mean, error, n, 0.0).changed, level, np.asarray(0))


def each_word(mean: Array, error: Array, n: int, margin: float) -> Decision:
    """Holm in which every row that has a word no longer counts."""
    alone = decide(mean[..., None], error[..., None], n, margin)
    changed, level = alone.changed[..., 0], alone.level[..., 0]
    k = mean.shape[-1]
    steps = np.sort(np.minimum(changed, level), -1) * np.arange(k, 0, -1)
    left = k - (np.maximum.accumulate(steps, -1) <= 0.05).sum(-1)
    count = np.maximum(left, 1)[..., None]
    return Decision(changed * count, level * count, left)


# --- the frontier ----------------------------------------------------------------------------


def read_frontier(plain: Array, latency: float) -> tuple[Array, Array]:
    """`at_latency` and `rivals` of many draws at once.

    Args:
        plain: Scores (draws, points, seeds); point i has latency 2 ** i; higher is better.
        latency: Where to read, at least 1.

    Returns:
        Scores (draws, seeds) and numbers of rivals (draws).
    """
    draws, points, n = plain.shape
    faster = sum(2.0**i <= latency for i in range(points))
    mean, every = plain.mean(-1), np.arange(draws)
    left = mean[:, :faster].argmax(-1)
    chosen = plain[every, left]
    apart = plain - chosen[:, None]
    error = apart.std(-1, ddof=1) / math.sqrt(n)
    apart_mean = apart.mean(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stdtr(n - 1, -np.abs(apart_mean / error))
    p[every, left] = 1
    read = chosen.copy()
    better = mean[:, faster:] > mean[every, left][:, None]
    between = better.any(-1) & (2.0**left != latency)
    if between.any():
        right = faster + better[between].argmax(-1)
        share = (math.log2(latency) - left[between]) / (right - left[between])
        read[between] += share[:, None] * (plain[between, right] - chosen[between])
    return read, (p > 0.05).sum(-1)


def frontier_rates(
    points: int, k: int, n: int, step: float, latency: float, draws: int = DRAWS
) -> tuple[float, float]:
    """The largest shares of families with a false word, at effects 0 and both margins.

    Args:
        points: Number of plain rows; each is ``step`` standard errors better than the one before.
        k: Number of operators, all of the same latency.
        n: Number of seeds.
        step: In standard errors of a difference of two rows.
        latency: Of the operators; plain rows have 1, 2, 4, ...
        draws: Number of families.

    Returns:
        Without and with the number of rivals.
    """
    draw = np.random.default_rng([points, k, n, round(100 * step), round(100 * latency)])
    error = math.sqrt(2 / n)
    level = np.arange(points)[:, None] * step * error
    plain = draw.standard_normal((draws, points, n)) + level
    truth = float(np.interp(math.log2(latency), np.arange(points), level[:, 0]))
    read, count = read_frontier(plain, latency)
    noise = draw.standard_normal((draws, k, n)) + truth - read[:, None]
    mean, spread = noise.mean(-1), noise.std(-1, ddof=1) / math.sqrt(n)

    def worst(among: Any) -> float:
        rates = []
        for size, sign in ((1, 0), (6, 1), (6, -1)):
            margin, effect = size * error, sign * size * error
            moved = mean + effect
            called = words(decide(moved, spread, n, margin, among), moved)
            rates.append(float(false(called, effect, margin).any(-1).mean()))
        return max(rates)

    return worst(1), worst(count[:, None])


# --- power -----------------------------------------------------------------------------------


def power(effect: float, margin: float, k: int, n: int, word: str) -> float:
    """How often a row is called ``word``, where the other k - 1 rows have no effect.

    Args:
        effect: Its true difference, in deviations of the paired difference.
        margin: In the same unit.
        k: Number of rows.
        n: Number of seeds.
        word: "gain" or "level".
    """
    mean, error = moments(k, n, "equal", 0.0)
    deviation = math.sqrt(2)
    moved = mean + np.eye(1, k)[0] * effect * deviation
    gain, _, level = words(decide(moved, error, n, margin * deviation), moved)
    return float((gain if word == "gain" else level)[:, 0].mean())


# --- the page --------------------------------------------------------------------------------


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = "|---" * len(head) + "|"
    return "\n".join([f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(x)} |" for x in lines)])


def percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def errors_table() -> tuple[str, bool]:
    lines, fine = [], True
    for k in ROWS:
        line, worst = [f"{k}"], (0.0, "")
        for n in SEEDS:
            found = [case for spread, c in CASES for case in error_rates(k, n, spread, c)]
            line.append(percent(max(found)[0]))
            worst = max(worst, *found)
        lines.append([*line, worst[1]])
        fine = fine and worst[0] <= ALLOWED
    head = ["rows", *(f"{n} seeds" for n in SEEDS), "the worst of them"]
    return table(head, lines), fine


def rules_table() -> tuple[str, bool]:
    rules = {
        "omniconv's": decide,
        "95 % interval within the margin, row by row; Holm for gain and loss": each_interval,
        "Holm in which a row with a word no longer counts": each_word,
    }
    lines = []
    for name, rule in rules.items():
        worst = [
            max(rate for rate, _ in error_rates(k, 10, "steady baseline", 0.0, rule=rule))
            for k in ROWS
        ]
        lines.append([name, *map(percent, worst)])
    return table(["rule", *(f"{k} row{'s' * (k > 1)}" for k in ROWS)], lines), True


def tails_table() -> tuple[str, bool]:
    lines = []
    for tails in TAILS:
        line = [tails]
        for n in SEEDS:
            line.append(
                percent(
                    max(
                        rate
                        for k in ROWS
                        for rate, _ in error_rates(
                            k, n, "equal", 0.0, tails, ("all 0", "at both margins", "0 and margin")
                        )
                    )
                )
            )
        lines.append(line)
    return table(["scores", *(f"{n} seeds" for n in SEEDS)], lines), True


FRONTIERS = {
    "two points far apart, read between them": (2, 9.0, 1.5),
    "two points as good as each other, read between them": (2, 0.0, 1.5),
    "two points as good as each other, read above both": (2, 0.0, 4.0),
    "four points as good as each other, read between the last two": (4, 0.0, 6.0),
    "four points as good as each other, read above all": (4, 0.0, 16.0),
    "four points one error apart, read above all": (4, 1.0, 16.0),
    "six points as good as each other, read above all": (6, 0.0, 64.0),
}


def frontier_table() -> tuple[str, bool]:
    lines, fine = [], True
    for name, (points, step, latency) in FRONTIERS.items():
        found = [
            frontier_rates(points, k, n, step, latency, 2 * DRAWS)
            for k, n in itertools.product((1, 6), (5, 20))
        ]
        plain, corrected = (max(rates) for rates in zip(*found, strict=True))
        lines.append([name, percent(plain), percent(corrected)])
        fine = fine and corrected <= ALLOWED
    return table(["plain rows", "rivals not counted", "as done"], lines), fine


GAINS, LEVELS = (1.0, 1.5, 2.0, 3.0, 4.0), (0.5, 1.0, 1.5, 2.0, 3.0)
EXAMPLE = 0.5
"""Points of accuracy that the deviation of a paired difference is in the examples."""


def power_line(size: float, n: int, word: str) -> list[str]:
    """One line of a power table: a size, what it is in points, seeds, and a share for each k."""
    effect, margin = (size, 1.0) if word == "gain" else (0.0, size)
    cells = [f"{100 * power(effect, margin, k, n, word):.0f}" for k in ROWS]
    return [f"{size:g}", f"{size * EXAMPLE:g}", f"{n}", *cells]


def power_table(word: str) -> tuple[str, bool]:
    size, sizes = ("difference", GAINS) if word == "gain" else ("margin", LEVELS)
    head = [size, "in points", "seeds", *(f"{k} row{'s' * (k > 1)}" for k in ROWS)]
    return table(head, [power_line(x, n, word) for x in sizes for n in SEEDS]), True


TABLES = {
    "errors": errors_table,
    "rules": rules_table,
    "tails": tails_table,
    "frontier": frontier_table,
    "gain": lambda: power_table("gain"),
    "level": lambda: power_table("level"),
}


def main(names: Sequence[str]) -> int:
    """Write tables between their markers."""
    fine = True
    for name in names or TABLES:
        text, holds = TABLES[name]()
        fine = fine and holds
        page = PAGE.read_text(encoding="utf-8")
        marked = rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)"
        page, found = re.subn(marked, lambda m, t=text: f"{m[1]}{t}\n{m[2]}", page, flags=re.S)
        if found != 1:
            raise ValueError(f"{PAGE.name} must hold the markers of {name!r} once, got {found}")
        PAGE.write_text(page, encoding="utf-8")
        print(name, "written" if holds else f"has a rate above {ALLOWED}", flush=True)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
