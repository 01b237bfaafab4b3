"""What is said of the rows: differences, verdicts, the place on the frontier."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from omniconv.compare import results
from omniconv.compare.schedule import Progress
from omniconv.tasks.metric import Metric


def _row(*trials):
    found = [dict(zip(("seed", "status", "score"), t, strict=True)) for t in trials]
    return {"trials": found, "cost": None, "plain": False, "label": "row"}


def _judge(rows):
    """Judge rows that are all kept."""
    kept = [Progress(None) for _ in rows]
    prepared = SimpleNamespace(metric=Metric("accuracy", "%", True, 10.0, 0.5))
    results._judge(rows, kept, prepared)


def test_rows_are_judged_over_the_seeds_that_they_share():
    draws = (0.0, 0.1, -0.1, 0.05, -0.05)
    base = [(seed, "done", 90 + 3 * d) for seed, d in enumerate(draws)]
    rows = [
        _row(*base),
        _row(*((seed, "done", score + 2 + draws[-seed]) for seed, _, score in base)),
        _row(*((seed, "done", score - 2 + draws[-seed]) for seed, _, score in base)),
        _row(*((seed, "done", score + draws[-seed]) for seed, _, score in base)),
        _row(*((seed, "diverged", None) for seed in range(5))),
        _row(*base[:4], (4, "failed", None)),
        _row(*((seed, "failed", None) for seed in range(5))),
    ]
    _judge(rows)
    assert [row["verdict"] for row in rows] == [
        "baseline",
        "gain",
        "loss",
        "no relevant difference",
        "loss",
        "too few seeds",
        "failed",
    ]
    assert rows[4]["score"] == {"mean": 10.0, "interval": [10.0, 10.0], "n": 5}
    assert rows[5]["score"]["n"] == 4
    assert rows[5]["difference"]["mean"] == 0.0
    assert rows[5]["difference"]["p_holm"] is None
    assert rows[6]["score"] is rows[6]["difference"] is None
    assert rows[0]["difference"] is None
    # Holm over the four rows with enough seeds
    p = sorted(row["difference"]["p"] for row in rows[1:5])
    assert min(row["difference"]["p_holm"] for row in rows[1:5]) == 4 * p[0]


def _measured(latency, scores, **facts):
    trials = [(seed, "done", score) for seed, score in enumerate(scores)]
    return _row(*trials) | {"cost": {"latency_n_ms": latency}, **facts}


def test_an_operator_is_judged_against_plain_networks_of_its_own_latency():
    draws = (0.0, 0.1, -0.1, 0.05, -0.05)
    around = {score: [score + d for d in draws] for score in (80, 90)}
    exact = [85 + d for d in (0.02, 0.1, -0.1, 0.05, -0.05)]
    rows = [
        _measured(10.0, around[80], plain=True, label="narrow"),
        _measured(1000.0, around[90], plain=True, label="wide"),
        _measured(500.0, [70 + d for d in draws], plain=True, label="poor"),
        _measured(100.0, exact, label="level"),
        _measured(10.0, [88, 88.1, 88.2, 87.9, 88], label="above"),
        _measured(5000.0, [88, 88.1, 88.2, 87.9, 88], label="below"),
        _measured(9.5, [80, 80.2, 80, 80, 80.1], label="as fast as the clock tells"),
        _measured(5.0, around[90], label="faster"),
        _measured(50.0, around[90], label="other seeds"),
        _row(*((seed, "done", 90.0) for seed in range(5))),  # without costs
    ]
    for trial in rows[-2]["trials"]:
        trial["seed"] += 5
    _judge(rows)
    found = {row["label"]: row["frontier"] for row in rows}
    assert [row["frontier"] for row in rows[:3]] == [None] * 3
    assert rows[-1]["frontier"] is rows[-2]["frontier"] is None
    words = {label: entry["verdict"] for label, entry in found.items() if entry}
    assert words == {
        "level": "level",
        "above": "above",
        "below": "below",
        "as fast as the clock tells": "level",
        "faster": "outside",
    }
    assert found["level"]["between"] == ["narrow", "wide"]
    assert found["level"]["score"] == pytest.approx(85.0)  # half way in log latency
    assert found["above"]["between"] == ["narrow"]
    assert found["below"]["between"] == ["wide"]
    assert found["above"]["mean"] == pytest.approx(8.04)


def test_without_a_baseline_nothing_is_judged():
    rows = [_row((0, "failed", None)), _row((0, "done", 50.0))]
    _judge(rows)
    assert [row["verdict"] for row in rows] == ["failed", "too few seeds"]
    assert rows[1]["difference"] is None
