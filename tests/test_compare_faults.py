"""What goes wrong: kill -9 anywhere, trials that raise, die or diverge, interruption."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from compare_tiny import install_faulty, tiny, write_idx
from omniconv.compare.store import Store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PATIENCE = 120.0


class Command:
    """``omniconv compare`` on a plan file, in a process."""

    def __init__(self, folder: Path, plan: dict, site: Path | None = None) -> None:
        self.out = folder / "out"
        path = folder / "plan.yaml"
        path.write_text(yaml.safe_dump(plan), encoding="utf-8")
        self.command = [sys.executable, "-m", "omniconv", "compare", "--plan", str(path)]
        self.command += ["--out", str(self.out)]
        self.environment = os.environ | ({"PYTHONPATH": str(site)} if site else {})
        self.log = folder / "log"

    def start(self) -> subprocess.Popen:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )

    def finish(self) -> tuple[int, dict]:
        """Run to the end: exit code and results."""
        code = self.start().wait(PATIENCE)
        return code, json.loads((self.out / "results.json").read_text(encoding="utf-8"))

    def epochs(self) -> int:
        """How many epochs the store holds, seen from outside."""
        import sqlite3

        path = self.out / "store.sqlite"
        if not path.exists():
            return 0
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return db.execute("SELECT count(*) FROM legs").fetchone()[0]
        except sqlite3.Error:  # in the making
            return 0
        finally:
            db.close()


def _children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _until(condition, what: str):
    """Wait for something to become true; returns it."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"waited in vain for {what}")


def _numbers(results: dict) -> list:
    """What must not depend on what happened on the way."""
    return [
        (
            [row[key] for key in ("label", "score", "difference", "verdict", "pictures")],
            [(trial["seed"], trial["status"], trial["score"]) for trial in row["trials"]],
            [
                [leg[key] for key in ("at", "train_loss", "validation_loss")]
                for trial in row["trials"]
                for leg in trial["curve"]
            ],
        )
        for row in results["rows"]
    ]


def _check_store(out: Path, trials: int, epochs: int) -> None:
    with Store(out) as store:
        assert store.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert store.db.execute("PRAGMA foreign_key_check").fetchall() == []
        (done,) = store.db.execute("SELECT count(*) FROM trials WHERE status = 'done'").fetchone()
        assert done == trials
        per_trial = store.db.execute("SELECT count(*), max(at) FROM legs GROUP BY trial")
        assert per_trial.fetchall() == [(epochs, epochs)] * trials


def test_killed_at_ten_moments_a_comparison_ends_in_the_same_numbers(tmp_path):
    epochs, seeds = 6, 2
    data = write_idx(tmp_path / "data", train=2000)  # an epoch takes about 0.2 s
    plan = tiny(data, budget=f"{epochs}epochs", seeds=seeds)
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
    undisturbed = Command(tmp_path / "undisturbed", plan)
    code, expected = undisturbed.finish()
    assert code == 0
    command = Command(tmp_path / "killed", plan)
    draw = random.Random(1)
    process = command.start()
    for moment in range(10):
        goal = command.epochs() + draw.choice((0, 1, 1, 2))
        _until(
            lambda p=process, g=goal: (
                p.poll() is not None or (_children(p.pid) and command.epochs() >= g)
            ),
            "an epoch",
        )
        time.sleep(draw.random() * 0.3)  # in an epoch, in a checkpoint, between two trials, ...
        trials = _children(process.pid)
        if moment % 2 and trials:
            os.kill(trials[0], signal.SIGKILL)
        elif process.poll() is None:
            process.kill()
            process.wait()
            for trial in trials:
                _until(lambda t=trial: not _alive(t), "a trial to die with its driver")
        if process.poll() is not None:
            process = command.start()
    process.wait(PATIENCE)
    code, found = command.finish()
    assert code == 0
    assert _numbers(found) == _numbers(expected)
    _check_store(command.out, trials=2 * seeds, epochs=epochs)
    assert {path.name for path in command.out.iterdir()} == {
        "lock",
        "store.sqlite",
        "results.json",
        "results.csv",
        "report.html",
    }


def test_trials_that_raise_die_or_diverge_are_rows_and_the_rest_finish(tmp_path):
    site = tmp_path / "site"
    install_faulty(site)
    rows = ["conv", "faulty:raises", "faulty:dies", "conv(lr=1e6)", "weighted"]
    plan = tiny(write_idx(tmp_path / "data"), rows=rows, seeds=1, budget="1epoch")
    command = Command(tmp_path, plan, site)
    code, found = command.finish()
    assert code == 1
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
    before = command.log.read_text(encoding="utf-8")
    command.finish()
    after = command.log.read_text(encoding="utf-8")[len(before) :]
    assert after.count("kept from before") == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_comparison_says_that_it_goes_on(tmp_path, number):
    command = Command(tmp_path, tiny(write_idx(tmp_path / "data"), budget="30epochs", seeds=1))
    process = command.start()
    (trial,) = _until(lambda: command.epochs() > 1 and _children(process.pid), "a trial")
    process.send_signal(number)
    assert process.wait(PATIENCE) == 130
    assert not _alive(trial)
    last = command.log.read_text(encoding="utf-8").splitlines()[-1]
    assert last == "omniconv: stopped; the same command goes on where this one ended"
    kept = command.epochs()
    process = command.start()
    _until(lambda: command.epochs() > kept, "an epoch more")
    process.kill()
    process.wait()


def test_a_second_driver_is_refused_and_the_first_is_left_alone(tmp_path):
    plan = tiny(write_idx(tmp_path / "data"), budget="1epoch", seeds=1, rows=["conv"])
    command = Command(tmp_path, plan)
    with Store(command.out):
        assert command.start().wait(PATIENCE) == 2
    assert command.log.read_text(encoding="utf-8").splitlines() == [
        f"omniconv: out must be free, but another comparison is running in {str(command.out)!r}"
    ]
    assert {path.name for path in command.out.iterdir()} == {"lock", "store.sqlite"}


def test_output_that_cannot_be_written_is_one_sentence(tmp_path):
    command = Command(tmp_path, tiny(write_idx(tmp_path / "data"), rows=["conv"]))
    command.out.write_bytes(b"a file")
    assert command.start().wait(PATIENCE) == 2
    (line,) = command.log.read_text(encoding="utf-8").splitlines()
    assert line.startswith(f"omniconv: out must be a folder for results, got {str(command.out)!r}")
    assert command.out.read_bytes() == b"a file"
