"""The job of a worker: gate and times of one kernel's cases.

The job is ``kernel``, ``suite``, ``dtype``, ``layouts``, ``device``, ``threads``, ``repeats`` and
``compile``. Events: ``start`` (``machine``, ``ceilings``), ``case`` before a case (``name``,
``layout``) and ``result`` after it, and ``end``.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib import import_module
from typing import Any

import torch

from omniconv.analysis.measure import Timing, memory_growth, time_calls
from omniconv.bench.case import Ask, Call, Case, Pass, bytes_of
from omniconv.bench.ceilings import Ceilings, measure_ceilings
from omniconv.bench.gate import Wrong, check, operators_of
from omniconv.compare.identity import machine
from omniconv.compare.refused import one_line
from omniconv.compare.worker import Report
from omniconv.core.compat import tensors_in
from omniconv.kernels import backend, build

__all__ = ["measure", "work"]

OURS = "omniconv"
PATIENCE = 0.3
"""Seconds that the repeats of one form may take together, as long as there are ``FEWEST``."""

FEWEST = 3
SLOW = 1.0
"""Seconds of one call from which on it is timed once."""


def work(job: Mapping[str, Any], report: Report) -> None:
    """Measure the cases of one kernel."""
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    kernel, dtype, device = job["kernel"], getattr(torch, job["dtype"]), job["device"]
    if kernel in build.KERNELS and device == "cpu" and (reason := backend.load(kernel).reason):
        raise RuntimeError(f"there is no compiled kernel to measure: {reason}")
    ceilings = measure_ceilings(dtype, device)
    report(
        {
            "event": "start",
            "machine": _machine(job["threads"], device),
            "ceilings": ceilings.to_json(),
        }
    )
    cases = import_module(f"omniconv.bench.{kernel}").cases
    for layout in job["layouts"]:
        ask = Ask(job["suite"], dtype, layout, device)
        for case in cases(ask):
            about = {"name": case.name, "layout": layout}
            report({"event": "case", **about})
            found = measure(case, ask, ceilings, job["repeats"], compiled=job["compile"])
            report({"event": "result", **about, **found})
            gc.collect()
    report({"event": "end"})


def _machine(threads: int, device: str) -> dict[str, Any]:
    gpu = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    return machine(threads) | gpu


def measure(
    case: Case, ask: Ask, ceilings: Ceilings, repeats: int, *, compiled: bool = False
) -> dict[str, Any]:
    """The figures of a case: ``passes``, or the ``reason`` why it has none."""
    try:
        passes = case.passes()
        for each in passes:
            check(each, dict(_forms(each, compiled)), ask.dtype)
        return {"passes": [_timed(each, ask, ceilings, repeats, compiled) for each in passes]}
    except Wrong as error:
        return {"reason": f"not right: {error}"}
    except Exception as error:
        return {"reason": f"{type(error).__name__}: {one_line(error)}"}


def _forms(each: Pass, compiled: bool) -> Iterator[tuple[str, Call]]:
    """Label -> call, of all that must give the reference's results; ours first."""
    yield OURS, each.ours
    for name, call in each.torch.items():
        yield f"torch {name}", call
    for name, call in each.compiled.items() if compiled else ():
        yield f"torch compiled {name}", call
    yield from each.peers.items()


def _timed(
    each: Pass, ask: Ask, ceilings: Ceilings, repeats: int, compiled: bool
) -> dict[str, Any]:
    on_gpu = ask.device == "cuda"
    calls = dict(_forms(each, compiled)) | dict(each.yardsticks)
    counts = [_repeats(call, repeats, on_gpu) for call in calls.values()]
    timings = time_calls(list(calls.values()), counts, synchronise=on_gpu, warm_up=0)
    times = dict(zip(calls, timings, strict=True))
    torchs = {name: t for name, t in times.items() if name.startswith("torch ")}
    best = min(torchs, key=lambda name: torchs[name].ms, default=None)
    seconds, limit = ceilings.bound(each.flops, each.bytes)
    ours = times[OURS].ms
    return {
        "name": each.name,
        "flops": each.flops,
        "bytes": each.bytes,
        "bound_ms": 1000 * seconds,
        "limit": limit,
        "reached": 1000 * seconds / ours,
        "operators": operators_of(each.ours),
        "best_torch": best,
        "times_torch": None if best is None else torchs[best].ms / ours,
        "saved": _saved(times, best),
        "memory": _memory(calls, [OURS, *([best] if best else [])], on_gpu),
        "forms": {name: _form(name, each, timing) for name, timing in times.items()},
    }


def _saved(times: Mapping[str, Timing], best: str | None) -> float | None:
    """The share that ours gains of what torch takes longer than the same without the work."""
    free = min((t.ms for name, t in times.items() if name.startswith("free")), default=None)
    if best is None or free is None or times[best].ms <= free:
        return None
    return (times[best].ms - times[OURS].ms) / (times[best].ms - free)


def _form(name: str, each: Pass, timing: Timing) -> dict[str, Any]:
    kind = "yardstick" if name in each.yardsticks else "peer" if name in each.peers else "form"
    return {"kind": kind, **asdict(timing)}


def _repeats(call: Call, most: int, on_gpu: bool) -> int:
    """How often a call is timed; it has run once before, and runs once for this."""
    begin = time.perf_counter()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    took = time.perf_counter() - begin
    return 1 if took > SLOW else max(min(FEWEST, most), min(most, round(PATIENCE / took)))


def _memory(calls: Mapping[str, Call], names: list[str], on_gpu: bool) -> dict[str, Any]:
    """Bytes of the results, and the most that forms hold beyond their inputs, results included."""
    results: Callable[[], Any] = calls[OURS]
    found: dict[str, Any] = {"results": bytes_of(*tensors_in(results()))}
    return found | {name: memory_growth(calls[name], on_gpu=on_gpu) for name in names}
