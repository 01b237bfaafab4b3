"""The whole of a comparison: check, train, measure, judge, write."""

from __future__ import annotations

import shlex
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from omniconv.compare import progress as display
from omniconv.compare import results as files
from omniconv.compare.driver import drive
from omniconv.compare.plan import Plan
from omniconv.compare.prepare import Prepared, prepare
from omniconv.compare.refused import Refused
from omniconv.compare.schedule import Schedule
from omniconv.compare.store import Store
from omniconv.tasks.task import TaskData

__all__ = ["rebuild", "run"]


def run(
    plan: Plan,
    out: str | Path,
    *,
    json: bool = False,
    progress: bool = True,
    dataset: TaskData | None = None,
) -> tuple[int, dict[str, Any]]:
    """Run a comparison; what an earlier call finished is not done again.

    Args:
        plan: From :func:`omniconv.compare.plan_from_flags` or :func:`omniconv.compare.plan.parse`.
        out: Folder of the store and of results.json, results.csv and report.html.
        json: Nothing is written to standard output.
        progress: Show progress on standard error, and a table on standard output at the end.
        dataset: Data of one's own instead of the plan's
            (:func:`omniconv.tasks.classify.from_datasets`).

    Returns:
        Exit code (0 done, 1 done but something failed or diverged) and the content of
        results.json.

    Raises:
        Refused: The plan or the folder cannot be used; one sentence says why. A bad plan is
            refused before anything is written.
        KeyboardInterrupt: Interrupted; a line says that the same call goes on.
    """
    prepared = prepare(plan, dataset)
    folder = Path(out)
    with _storing(folder), Store(folder) as store, _interruptible(progress):
        command = _command()
        store.add_plan({**prepared.to_json(), "command": command})
        schedule = Schedule(prepared, store.trial)
        costs: list[dict[str, Any]] | None = None
        with (
            display.show(schedule, progress) as tell,
            closing(drive(schedule, store, folder)) as events,
        ):
            for event in events:
                tell(event)
                if event.kind == "costs":
                    costs = event.record["rows"]
        results = files.assemble(prepared, store, command, costs)
        _write(results, folder)
    if progress and not json:
        print(display.final_table(results))
        print(f"\nReport: {folder / 'report.html'}")
    return (0 if files.complete(results) else 1), results


def rebuild(out: str | Path) -> tuple[int, dict[str, Any]]:
    """Write results.json, results.csv and report.html again from the store of a folder.

    They are of the plan that was worked on last, as far as it came; neither data nor training are
    needed.

    Args:
        out: The folder of an earlier run.

    Returns:
        As :func:`run`.

    Raises:
        Refused: There is no store, or no plan in it.
    """
    folder = Path(out)
    if not (folder / "store.sqlite").is_file():
        raise Refused(f"store must be the folder of an earlier comparison, got {str(folder)!r}")
    with _storing(folder), Store(folder) as store:
        content = store.last_plan()
        if content is None:
            raise Refused(f"the store in {str(folder)!r} must hold a plan, but it is empty")
        results = files.assemble(Prepared.from_json(content), store, content["command"])
        _write(results, folder)
    return (0 if files.complete(results) else 1), results


def _write(results: dict[str, Any], folder: Path) -> None:
    """Write the files, and remove what an earlier writer left aside when it was killed."""
    for name in ("results.json", "results.csv", "report.html"):
        for leftover in folder.glob(f".{name}.*"):
            leftover.unlink(missing_ok=True)
    files.write(results, folder)


@contextmanager
def _storing(folder: Path) -> Iterator[None]:
    """A store or a file that cannot be written ends the run with one sentence."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise Refused(f"the comparison in {str(folder)!r} cannot go on: {error}") from error


def _command() -> str:
    """What was typed, if it was our command line."""
    name = Path(sys.argv[0]).name
    if name == "omniconv" or Path(sys.argv[0]).parts[-2:] == ("omniconv", "__main__.py"):
        return shlex.join(["omniconv", *sys.argv[1:]])
    return "omniconv.compare.run(...)"


@contextmanager
def _interruptible(progress: bool) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run in order, with one line."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread
        before = None
    try:
        yield
    except KeyboardInterrupt:
        if progress:
            print(
                "omniconv: stopped; the same command goes on where this one ended",
                file=sys.stderr,
            )
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
