"""Intervals, tests and verdicts against numbers worked out by hand, scipy and plain loops."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from omniconv.compare.stats import (
    Difference,
    at_latency,
    decide,
    difference,
    interval,
    judge,
    rivals,
)

NOTHING = dict.fromkeys(range(100), 0.0)


def _pairs(family):
    """Rows of differences as pairs with a reference of zeros."""
    return [(dict(enumerate(map(float, row))), NOTHING) for row in family]


def _words(family, margin=0.5, better=True, among=None):
    return [found.word for found in judge(_pairs(family), margin, better, among)]


def _row(mean, deviation, n):
    """n numbers with exactly this mean and deviation, up to rounding."""
    z = np.arange(n) - (n - 1) / 2
    return mean + deviation * z / z.std(ddof=1)


def test_the_interval_of_one_to_five():
    # mean 3, s = sqrt(2.5), t(4, 0.975) = 2.776445: half width 2.776445 * 0.707107
    assert interval([1, 2, 3, 4, 5]) == pytest.approx((3 - 1.963243, 3 + 1.963243), abs=1e-6)


def test_the_interval_of_two_values():
    # t(1, 0.975) = 12.706205, s / sqrt(2) = 0.5
    assert interval([0, 1]) == pytest.approx((0.5 - 6.353102, 0.5 + 6.353102), abs=1e-6)


@pytest.mark.parametrize("values", [[], [7.0]])
def test_fewer_than_two_values_have_no_interval(values):
    assert interval(values) is None


def test_a_paired_difference_by_hand():
    # differences 1..5: mean 3, standard error 0.707107, t = 4.242641, 4 degrees: p = 0.013236
    change = difference([11, 22, 33, 44, 55], [10, 20, 30, 40, 50])
    assert (change.mean, change.n) == (3, 5)
    assert change.p == pytest.approx(0.0132356, abs=1e-6)
    assert change.interval == pytest.approx((1.036757, 4.963243), abs=1e-6)


def test_paired_differences_equal_scipys():
    draw = np.random.default_rng(0)
    for n in (2, 3, 5, 20):
        a, b = draw.normal(size=(2, n)).tolist()
        known = scipy.stats.ttest_rel(a, b)
        change = difference(a, b)
        assert change.p == pytest.approx(known.pvalue, rel=1e-9)
        low, high = known.confidence_interval(0.95)
        assert change.interval == pytest.approx((low, high), rel=1e-9)


def test_differences_without_spread_or_with_few_seeds():
    assert difference([], []) is None
    assert difference([3.0], [1.0]) == Difference(2.0, None, None, 1)
    assert difference([2.0, 3.0], [1.0, 2.0]) == Difference(1.0, (1.0, 1.0), 0.0, 2)
    assert difference([1.0, 2.0], [1.0, 2.0]) == Difference(0.0, (0.0, 0.0), 1.0, 2)


@pytest.mark.parametrize(
    ("mean", "word"),
    [
        # deviation sqrt(5), five seeds: standard error 1, t(4): 2.776 two-sided, 2.132 one-sided
        (2.7765, "gain"),
        (2.7763, "undecided"),
        (-2.7765, "loss"),
        (-2.7763, "undecided"),
    ],
)
def test_a_single_row_changes_where_its_95_percent_interval_leaves_out_0(mean, word):
    family = [_row(mean, math.sqrt(5), 5)]
    assert _words(family) == [word]
    other = {"gain": "loss", "loss": "gain"}
    assert _words(family, better=False) == [other.get(word, word)]


@pytest.mark.parametrize("mean", [0.1, -0.1, 3.0, -3.0])
def test_a_single_row_is_level_where_its_90_percent_interval_lies_within_the_margin(mean):
    family = [_row(mean, math.sqrt(5), 5)]
    assert _words(family, margin=abs(mean) + 2.1319) == ["no relevant difference"]
    assert _words(family, margin=abs(mean) + 2.1317) != ["no relevant difference"]


def test_rows_are_paired_over_their_common_seeds():
    row = {7: 5.0, 1: 2.0, 3: 4.0, 9: 99.0, 4: 3.0, 5: 6.5, 6: 7.0}
    reference = {seed: float(seed) for seed in (6, 1, 5, 2, 3, 4, 7)}
    (found,) = judge([(row, reference)], 0.5, True)
    assert found.difference == difference([2, 4, 3, 6.5, 7, 5], [1, 3, 4, 5, 6, 7])


def test_too_few_seeds_are_not_judged_and_do_not_count():
    clear = _row(3.0, 1.0, 5)
    few = _row(9.0, 0.1, 4)
    alone = judge(_pairs([clear]), 0.5, True)
    found = judge([*_pairs([few, clear, [1.0]]), ({1: 3.0}, {2: 3.0})], 0.5, True)
    assert found[1] == alone[0]
    assert [found[i].word for i in (0, 2, 3)] == ["too few seeds"] * 3
    assert [found[i].p_holm for i in (0, 2, 3)] == [None] * 3
    assert (found[0].difference.n, found[2].difference.n, found[3].difference) == (4, 1, None)
    assert judge([], 0.5, True) == []


def test_equal_differences_are_taken_as_known():
    same = [[c] * 5 for c in (0.0, 0.4, -0.4, 0.5, -0.5, 2.0)]
    level = "no relevant difference"
    assert _words(same) == [level, level, level, "gain", "loss", "gain"]
    assert _words(same, margin=0.0) == ["undecided", "gain", "loss", "gain", "loss", "gain"]
    found = judge(_pairs([[0.0] * 5]), 0.0, True)[0]
    assert (found.p_holm, found.seeds_to_decide) == (1.0, None)


def test_without_a_margin_the_correction_is_holms():
    # p values 0.01, 0.04, 0.03, 0.005 of Holm's procedure by hand: 0.03, 0.06, 0.06, 0.02
    t = scipy.stats.t.isf(np.array([0.01, 0.04, 0.03, 0.005]) / 2, 9)
    found = decide(t, np.ones(4), 10, 0.0)
    assert found.changed == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert found.left == 2


def test_a_row_settles_only_when_nothing_is_left_to_say_of_it():
    """Six seeds, two rows, p of the second between 0.025 and 0.05: the first decides on it."""
    second = _row(1.2, 1.0, 6)
    assert 0.025 < difference(second.tolist(), [0.0] * 6).p < 0.05
    cases = {
        (0.6, 0.05): ("gain", "undecided"),  # its interval reaches into the margin
        (2.0, 0.05): ("gain", "gain"),  # beyond the margin altogether
        (0.0, 0.05): ("no relevant difference", "undecided"),  # and perhaps no difference at all
        (0.2, 0.05): ("no relevant difference", "gain"),  # not 0, and not relevant
    }
    for (mean, deviation), words in cases.items():
        first = _row(mean, 6 * deviation if words[0] == "gain" else deviation, 6)
        assert tuple(_words([first, second])) == words, mean


def _naive(family, margin, among):
    """The procedure in words: intervals, a list of settled rows, again until nothing changes."""
    settled: set[int] = set()
    while True:
        a = 0.05 / max(len(family) - len(settled), 1)
        words, now = [], set(settled)
        for i, values in enumerate(family):
            n, mean, e = len(values), np.mean(values), scipy.stats.sem(values)

            def end(level, n=n, mean=mean, e=e):
                return mean + scipy.stats.t.ppf(level, n - 1) * e

            up, down = end(a / 2), end(1 - a / 2 / among[i])
            level = end(a) > -margin and end(1 - a / among[i]) < margin
            changed = up > 0 or down < 0
            words.append(
                "no relevant difference"
                if level
                else ("gain" if mean > 0 else "loss")
                if changed
                else "undecided"
            )
            if (changed and level) or up > margin or down < -margin:
                now.add(i)
        if now == settled:
            return words, a
        settled = now


def _random_families(count, seed):
    draw = np.random.default_rng(seed)
    for _ in range(count):
        k = int(draw.integers(1, 11))
        family = [
            draw.normal(draw.choice([0, 0.2, 0.5, -1, 3]), draw.choice([0.1, 0.4, 1]), size)
            for size in draw.integers(5, 21, k)
        ]
        yield family, draw.choice([1, 1, 2, 5], k).tolist(), float(draw.choice([0, 0.3, 0.5, 1]))


def test_judgements_equal_those_of_plain_loops():
    seen = set()
    for family, among, margin in _random_families(250, 0):
        words = _words(family, margin, True, among)
        assert words == _naive(family, margin, among)[0]
        seen |= set(words)
    assert seen == {"gain", "loss", "no relevant difference", "undecided"}


def test_an_adjusted_p_value_says_the_same_as_the_word():
    for family, among, margin in _random_families(200, 1):
        for found in judge(_pairs(family), margin, True, among):
            if found.word != "no relevant difference":
                assert (found.p_holm <= 0.05) == (found.word in ("gain", "loss"))


def test_many_families_at_once_are_decided_as_each_alone():
    draw = np.random.default_rng(2)
    changes = draw.normal(0.4, 0.6, (120, 6, 8))
    error = changes.std(2, ddof=1) / math.sqrt(8)
    decision = decide(changes.mean(2), error, 8, 0.6)
    for i, family in enumerate(changes):
        found = judge(_pairs(family), 0.6, True)
        assert [f.p_holm for f in found] == pytest.approx(decision.changed[i].tolist(), rel=1e-9)
        level = [f.word == "no relevant difference" for f in found]
        assert level == (decision.level[i] <= 0.05).tolist()


def test_the_number_of_seeds_that_would_decide_equals_a_search():
    sought = 0
    for family, among, margin in _random_families(60, 3):
        _, level = _naive(family, margin, among)
        judged = judge(_pairs(family), margin, True, among)
        for found, values, c in zip(judged, family, among, strict=True):
            if found.word != "undecided":
                assert found.seeds_to_decide is None
                continue
            mean, n = np.mean(values), np.arange(5, 1001)
            e, t = np.std(values, ddof=1) / np.sqrt(n), scipy.stats.t(n - 1)
            change = 2 * np.minimum(t.sf(mean / e), c * t.cdf(mean / e)) <= level
            high, low = c * t.cdf((mean - margin) / e), t.sf((mean + margin) / e)
            decided = n[change | (np.maximum(high, low) <= level)]
            assert found.seeds_to_decide == (decided[0] if len(decided) else None)
            sought += 1
    assert sought > 40


def test_no_number_of_seeds_decides_a_row_without_margin_and_difference():
    assert judge(_pairs([_row(0.0, 1.0, 7)]), 0.0, True)[0].seeds_to_decide is None
    assert judge(_pairs([_row(0.01, 1.0, 7)]), 0.0, True)[0].seeds_to_decide is None


# --- properties ------------------------------------------------------------------------------

# two decimals, as percentages of small test sets have: ties and rows without spread occur
SCORES = st.integers(-300, 300).map(lambda hundredths: hundredths / 100)
FAMILIES = st.lists(st.lists(SCORES, min_size=5, max_size=8), min_size=1, max_size=5)
ORDER = ["loss", "undecided", "gain"]


@settings(deadline=None)
@given(FAMILIES, st.sampled_from([0.0, 0.5, 1.0]))
def test_turning_scores_and_their_sense_round_changes_nothing(family, margin):
    turned = [[-score for score in row] for row in family]
    assert _words(family, margin, True) == _words(turned, margin, False)


@settings(deadline=None)
@given(FAMILIES, st.integers(-8, 8))
def test_a_shift_of_row_and_reference_changes_nothing(family, shift):
    moved = [
        ({seed: value + shift for seed, value in row.items()}, dict.fromkeys(row, float(shift)))
        for row, _ in _pairs(family)
    ]
    words = [found.word for found in judge(moved, 0.4871, True)]
    assert words == _words(family, 0.4871)


@settings(deadline=None)
@given(FAMILIES, st.randoms(use_true_random=False))
def test_the_order_of_rows_and_seeds_changes_nothing(family, random):
    order = list(range(len(family)))
    random.shuffle(order)
    mixed = [random.sample(family[i], len(family[i])) for i in order]
    words = _words(family, 0.4871)
    assert _words(mixed, 0.4871) == [words[i] for i in order]


@settings(deadline=None)
@given(FAMILIES, st.floats(0, 2), st.floats(0, 2))
def test_a_single_row_that_is_level_stays_so_within_a_larger_margin(family, first, second):
    small, large = sorted((first, second))
    row = family[:1]
    if _words(row, small) == ["no relevant difference"]:
        assert _words(row, large) == ["no relevant difference"]


@settings(deadline=None)
@given(FAMILIES, st.lists(SCORES, min_size=5, max_size=8))
def test_another_row_never_makes_a_statement_easier(family, other):
    alone = judge(_pairs(family), 0.5, True)
    together = judge(_pairs([*family, other]), 0.5, True)
    for a, b in zip(alone, together, strict=False):
        assert b.p_holm >= a.p_holm
        assert a.word != "undecided" or b.word == "undecided"


@settings(deadline=None)
@given(FAMILIES, st.integers(2, 6))
def test_a_chosen_reference_only_makes_it_harder_to_speak_against_a_row(family, among):
    fixed = _words(family[:1])[0]
    chosen = _words(family[:1], among=[among])[0]
    assert chosen in (fixed, "undecided") or (fixed, chosen) == ("no relevant difference", "gain")
    if fixed == "gain":
        assert chosen == "gain"


# --- the plain networks at a latency ---------------------------------------------------------


def _scores(*values):
    return dict(enumerate(values))


def test_scores_between_two_points_are_interpolated_in_log_latency():
    points = [(4.0, _scores(80.0, 90.0)), (1.0, _scores(60.0, 50.0))]
    # log 2 is half way from log 1 to log 4
    assert at_latency(points, 2.0, True) == ([1, 0], pytest.approx({0: 70.0, 1: 70.0}))
    # log(2.828427) is three quarters
    used, scores = at_latency(points, math.sqrt(8), True)
    assert (used, scores) == ([1, 0], pytest.approx({0: 75.0, 1: 80.0}))


def test_at_a_point_and_beyond_the_slowest_scores_are_the_points_own():
    points = [(1.0, _scores(60.0, 50.0)), (4.0, _scores(80.0, 90.0))]
    assert at_latency(points, 1.0, True) == ([0], points[0][1])
    assert at_latency(points, 4.0, True) == ([1], points[1][1])
    assert at_latency(points, 99.0, True) == ([1], points[1][1])


def test_faster_than_every_point_there_is_nothing_to_compare_with():
    assert at_latency([(1.0, _scores(60.0))], 0.99, True) is None
    assert at_latency([], 1.0, True) is None
    assert at_latency([(1.0, {})], 2.0, True) is None
    assert rivals([(1.0, _scores(60.0))], 0.99, True) == 0


@pytest.mark.parametrize(("better", "sign"), [(True, 1), (False, -1)])
def test_a_point_that_is_slower_and_no_better_is_left_out(better, sign):
    means = {1.0: 5.0, 2.0: 5.0, 3.0: 4.0, 4.0: 7.0, 5.0: 6.0}
    points = [(latency, _scores(sign * mean)) for latency, mean in means.items()]
    assert at_latency(points, 2.0, better)[0] == [0, 3]
    assert at_latency(points, 3.5, better)[0] == [0, 3]
    assert at_latency(points, 9.0, better)[0] == [3]


def test_of_two_points_of_one_latency_the_better_counts():
    points = [(1.0, _scores(5.0)), (1.0, _scores(6.0)), (2.0, _scores(7.0))]
    assert at_latency(points, 1.0, True) == ([1], {0: 6.0})
    assert at_latency(points, 1.5, True)[0] == [1, 2]


def test_scores_are_interpolated_over_common_seeds():
    points = [(1.0, {0: 1.0, 1: 2.0, 2: 3.0}), (2.0, {1: 4.0, 2: 5.0, 3: 9.0}), (3.0, {})]
    assert at_latency(points, 1.5, True)[1].keys() == {1, 2}


def test_equal_scores_are_interpolated_without_rounding():
    points = [(1.0, {0: 0.1, 1: 0.2}), (3.0, {0: 0.1, 1: 0.3})]
    assert at_latency(points, 1.7, True)[1][0] == 0.1


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(SCORES, min_size=3, max_size=3)), min_size=1),
    st.floats(1, 10),
    st.floats(1, 10),
)
def test_the_mean_never_falls_with_latency(raw, first, second):
    points = [(float(latency), _scores(*values)) for latency, values in raw]
    early, late = (at_latency(points, at, True) for at in sorted((first, second)))
    assume(early is not None)
    means = [statistics.fmean(found[1].values()) for found in (early, late)]
    assert means[0] <= means[1] + 1e-9


def test_rivals_are_the_points_that_are_not_told_apart():
    noise = np.random.default_rng(1).normal(0, 1, (5, 8))
    rows = np.array([0.0, 5.0, 5.0, 4.9, 9.0])[:, None] + noise
    points = [(float(i + 1), dict(enumerate(row.tolist()))) for i, row in enumerate(rows)]
    counts = []
    for latency in (1.5, 2.5, 4.5, 99.0):
        chosen = rows[at_latency(points, latency, True)[0][0]]
        others = np.delete(rows, [i for i, row in enumerate(rows) if (row == chosen).all()], 0)
        counts.append(1 + sum(scipy.stats.ttest_rel(row, chosen).pvalue > 0.05 for row in others))
        assert rivals(points, latency, True) == counts[-1]
    assert counts == [1, 3, 3, 1]


@pytest.mark.parametrize(("t", "count"), [(2.7763, 2), (2.7765, 1)])
def test_a_rival_is_told_apart_at_5_percent(t, count):
    best = _row(0.0, 1.0, 5)
    other = best - _row(t, math.sqrt(5), 5)[[2, 0, 3, 1, 4]]  # standard error 1, t(4) = 2.776
    points = [(1.0, dict(enumerate(best.tolist()))), (2.0, dict(enumerate(other.tolist())))]
    assert rivals(points, 5.0, True) == count
