"""Carries a bench out: one fresh process per kernel and number of threads."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import omniconv
from omniconv.bench import KERNELS
from omniconv.bench.case import LAYOUTS, SUITES
from omniconv.compare import worker
from omniconv.core import args

__all__ = ["DTYPES", "Settings", "read", "run", "save", "settings", "tune"]

DTYPES = ("float32", "bfloat16")
DEVICES = ("cpu", "cuda")

Watch = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What to measure, canonical.

    Attributes:
        kernels: Some of ``KERNELS``.
        suite: One of ``SUITES``.
        dtype: One of ``DTYPES``.
        layouts: Some of ``LAYOUTS``: of what our form is given.
        threads: Numbers of threads, one run each.
        repeats: Calls of a form at most.
        compile: Whether torch compiled is a form too.
        device: One of ``DEVICES``.
    """

    kernels: tuple[str, ...]
    suite: str
    dtype: str
    layouts: tuple[str, ...]
    threads: tuple[int, ...]
    repeats: int
    compile: bool
    device: str


def settings(
    kernels: Sequence[str] = (),
    *,
    suite: str = "default",
    dtype: str = "float32",
    layout: str = "both",
    threads: str | None = None,
    repeats: int = 20,
    compile: bool = False,
    device: str = "cpu",
) -> Settings:
    """Parse what was asked for; no kernels are all, no threads are all cores.

    Raises:
        ValueError: Something is not what the bench knows; the message is one sentence.
    """
    args.choice("layout", layout, ("both", *LAYOUTS))
    args.choice("device", device, DEVICES)
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("device must be 'cpu' here: torch finds no CUDA device")
    return Settings(
        kernels=tuple(dict.fromkeys(args.choice("KERNEL", k, KERNELS) for k in kernels)) or KERNELS,
        suite=args.choice("suite", suite, SUITES),
        dtype=args.choice("dtype", dtype, DTYPES),
        layouts=LAYOUTS if layout == "both" else (layout,),
        threads=_threads(threads),
        repeats=args.positive_int("repeats", repeats),
        compile=compile,
        device=device,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _threads(asked: str | None) -> tuple[int, ...]:
    cores = _cores()
    if asked is None:
        return (cores,)
    try:
        numbers = [int(part) for part in asked.split(",")]
        return tuple(args.integer("threads", n, 1, cores) for n in dict.fromkeys(numbers))
    except ValueError:
        wanted = f"numbers of at most {cores}, the cores here, such as '1' or '1,2'"
        raise ValueError(f"threads must be {wanted}, got {args.show(asked)}") from None


def run(asked: Settings, watch: Watch = lambda line: None) -> tuple[int, dict[str, Any]]:
    """Measure.

    Args:
        asked: See :func:`settings`.
        watch: Gets a line about what is done next.

    Returns:
        Exit code (1: something failed or was not right) and the results as plain data.
    """
    chosen = asdict(asked)
    kernels = chosen.pop("kernels")
    results: dict[str, Any] = {
        "omniconv": omniconv.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {},
        "settings": {key: list(v) if isinstance(v, tuple) else v for key, v in chosen.items()},
        "runs": [],
    }
    for kernel in kernels:
        for threads in asked.threads:
            found = _run(kernel, threads, asked, watch)
            results["machine"] = results["machine"] or found["machine"]
            del found["machine"]
            results["runs"].append(found)
    return int(any(_failed(found) for found in results["runs"])), results


def _failed(found: dict[str, Any]) -> bool:
    return bool(found["reason"]) or any("reason" in case for case in found["cases"])


def _run(kernel: str, threads: int, asked: Settings, watch: Watch) -> dict[str, Any]:
    job = asdict(asked) | {"kernel": kernel, "threads": threads}
    found: dict[str, Any] = {"kernel": kernel, "threads": threads, "reason": None, "machine": {}}
    found |= {"ceilings": None, "cases": []}
    current: dict[str, Any] = {}
    watch(f"{kernel}, {_counted(threads)}: what the machine can do")
    with closing(worker.run("bench.job", job, threads)) as events:
        for said in events:
            kind, event = said["event"], {k: v for k, v in said.items() if k != "event"}
            if kind == "start":
                found["ceilings"] = event["ceilings"]
                found["machine"] = {k: v for k, v in event["machine"].items() if k != "threads"}
            elif kind == "case":
                current = event
                watch(f"{kernel}, {_counted(threads)}: {event['name']}, {event['layout']}")
            elif kind == "result":
                found["cases"].append(event)
                current = {}
            elif kind == "failed" and current:
                found["cases"].append(current | {"reason": event["reason"]})
                found["reason"] = "it ended before its last case"
            elif kind == "failed":
                found["reason"] = event["reason"]
    return found


def _counted(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def tune(asked: Settings) -> dict[str, Any]:
    """Measure again which way computes a depthwise convolution here; later processes follow it.

    Returns:
        ``path`` of the table, and the ``table``: pass and layout -> ways, each from so many taps
        inside the image on.

    Raises:
        ValueError: More than one number of threads, or it did not work; the message is a sentence.
    """
    if len(asked.threads) > 1:
        raise ValueError(f"threads must be one number to tune for, got {list(asked.threads)}")
    with closing(worker.run("bench.tune", {"threads": asked.threads[0]}, asked.threads[0])) as told:
        *_, last = told
    if last["event"] == "failed":
        raise ValueError(f"the choice of depthwise cannot be tuned: {last['reason']}")
    return {"path": last["path"], "table": last["table"]}


def save(results: dict[str, Any], folder: Path) -> list[Path]:
    """Append what was measured to each kernel's history, ``folder/<kernel>.json``.

    A kernel's file is a list of results, oldest first, each with this kernel's runs only.

    Raises:
        ValueError: There is another file of that name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kernel in dict.fromkeys(found["kernel"] for found in results["runs"]):
        path = folder / f"{kernel}.json"
        history = read(path)
        mine = [found for found in results["runs"] if found["kernel"] == kernel]
        text = json.dumps([*history, results | {"runs": mine}], indent=1, ensure_ascii=False)
        aside = path.with_suffix(".new")
        aside.write_text(text + "\n", encoding="utf-8")
        aside.replace(path)
        paths.append(path)
    return paths


def read(path: Path) -> list[dict[str, Any]]:
    """A kernel's history; empty where there is none.

    Raises:
        ValueError: The file is no history.
    """
    if not path.exists():
        return []
    try:
        history = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no history of the bench: {error}") from None
    if not isinstance(history, list) or any("runs" not in entry for entry in history):
        raise ValueError(f"{path} is no history of the bench")
    return history
