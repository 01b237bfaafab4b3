"""The tasks by name, and what a module has to offer to be one."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from omniconv.core import args
from omniconv.tasks.metric import Metric

__all__ = ["TASKS", "Task", "TaskData", "find"]

TASKS = ("classify", "denoise")
"""Modules of this room, each a :class:`Task`."""


class TaskData(Protocol):
    """Three disjoint splits.

    Attributes:
        name: Name for people.
        source: Where the data came from.
        licence: Their licence.
        channels: Channels of an image.
        classes: Names of the classes; empty where there are none.
        sizes: Number of samples in train, validation and test.
        hash: SHA-256 of the content.
    """

    name: str
    source: str
    licence: str
    channels: int
    classes: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]: ...

    @property
    def hash(self) -> str: ...

    def to_content(self) -> dict[str, Any]:
        """Tensors in plain containers, for ``from_content`` in another process."""
        ...


class Task(Protocol):
    """A module with these names.

    Attributes:
        UNIT: What a budget is counted in: ``epochs`` or ``steps``.
    """

    UNIT: str

    def load(self, spec: str, limit_train: int | None = None) -> TaskData:
        """The data that ``spec`` names; ValueError, TypeError or ImportError in one sentence."""
        ...

    def from_content(self, content: dict[str, Any]) -> TaskData:
        """The inverse of ``to_content``."""
        ...

    def metric(self, data: TaskData) -> Metric:
        """What networks are scored by."""
        ...

    def stream(
        self, data: TaskData, batch_size: int, generator: torch.Generator, steps: int | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Training batches of inputs and targets: one epoch, or ``steps`` batches.

        The same generator state gives the same batches.
        """
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The scalar that is minimised."""
        ...

    def evaluate(self, model: nn.Module, data: TaskData, split: str) -> tuple[float, float]:
        """Mean loss and score of the model on a split, in eval mode."""
        ...

    def extras(self, model: nn.Module, data: TaskData) -> dict[str, float]:
        """Further figures of the finished network, by name with unit."""
        ...

    def examples(self, data: TaskData, count: int) -> tuple[Tensor, Tensor]:
        """The first ``count`` inputs and targets of the test split, for pictures."""
        ...


def find(name: str) -> Task:
    """The task of this name.

    Raises:
        ValueError: There is none.
    """
    return cast(Task, import_module(f"omniconv.tasks.{args.choice('task', name, TASKS)}"))
