"""The same plan twice on one machine: the same numbers and the same verdicts."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys

import pytest
import yaml

from compare_process import PATIENCE, Forked, Nursery, numbers
from compare_tiny import tiny, write_idx

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """The same comparison, with tuning, a screen and a frontier, in two folders."""
    folder = tmp_path_factory.mktemp("twice")
    with Nursery() as one, Nursery() as another:  # text is hashed differently there
        found = []
        for nursery, name in ((one, "first"), (another, "second")):
            plan = tiny(
                write_idx(folder / name / "data"),
                rows=["conv", "weighted", "dcls(kernel_size=5, taps=4)", "conv(lr=1e6)"],
                tuning={"factors": [0.3, 1], "budget": "1epoch"},
                screen={"keep": 1},
                frontier={"widths": [0.5], "extents": True, "depthwise": False},
                seeds=5,
                budget="1epoch",
            )
            command = Forked(nursery, folder / name, plan)
            assert command.run() == 1  # a row diverges
            found.append(command)
        yield one, folder, *found


def test_the_same_plan_twice_gives_the_same_numbers_and_verdicts(twice):
    _, _, first, second = twice
    found = first.results()
    assert numbers(found) == numbers(second.results())
    labels = [row["label"] for row in found["rows"]]
    assert labels[-2:] == ["conv(width=0.5)", "conv(kernel_size=5)"]
    assert [len(row["tuning"] or ()) for row in found["rows"]] == [2, 2, 2, 0, 2, 2]
    assert sum(row["verdict"] == "screened out" for row in found["rows"]) == 1
    assert found["rows"][3]["verdict"] == "loss"
    assert all(len(row["trials"]) in (0, 5) for row in found["rows"])


def test_with_the_same_latencies_the_frontier_is_the_same(twice):
    _, _, first, second = twice
    stores = [sqlite3.connect(command.out / "store.sqlite") for command in (first, second)]
    (costs,), (others,) = (db.execute("SELECT id, content FROM costs").fetchall() for db in stores)
    assert costs[0] == others[0]
    assert costs[1] != others[1]  # they were measured
    with stores[1]:
        stores[1].execute("UPDATE costs SET content = ?", (costs[1],))
    for db in stores:
        db.close()
    for command in (first, second):
        assert command.run("report", "out") == 1
    found, again = (command.results()["rows"] for command in (first, second))
    for row, other in zip(found, again, strict=True):
        assert row["frontier"] == other["frontier"]
        assert row["cost"] == other["cost"]
    assert [row["frontier"] is None for row in found].count(False) == 1


def test_another_number_of_seeds_leaves_the_shared_trials_as_they_are(twice):
    nursery, folder, first, _ = twice
    plan = yaml.safe_load((folder / "first" / "plan.yaml").read_text())
    fewer = Forked(nursery, folder / "fewer", plan | {"seeds": [3, 1]})
    assert fewer.run() == 1
    for row, other in zip(
        numbers(first.results())["rows"], numbers(fewer.results())["rows"], strict=True
    ):
        assert [trial["seed"] for trial in other["trials"]] in ([3, 1], [])
        by_seed = {trial["seed"]: trial for trial in row["trials"]}
        assert other["trials"] == [by_seed[trial["seed"]] for trial in other["trials"]]
        assert (row["lr"], row["tuning"], row["screened"]) == (
            other["lr"],
            other["tuning"],
            other["screened"],
        )


def test_the_real_command_gives_the_numbers_of_the_forked_one(twice, tmp_path):
    """What the tests of faults and determinism stand on."""
    _, folder, first, _ = twice
    plan = yaml.safe_load((folder / "first" / "plan.yaml").read_text())
    plan |= {"rows": ["conv"], "seeds": [4], "screen": None, "frontier": None}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    command = [sys.executable, "-m", "omniconv", "compare", "--plan", "plan.yaml", "--out", "out"]
    assert subprocess.run(command, cwd=tmp_path, timeout=PATIENCE, check=False).returncode == 0
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    expected = numbers(first.results())["rows"][0]
    assert row["tuning"] is not None
    found = numbers({"rows": [row], "plan": {"data": ""}, "data": {"source": ""}})["rows"][0]
    assert found["tuning"] == expected["tuning"]
    assert found["trials"] == [expected["trials"][4]]
