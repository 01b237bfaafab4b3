"""What is trained, in which order, and what the earlier runs decide about the later ones."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from compare_tiny import tiny, write_idx
from omniconv.compare import parse
from omniconv.compare.prepare import prepare
from omniconv.compare.schedule import Schedule
from omniconv.compare.store import Trial

TUNING = {"factors": [0.25, 1, 4], "budget": "1epoch", "seed": 77}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_idx(tmp_path_factory.mktemp("data"))


class Store:
    """Ends of trials, as a function of the job says."""

    def __init__(self, score):
        self.score = score
        self.trials = {}
        self.ran = []

    def run(self, schedule):
        """Ask for every job, train those that have not ended yet; returns all jobs."""
        jobs = []
        for job in schedule.jobs():
            jobs.append(job)
            if job.id not in self.trials:
                self.ran.append(job)
                self.trials[job.id] = self.end(job)
        return jobs

    def end(self, job):
        """A trial with the validation score that the test wants; None for a failed one."""
        score = self.score(job)
        if score is None:
            return Trial(job.id, "failed", "why", None, None, None, ())
        if math.isnan(score):
            return Trial(job.id, "diverged", "nan", None, None, None, ())
        leg = {"at": 1, "validation_score": score, "seconds": 1.0}
        return Trial(job.id, "done", None, score if job.test else None, None, None, (leg,))

    def schedule(self, prepared):
        return Schedule(prepared, self.trials.get)


def _lr(job):
    return job.point["row"]["lr"]


def test_every_row_gets_the_same_tuning_and_the_best_rate_on_validation(data):
    rows = ["conv", "weighted", "dcls(lr=0.5)"]
    prepared = prepare(parse(tiny(data, rows=rows, tuning=TUNING)))
    best = {"conv": 0.4, "weighted": 0.025}
    store = Store(lambda job: -abs(math.log(_lr(job) / best.get(job.point["row"]["operator"], 1))))
    schedule = store.schedule(prepared)
    jobs = store.run(schedule)
    tuning, training = jobs[:6], jobs[6:]
    assert [(job.stage, job.row, _lr(job)) for job in tuning] == [
        ("tune", row, lr) for row in (0, 1) for lr in (0.1, 0.025, 0.4)
    ]
    assert {(job.seed, job.test, job.point["budget"]) for job in tuning} == {(77, False, "1epoch")}
    assert {job.weight for job in tuning} == {0.5}
    assert [(job.stage, job.row, job.seed, _lr(job), job.test) for job in training] == [
        ("train", row, seed, lr, True)
        for seed in (0, 1)
        for row, lr in enumerate((0.4, 0.025, 0.5))
    ]
    conv, _, dcls = schedule.rows
    assert [entry["lr"] for entry in conv.tuning] == [0.025, 0.1, 0.4]
    assert conv.tuning[2] == {"lr": 0.4, "validation_score": 0.0, "status": "done", "seconds": 1.0}
    assert dcls.tuning is None
    assert conv.trials == {job.seed: job.id for job in training if job.row == 0}


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ({0.025: 5, 0.1: 5, 0.4: 5}, 0.1),  # equal ones: the plan's own
        ({0.025: 5, 0.1: None, 0.4: 4}, 0.025),  # a failed run decides nothing
        ({0.025: math.nan, 0.1: math.nan, 0.4: 34}, 0.4),  # a diverged one counts as chance
        ({0.025: None, 0.1: None, 0.4: None}, 0.1),
        ({0.025: math.nan, 0.1: 20, 0.4: 20}, 0.025),  # and chance can be better
    ],
)
def test_failed_and_diverged_runs_in_tuning(data, scores, chosen):
    prepared = prepare(parse(tiny(data, rows=["conv"], tuning=TUNING)))
    store = Store(lambda job: scores[_lr(job)] if job.stage == "tune" else 1)
    schedule = store.schedule(prepared)
    store.run(schedule)
    assert schedule.rows[0].row.lr == chosen


def test_lower_is_better_where_the_metric_says_so(data):
    prepared = prepare(parse(tiny(data, rows=["conv"], tuning=TUNING)))
    prepared = replace(prepared, metric=replace(prepared.metric, higher_is_better=False))
    store = Store(_lr)
    schedule = store.schedule(prepared)
    store.run(schedule)
    assert schedule.rows[0].row.lr == 0.025


def test_without_tuning_every_row_takes_the_plans_rate(data):
    prepared = prepare(parse(tiny(data, rows=["conv", "weighted"], optimizer={"lr": 0.3})))
    jobs = Store(lambda job: 1.0).run(Schedule(prepared, lambda id: None))
    assert {(job.stage, _lr(job)) for job in jobs} == {("train", 0.3)}


def test_a_search_finds_a_density_on_validation_and_trains_with_it(data):
    rows = ["conv", "weighted(kernel_size=5, search=12)"]
    prepared = prepare(parse(tiny(data, rows=rows, tuning=TUNING)))

    def score(job):
        outer, inner = job.point["row"]["arguments"].get("density", (0.7, 0.7))
        return -((outer - 0.2) ** 2) - (inner - 1.1) ** 2

    store = Store(lambda job: score(job) if job.row == 1 else 0.0)
    schedule = store.schedule(prepared)
    jobs = store.run(schedule)
    searched = [job for job in jobs if job.stage == "search"]
    assert len(searched) == 12
    assert len({job.id for job in jobs}) == len(jobs)
    assert {(job.seed, job.test, job.point["budget"], _lr(job)) for job in searched} == {
        (77, False, "1epoch", 0.1)
    }
    found = schedule.rows[1].search
    best = max(found, key=lambda entry: entry["validation_score"])
    assert dict(schedule.rows[1].row.arguments)["density"] == tuple(best["density"])
    assert score(jobs[-1]) == pytest.approx(best["validation_score"])
    assert best["validation_score"] > -0.1
    # interrupted in the middle of the search, the same trials follow
    store.trials = {job.id: store.trials[job.id] for job in jobs[:9]}
    store.ran = []
    assert [job.id for job in store.run(store.schedule(prepared))] == [job.id for job in jobs]
    assert len(store.ran) == len(jobs) - 9


def test_a_screen_lets_the_best_operators_go_on(data):
    rows = ["conv", "conv(width=2)", "weighted", "dcls", "phc", "dcls(taps=2)"]
    plan = parse(tiny(data, rows=rows, screen={"keep": 2, "seed": 88}))
    prepared = prepare(plan)
    scores = {2: 50.0, 3: 70.0, 4: None, 5: 60.0}
    store = Store(lambda job: scores.get(job.row, 1.0))
    schedule = store.schedule(prepared)
    jobs = store.run(schedule)
    assert [(job.stage, job.row, job.seed, job.test) for job in jobs[:4]] == [
        ("screen", row, 88, False) for row in (2, 3, 4, 5)
    ]
    assert [job.row for job in jobs[4:]] == [0, 1, 3, 5] * 2
    assert [row.kept for row in schedule.rows] == [True, True, False, True, False, True]
    assert schedule.rows[2].screened == {"validation_score": 50.0, "kept": False}
    assert schedule.rows[0].screened is None
    few = prepare(parse(tiny(data, rows=rows[:4], screen={"keep": 2})))
    assert {job.stage for job in store.run(store.schedule(few))} == {"train"}


def test_what_is_left_counts_down_to_nothing(data):
    rows = ["conv", "weighted(search=4)", "dcls", "phc"]
    plan = tiny(data, rows=rows, tuning=TUNING, screen={"keep": 1})
    store = Store(lambda job: 1.0)
    schedule = store.schedule(prepare(parse(plan)))
    counts, done = [], []
    for job in schedule.jobs():
        counts.append(len(list(schedule.left(done))))
        done.append(job)
        store.trials[job.id] = store.end(job)
    assert counts[0] == 4 * 3 + 4 + 3 + 4 * 2
    assert all(before > after for before, after in pairwise(counts))
    assert list(schedule.left(done)) == []


def test_trials_are_shared_by_plans_that_have_them_in_common(data):
    tuned = prepare(parse(tiny(data, rows=["conv", "weighted"], tuning=TUNING)))
    given = prepare(parse(tiny(data, rows=["conv(lr=0.4)", "weighted(lr=0.4)"])))
    store = Store(_lr)
    store.run(store.schedule(tuned))
    store.ran = []
    store.run(store.schedule(given))
    assert store.ran == []
