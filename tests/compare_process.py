"""``omniconv`` in a process of its own; forked, so that it starts at once; killed where one says.

A :class:`Nursery` is one process that has imported everything. It forks a driver for every command;
the driver runs the real command line and starts its workers with ``fork`` where the product starts
a new interpreter. All else is the product's own code: pipes, sessions, locks, files, the store.

A moment is where a process kills itself with SIGKILL: a line of the product's code, counted by
``sys.settrace``, or the call or the return of one of its functions.
"""

from __future__ import annotations

import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from ctypes import CDLL
from importlib import import_module
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import yaml

PATIENCE = 120.0
PR_SET_CHILD_SUBREAPER = 36
FILES = frozenset({"lock", "store.sqlite", "results.json", "results.csv", "report.html"})
"""What a finished comparison leaves."""

LINES = {
    "driver": ("driver", "store", "worker"),
    "trial": ("trial", "worker", "whole", "budget", "optimizer"),
    "cost": ("cost", "worker", "whole"),
    "report": ("comparison", "results", "whole", "report/files"),
}
"""The files whose lines are counted, by who is to be killed (in compare/)."""


def children(pid: int) -> list[int]:
    """The processes that a process has started and that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def until(condition: Any, what: str) -> Any:
    """Wait for something to become true; returns it."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"waited in vain for {what}")


class Nursery:
    """A context manager; ``site`` is put on the path of all commands.

    Orphans become its children: a command has ended when none of its processes is left.
    """

    def __init__(self, site: Path | None = None) -> None:
        path = [str(Path(__file__).parent), *([str(site)] if site else [])]
        path += filter(None, [os.environ.get("PYTHONPATH")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import compare_process as p; p._raise_children()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"},
            bufsize=0,
        )
        self.driver = self.process.pid

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait(PATIENCE)
        self.process.stdout.close()

    def start(self, argv: list[str], **order: Any) -> int:
        """Start a command; returns the driver's process id. See :func:`_drive` for ``order``."""
        self.process.stdin.write(json.dumps({"argv": argv, **order}).encode() + b"\n")
        self.driver = self._answer()
        return self.driver

    def wait(self) -> int:
        """Wait for the command; returns its exit code, or minus the signal that killed it."""
        code = os.waitstatus_to_exitcode(self._answer())
        try:
            until(lambda: not children(self.process.pid), "trials to die with their driver")
        except AssertionError:
            for pid in children(self.process.pid):
                os.kill(pid, signal.SIGKILL)
            raise
        return code

    def _answer(self) -> int:
        """The next number that the process writes."""
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            os.kill(self.driver, signal.SIGKILL)
            self.process.stdout.readline()
            raise AssertionError(f"a command took more than {PATIENCE:g} s")
        return int(self.process.stdout.readline())


class Forked:
    """``omniconv compare`` on a plan, in forked processes."""

    def __init__(self, nursery: Nursery, folder: Path, plan: dict) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.nursery, self.folder, self.out = nursery, folder, folder / "out"
        self.log, self.killed = folder / "log", folder / "killed"
        (folder / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")

    def start(self, *argv: str, **order: Any) -> int:
        """Start ``omniconv argv``; default: the comparison. Returns the process id."""
        command = list(argv) or ["compare", "--plan", "plan.yaml", "--out", "out"]
        return self.nursery.start(command, folder=str(self.folder), **order)

    def run(self, *argv: str, **order: Any) -> int:
        """Run it; returns the exit code."""
        self.start(*argv, **order)
        return self.nursery.wait()

    def results(self) -> dict[str, Any]:
        """What results.json holds."""
        return json.loads((self.out / "results.json").read_text(encoding="utf-8"))

    def said(self) -> list[str]:
        """All that was printed, on both streams."""
        return self.log.read_text(encoding="utf-8").splitlines()

    def kills(self) -> list[list[str]]:
        """(stage, who, where) of every moment at which a process killed itself."""
        found = self.killed.read_text(encoding="utf-8") if self.killed.exists() else ""
        return [line.split() for line in found.splitlines()]


def numbers(results: dict[str, Any]) -> dict[str, Any]:
    """All of the results but what a clock or a path tells."""
    timed = {"seconds", "created", "command", "step_ms", "latency_1_ms", "latency_n_ms", "ratio"}

    def untimed(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: untimed(v) for k, v in value.items() if k not in timed}
        return [untimed(v) for v in value] if isinstance(value, list) else value

    found = untimed(results)
    for row in found["rows"]:
        del row["frontier"]  # where a row is placed depends on its measured latency
    del found["plan"]["data"]
    del found["data"]["source"]
    return found


def check_store(out: Path, results: dict[str, Any]) -> None:
    """The store of a folder is whole, and holds every leg of the results' trials once."""
    from omniconv.compare.store import Store

    with Store(out) as store:
        assert store.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert store.db.execute("PRAGMA foreign_key_check").fetchall() == []
        legs = "SELECT at FROM legs WHERE trial = ? ORDER BY rowid"
        for trial in (trial for row in results["rows"] for trial in row["trials"]):
            found = [at for (at,) in store.db.execute(legs, (trial["id"],))]
            assert found == [leg["at"] for leg in trial["curve"]] == [*range(1, len(found) + 1)]
            assert store.trial(trial["id"]).score == trial["score"]


def _raise_children() -> None:
    """Be the nursery: fork a driver for every line of standard input."""
    rooms = [f"omniconv.compare.{name}" for name in ("comparison", "cost", "report", "trial")]
    for name in (*rooms, "torch._dynamo"):  # the last is what networks without memory import
        import_module(name)
    from omniconv.compare import identity
    from omniconv.core.registry import list_operators

    CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    identity.environment(list_operators())
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _drive(json.loads(line))
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


def _drive(order: dict[str, Any]) -> None:
    """Be the driver.

    The order has ``argv`` and ``folder``; ``limits``: name of a resource -> limit (of RLIMIT_AS:
    beyond what is in use); ``kills``: a moment per trial that is begun, or None, and moments under
    the names ``cost`` and ``report``; ``act``: a function of :mod:`compare_tiny` that is called
    with the folder before the trial of that index begins.
    """
    from omniconv import cli
    from omniconv.compare import worker

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    os.chdir(order["folder"])
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in enumerate((null, log, log)):
        os.dup2(source, target)
    for name, limit in order.get("limits", {}).items():
        used = _virtual() if name == "RLIMIT_AS" else 0
        resource.setrlimit(getattr(resource, name), (used + limit,) * 2)
    watch = _Watch(order.get("kills", {}), order.get("act"))
    worker.subprocess = SimpleNamespace(
        Popen=lambda *_, **pipes: _Fork(watch, **pipes), PIPE=subprocess.PIPE
    )
    sys.argv = ["omniconv", *order["argv"]]
    _end(watch, cli.main)


def _end(watch: _Watch, main: Any) -> None:
    """Run ``main``, watched, and end the process as an interpreter would."""
    code = 0
    random.seed()  # as new interpreters do
    np.random.seed()  # noqa: NPY002
    try:
        sys.settrace(watch.call)
        main()
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.settrace(None)
    watch.last_chance()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _virtual() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


class _Fork:
    """What :mod:`omniconv.compare.worker` needs of Popen."""

    def __init__(self, watch: _Watch, stdin: int, stdout: int, stderr: Any, **_: Any) -> None:
        job, self_job = os.pipe()
        self_events, events = os.pipe()
        self.pid, self.code = os.fork(), None
        if not self.pid:
            from omniconv.compare.worker import serve

            sys.settrace(None)
            os.setsid()
            for target, source in enumerate((job, events, stderr.fileno())):
                os.dup2(source, target)
            os.closerange(3, 256)
            _end(watch.of_worker(), serve)
        watch.handed_on()
        os.close(job)
        os.close(events)
        self.stdin, self.stdout = open(self_job, "wb"), open(self_events, "rb")  # noqa: SIM115

    def kill(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def __enter__(self) -> _Fork:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        try:
            self.stdin.close()
        finally:
            self.wait()


class _Watch:
    """Follows the code of :mod:`omniconv.compare`, and kills its process at a moment.

    A moment has ``who`` (driver or worker) and either ``line``, a count, or ``event`` (call or
    return), ``name`` (of a function) and ``count``; ``both``, whether a worker kills its driver
    too. A section that ends before its moment has come ends with it.
    """

    def __init__(self, kills: dict[str, Any], act: dict[str, str] | None) -> None:
        import omniconv.compare as room

        self.root = str(Path(room.__file__).parent) + os.sep
        self.kills, self.act = kills, act or {}
        self.me, self.stage, self.trial, self.begun = "driver", "", "", -1
        self.lines: tuple[str, ...] = ()
        self.moment: dict[str, Any] | None = None

    def of_worker(self) -> _Watch:
        """The same in a worker that was just forked."""
        self.me = "worker"
        self._take(self.moment, "cost" if self.stage == "cost" else "trial")
        return self

    def handed_on(self) -> None:
        """A worker was forked: its moment is no other's."""
        if self.moment is not None and self.moment["who"] == "worker":
            self.moment = None

    def call(self, frame: FrameType, event: str, _: Any) -> Any:
        """The global trace function."""
        path = frame.f_code.co_filename
        if not path.startswith(self.root):
            return None
        file, name = path[len(self.root) : -len(".py")], frame.f_code.co_name
        if self.me == "driver":
            self._section(file, name, frame)
        self._meet("call", name)
        exact = self.moment is not None and self.moment.get("name") == name
        return self._local if exact or file in self.lines else None

    def last_chance(self) -> None:
        """The process ends: a moment that has not come is now."""
        if self.moment is not None:
            self._kill("end")

    def _section(self, file: str, name: str, frame: FrameType) -> None:
        """Notice that the driver begins a trial, the costs or the report."""
        if (file, name) == ("driver", "_trial"):
            job = frame.f_locals["job"]
            if job.id != self.trial:
                self.last_chance()
                self.stage, self.trial, self.begun = job.stage, job.id, self.begun + 1
                if str(self.begun) in self.act:
                    import compare_tiny

                    getattr(compare_tiny, self.act[str(self.begun)])(Path.cwd())
                self._take(self.kills.get(str(self.begun)), "driver")
        elif (file, name) in (("driver", "_costs"), ("results", "write")):
            stage = "cost" if name == "_costs" else "report"
            if stage != self.stage:
                self.last_chance()
                self.stage = stage
                self._take(self.kills.get(stage), "report" if stage == "report" else "driver")

    def _take(self, moment: dict[str, Any] | None, lines: str) -> None:
        self.moment = dict(moment) if moment else None
        self.lines = ()
        if self.moment and self.moment["who"] == self.me and "line" in self.moment:
            self.lines = LINES[lines]

    def _local(self, frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_name
        if event == "return":
            self._meet("return", name)
        elif event == "line" and self.moment is not None and self.lines:
            self.moment["line"] -= 1
            if self.moment["line"] < 0:
                self._kill(f"{name}:{frame.f_lineno}")
        return self._local

    def _meet(self, event: str, name: str) -> None:
        moment = self.moment
        if (
            moment is not None
            and moment["who"] == self.me
            and (moment.get("event"), moment.get("name")) == (event, name)
        ):
            moment["count"] -= 1
            if not moment["count"]:
                self._kill(f"{event}-{name}")

    def _kill(self, where: str) -> None:
        if self.moment["who"] == self.me:
            with open("killed", "a", encoding="utf-8") as file:
                file.write(f"{self.stage} {self.me} {where}\n")
            if self.moment.get("both"):
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
