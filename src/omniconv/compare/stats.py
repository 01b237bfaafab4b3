r"""Means, intervals and verdicts. Pure functions of numbers.

Seeds are paired: trials of the same seed see the same batches, so a row is compared with its
reference by the differences seed by seed, :math:`d_1 \dots d_n` with mean :math:`\bar d` and
deviation s. A true difference :math:`\delta` can be spoken of wrongly in two ways: *gain* or *loss*
where it is 0 or has the other sign, *no relevant difference* where :math:`|\delta| \ge` margin.
At level a, with :math:`e = s / \sqrt n` and Student's t of n - 1 degrees,

- *gain*, *loss*: :math:`|\bar d| > t_{1 - a/2} e`;
- *no relevant difference*: :math:`|\bar d| < margin - t_{1 - a} e`, two one-sided tests.

Neither splits a with the other. At :math:`\delta = 0` only the first can be false. At
:math:`|\delta| \ge` margin the second can, and a first one with the wrong sign, whose event lies
within the second's. So one row errs with probability a at most, whatever :math:`\delta` and s are.

With k rows a starts at 0.05 / k (Bonferroni). A row is *settled* when its 1 - a interval leaves out
0 and the row is without relevant difference, or when that interval lies outside the margin
altogether: nothing is left to say of it. Settled rows no longer count, as in Holm's procedure: a is
0.05 / (k - settled), until no row is added. A row of which one question is still open does count,
for it has had its chance to be wrong: with a = 0.05 / (rows without a word) up to 40 % of families
of ten hold a false statement. The first step holds for any dependence between rows; the later ones,
as every step-down procedure that also names a sign, are proven for independent rows (J. P. Shaffer,
Annals of Statistics 8, 1980) and simulated for others.

A reference that was chosen as the best of c rows that are hard to tell apart is too good by chance.
Against it, p of everything that speaks against the row, "worse" and "not better by the margin", is
multiplied by c (Bonferroni over the rows that could have been chosen).

Sources: S. Holm, Scandinavian Journal of Statistics 6, 1979; D. J. Schuirmann, Journal of
Pharmacokinetics and Biopharmaceutics 15, 1987 (two one-sided tests); H. Finner, K. Strassburger,
Annals of Statistics 30, 2002 (parts of the parameter space, each tested at the whole level).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = [
    "FEWEST_SEEDS",
    "MOST_SEEDS",
    "Decision",
    "Difference",
    "Judgement",
    "at_latency",
    "decide",
    "difference",
    "interval",
    "judge",
    "rivals",
]

LEVEL = 0.05
FEWEST_SEEDS = 5
"""Below this there is no verdict."""
MOST_SEEDS = 1000
"""Where the search for the number of seeds that would decide ends."""


@dataclass(frozen=True)
class Difference:
    """Mean difference to the reference over the common seeds.

    Attributes:
        mean: Mean of the paired differences.
        interval: Its 95 % interval, for this row alone; None for fewer than two seeds.
        p: Two-sided p value of the paired t test; None for fewer than two seeds.
        n: Number of common seeds.
    """

    mean: float
    interval: tuple[float, float] | None
    p: float | None
    n: int


@dataclass(frozen=True)
class Judgement:
    """What is said of a row.

    Attributes:
        difference: Row minus reference; None without common seeds.
        p_holm: p corrected for the number of rows; None with too few seeds.
        word: "gain", "loss", "no relevant difference", "undecided" or "too few seeds".
        seeds_to_decide: Number of seeds in all that would decide an undecided row, were mean,
            deviation and the other rows to stay; None where 1,000 do not, and for other words.
    """

    difference: Difference | None
    p_holm: float | None
    word: str
    seeds_to_decide: int | None


class Decision(NamedTuple):
    """Adjusted p values, each shaped as the means that they are of, and the rows that count.

    Attributes:
        changed: Of "the true difference is 0".
        level: Of "the true difference is as large as the margin".
        left: Number of rows that are not settled at 5 %, without the rows' axis.
    """

    changed: Array
    level: Array
    left: Array


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean: m -+ t(n - 1) s / sqrt(n); None for fewer than two values."""
    from scipy.special import stdtrit

    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, 1 - LEVEL / 2)) * error
    return mean - half, mean + half


def difference(row: Sequence[float], reference: Sequence[float]) -> Difference | None:
    """The paired comparison of two rows, seed by seed in the same order; None without seeds."""
    changes = [a - b for a, b in zip(row, reference, strict=True)]
    if not changes:
        return None
    mean, n = statistics.fmean(changes), len(changes)
    if n < 2:
        return Difference(mean, None, None, n)
    changed, _, _ = _p_values(mean, statistics.stdev(changes) / math.sqrt(n), n, 0.0)
    return Difference(mean, interval(changes), float(changed), n)


def decide(mean: Any, error: Any, n: Any, margin: float, among: Any = 1) -> Decision:
    """Adjusted p values of families of rows; at most 0.05 allows the statement.

    Args:
        mean: Mean differences, (..., k): families of k rows; positive is better.
        error: Their standard errors, s / sqrt(n), of the same shape; 0 is the limit of small ones.
        n: Numbers of seeds, broadcast to that shape.
        margin: The smallest difference that matters, in the unit of the means.
        among: Numbers of rows that the references were chosen from as the best, broadcast too.
    """
    import numpy as np

    changed, level, relevant = _p_values(mean, error, n, margin, among)
    k = changed.shape[-1]
    # the family's levels at which the 1st, 2nd, ... row is settled; the last one's frees none
    settled = np.sort(np.maximum(changed, np.minimum(level, relevant)), -1) * np.arange(k, 0, -1)
    steps = np.maximum.accumulate(settled, -1)

    def adjusted(p: Array) -> Array:
        least = np.minimum(k * p, 1)
        for done in range(1, k):
            least = np.minimum(least, np.maximum(steps[..., done - 1, None], (k - done) * p))
        return least

    return Decision(adjusted(changed), adjusted(level), k - (steps <= LEVEL).sum(-1))


def _p_values(
    mean: Any, error: Any, n: Any, margin: float, among: Any = 1
) -> tuple[Array, Array, Array]:
    """p against: no difference; one as large as the margin; one within it."""
    import numpy as np
    from scipy.special import stdtr

    mean, error, degrees = np.asarray(mean, float), np.asarray(error, float), np.asarray(n) - 1

    def sides(bound: float) -> tuple[Array, Array]:
        """p of "at most ``bound``" and of "at least ``bound``"."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (mean - bound) / error
        t = np.where(np.isnan(t), 0.0, t)  # no spread, and on the bound
        tail = stdtr(degrees, -np.abs(t))
        above, below = np.where(t > 0, tail, 1 - tail), np.where(t > 0, 1 - tail, tail)
        return above, np.minimum(among * below, 1)

    (more, less), (over, under), (top, down) = sides(0), sides(-margin), sides(margin)
    changed, relevant = np.minimum(more, less), np.minimum(top, under)
    return np.minimum(2 * changed, 1), np.maximum(over, down), np.minimum(2 * relevant, 1)


def judge(
    pairs: Sequence[tuple[Mapping[int, float], Mapping[int, float]]],
    margin: float,
    higher_is_better: bool,
    among: Sequence[int] | None = None,
) -> list[Judgement]:
    """Judge rows, each against its reference, as one family.

    "no relevant difference" where it is shown, even if the difference is not 0; else "gain" or
    "loss" where that is shown; else "undecided". In at most 5 % of families any of these words is
    false (see the module). Rows with fewer than five common seeds get "too few seeds" and do not
    count. Where all seeds differ by the same amount, that amount is taken as known.

    Args:
        pairs: Scores of a row and of its reference, by seed.
        margin: The smallest difference that matters, in the scores' unit; with 0 each one does.
        higher_is_better: Whether a positive difference is a gain.
        among: For each pair, the number of rows that its reference was chosen from as the best
            (see :func:`rivals`); default: references that were fixed before.
    """
    changes = [[row[seed] - ref[seed] for seed in row if seed in ref] for row, ref in pairs]
    differences = [difference(values, [0.0] * len(values)) for values in changes]
    found = [Judgement(known, None, "too few seeds", None) for known in differences]
    enough = [i for i, values in enumerate(changes) if len(values) >= FEWEST_SEEDS]
    if not enough:
        return found
    sign = 1 if higher_is_better else -1
    mean = [sign * statistics.fmean(changes[i]) for i in enough]
    spread = [statistics.stdev(changes[i]) for i in enough]
    n = [len(changes[i]) for i in enough]
    chosen = [1 if among is None else among[i] for i in enough]
    error = [s / math.sqrt(count) for s, count in zip(spread, n, strict=True)]
    decision = decide(mean, error, n, margin, chosen)
    for j, i in enumerate(enough):
        seeds = None
        if decision.level[j] <= LEVEL:
            word = "no relevant difference"
        elif decision.changed[j] <= LEVEL:
            word = "gain" if mean[j] > 0 else "loss"
        else:
            word = "undecided"
            level = LEVEL / int(decision.left)
            seeds = _seeds_to_decide(mean[j], spread[j], n[j], margin, chosen[j], level)
        found[i] = Judgement(differences[i], float(decision.changed[j]), word, seeds)
    return found


def _seeds_to_decide(
    mean: float, spread: float, n: int, margin: float, among: int, level: float
) -> int | None:
    """The fewest seeds, more than n, at which a row with this mean and deviation is decided."""
    import numpy as np

    seeds = np.arange(n + 1, MOST_SEEDS + 1)
    changed, within, _ = _p_values(mean, spread / np.sqrt(seeds), seeds, margin, among)
    decided = seeds[np.minimum(changed, within) <= level]
    return int(decided[0]) if len(decided) else None


def at_latency(
    points: Sequence[tuple[float, Mapping[int, float]]], latency: float, higher_is_better: bool
) -> tuple[list[int], dict[int, float]] | None:
    """The scores that plain networks reach at a latency.

    A point that is no faster than another and on mean no better is left out. Between the two
    neighbours that remain, scores are interpolated seed by seed, linearly in log latency; at a
    point, or slower than the slowest, they are that point's own.

    Args:
        points: Latency, above 0, and scores by seed of every plain row; rows without scores are
            left out.
        latency: Where to read, in the same unit, above 0.
        higher_is_better: Whether scores are better when larger.

    Returns:
        Indices of the one or two points used, the faster one first, and scores over their common
        seeds; None where every point is slower.
    """
    sign = 1 if higher_is_better else -1
    mean = {i: sign * statistics.fmean(s.values()) for i, (_, s) in enumerate(points) if s}
    kept: list[int] = []
    for i in sorted(mean, key=lambda i: (points[i][0], -mean[i])):
        if not kept or mean[i] > mean[kept[-1]]:
            kept.append(i)
    left = [i for i in kept if points[i][0] <= latency]
    if not left:
        return None
    (start, slow), right = points[left[-1]], kept[len(left) : len(left) + 1]
    if start == latency or not right:
        return [left[-1]], dict(slow)
    end, best = points[right[0]]
    share = math.log(latency / start) / math.log(end / start)
    scores = {s: slow[s] + share * (best[s] - slow[s]) for s in slow if s in best}
    return [left[-1], *right], scores


def rivals(
    points: Sequence[tuple[float, Mapping[int, float]]], latency: float, higher_is_better: bool
) -> int:
    """How many plain rows could as well have been chosen by :func:`at_latency`, with the chosen.

    Those that are not told apart from the faster point that it uses: p of the paired t test above
    0.05. 0 where every point is slower.
    """
    found = at_latency(points, latency, higher_is_better)
    if found is None:
        return 0
    chosen = points[found[0][0]][1]
    count = 1
    for i, (_, scores) in enumerate(points):
        common = [seed for seed in scores if seed in chosen]
        change = difference([scores[s] for s in common], [chosen[s] for s in common])
        if i != found[0][0] and change and (change.p is None or change.p > LEVEL):
            count += 1
    return count
