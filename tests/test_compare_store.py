"""The store: what was committed is there, once, and nothing else is taken for a store."""

from __future__ import annotations

import sqlite3

import pytest

from omniconv.compare import Refused
from omniconv.compare.store import APPLICATION, Store

LEG = {
    "at": 1,
    "train_loss": 1.25,
    "validation_loss": 0.1 + 0.2,
    "validation_score": 96.0,
    "seconds": 2.0,
}


def test_a_trial_is_kept_to_the_last_bit_over_reopening(tmp_path):
    pictures = {"kernels": [{"layer": "a", "type": "Conv2d", "kernels": [[[0.1, -2.0]]]}]}
    with Store(tmp_path / "new" / "folder") as store:
        store.begin("x", {"seed": 0})
        store.add_leg("x", LEG)
        store.add_leg("x", LEG | {"at": 2})
        extras = {"SSIM": 0.5}
        store.end("x", "done", score=200 / 3, extras=extras, pictures=pictures, kernels=["dcls"])
        assert store.trial("y") is None
    with Store(tmp_path / "new" / "folder") as store:
        trial = store.trial("x")
    assert trial is not None
    assert (trial.id, trial.status, trial.reason, trial.score) == ("x", "done", None, 200 / 3)
    assert (trial.extras, trial.pictures, trial.kernels) == ({"SSIM": 0.5}, pictures, ["dcls"])
    assert trial.curve == (LEG, LEG | {"at": 2})
    assert trial.final


def test_a_leg_that_is_reported_again_replaces_the_first(tmp_path):
    with Store(tmp_path) as store:
        store.begin("x", {})
        store.add_leg("x", LEG)
        store.add_leg("x", LEG | {"seconds": 3.0})
        assert [leg["seconds"] for leg in store.trial("x").curve] == [3.0]


@pytest.mark.parametrize(
    ("status", "final"), [("done", True), ("diverged", True), ("failed", False)]
)
def test_a_failed_trial_may_run_again(tmp_path, status, final):
    with Store(tmp_path) as store:
        store.begin("x", {})
        assert not store.trial("x").final
        store.add_leg("x", LEG)
        store.end("x", status, reason="why")
        assert store.trial("x").final is final
        assert store.trial("x").reason == "why"
        store.begin("x", {})
        assert store.trial("x").reason is None
        assert store.trial("x").curve == (LEG,)


def test_a_leg_belongs_to_a_trial(tmp_path):
    with Store(tmp_path) as store, pytest.raises(sqlite3.IntegrityError):
        store.add_leg("x", LEG)


def test_costs_are_kept_and_replaced(tmp_path):
    with Store(tmp_path) as store:
        assert store.cost("c") is None
        store.add_cost("c", [{"step_ms": 1.5}])
        store.add_cost("c", [{"step_ms": 2.5}])
    with Store(tmp_path) as store:
        assert store.cost("c") == [{"step_ms": 2.5}]


def test_the_last_plan_is_the_one_that_was_worked_on_last(tmp_path):
    with Store(tmp_path) as store:
        assert store.last_plan() is None
        for content in ({"a": 1}, {"b": 2}, {"a": 1}):
            store.add_plan(content)
    with Store(tmp_path) as store:
        assert store.last_plan() == {"a": 1}
        assert store.db.execute("SELECT count(*) FROM plans").fetchone() == (2,)


def test_commits_are_synchronous(tmp_path):
    with Store(tmp_path) as store:
        assert store.db.execute("PRAGMA synchronous").fetchone() == (2,)
        assert store.db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_second_driver_is_refused_and_the_first_goes_on(tmp_path):
    with Store(tmp_path) as store:
        with pytest.raises(Refused, match="another comparison is running in"):
            Store(tmp_path)
        store.begin("x", {})
    Store(tmp_path).__exit__(None, None, None)


def test_a_store_of_the_version_before_is_brought_up_to_date(tmp_path):
    with Store(tmp_path) as store:
        store.begin("x", {})
        store.end("x", "done", score=1.0)
        store.db.executescript("ALTER TABLE trials DROP COLUMN kernels; PRAGMA user_version = 2;")
    for _ in range(2):
        with Store(tmp_path) as store:
            assert store.trial("x").score == 1.0
            assert store.trial("x").kernels is None
            store.begin("y", {})
            store.end("y", "done", kernels=["depthwise"])
            assert store.trial("y").kernels == ["depthwise"]


def _other_database(path):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE trials (id TEXT)")
    db.close()


def _other_empty_database(path):
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA application_id = 7")
    db.close()


def _other_version(path):
    Store(path.parent).__exit__(None, None, None)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 7")
    db.close()


def _torn(path):
    with Store(path.parent) as store:
        for number in range(300):
            store.begin(f"{number:064}", {"seed": number})
    data = bytearray(path.read_bytes())
    data[4096:20480] = bytes(16384)
    path.write_bytes(data)


def _cut(path):
    Store(path.parent).__exit__(None, None, None)
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.write_bytes(b"PNG\r\n" * 400), "cannot be used"),
        (lambda path: path.mkdir(), "cannot be used"),
        (_other_database, "is a database of something else"),
        (_other_empty_database, "is a database of something else"),
        (_other_version, "got version 7"),
        (_torn, "damaged|cannot be used"),
        (_cut, "damaged|cannot be used"),
    ],
    ids=[
        "other bytes",
        "folder",
        "other database",
        "other empty database",
        "other version",
        "torn",
        "cut",
    ],
)
def test_what_is_no_store_is_refused_and_left_alone(tmp_path, spoil, sentence):
    path = tmp_path / "store.sqlite"
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    for _ in range(2):  # the lock is free again after a refusal
        with pytest.raises(Refused, match=sentence) as refusal:
            Store(tmp_path)
        assert str(path) in str(refusal.value)
        assert "\n" not in str(refusal.value)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_store_whose_making_was_interrupted_is_made(tmp_path):
    db = sqlite3.connect(tmp_path / "store.sqlite")
    db.execute("PRAGMA journal_mode = WAL")
    db.close()
    with Store(tmp_path) as store:
        store.begin("x", {})
        assert store.db.execute("PRAGMA application_id").fetchone() == (APPLICATION,)


@pytest.mark.parametrize("place", ["file", "file/below", "\0", "x" * 300])
def test_a_folder_that_cannot_be_is_refused(tmp_path, place):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Refused, match="out must be a folder"):
        Store(tmp_path / place)
