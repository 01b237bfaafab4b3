"""What goes wrong: trials that raise, die or diverge, interruption, a folder that is in use."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from compare_process import PATIENCE, Forked, Nursery, check_store, children, numbers, until
from compare_tiny import install_faulty, tiny, write_idx
from omniconv.compare.store import Store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, reads /proc")


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    install_faulty(site)
    with Nursery(site) as nursery:
        yield nursery


def _legs(command: Forked) -> int:
    """How many legs the store holds, seen from outside."""
    path = command.out / "store.sqlite"
    if not path.exists():
        return 0
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return db.execute("SELECT count(*) FROM legs").fetchone()[0]
    except sqlite3.Error:  # in the making
        return 0
    finally:
        db.close()


def test_trials_that_raise_die_or_diverge_are_rows_and_the_rest_finish(nursery, tmp_path):
    rows = ["conv", "faulty:raises", "faulty:dies", "conv(lr=1e6)", "weighted"]
    plan = tiny(write_idx(tmp_path / "data"), rows=rows, seeds=1, budget="1epoch")
    command = Forked(nursery, tmp_path, plan)
    assert command.run() == 1
    found = command.results()
    plain, raises, dies, diverges, weighted = found["rows"]
    assert [row["trials"][0]["status"] for row in found["rows"]] == [
        "done",
        "failed",
        "failed",
        "diverged",
        "done",
    ]
    assert raises["trials"][0]["reason"] == "RuntimeError: broken on two <lines>"
    assert dies["trials"][0]["reason"].startswith("its process was killed by SIGKILL")
    assert "became nan" in diverges["trials"][0]["reason"]
    assert [row["verdict"] for row in (raises, dies)] == ["failed"] * 2
    assert diverges["score"]["mean"] == pytest.approx(100 / 3)
    assert [row["cost"] is None for row in found["rows"]] == [False, True, True, False, False]
    assert weighted["cost"]["ratio"]["parameters"] == 1.0
    assert plain["score"]["n"] == weighted["score"]["n"] == 1
    page = (command.out / "report.html").read_text(encoding="utf-8")
    assert "broken on two &lt;lines&gt;" in page
    assert "broken on two <lines>" not in page
    # a failed trial is tried again, the others are not
    before = len(command.said())
    assert command.run() == 1
    assert sum("kept from before" in line for line in command.said()[before:]) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_comparison_says_that_it_goes_on(nursery, tmp_path, number):
    command = Forked(
        nursery, tmp_path, tiny(write_idx(tmp_path / "data"), budget="30epochs", seeds=1)
    )
    pid = command.start()
    until(lambda: _legs(command) > 1 and children(pid), "a trial")
    os.kill(pid, number)
    assert nursery.wait() == 130  # and the trial is gone
    assert command.said() == ["omniconv: stopped; the same command goes on where this one ended"]
    kept = _legs(command)
    pid = command.start()
    until(lambda: _legs(command) > kept, "an epoch more")
    os.kill(pid, signal.SIGKILL)
    assert nursery.wait() == -9


def test_a_real_process_that_is_killed_takes_its_trial_along_and_goes_on(nursery, tmp_path):
    plan = tiny(write_idx(tmp_path / "data"), rows=["conv"], seeds=1, budget="12epochs")
    undisturbed = Forked(nursery, tmp_path / "undisturbed", plan)
    assert undisturbed.run() == 0
    killed = Forked(nursery, tmp_path / "killed", plan)  # for its folder: it runs on its own
    line = [sys.executable, "-m", "omniconv", "compare", "--plan", "plan.yaml", "--out", "out"]
    process = subprocess.Popen(line, cwd=killed.folder, start_new_session=True)
    (trial,) = until(lambda: _legs(killed) and children(process.pid), "a trial")
    process.kill()
    process.wait()
    until(lambda: not os.path.exists(f"/proc/{trial}"), "the trial to die with its driver")
    assert not (killed.out / "results.json").exists()
    with Store(killed.out) as store:
        ((id, status),) = store.db.execute("SELECT id, status FROM trials").fetchall()
        assert status == "running"
        before = [leg["seconds"] for leg in store.trial(id).curve]
    assert subprocess.run(line, cwd=killed.folder, timeout=PATIENCE, check=False).returncode == 0
    assert numbers(killed.results()) == numbers(undisturbed.results())
    check_store(killed.out, killed.results())
    curve = killed.results()["rows"][0]["trials"][0]["curve"]
    assert [leg["seconds"] for leg in curve][: len(before)] == before  # it was not trained again


def test_a_trial_that_hangs_dies_with_its_driver(nursery, tmp_path):
    plan = tiny(write_idx(tmp_path / "data"), rows=["conv", "faulty:hangs"], seeds=1)
    command = Forked(nursery, tmp_path, plan)
    pid = command.start()
    until((tmp_path / "hanging").exists, "a trial that hangs")
    os.kill(pid, signal.SIGKILL)
    assert nursery.wait() == -9  # and the trial is gone


def test_a_second_driver_is_refused_and_the_first_is_left_alone(nursery, tmp_path):
    plan = tiny(write_idx(tmp_path / "data"), budget="1epoch", seeds=1, rows=["conv"])
    command = Forked(nursery, tmp_path, plan)
    with Store(command.out):
        assert command.run() == 2
    assert command.said() == [
        "omniconv: out must be free, but another comparison is running in 'out'"
    ]
    assert {path.name for path in command.out.iterdir()} == {"lock", "store.sqlite"}


def test_output_that_cannot_be_written_is_one_sentence(nursery, tmp_path):
    command = Forked(nursery, tmp_path, tiny(write_idx(tmp_path / "data"), rows=["conv"]))
    command.out.write_bytes(b"a file")
    assert command.run() == 2
    (line,) = command.said()
    assert line.startswith("omniconv: out must be a folder for results, got 'out'")
    assert command.out.read_bytes() == b"a file"
