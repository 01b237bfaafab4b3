"""One trial: train one network with one seed, validate every epoch, score it on test at the end.

The job of a worker (see :mod:`omniconv.compare.worker`): ``point`` (see
:meth:`omniconv.compare.plan.Plan.points`), ``seed``, and the paths ``data`` and ``checkpoint``.
Its events are

- ``epoch``: ``epoch`` from 1, ``train_loss``, ``validation_loss``, ``validation_score``,
  ``seconds``; those before a checkpoint are reported again;
- ``step``: ``done``, the share of the training that is behind it, a few times a second;
- ``end``: ``status`` done with ``score`` and ``kernels``, or diverged with ``reason``.

An epoch is reported after its checkpoint is on disk. A trial that finds its checkpoint goes on
behind it and ends in the same numbers, to the last bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from omniconv.compare import whole
from omniconv.compare.network import build, learned_kernels
from omniconv.compare.sgd import SGD
from omniconv.compare.worker import Report
from omniconv.core.params import constrain_, param_groups
from omniconv.tasks import classify

__all__ = ["work"]

STEP_SECONDS = 0.25


class Diverged(Exception):
    """The loss is no number any more."""


def work(job: Mapping[str, Any], report: Report) -> None:
    """Run the trial, from its checkpoint where there is one."""
    trial = _Trial(job)
    try:
        for record in trial.history:
            report({"event": "epoch", **record})
        while len(trial.history) < trial.point["epochs"]:
            report({"event": "epoch", **trial.epoch(report)})
        report({"event": "end", "status": "done", **trial.finish()})
    except Diverged as error:
        report({"event": "end", "status": "diverged", "reason": str(error)})


class _Trial:
    """Network, optimiser and generators, and the epochs that are behind them."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.point = point = job["point"]
        _fix(point["threads"])
        self.dataset = whole.load_dataset(Path(job["data"]))
        torch.manual_seed(job["seed"])
        self.order = torch.Generator().manual_seed(job["seed"])
        self.network = build(point, self.dataset)
        self.model = self.network.model
        settings = point["optimizer"]
        groups = param_groups(self.model, point["row"]["lr"], settings["weight_decay"])
        self.optimizer = SGD(groups, settings["momentum"])
        self.history: list[dict[str, Any]] = []
        self.checkpoint = Path(job["checkpoint"])
        if self.checkpoint.exists():
            self.resume()

    def epoch(self, report: Report) -> dict[str, Any]:
        """Train for one epoch, validate, write the checkpoint; returns the epoch's record."""
        number = len(self.history) + 1
        start = time.perf_counter()
        train_loss = self.train(number, report)
        loss, score = classify.evaluate(self.model, self.dataset, "validation")
        record = {
            "epoch": number,
            "train_loss": train_loss,
            "validation_loss": _finite("validation loss", loss, number),
            "validation_score": score,
            "seconds": time.perf_counter() - start,
        }
        self.history.append(record)
        self.save()
        return record

    def train(self, number: int, report: Report) -> float:
        """One pass over the train split; returns the mean loss."""
        size, epochs = self.point["batch_size"], self.point["epochs"]
        schedule = self.point["optimizer"]["schedule"]
        dtype = getattr(torch, self.point["dtype"])
        count = self.dataset.sizes["train"]
        total, told = 0.0, time.perf_counter()
        draw = classify.batches(
            self.dataset, "train", size, generator=self.order, augment=self.dataset.augments
        )
        self.model.train()
        for step, (images, labels) in enumerate(draw):
            done = (number - 1 + step * size / count) / epochs
            loss = classify.loss(self.model(images.to(dtype)), labels)
            loss.backward()
            self.optimizer.step(_factor(schedule, done))
            constrain_(self.model)
            total += _finite("training loss", loss.item(), number) * len(labels)
            if time.perf_counter() - told > STEP_SECONDS:
                told = time.perf_counter()
                report({"event": "step", "done": done})
        return total / count

    def finish(self) -> dict[str, Any]:
        """Score the network of the last epoch on test, once."""
        loss, score = classify.evaluate(self.model, self.dataset, "test")
        _finite("test loss", loss, len(self.history))
        return {"score": score, "kernels": learned_kernels(self.network)}

    def save(self) -> None:
        """Write everything that the next epoch depends on."""
        state = {
            "model": self.model.state_dict(),
            "velocities": self.optimizer.velocities,
            "random": torch.get_rng_state(),
            "order": self.order.get_state(),
            "history": json.dumps(self.history),
        }
        whole.save_tensors(self.checkpoint, state)

    def resume(self) -> None:
        """Take up what :meth:`save` wrote."""
        state = whole.load_tensors(self.checkpoint)
        self.model.load_state_dict(state["model"])
        self.optimizer.velocities = state["velocities"]
        torch.set_rng_state(state["random"])
        self.order.set_state(state["order"])
        self.history = json.loads(state["history"])


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


def _finite(name: str, value: float, epoch: int) -> float:
    if not math.isfinite(value):
        raise Diverged(f"the {name} became {value} in epoch {epoch}")
    return value
