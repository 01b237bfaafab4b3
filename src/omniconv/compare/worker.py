"""One job in a fresh process: both ends of the pipe.

The driver starts ``python -m omniconv.compare.worker``, writes one line of JSON to its standard
input and keeps that open; the worker answers with events, one line of JSON each, and ends. It dies
with its driver: the kernel kills it where it can, and the end of standard input does everywhere.
torch is imported after that is set up, by the module that does the job.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, BinaryIO

from omniconv.compare.refused import one_line

__all__ = ["Event", "Report", "allocator", "run", "serve"]

Event = dict[str, Any]
"""Has ``event``: names of the job's own, and at last ``end`` or ``failed`` (with ``reason``)."""

Report = Callable[[Event], None]

FINAL = ("end", "failed")
PINNED = (
    "glibc.malloc.mmap_threshold=8589934592:"
    "glibc.malloc.trim_threshold=17179869184:"
    "glibc.malloc.top_pad=67108864"
)
"""Keeps glibc from giving large tensors back to the system at every call."""

SPINS = "30000"
"""How long a thread waits awake for the next piece of work: on an idle machine as good as OpenMP's
own ten times as long, and on a busy one it leaves the core to others (a step is twice as fast)."""

LONGEST = 1e6
"""Seconds that a job may take at most."""

PR_SET_PDEATHSIG = 1


def allocator() -> str:
    """``pinned`` where the workers' C library keeps freed memory, else ``default``."""
    return "pinned" if platform.libc_ver()[0] == "glibc" else "default"


def run(
    name: str, job: Mapping[str, Any], threads: int, time_limit: float = LONGEST
) -> Generator[Event]:
    """Have ``omniconv.<name>.work(job, report)`` done in a fresh process.

    Args:
        name: ``compare.trial``, ``compare.cost`` or ``bench.job``.
        job: Plain data.
        threads: Number of threads that the process may use.
        time_limit: Seconds after which the process is killed.

    Returns:
        Its events, the last one ``end`` or ``failed``. Closing the iterator kills the worker.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "GLIBC_TUNABLES": PINNED,
        "GOMP_SPINCOUNT": SPINS,
        "PYTHONHASHSEED": "0",
    }
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "omniconv.compare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,  # Ctrl-C is the driver's to handle
        ) as worker,
    ):
        late = threading.Event()

        def give_up() -> None:
            late.set()
            worker.kill()

        clock = threading.Timer(time_limit, give_up)
        clock.daemon = True
        clock.start()
        try:
            task = {**job, "work": name, "driver": os.getpid()}
            for event in _converse(worker, task, errors):
                if event["event"] == "failed" and late.is_set():
                    event = {**event, "reason": f"it took more than the {time_limit:g} s allowed"}
                yield event
        finally:
            clock.cancel()
            worker.kill()


def _converse(
    worker: subprocess.Popen[bytes], job: Mapping[str, Any], errors: BinaryIO
) -> Generator[Event]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        worker.stdin.write(json.dumps(job).encode() + b"\n")
        worker.stdin.flush()
    except BrokenPipeError:  # it died at once: its end is reported below
        with suppress(BrokenPipeError):
            worker.stdin.close()
    for line in worker.stdout:
        if not line.endswith(b"\n"):
            break  # killed in the middle of a line
        event = json.loads(line)
        yield event
        if event["event"] in FINAL:
            return
    code = worker.wait()
    errors.seek(0)
    said = errors.read().decode("utf-8", "replace").strip().splitlines()
    yield {"event": "failed", "reason": _death(code, said[-1] if said else "")}


def _death(code: int, last_words: str) -> str:
    if code >= 0:
        return one_line(RuntimeError(f"its process ended with code {code}: {last_words}"))
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    hint = " (often: out of memory)" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{hint}"


def serve() -> None:
    """Be the worker: read the job, do it, report an exception as ``failed``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing that a library prints mixes with the events
    job = json.loads(_read_line())
    if os.getppid() != job["driver"]:
        os._exit(1)  # it died before the kernel was told
    threading.Thread(target=_exit_at_end_of_input, daemon=True).start()

    def report(event: Event) -> None:
        channel.write(json.dumps(event) + "\n")
        channel.flush()

    try:
        import_module(f"omniconv.{job['work']}").work(job, report)
    except Exception as error:
        report({"event": "failed", "reason": f"{type(error).__name__}: {one_line(error)}"})


def _die_with_parent() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _read_line() -> bytes:
    """The first line of standard input; unbuffered, because a thread goes on reading."""
    line = b""
    while not line.endswith(b"\n"):
        chunk = os.read(0, 65536)
        if not chunk:
            os._exit(1)
        line += chunk
    return line


def _exit_at_end_of_input() -> None:
    while os.read(0, 65536):
        pass
    os._exit(1)


if __name__ == "__main__":
    serve()
