"""What is seen while a comparison runs: a live table or plain lines, and the time left."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

import omniconv.compare as compare
from compare_tiny import jobs, scheduled, tiny, write_idx
from omniconv.compare import progress
from omniconv.compare.driver import Event
from omniconv.compare.tally import Tally


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    rows = ["conv", "weighted", "conv(lr=1e6)"]
    return compare.parse(
        tiny(write_idx(tmp_path_factory.mktemp("data")), rows=rows, budget="1epoch")
    )


@pytest.fixture
def clock():
    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    return Clock()


def _events(clock, plan):
    """The events of the first two rows and two seeds, 6 s a trial, 10 s the costs."""
    found = jobs(plan)
    for seed in (0, 1):
        for row in (0, 1):
            job = found[row, seed]
            yield Event("begin", row, job)
            clock.now += 3
            yield Event("step", row, job, {"done": 0.5})
            clock.now += 3
            yield Event("leg", row, job, {"at": 1})
            yield Event("end", row, job, {"status": "done", "score": 90.0 + seed})
    yield Event("cost", 0)
    clock.now += 10
    yield Event("cost", 1)
    yield Event("costs", record={"rows": []})


def test_the_time_left_falls_to_nothing(clock, plan):
    plan = replace(plan, rows=plan.rows[:2])
    tally = Tally(scheduled(plan), clock)
    left, shares = [], []
    for event in _events(clock, plan):
        tally.take(event)
        left.append(tally.left())
        shares.append((tally.share(0), tally.share(1)))
    assert left[0] == 4 * (2 + 8) + 30  # before a trial has been seen
    assert left[3] == 3 * 6 + 30
    assert left[5] == 2 * 6 + 3 + 30
    assert left[-4] == 30
    assert left[-2:] == [20, 0]
    assert shares[1] == (0.25, 0.0)
    assert shares[5] == (0.5, 0.25)
    assert tally.scores == [[90.0, 91.0]] * 2
    assert len(tally.jobs) == tally.total == 4


def test_plain_lines_where_there_is_no_terminal(plan, clock, monkeypatch):
    found = jobs(plan)
    stream = io.StringIO()
    with progress.show(scheduled(plan), True, stream) as tell:
        tell(Event("kept", 0, found[0, 0], {"status": "done", "score": 91.25}))
        tell(Event("begin", 1, found[1, 0]))
        tell(Event("end", 1, found[1, 0], {"status": "failed", "reason": "KeyError: 'x'"}))
        tell(Event("cost", 0))
        tell(Event("cost", 1))
    first, second, third = stream.getvalue().splitlines()
    assert first.startswith("1/6 conv, seed 0: 91.2 %, kept from before; about ")
    assert second.startswith("2/6 weighted, seed 0: failed (KeyError: 'x'), 0.0 s; about ")
    assert third == "measuring costs"


def test_a_live_table_on_a_terminal(plan, clock):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with progress.show(scheduled(plan), True, stream) as tell:
        for event in _events(clock, plan):
            tell(event)
    text = stream.getvalue()
    for part in ("conv(lr=1000000.0)", "90.5 ± 6.4", "2/2", "measuring costs"):
        assert part in text


def test_nothing_is_shown_where_nothing_is_wanted(plan):
    stream = io.StringIO()
    with progress.show(scheduled(plan), False, stream) as tell:
        tell(Event("kept", 0, jobs(plan)[0, 0], {"status": "done", "score": 91.25}))
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (91, "2 min"), (7300, "2 h 2 min")]
)
def test_durations(seconds, text):
    assert progress._duration(seconds) == text
