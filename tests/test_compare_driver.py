"""A whole comparison, small: what runs, what is kept, what is written, what is shown."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
from pathlib import Path

import pytest

import omniconv.compare as compare
from compare_tiny import jobs, scheduled, tiny, write_idx
from omniconv.compare import comparison, driver, identity, progress, results, worker
from omniconv.compare.prepare import prepare
from omniconv.compare.schedule import Schedule
from omniconv.compare.store import Store

ROWS = ["conv", "weighted", "conv(lr=1e6)"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return compare.parse(
        tiny(write_idx(tmp_path_factory.mktemp("data")), rows=ROWS, budget="1epoch")
    )


@pytest.fixture(scope="module")
def done(plan, tmp_path_factory):
    """A finished comparison: its folder, exit code and results."""
    out = tmp_path_factory.mktemp("done") / "out"
    code, found = compare.run(plan, out, progress=False)
    return out, code, found


def test_every_trial_and_every_cost_is_there(done, plan):
    _, code, found = done
    assert code == 1  # one row diverges
    assert found["plan"] == prepare(plan).plan.to_json()
    assert [row["label"] for row in found["rows"]] == ["conv", "weighted", "conv(lr=1000000.0)"]
    for row in found["rows"]:
        assert [trial["seed"] for trial in row["trials"]] == [0, 1]
        assert [trial["kernels"] for trial in row["trials"]] == [[], []]
        assert row["cost"]["ratio"]["parameters"] == 1.0
    plain, weighted, wild = found["rows"]
    for row in (plain, weighted):
        assert [t["status"] for t in row["trials"]] == ["done"] * 2
        for t in row["trials"]:
            assert [leg["at"] for leg in t["curve"]] == [1]
            assert t["validation_score"] == t["curve"][-1]["validation_score"]
            assert t["seconds"] == t["curve"][0]["seconds"] > 0
        assert row["score"]["mean"] == sum(t["score"] for t in row["trials"]) / 2
    assert [t["status"] for t in wild["trials"]] == ["diverged"] * 2
    assert wild["score"]["mean"] == found["metric"]["chance"] == 100 / 3
    assert [row["verdict"] for row in found["rows"]] == ["baseline", *["too few seeds"] * 2]
    assert weighted["swap"][0]["after"].startswith("WeightedConv2d")
    shown = weighted["pictures"]
    assert len(shown["kernels"][0]["kernels"]) == 4
    assert 0 < shown["receptive_field"]["area"] <= 1
    assert [len(shown["receptive_field"][key]) for key in ("map",)] == [8]
    assert [len(entry["map"]) for entry in shown["attention"]] == [8] * 4
    assert {entry["label"] for entry in shown["attention"]} <= {"0", "1", "2"}


def test_the_files_are_whole_and_say_the_same(done):
    out, _, found = done
    assert {path.name for path in out.iterdir()} == {
        "lock",
        "store.sqlite",
        "results.json",
        "results.csv",
        "report.html",
    }
    assert json.loads((out / "results.json").read_text()) == found
    table = list(csv.DictReader(io.StringIO((out / "results.csv").read_text())))
    assert len(table) == 6
    assert "conv(lr=1000000.0)" in (out / "report.html").read_text()


def test_the_store_is_consistent(done):
    out, _, found = done
    with Store(out) as store:
        assert store.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert store.db.execute("PRAGMA foreign_key_check").fetchall() == []
        ids = {t["id"] for row in found["rows"] for t in row["trials"]}
        assert {id for (id,) in store.db.execute("SELECT id FROM trials")} == ids
        assert len(ids) == 6


def test_the_same_command_again_trains_nothing(done, plan, monkeypatch):
    out, code, found = done
    monkeypatch.setattr(worker, "run", None)
    again_code, again = compare.run(plan, out, progress=False)
    assert again_code == code
    assert again | {"created": ""} == found | {"created": ""}


def test_another_plan_takes_over_the_trials_that_it_shares(done, plan, monkeypatch):
    out, _, found = done
    asked = []

    def no_worker(name, job, threads, time_limit):
        asked.append((name, job.get("seed")))
        yield {"event": "failed", "reason": "not here"}

    monkeypatch.setattr(worker, "run", no_worker)
    more = compare.parse(plan.to_json() | {"rows": ["conv", "weighted"], "seeds": [1, 2]})
    code, other = compare.run(more, out, progress=False)
    assert code == 1
    assert asked == [("compare.trial", 2), ("compare.trial", 2), ("compare.cost", None)]
    for row, before in zip(other["rows"], found["rows"], strict=False):
        assert row["trials"][0] == before["trials"][1]
        assert (row["trials"][1]["status"], row["trials"][1]["reason"]) == ("failed", "not here")
        assert row["cost"] is None


def test_an_id_depends_on_all_that_numbers_depend_on_and_nothing_else(plan, monkeypatch, tmp_path):
    def ids(**changes):
        return {job.id for job in jobs(compare.parse(plan.to_json() | changes)).values()}

    base = ids()
    assert ids() == base
    assert ids(margin=3.0) == base
    assert ids(rows=["conv", "conv(lr=1e6)", "weighted"]) == base
    assert ids(data=write_idx(tmp_path / "moved")) == base
    assert ids(seeds=[0]) < base
    assert len(ids(rows=["conv", "weighted(lr=0.123)"]) & base) == 2
    for change in (
        {"budget": "2epochs"},
        {"batch_size": 17},
        {"width": 5},
        {"threads": 2},
        {"backend": "torch"},
        {"dtype": "float64"},
        {"where": "layer1*"},
        {"backbone": "resnet14"},
        {"optimizer": {"momentum": 0.8}},
        {"limit_train": 30},
        {"data": write_idx(tmp_path / "other", test=31)},
    ):
        assert ids(**change).isdisjoint(base), change
    for name, value in (("torch.__version__", "9"), ("numpy.__version__", "9")):
        with monkeypatch.context() as patch:
            patch.setattr(name, value)
            assert ids().isdisjoint(base), name
    with monkeypatch.context() as patch:
        patch.setattr(identity, "_source", lambda kind: "other")
        assert ids().isdisjoint(base)
    with monkeypatch.context() as patch:
        patch.setattr(identity, "_operator_source", lambda name: f"other {name}")
        assert ids().isdisjoint(base)


def _settled(plan):
    """A schedule whose jobs have all been asked for."""
    schedule = scheduled(plan)
    list(schedule.jobs())
    return schedule


def test_costs_depend_on_the_networks_and_not_on_how_long_they_are_trained(plan):
    def id(**changes):
        return driver.cost_id(_settled(compare.parse(plan.to_json() | changes)))

    for change in (
        {"seeds": 5},
        {"budget": "9epochs"},
        {"optimizer": {"momentum": 0.1}},
        {"margin": 1},
    ):
        assert id(**change) == id()
    assert id(rows=["conv(lr=3)", "weighted(lr=2)", "conv(lr=1)"]) == id()
    for change in ({"batch_size": 3}, {"backend": "torch"}, {"width": 5}, {"rows": ["conv"]}):
        assert id(**change) != id()


def test_a_worker_is_pinned_and_apart_from_the_terminal(monkeypatch):
    started = {}

    class Stop(Exception):
        pass

    def popen(command, **keywords):
        started.update(keywords)
        raise Stop

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(Stop):
        next(worker.run("compare.trial", {}, 3))
    environment = started["env"]
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    assert "mmap_threshold=8589934592" in environment["GLIBC_TUNABLES"]
    assert (environment["GOMP_SPINCOUNT"], environment["PYTHONHASHSEED"]) == ("30000", "0")
    assert started["start_new_session"] is True


def test_a_worker_reports_an_exception_in_one_line():
    (event,) = worker.run("compare.trial", {"point": {"threads": "many"}}, 1)
    assert event["event"] == "failed"
    assert event["reason"].startswith("RuntimeError: set_num_threads expects")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (-9, "its process was killed by SIGKILL (often: out of memory)"),
        (-11, "its process was killed by SIGSEGV"),
        (-99, "its process was killed by 99"),
        (3, "its process ended with code 3: last words"),
    ],
)
def test_the_death_of_a_worker_has_its_reason(code, reason):
    assert worker._death(code, "last words") == reason


def test_the_final_table(done):
    text = progress.final_table(done[2])
    lines = text.splitlines()
    assert lines[0].split() == [
        "row",
        "accuracy,",
        "%",
        "difference",
        "verdict",
        "frontier",
        "parameters",
        "latency",
    ]
    assert lines[1].startswith("conv  ")
    assert "baseline" in lines[1]
    assert "too few seeds" in lines[2]
    assert lines[4].startswith("conv(lr=1000000.0), seed 0: diverged: the ")


@pytest.mark.parametrize(("as_json", "shown"), [(True, False), (False, True)])
def test_with_json_nothing_is_on_standard_output(done, plan, capsys, as_json, shown):
    compare.run(plan, done[0], json=as_json)
    captured = capsys.readouterr()
    assert ("Report: " in captured.out) is shown
    assert captured.out == "" or shown
    assert "6/6 " in captured.err


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (
            ["/usr/bin/omniconv", "compare", "--operators", "conv(width=2)"],
            "omniconv compare --operators 'conv(width=2)'",
        ),
        (["/x/omniconv/__main__.py", "compare"], "omniconv compare"),
        (["pytest", "-q"], "omniconv.compare.run(...)"),
    ],
)
def test_the_command_is_what_was_typed(monkeypatch, argv, command):
    monkeypatch.setattr("sys.argv", argv)
    assert comparison._command() == command


def test_a_full_disk_is_one_sentence(done, plan, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(results, "write", full)
    with pytest.raises(compare.Refused, match=r"cannot go on: .*No space left on device"):
        compare.run(plan, done[0], progress=False)


def test_an_interrupted_trial_leaves_its_checkpoint_and_an_ended_one_does_not(
    plan, tmp_path, monkeypatch
):
    plan = compare.parse(plan.to_json() | {"rows": ["conv"], "seeds": 1})
    prepared = prepare(plan)
    work = tmp_path / "checkpoints"
    endings: list[dict | None] = [None, {"event": "failed", "reason": "why"}]

    def run(name, job, threads, time_limit):
        if name == "compare.cost":
            yield {"event": "end", "rows": [{}]}
            return
        assert Path(job["data"]).exists()
        (work / f".{Path(job['checkpoint']).name}.123").touch()  # killed while it wrote
        Path(job["checkpoint"]).touch()
        end = endings.pop(0)
        if end is None:
            raise KeyboardInterrupt
        yield end

    monkeypatch.setattr(worker, "run", run)
    with Store(tmp_path) as store:
        with pytest.raises(KeyboardInterrupt):
            list(driver.drive(Schedule(prepared, store.trial), store, tmp_path))
        (id,) = (job.id for job in jobs(plan).values())
        assert store.trial(id).status == "running"
        assert {path.name for path in work.iterdir()} == {"data.pt", f"{id}.pt", f".{id}.pt.123"}
        for event in driver.drive(Schedule(prepared, store.trial), store, tmp_path):
            if event.kind == "begin":
                assert {path.name for path in work.iterdir()} == {"data.pt", f"{id}.pt"}
            if event.kind == "end":
                assert not (work / f"{id}.pt").exists()
        assert store.trial(id).status == "failed"
    assert not work.exists()


def test_a_row_that_takes_the_cost_process_down_is_left_out_of_the_next(plan, monkeypatch):
    skips = []

    def run(name, job, threads, time_limit):
        skips.append(dict(job["skip"]))
        for row in range(3):
            if row not in job["skip"]:
                yield {"event": "row", "row": row}
                if row == 1:
                    yield {"event": "failed", "reason": "killed"}
                    return
        yield {"event": "times"}
        yield {"event": "end", "rows": [{"step_ms": 1}, {"reason": "killed"}, {"step_ms": 2}]}

    class NoStore:
        def add_cost(self, *_):
            raise AssertionError("kept what was not complete")

    monkeypatch.setattr(worker, "run", run)
    *_, last = driver._costs(scheduled(plan), NoStore(), "id", "data")
    assert skips == [{}, {1: "killed"}]
    assert last.record["rows"][1] == {"reason": "killed"}


def test_a_death_while_the_clocks_run_is_no_rows_fault(plan, monkeypatch):
    starts = []

    def run(name, job, threads, time_limit):
        starts.append(job["skip"])
        yield {"event": "row", "row": 0}
        yield {"event": "times"}
        yield {"event": "failed", "reason": "killed"}

    monkeypatch.setattr(worker, "run", run)
    *_, last = driver._costs(scheduled(plan), None, "id", "data")
    assert last.record["rows"] == [{"reason": "killed"}] * 3
    assert starts == [{}]
