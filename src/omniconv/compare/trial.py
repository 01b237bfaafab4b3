"""One trial: train one network with one seed, validate after every leg, score it on test once.

The job of a worker (see :mod:`omniconv.compare.worker`): ``point`` (see
:meth:`omniconv.compare.plan.Plan.point`), ``seed``, ``test`` (whether test is looked at), and the
paths ``data`` and ``checkpoint``. A leg is an epoch, or a tenth of a budget in steps. Events:

- ``leg``: ``at`` (epochs or steps behind it), ``train_loss``, ``validation_loss``,
  ``validation_score``, ``seconds``; those before a checkpoint are reported again;
- ``step``: ``done``, the share of the training that is behind it, a few times a second;
- ``end``: ``status`` done with ``score``, ``extras`` and ``pictures`` (None without ``test``), or
  diverged with ``reason``; and ``kernels``, the names of the compiled kernels that ran.

A leg is reported after its checkpoint is on disk. A trial that finds its checkpoint goes on behind
it and ends in the same numbers, to the last bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from omniconv.compare import budget, whole
from omniconv.compare.network import build
from omniconv.compare.optimizer import OPTIMIZERS
from omniconv.compare.pictures import pictures
from omniconv.compare.worker import Report
from omniconv.core.params import constrain_, param_groups
from omniconv.kernels import backend

__all__ = ["work"]

STEP_SECONDS = 0.25


class Diverged(Exception):
    """The loss is no number any more."""


def work(job: Mapping[str, Any], report: Report) -> None:
    """Run the trial, from its checkpoint where there is one."""
    trial = _Trial(job)
    try:
        for record in trial.curve:
            report({"event": "leg", **record})
        for end in trial.legs[len(trial.curve) :]:
            report({"event": "leg", **trial.leg(end, report)})
        result = {"status": "done", **(trial.finish() if job["test"] else {})}
    except Diverged as error:
        result = {"status": "diverged", "reason": str(error)}
    report({"event": "end", **result, "kernels": backend.used()})


class _Trial:
    """Network, optimiser and generators, and the legs that are behind them."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.point = point = job["point"]
        _fix(point["threads"])
        backend.set_backend(point["backend"])
        self.task, self.data = whole.load_data(Path(job["data"]))
        torch.manual_seed(job["seed"])
        self.order = torch.Generator().manual_seed(job["seed"])
        self.network = build(point, self.data)
        self.model = self.network.model
        self.budget = budget.parse("budget", point["budget"])
        self.legs = self.budget.legs
        settings = point["optimizer"]
        groups = param_groups(self.model, point["row"]["lr"], settings["weight_decay"])
        self.optimizer = OPTIMIZERS[settings["name"]](groups, settings["momentum"])
        self.curve: list[dict[str, Any]] = []
        self.checkpoint = Path(job["checkpoint"])
        if self.checkpoint.exists():
            self.resume()

    def leg(self, end: int, report: Report) -> dict[str, Any]:
        """Train up to ``end``, validate, write the checkpoint; returns the leg's record."""
        start = time.perf_counter()
        train_loss = self.train(end, report)
        loss, score = self.task.evaluate(self.model, self.data, "validation")
        record = {
            "at": end,
            "train_loss": train_loss,
            "validation_loss": self.finite("validation loss", loss, end),
            "validation_score": self.finite("validation score", score, end),
            "seconds": time.perf_counter() - start,
        }
        self.curve.append(record)
        self.save()
        return record

    def train(self, end: int, report: Report) -> float:
        """Train for one leg; returns the mean loss."""
        begin = self.curve[-1]["at"] if self.curve else 0
        size, schedule = self.point["batch_size"], self.point["optimizer"]["schedule"]
        dtype = getattr(torch, self.point["dtype"])
        in_steps = self.budget.unit == "steps"
        steps = end - begin if in_steps else math.ceil(self.data.sizes["train"] / size)
        total, count, told = 0.0, 0, time.perf_counter()
        self.model.train()
        draw = self.task.stream(self.data, size, self.order, steps if in_steps else None)
        for step, (inputs, targets) in enumerate(draw):
            done = (begin + (end - begin) * step / steps) / self.budget.amount
            loss = self.task.loss(self.model(inputs.to(dtype)), _as(targets, dtype))
            loss.backward()
            self.optimizer.step(_factor(schedule, done))
            constrain_(self.model)
            total += self.finite("training loss", loss.item(), end) * len(inputs)
            count += len(inputs)
            if time.perf_counter() - told > STEP_SECONDS:
                told = time.perf_counter()
                report({"event": "step", "done": done})
        return total / count

    def finish(self) -> dict[str, Any]:
        """Score the network as it is at the end on test, once; what it looks like inside."""
        loss, score = self.task.evaluate(self.model, self.data, "test")
        for name, value in (("test loss", loss), ("test score", score)):
            self.finite(name, value, self.budget.amount)
        extras = {
            name: self.finite(name, value, self.budget.amount)
            for name, value in self.task.extras(self.model, self.data).items()
        }
        shown = pictures(self.network, self.task, self.data)
        return {"score": score, "extras": extras, "pictures": shown}

    def finite(self, name: str, value: float, at: int) -> float:
        """The value; :class:`Diverged` where it is no number."""
        if not math.isfinite(value):
            unit = self.budget.unit[:-1]
            raise Diverged(f"the {name} became {value} before the end of {unit} {at}")
        return value

    def save(self) -> None:
        """Write everything that the next leg depends on."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state,
            "steps": self.optimizer.steps,
            "random": torch.get_rng_state(),
            "order": self.order.get_state(),
            "curve": json.dumps(self.curve),
        }
        whole.save_tensors(self.checkpoint, state)

    def resume(self) -> None:
        """Take up what :meth:`save` wrote."""
        state = whole.load_tensors(self.checkpoint)
        self.model.load_state_dict(state["model"])
        self.optimizer.state = state["optimizer"]
        self.optimizer.steps = state["steps"]
        torch.set_rng_state(state["random"])
        self.order.set_state(state["order"])
        self.curve = json.loads(state["curve"])


def _as(targets: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Targets that are images in the network's dtype; labels as they are."""
    return targets.to(dtype) if targets.is_floating_point() else targets


def _fix(threads: int) -> None:
    """The same numbers in every run: fixed threads, deterministic operators."""
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    # what use_deterministic_algorithms does, but without importing torch's compiler
    torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _factor(schedule: str, done: float) -> float:
    """The learning rate relative to the first step's, after the share ``done`` of training."""
    return 1.0 if schedule == "constant" else 0.5 * (1.0 + math.cos(math.pi * done))
