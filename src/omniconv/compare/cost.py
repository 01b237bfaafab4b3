"""What every row costs: parameters, FLOPs, times, memory. The job of a worker, machine idle.

All rows are built in one process and timed in turns, so that a drifting machine hits all alike.
Training numbers are of the network as it is trained; FLOPs forward and latencies of the network
as it is deployed: folded where its operator folds, unless that takes more FLOPs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omniconv.analysis.flops import count_flops
from omniconv.analysis.measure import count_parameters, peak_memory, time_latencies, time_steps
from omniconv.compare import whole
from omniconv.compare.network import build
from omniconv.compare.refused import one_line
from omniconv.compare.worker import Report
from omniconv.kernels import backend
from omniconv.operators.static_kernel import StaticKernel
from omniconv.surgery.accelerate import accelerate_
from omniconv.surgery.fold import fold_
from omniconv.tasks.task import TaskData

__all__ = ["RATIOS", "SECONDS", "TIMINGS", "work"]

RATIOS = ("parameters", "flops_forward", "step_ms", "latency_1_ms", "latency_n_ms", "peak_bytes")
"""The costs that are also given relative to the first row."""

Loss = Callable[[Tensor], Tensor]

TIMINGS = 3
SECONDS = 6.0
"""What each of the timings may take, all rows together."""

FEWEST, MOST = 5, 100


@dataclass(frozen=True)
class _Candidate:
    row: int
    trained: nn.Module
    deployed: nn.Module
    numbers: dict[str, Any]


def work(job: Mapping[str, Any], report: Report) -> None:
    """Measure.

    The job has ``points`` (one per row), ``batch``, ``threads``, ``backend``, the path ``data``,
    and ``skip``: row index -> reason, for rows that brought an earlier process down. Events:
    ``row`` before a row's first run, ``times`` before the clocks start, and ``end`` with ``rows``,
    one mapping of costs or ``{"reason": ...}`` each.
    """
    backend.set_backend(job["backend"])
    torch.set_num_threads(job["threads"])
    torch.set_num_interop_threads(1)
    task, data = whole.load_data(Path(job["data"]))
    images, labels = next(task.stream(data, job["batch"], torch.Generator().manual_seed(0), 1))

    def loss(outputs: Tensor) -> Tensor:
        return task.loss(outputs, labels)

    rows: list[dict[str, Any]] = [{} for _ in job["points"]]
    candidates = []
    for index, point in enumerate(job["points"]):
        if str(index) in job["skip"]:
            rows[index] = {"reason": job["skip"][str(index)]}
            continue
        report({"event": "row", "row": index})
        try:
            candidates.append(_candidate(index, point, data, images, loss))
        except Exception as error:
            rows[index] = {"reason": f"{type(error).__name__}: {one_line(error)}"}
    report({"event": "times"})
    _time(candidates, images, loss)
    for candidate in candidates:
        rows[candidate.row] = candidate.numbers
    report({"event": "end", "rows": rows})


def _candidate(
    index: int, point: Mapping[str, Any], data: TaskData, images: Tensor, loss: Loss
) -> _Candidate:
    """Build a row's network, fold a copy, and take all that is not a time."""
    torch.manual_seed(0)
    trained = build(point, data).model
    images = images.to(next(trained.parameters()))
    backward = count_flops(trained.train(), images, backward=True).backward
    # a layer that leaves entries of its kernel out is dearer as a plain convolution
    forms = [fold_(copy.deepcopy(trained)).eval(), copy.deepcopy(trained).eval()]
    if point["backend"] != "torch":
        accelerate_(forms[0])
    with torch.no_grad():
        flops = [count_flops(form, images[:1]).forward for form in forms]
    forward, deployed = min(flops), forms[flops.index(min(flops))]
    kernels = any(isinstance(module, StaticKernel) for module in trained.modules())
    numbers = {
        "parameters": count_parameters(trained),
        "flops_forward": forward,
        "flops_backward": round(backward / len(images)),
        "peak_bytes": peak_memory(trained, images, loss),
        "batch": len(images),
        "folded": kernels and deployed is forms[0],
    }
    return _Candidate(index, trained, deployed, numbers)


def _time(candidates: list[_Candidate], images: Tensor, loss: Loss) -> None:
    """Add the three times to every candidate's numbers."""
    if not candidates:
        return
    trained = [candidate.trained for candidate in candidates]
    deployed = [candidate.deployed for candidate in candidates]
    images = images.to(next(trained[0].parameters()))

    def steps(repeats: int) -> Any:
        return time_steps(trained, images, loss, repeats=repeats)

    def latencies_1(repeats: int) -> Any:
        return time_latencies(deployed, images[:1], repeats=repeats)

    def latencies_n(repeats: int) -> Any:
        return time_latencies(deployed, images, repeats=repeats)

    timings = {"step_ms": steps, "latency_1_ms": latencies_1, "latency_n_ms": latencies_n}
    for name, measure in timings.items():
        once = sum(timing.ms for timing in measure(1)) / 1000
        repeats = min(MOST, max(FEWEST, round(SECONDS / once)))
        for candidate, timing in zip(candidates, measure(repeats), strict=True):
            candidate.numbers[name] = timing.ms
