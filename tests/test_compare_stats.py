"""Intervals, tests and verdicts against numbers worked out by hand, by scipy, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from omniconv.compare.stats import Difference, difference, holm, interval, verdict


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


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@pytest.mark.parametrize(
    ("mean", "half", "p", "n", "better", "word"),
    [
        (1.0, 0.4, 0.01, 5, True, "gain"),
        (-1.0, 0.4, 0.01, 5, True, "loss"),
        (-1.0, 0.4, 0.01, 5, False, "gain"),
        (1.0, 0.4, 0.01, 5, False, "loss"),
        (1.0, 0.4, 0.05, 5, True, "gain"),
        (1.0, 0.4, 0.0501, 5, True, "undecided"),
        (0.1, 0.4, 0.7, 5, True, "no relevant difference"),
        (-0.1, 0.4, 0.7, 5, True, "no relevant difference"),
        (0.1, 0.41, 0.7, 5, True, "undecided"),
        (-0.1, 0.41, 0.7, 5, True, "undecided"),
        (0.3, 0.1, 0.001, 5, True, "no relevant difference"),
        (9.0, 0.4, 0.0001, 4, True, "too few seeds"),
    ],
)
def test_every_verdict(mean, half, p, n, better, word):
    change = Difference(mean, (mean - half, mean + half), p, n)
    assert verdict(change, p, 0.5, better) == word


def test_no_verdict_without_numbers():
    assert verdict(None, None, 0.5, True) == "too few seeds"
    assert verdict(Difference(1.0, None, None, 1), None, 0.5, True) == "too few seeds"


def test_a_false_gain_or_loss_is_called_in_at_most_5_5_percent_of_families():
    """20,000 comparisons of five rows that are all as good as the first one."""
    draw = np.random.default_rng(0)
    families, rows, seeds = 20_000, 5, 5
    scores = draw.normal(96, 0.5, (families, rows + 1, seeds))
    changes = scores[:, 1:] - scores[:, :1]
    mean = changes.mean(2)
    error = changes.std(2, ddof=1) / math.sqrt(seeds)
    p = 2 * scipy.stats.t.sf(np.abs(mean) / error, seeds - 1)
    wrong = 0
    for family in np.flatnonzero(p.min(1) <= 0.05):  # no other family can hold a verdict
        change = [difference(row, [0.0] * seeds) for row in changes[family].tolist()]
        adjusted = holm([c.p for c in change])
        words = [verdict(c, q, 0.01, True) for c, q in zip(change, adjusted, strict=True)]
        wrong += any(word in ("gain", "loss") for word in words)
    assert 0.02 < wrong / families <= 0.055
