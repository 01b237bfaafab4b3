"""kill -9 at 25 moments, everywhere: the same command ends in the same numbers."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter

import pytest
import torch

from compare_process import FILES, Forked, Nursery, check_store, numbers
from compare_tiny import tiny, write_idx
from omniconv.compare.store import Store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, reads /proc")

RUNS = (
    # What is killed in the first trial that a run begins, in the next, ...: the driver (d) or the
    # trial (t; u: one without a checkpoint) at some line, nothing (.), or between a checkpoint and
    # the commit of its leg the trial (T), the driver (D), or both at once (B).
    # Four trials of tuning:
    *("D", "td", "..Td", "ud", "..d"),
    # two of the screen,
    *("tD", "ud", ".td", ".d"),
    # four of training,
    *("tTd", ".ud", "..B"),
    # then in the costs the driver (c) or the worker (w), and in the report the driver (r at some
    # line, R while a file is half written).
    *(".c", "wR", "r"),
)

SPAN = {"d": 80, "t": 90, "u": 1200, "c": 50, "w": 300, "r": 150}
"""About as many lines of the product's code run there at least."""

WHO = ("driver", "worker")

EXACT = {
    "T": {"who": "worker", "event": "return", "name": "save", "count": 1},
    "D": {"who": "driver", "event": "call", "name": "add_leg", "count": 1},
    "B": {"who": "worker", "event": "return", "name": "save", "count": 2, "both": True},
    "R": {"who": "driver", "event": "call", "name": "<lambda>", "count": 1},
}


def _kills(run: str, draw: random.Random) -> dict:
    sections = {"c": "cost", "w": "cost", "r": "report", "R": "report"}
    return {
        sections.get(letter, str(index)): EXACT.get(letter)
        or {"who": "worker" if letter in "tuw" else "driver", "line": draw.randrange(SPAN[letter])}
        for index, letter in enumerate(run)
        if letter != "."
    }


def _ahead(command: Forked) -> int:
    """How many legs the newest checkpoint holds that the store does not."""
    trials = (command.out / "checkpoints").glob("[0-9a-f]" * 64 + ".pt")
    newest = max(trials, key=lambda path: path.stat().st_mtime_ns)
    curve = json.loads(torch.load(newest, weights_only=True)["curve"])
    with Store(command.out) as store:
        return len(curve) - len(store.trial(newest.stem).curve)


def test_killed_at_25_moments_a_comparison_ends_in_the_same_numbers(tmp_path):
    draw = random.Random(25)
    plan = tiny(
        write_idx(tmp_path / "data"),
        rows=["conv", "weighted", "dcls(kernel_size=3, taps=4, lr=0.1)"],
        tuning={"factors": [0.3, 1], "budget": "1epoch"},
        screen={"keep": 1},
        budget="3epochs",
    )
    with Nursery() as nursery:
        undisturbed = Forked(nursery, tmp_path / "undisturbed", plan)
        assert undisturbed.run() == 0
        command = Forked(nursery, tmp_path / "killed", plan)
        for run in RUNS:
            assert command.run(kills=_kills(run, draw)) == -9, run
            if run[-1] in "DB":
                assert _ahead(command) > 0
        assert command.run() == 0
    kills = command.kills()
    assert len(kills) == 25
    assert Counter(where for _, _, where in kills if "-" in where) == {
        "call-<lambda>": 1,
        "call-add_leg": 2,
        "return-save": 3,
    }
    stages = Counter((stage, who) for stage, who, _ in kills)
    assert all(stages[stage, who] >= 2 for stage in ("tune", "screen", "train") for who in WHO)
    found, expected = command.results(), undisturbed.results()
    assert numbers(found) == numbers(expected)
    check_store(command.out, found)
    assert {path.name for path in command.out.iterdir()} == FILES
