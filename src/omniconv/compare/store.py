"""The store: every trial by its id, its curve, measured costs and plans, in one SQLite file.

One driver at a time holds the folder's lock and is the only writer. Write-ahead log and
``synchronous=FULL``: what was committed is there after a crash, and a leg of a training (an epoch,
or some steps) is finished when its row is. Trials of other plans stay in the file and are found
again by their ids.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from omniconv.compare.refused import Refused

__all__ = ["Store", "Trial"]

APPLICATION = 0x6F636D70
VERSION = 3
SCHEMA = f"""
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
CREATE TABLE trials (
    id TEXT PRIMARY KEY,
    point TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('running', 'done', 'diverged', 'failed')),
    reason TEXT,
    score REAL,
    extras TEXT,
    pictures TEXT,
    kernels TEXT
);
CREATE TABLE legs (
    trial TEXT NOT NULL REFERENCES trials (id),
    at INTEGER NOT NULL,
    train_loss REAL NOT NULL,
    validation_loss REAL NOT NULL,
    validation_score REAL NOT NULL,
    seconds REAL NOT NULL,
    PRIMARY KEY (trial, at)
);
CREATE TABLE costs (
    id TEXT PRIMARY KEY,
    content TEXT NOT NULL
);
CREATE TABLE plans (
    number INTEGER PRIMARY KEY,
    content TEXT NOT NULL UNIQUE
);
"""
UPGRADE = f"ALTER TABLE trials ADD COLUMN kernels TEXT; PRAGMA user_version = {VERSION};"
"""Of a store of the version before."""

LEG = ("at", "train_loss", "validation_loss", "validation_score", "seconds")


@dataclass(frozen=True)
class Trial:
    """One training run as the store knows it."""

    id: str
    status: str
    reason: str | None
    score: float | None
    extras: dict[str, float] | None
    pictures: dict[str, Any] | None
    curve: tuple[dict[str, Any], ...]
    kernels: list[str] | None = None

    @property
    def final(self) -> bool:
        """Whether running it again could not change anything."""
        return self.status in ("done", "diverged")


class Store:
    """The store of a folder; a context manager that holds its lock.

    Raises:
        Refused: The folder or the file cannot be used, or another driver is at work.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "store.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = open(folder / "lock", "ab")  # noqa: SIM115
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise Refused(
                f"out must be a folder for results, got {str(folder)!r}: {reason}"
            ) from None
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.lock.close()
            raise Refused(
                f"out must be free, but another comparison is running in {str(folder)!r}"
            ) from None
        try:
            self.db = self._open()
        except BaseException:
            self.lock.close()
            raise

    def _open(self) -> sqlite3.Connection:
        """The database, made or checked."""
        wanted = f"{str(self.path)!r} must be a store of omniconv compare"
        try:
            db = sqlite3.connect(self.path, isolation_level=None)
            try:
                new = self._is_new(db, wanted)
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                db.execute("PRAGMA foreign_keys = ON")
                if new:
                    db.executescript(f"BEGIN; {SCHEMA} COMMIT;")
            except BaseException:
                db.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise Refused(f"{wanted}, but it cannot be used: {error}") from None
        return db

    def _is_new(self, db: sqlite3.Connection, wanted: str) -> bool:
        """Whether the database is still empty; refuses one that is not ours, or is damaged."""
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if not tables and not application:
            return True
        if application != APPLICATION:
            raise Refused(f"{wanted}, but it is a database of something else")
        if version not in (VERSION - 1, VERSION):
            raise Refused(f"{wanted} of version {VERSION}, got version {version}")
        (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise Refused(f"{wanted}, but it is damaged: {' '.join(found.split())}")
        if version != VERSION:
            db.executescript(f"BEGIN; {UPGRADE} COMMIT;")
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.db.close()
        self.lock.close()

    def trial(self, id: str) -> Trial | None:
        """The trial with its curve, if there is one."""
        found = self.db.execute(
            "SELECT id, status, reason, score, extras, pictures, kernels FROM trials WHERE id = ?",
            (id,),
        ).fetchone()
        if found is None:
            return None
        rows = self.db.execute(
            f"SELECT {', '.join(LEG)} FROM legs WHERE trial = ? ORDER BY at", (id,)
        )
        curve = tuple(dict(zip(LEG, row, strict=True)) for row in rows)
        id, status, reason, score, *others = found
        extras, pictures, kernels = (json.loads(text or "null") for text in others)
        return Trial(id, status, reason, score, extras, pictures, curve, kernels)

    def begin(self, id: str, point: Mapping[str, Any]) -> None:
        """The trial is running; what a failed one left is kept."""
        self.db.execute(
            "INSERT INTO trials (id, point, status) VALUES (?, ?, 'running') "
            "ON CONFLICT (id) DO UPDATE SET status = 'running', reason = NULL",
            (id, json.dumps(point, sort_keys=True)),
        )

    def add_leg(self, id: str, record: Mapping[str, Any]) -> None:
        """A leg is finished; a record that ends at the same place is replaced."""
        marks = ", ".join("?" for _ in LEG)
        self.db.execute(
            f"INSERT OR REPLACE INTO legs (trial, {', '.join(LEG)}) VALUES (?, {marks})",
            (id, *(record[name] for name in LEG)),
        )

    def end(
        self,
        id: str,
        status: str,
        *,
        reason: str | None = None,
        score: float | None = None,
        extras: dict[str, float] | None = None,
        pictures: dict[str, Any] | None = None,
        kernels: list[str] | None = None,
    ) -> None:
        """The trial has ended."""
        self.db.execute(
            "UPDATE trials SET status = ?, reason = ?, score = ?, extras = ?, pictures = ?, "
            "kernels = ? WHERE id = ?",
            (status, reason, score, *map(json.dumps, (extras, pictures, kernels)), id),
        )

    def add_plan(self, content: Mapping[str, Any]) -> None:
        """Keep a plan as the one that was worked on last."""
        text = json.dumps(content, sort_keys=True)
        self.db.execute("BEGIN")
        self.db.execute("DELETE FROM plans WHERE content = ?", (text,))
        self.db.execute("INSERT INTO plans (content) VALUES (?)", (text,))
        self.db.execute("COMMIT")

    def last_plan(self) -> dict[str, Any] | None:
        """The plan that was worked on last, if there is one."""
        found = self.db.execute("SELECT content FROM plans ORDER BY number DESC").fetchone()
        return None if found is None else json.loads(found[0])

    def cost(self, id: str) -> list[dict[str, Any]] | None:
        """The costs measured under this id, if there are any."""
        found = self.db.execute("SELECT content FROM costs WHERE id = ?", (id,)).fetchone()
        return None if found is None else json.loads(found[0])

    def add_cost(self, id: str, content: list[dict[str, Any]]) -> None:
        """Keep measured costs."""
        self.db.execute("INSERT OR REPLACE INTO costs VALUES (?, ?)", (id, json.dumps(content)))
