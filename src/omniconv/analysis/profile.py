"""One model's numbers: parameters, FLOPs, bytes, times, memory, and the same layer by layer."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from omniconv.analysis.flops import FlopCount, count_flops
from omniconv.analysis.follow import following
from omniconv.analysis.measure import (
    Timing,
    arguments,
    count_parameters,
    peak_memory,
    time_latencies,
    time_steps,
)
from omniconv.analysis.preserve import preserved
from omniconv.core import args as parse
from omniconv.core.compat import tensors_in
from omniconv.core.table import text_table

__all__ = ["LayerRow", "Profile", "profile"]


@dataclass(frozen=True)
class LayerRow:
    """What one module does itself, its submodules left out: the rows of a model add up to it.

    Attributes:
        path: Where the module sits; ``""`` is the model.
        type: Its class.
        parameters: Number of its own parameters; one shared by two modules is in the first row.
        flops_forward: FLOPs of one call of the model that this module performs.
        flops_backward: The same for the gradient.
        bytes: Least bytes moved: its inputs and parameters read once, its output written once.
        share: Part of the model's forward time spent in it (medians over the calls).
    """

    path: str
    type: str
    parameters: int
    flops_forward: int
    flops_backward: int
    bytes: int
    share: float


@dataclass(frozen=True)
class Profile:
    """What ``profile`` found.

    Attributes:
        parameters: Number of parameters.
        flops_forward: FLOPs of one call on the example inputs.
        flops_backward: FLOPs of its gradient; None without ``backward``.
        bytes: Least bytes one call moves if no two layers are fused.
        step: Time of a training step; None without ``backward``.
        latency: Time of one call in evaluation mode.
        peak_bytes: Live memory at the fullest moment of the training step (of the call, without
            ``backward``).
        layers: The model, module by module.
        unknown: Operators whose FLOPs are not known and counted 0.
        device: Device and dtype of the parameters, and the number of threads.
    """

    parameters: int
    flops_forward: int
    flops_backward: int | None
    bytes: int
    step: Timing | None
    latency: Timing
    peak_bytes: int
    layers: tuple[LayerRow, ...]
    unknown: tuple[str, ...]
    device: str

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return asdict(self)

    def __str__(self) -> str:
        facts = [
            ("parameters", f"{self.parameters:,}"),
            ("FLOPs forward", f"{self.flops_forward:,}"),
            ("FLOPs backward", "" if self.flops_backward is None else f"{self.flops_backward:,}"),
            ("least bytes moved", f"{self.bytes:,}"),
            ("training step", "" if self.step is None else _time(self.step)),
            ("latency", _time(self.latency)),
            ("peak live bytes", f"{self.peak_bytes:,}"),
            ("measured on", self.device),
            ("operators without a FLOP rule", ", ".join(self.unknown)),
        ]
        rows = [
            (
                row.path or "(model)",
                row.type,
                f"{row.parameters:,}",
                f"{row.flops_forward:,}",
                f"{row.flops_backward:,}",
                f"{row.bytes:,}",
                f"{100 * row.share:.1f} %",
            )
            for row in self.layers
            if row.parameters or row.flops_forward or row.flops_backward or row.share >= 0.005
        ]
        head = ("layer", "type", "parameters", "FLOPs forward", "backward", "bytes", "time")
        lines = [f"{name + ':':<31}{value}" for name, value in facts if value]
        return "\n".join([*lines, "", *text_table([head, *rows], left=2)])


def profile(
    model: nn.Module, example_inputs: Any, *, steps: int = 10, backward: bool = True
) -> Profile:
    """Count and measure a model on example inputs, and leave it as it was.

    FLOPs are counted in training mode where ``backward`` is set, else in evaluation mode; latency,
    bytes and the shares of time belong to evaluation mode without gradients.

    Args:
        model: Any module.
        example_inputs: One tensor, or a tuple of positional arguments.
        steps: Number of training steps and calls that are timed.
        backward: Count and measure the training step too.

    Returns:
        A ``Profile``; ``str()`` of it is a table.
    """
    steps = parse.positive_int("steps", steps)
    backward = parse.boolean("backward", backward)
    with preserved(model):
        flops = count_flops(model.train(backward), *arguments(example_inputs), backward=backward)
    step = time_steps([model], example_inputs, repeats=steps)[0] if backward else None
    latency = time_latencies([model], example_inputs, repeats=steps)[0]
    layers = _layers(model, example_inputs, flops, steps)
    return Profile(
        parameters=count_parameters(model),
        flops_forward=flops.forward,
        flops_backward=flops.backward if backward else None,
        bytes=sum(row.bytes for row in layers),
        step=step,
        latency=latency,
        peak_bytes=peak_memory(model, example_inputs, backward=backward),
        layers=layers,
        unknown=flops.unknown,
        device=_device(model, example_inputs),
    )


def _time(timing: Timing) -> str:
    faults = "" if timing.faults is None else f", {timing.faults} page faults"
    return f"{timing.ms:.3g} ms (quartiles {timing.low:.3g} to {timing.high:.3g}{faults})"


def _device(model: nn.Module, inputs: Any) -> str:
    tensors = [*model.parameters(), *tensors_in(inputs)]
    if not tensors:
        return f"cpu, {torch.get_num_threads()} threads"
    dtype = str(tensors[0].dtype).removeprefix("torch.")
    return f"{tensors[0].device}, {dtype}, {torch.get_num_threads()} threads"


def _layers(model: nn.Module, inputs: Any, flops: FlopCount, steps: int) -> tuple[LayerRow, ...]:
    watch = _Watch(synchronise=any(p.is_cuda for p in model.parameters()))
    with preserved(model), torch.no_grad(), following(model.eval(), watch.enter, watch.leave):
        for _ in range(steps):
            watch.seconds.append(defaultdict(float))
            model(*arguments(inputs))
    seconds = {path: median(s[path] for s in watch.seconds) for path, _ in model.named_modules()}
    total = sum(seconds.values())
    rows = []
    seen: set[int] = set()
    for path, module in model.named_modules():
        held = list(module.parameters(recurse=False))
        own = [p for p in held if id(p) not in seen]
        seen.update(id(p) for p in own)
        forward, backward = flops.own(path)
        crossing = watch.moved[path] // steps if forward or not list(module.children()) else 0
        rows.append(
            LayerRow(
                path=path,
                type=type(module).__name__,
                parameters=sum(p.numel() for p in own),
                flops_forward=forward,
                flops_backward=backward,
                bytes=crossing + _bytes([*held, *module.buffers(recurse=False)]),
                share=seconds[path] / total,
            )
        )
    return tuple(rows)


def _bytes(tensors: list[Any]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class _Watch:
    """Per call: the time in each module outside its submodules, and the bytes at its border."""

    def __init__(self, synchronise: bool) -> None:
        self.seconds: list[dict[str, float]] = []
        self.moved: Counter[str] = Counter()
        self.running: list[list[float]] = []
        self.synchronise = synchronise

    def enter(self, path: str, inputs: Any) -> None:
        """A module starts to run."""
        self.running.append([self._now(), 0.0])

    def leave(self, path: str, inputs: Any, outputs: Any) -> None:
        """A module has run; an output that is a view of an input moves nothing."""
        now = self._now()
        start, inside = self.running.pop()
        self.seconds[-1][path] += now - start - inside
        if self.running:
            self.running[-1][1] += now - start
        read, written = tensors_in(inputs), tensors_in(outputs)
        known = {t.untyped_storage().data_ptr() for t in read}
        if any(t.untyped_storage().data_ptr() not in known for t in written):
            self.moved[path] += _bytes(read) + _bytes(written)

    def _now(self) -> float:
        if self.synchronise:
            torch.cuda.synchronize()
        return time.perf_counter()
