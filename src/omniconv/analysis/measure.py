"""What a model costs here: time of a training step, latency, memory.

Times are medians over repeats in which all models take turns, so that a drifting machine hits all
of them alike. Minor page faults per call are recorded beside them: more than a few hundred mean
that the C library gives large tensors back to the system at every call, which can cost more than
the work itself (start Python with a pinned allocator then).
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from omniconv.analysis.preserve import leaf, preserved
from omniconv.core import args as parse
from omniconv.core.compat import map_tensors, tensors_in

__all__ = [
    "Timing",
    "count_parameters",
    "measure_latency",
    "measure_step",
    "memory_growth",
    "peak_memory",
    "time_calls",
    "time_latencies",
    "time_steps",
]

LossFn = Callable[[Any], Tensor]
WARM_UP = 2


@dataclass(frozen=True)
class Timing:
    """Wall time of one call.

    Attributes:
        ms: Median, in milliseconds.
        low: Lower quartile.
        high: Upper quartile.
        faults: Median of the minor page faults per call; None where the system does not tell.
        repeats: Number of calls measured.
    """

    ms: float
    low: float
    high: float
    faults: int | None
    repeats: int


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, a shared one once, frozen ones included, buffers not.

    Raises:
        ValueError: A lazy layer has not seen an input yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {parse.show(model)}")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(f"model must be initialised, but its parameter {name!r} is still lazy")
    return sum(p.numel() for p in model.parameters())


def measure_step(
    model: nn.Module, inputs: Any, loss_fn: LossFn | None = None, *, repeats: int = 10
) -> float:
    """Median milliseconds of one training step; see ``time_steps``."""
    return time_steps([model], inputs, loss_fn, repeats=repeats)[0].ms


def measure_latency(model: nn.Module, inputs: Any, *, repeats: int = 20) -> float:
    """Median milliseconds of one call in evaluation mode; see ``time_latencies``."""
    return time_latencies([model], inputs, repeats=repeats)[0].ms


def time_steps(
    models: Sequence[nn.Module], inputs: Any, loss_fn: LossFn | None = None, *, repeats: int = 10
) -> tuple[Timing, ...]:
    """Time a training step of each model: forward, loss and backward, without an optimiser.

    Models run in training mode, in turns, after two calls that are not counted; they are left as
    they were.

    Args:
        models: Modules that take the same inputs.
        inputs: One tensor, or a tuple of positional arguments.
        loss_fn: ``loss_fn(output)`` gives a scalar; without it the gradient of every output is
            seeded with ones.
        repeats: Calls per model, at least 1.

    Returns:
        One ``Timing`` per model.
    """
    with preserved(*_several(models)):
        calls = [_training_step(model, inputs, loss_fn) for model in models]
        return time_calls(calls, repeats, synchronise=_on_gpu(models))


def time_latencies(
    models: Sequence[nn.Module], inputs: Any, *, repeats: int = 20
) -> tuple[Timing, ...]:
    """Time one call of each model in evaluation mode, without gradients; see ``time_steps``."""
    with preserved(*_several(models)):
        calls = [_inference(model, inputs) for model in models]
        return time_calls(calls, repeats, synchronise=_on_gpu(models))


def time_calls(
    calls: Sequence[Callable[[], object]],
    repeats: int | Sequence[int],
    *,
    synchronise: bool = False,
    warm_up: int = WARM_UP,
) -> tuple[Timing, ...]:
    """Time calls that take turns.

    Args:
        calls: What to time.
        repeats: How often, each at least 1; one number for all, or one per call: the turns of a
            call that has fewer are spread over those of the others.
        synchronise: Wait for the GPU after every call.
        warm_up: Turns of all calls that come first and are not counted.

    Returns:
        One ``Timing`` per call.
    """
    counts = repeats if isinstance(repeats, Sequence) else [repeats] * len(calls)
    counts = [parse.positive_int("repeats", count) for count in counts]
    turns = max(counts, default=0)
    seconds: list[list[float]] = [[] for _ in calls]
    faults: list[list[int]] = [[] for _ in calls]
    for turn in range(-warm_up, turns):
        for index, (call, count) in enumerate(zip(calls, counts, strict=True)):
            if turn >= 0 and (turn + 1) * count // turns == turn * count // turns:
                continue
            before, start = minor_faults(), time.perf_counter()
            call()
            if synchronise:
                torch.cuda.synchronize()
            stop, after = time.perf_counter(), minor_faults()
            if turn >= 0:
                seconds[index].append(stop - start)
                if before is not None and after is not None:
                    faults[index].append(after - before)
    return tuple(_timing(s, f) for s, f in zip(seconds, faults, strict=True))


def peak_memory(
    model: nn.Module, inputs: Any, loss_fn: LossFn | None = None, *, backward: bool = True
) -> int:
    """Bytes alive at the fullest moment of one training step.

    Parameters, buffers and inputs, plus the most that the step itself holds at once: activations,
    gradients (of parameters too), temporary tensors inside operators. Not the optimiser's state,
    and not the scratch memory that oneDNN, MKL or cuDNN take past torch's allocator.

    Torch's profiler records every allocation and release of the CPU allocator; the peak is the
    largest running sum. On CUDA the caching allocator's own statistics are used.

    Args:
        model: Any module.
        inputs: One tensor, or a tuple of positional arguments.
        loss_fn: As in ``time_steps``.
        backward: False measures one call in evaluation mode without gradients.
    """
    with preserved(model):
        call = _training_step(model, inputs, loss_fn) if backward else _inference(model, inputs)
        call()
        gc.collect()
        resident = [*model.parameters(), *model.buffers(), *tensors_in(inputs)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in resident}
        return sum(storages.values()) + memory_growth(call, on_gpu=_on_gpu([model]))


def memory_growth(call: Callable[[], object], *, on_gpu: bool = False) -> int:
    """Bytes that ``call`` holds at its fullest moment, beyond those that were there before.

    What it returns counts; what it frees of before does not. See :func:`peak_memory`.
    """
    return _cuda_growth(call) if on_gpu else _cpu_growth(call)


def arguments(inputs: Any) -> tuple[Any, ...]:
    """The positional arguments: a tuple or list as it is, anything else alone."""
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def _several(models: Sequence[nn.Module]) -> Sequence[nn.Module]:
    if not isinstance(models, (list, tuple)):
        raise TypeError(f"models must be a list of modules, got {parse.show(models)}")
    return models


def _on_gpu(models: Sequence[nn.Module]) -> bool:
    return any(p.is_cuda for model in models for p in model.parameters())


def _training_step(model: nn.Module, inputs: Any, loss_fn: LossFn | None) -> Callable[[], None]:
    with torch.inference_mode(False):
        values = map_tensors(leaf, arguments(inputs))
    leaves = [*model.train().parameters(), *tensors_in(values)]
    for tensor in leaves:
        tensor.grad = None

    def step() -> None:
        with torch.inference_mode(False):
            output = model(*values)
            roots = tensors_in(output if loss_fn is None else loss_fn(output))
            roots = [t for t in roots if t.requires_grad]
            if not roots:
                raise ValueError("a training step needs an output or loss that requires a gradient")
            torch.autograd.backward(roots, [torch.ones_like(t) for t in roots])
            for tensor in leaves:
                tensor.grad = None

    return step


def _inference(model: nn.Module, inputs: Any) -> Callable[[], None]:
    values = arguments(inputs)
    model.eval()

    def call() -> None:
        with torch.no_grad():
            model(*values)

    return call


def _timing(seconds: list[float], faults: list[int]) -> Timing:
    ordered = sorted(1000 * s for s in seconds)
    last = len(ordered) - 1
    return Timing(
        ms=median(ordered),
        low=ordered[last // 4],
        high=ordered[last - last // 4],
        faults=round(median(faults)) if faults else None,
        repeats=len(ordered),
    )


def minor_faults() -> int | None:
    """Minor page faults of this process so far; None where the system does not count them."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _cpu_growth(call: Callable[[], object]) -> int:
    with (
        _quiet_profiler(),
        torch_profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded,
    ):
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        recorded.export_chrome_trace(path)
        with open(path, encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
    events = [e for e in events if e.get("name") == "[memory]"]
    held: dict[int, int] = {}
    total = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        size, address = event["args"]["Bytes"], event["args"]["Addr"]
        if size > 0:
            held[address] = size
        total += size if size > 0 else -held.pop(address, 0)
        peak = max(peak, total)
    return peak


def _cuda_growth(call: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Keep kineto, the profiler's recorder, from writing its own messages to stderr."""
    before = os.environ.get("KINETO_LOG_LEVEL")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    try:
        yield
    finally:
        if before is None:
            del os.environ["KINETO_LOG_LEVEL"]
