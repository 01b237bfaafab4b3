"""Disk, memory and time that run out, and data that change under a run."""

from __future__ import annotations

import resource
import sys

import pytest
import torch

from compare_process import FILES, Forked, Nursery, check_store, numbers
from compare_tiny import change_data, install_faulty, tiny, write_idx
from omniconv.compare import whole
from omniconv.compare.store import Store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, reads /proc")


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    install_faulty(site)
    with Nursery(site) as nursery:
        yield nursery


def _command(nursery, folder, seed=0, **changes):
    data = write_idx(folder / "data", seed=seed)
    plan = {"rows": ["conv", "weighted"], "seeds": 1, "budget": "1epoch"} | changes
    return Forked(nursery, folder, tiny(data, **plan))


@pytest.fixture(scope="module")
def undisturbed(nursery, tmp_path_factory):
    """The tiny plan, run without a fault."""
    command = _command(nursery, tmp_path_factory.mktemp("undisturbed"))
    assert command.run() == 0
    return command


def _goes_on(command, undisturbed):
    """The same command, without the fault, ends in the numbers of an undisturbed one."""
    assert command.run() == 0
    assert numbers(command.results()) == numbers(undisturbed.results())
    check_store(command.out, command.results())
    assert {path.name for path in command.out.iterdir()} == FILES


def test_a_checkpoint_that_does_not_fit_is_a_failed_row_and_the_rest_goes_on(nursery, tmp_path):
    command = _command(nursery, tmp_path, rows=["conv", "conv(width=8)", "weighted"])
    assert command.run(limits={"RLIMIT_FSIZE": 1_500_000}) == 1
    first, wide, last = command.results()["rows"]
    assert [row["trials"][0]["status"] for row in (first, wide, last)] == ["done", "failed", "done"]
    assert wide["trials"][0]["reason"] == "OSError: [Errno 27] File too large"
    assert (wide["trials"][0]["score"], wide["score"], wide["verdict"]) == (None, None, "failed")
    page = (command.out / "report.html").read_text(encoding="utf-8")
    assert "File too large" in page
    assert {path.name for path in command.out.iterdir()} == FILES
    assert command.run() == 0
    for row, before in zip(command.results()["rows"], (first, None, last), strict=True):
        assert row["trials"][0]["status"] == "done"
        assert before is None or row["trials"] == before["trials"]


@pytest.mark.parametrize(
    ("limit", "sentence", "trials"),
    [
        (4_000, "'out/store.sqlite' must be a store of omniconv compare, but it cannot be used", 0),
        (40_000, "the comparison in 'out' cannot go on: disk I/O error", 0),
        (100_000, "the comparison in 'out' cannot go on: disk I/O error", 1),
    ],
)
def test_a_store_that_cannot_grow_is_one_sentence(
    nursery, undisturbed, tmp_path, limit, sentence, trials
):
    command = _command(nursery, tmp_path)
    assert command.run(limits={"RLIMIT_FSIZE": limit}) == 2
    *done, last = command.said()
    assert last.startswith(f"omniconv: {sentence}")
    assert len(done) == trials
    assert not (command.out / "report.html").exists()
    _goes_on(command, undisturbed)


def test_data_that_do_not_fit_are_one_sentence(nursery, tmp_path):
    commands = [_command(nursery, tmp_path / name) for name in ("full", "roomy")]
    for command in commands:
        write_idx(command.folder / "data", test=3000)
    command, expected = commands
    assert command.run(limits={"RLIMIT_FSIZE": 100_000}) == 2
    assert command.said() == [
        "omniconv: the comparison in 'out' cannot go on: [Errno 27] File too large"
    ]
    assert list((command.out / "checkpoints").iterdir()) == []
    assert expected.run() == 0
    _goes_on(command, expected)


def test_wherever_the_disk_is_full_tensors_are_an_os_error_and_the_old_file(tmp_path):
    path = tmp_path / "tensors.pt"
    content = {"a": torch.zeros(3000), "b": torch.ones(20, 100), "c": "text"}
    whole.save_tensors(path, content)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in range(0, len(before), 499):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                whole.save_tensors(path, content)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_that_does_not_fit_leaves_the_old_one(nursery, undisturbed, tmp_path):
    command = _command(nursery, tmp_path)
    assert command.run() == 0
    before = {name: (command.out / name).read_bytes() for name in FILES if "." in name}
    limit = len(before["report.html"]) - 1
    assert limit > max(len(before[name]) for name in before if name != "report.html")
    assert command.run(limits={"RLIMIT_FSIZE": limit}) == 2
    assert command.said()[-1] == (
        "omniconv: the comparison in 'out' cannot go on: [Errno 27] File too large"
    )
    assert (command.out / "report.html").read_bytes() == before["report.html"]
    _goes_on(command, undisturbed)


def test_memory_that_runs_out_is_a_failed_row_that_says_so(nursery, undisturbed, tmp_path):
    command = _command(nursery, tmp_path, rows=["conv", "faulty:hoards", "weighted"])
    assert command.run(limits={"RLIMIT_AS": 2**30}) == 1
    first, hoards, last = command.results()["rows"]
    assert hoards["trials"][0]["status"] == hoards["verdict"] == "failed"
    assert "memory" in hoards["trials"][0]["reason"]
    assert hoards["cost"] is None
    for row, other in zip((first, last), undisturbed.results()["rows"], strict=True):
        assert row["cost"] is not None
        assert row["trials"][0]["score"] == other["trials"][0]["score"]
    assert "memory" in (command.out / "report.html").read_text(encoding="utf-8")


def test_a_trial_that_hangs_is_given_up_and_the_rest_finish(nursery, undisturbed, tmp_path):
    rows = ["conv", "faulty:hangs", "weighted"]
    command = _command(nursery, tmp_path, rows=rows, time_limit=5)
    assert command.run() == 1  # and none of its processes is left
    first, hangs, last = command.results()["rows"]
    assert hangs["trials"][0]["status"] == hangs["verdict"] == "failed"
    assert hangs["trials"][0]["reason"] == "it took more than the 5 s allowed"
    assert hangs["cost"] is None
    for row, other in zip((first, last), undisturbed.results()["rows"], strict=True):
        assert row["trials"][0]["score"] == other["trials"][0]["score"]
    assert "more than the 5 s" in (command.out / "report.html").read_text(encoding="utf-8")


def test_data_that_change_under_a_run_change_nothing(nursery, undisturbed, tmp_path):
    command = _command(nursery, tmp_path)
    assert command.run(act={"0": "change_data"}) == 0
    assert numbers(command.results()) == numbers(undisturbed.results())
    before = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    after = {path.name: path.read_bytes() for path in (undisturbed.folder / "data").iterdir()}
    assert before != after


def test_data_that_change_between_kill_and_resumption_are_not_mixed(nursery, tmp_path):
    command = _command(nursery, tmp_path / "changed", seeds=2)
    kill = {"who": "driver", "event": "call", "name": "add_leg", "count": 1}
    assert command.run(kills={"2": kill}) == -9
    assert len(list((command.out / "checkpoints").glob("*.pt"))) == 2
    with Store(command.out) as store:
        old = {id for (id,) in store.db.execute("SELECT id FROM trials")}
    assert len(old) == 3
    change_data(command.folder)
    assert command.run() == 0
    fresh = _command(nursery, tmp_path / "fresh", seed=1, seeds=2)
    assert fresh.run() == 0
    assert numbers(command.results()) == numbers(fresh.results())
    ids = {trial["id"] for row in command.results()["rows"] for trial in row["trials"]}
    assert ids.isdisjoint(old)
    assert {path.name for path in command.out.iterdir()} == FILES


@pytest.mark.parametrize("fault", ["truncate_snapshot", "erase_snapshot", "remove_snapshot"])
def test_a_snapshot_that_is_destroyed_is_a_reason_and_never_a_number(
    nursery, undisturbed, tmp_path, fault
):
    command = _command(nursery, tmp_path)
    assert command.run(act={"1": fault}) == 1
    first, last = command.results()["rows"]
    expected = undisturbed.results()["rows"][0]
    assert first["trials"][0]["score"] == expected["trials"][0]["score"]
    assert (last["trials"][0]["status"], last["score"], last["verdict"]) == (
        "failed",
        None,
        "failed",
    )
    assert last["trials"][0]["reason"]
    assert first["cost"] is last["cost"] is None
    _goes_on(command, undisturbed)


def test_a_report_of_a_killed_comparison_says_how_far_it_came(nursery, tmp_path):
    command = _command(nursery, tmp_path, seeds=2)
    kill = {"who": "driver", "event": "call", "name": "end", "count": 1}
    assert command.run(kills={"2": kill}) == -9
    assert command.run("report", "out") == 1
    plain, weighted = command.results()["rows"]
    assert [trial["status"] for trial in plain["trials"]] == ["done", "running"]
    assert [trial["status"] for trial in weighted["trials"]] == ["done", "missing"]
    for row in (plain, weighted):
        assert row["trials"][1]["score"] is None
        assert row["score"]["n"] == 1
        assert row["score"]["mean"] == row["trials"][0]["score"]
        assert row["cost"] is None
    page = (command.out / "report.html").read_text(encoding="utf-8")
    assert "running" in page
    assert "missing" in page
    (command.out / "report.html").unlink()
    with Store(command.out):  # as a driver at work does
        assert command.run("report", "out") == 2
    assert command.said()[-1] == (
        "omniconv: out must be free, but another comparison is running in 'out'"
    )
    assert not (command.out / "report.html").exists()
    assert command.run() == 0
