"""Files that are whole or absent: written aside, fsynced, renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from omniconv.tasks.task import Task, TaskData, find

__all__ = ["load_data", "load_tensors", "save_data", "save_tensors", "write"]


def write(path: Path, content: Callable[[BinaryIO], Any]) -> None:
    """Make ``path`` what ``content(file)`` writes; after a crash it is the old file or the new."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            content(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def save_tensors(path: Path, content: Any) -> None:
    """Write tensors in plain containers."""

    def save(file: BinaryIO) -> None:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # what torch makes of a write that failed
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    write(path, save)


def load_tensors(path: Path, *, mmap: bool = False) -> Any:
    """What :func:`save_tensors` wrote; nothing in the file can run code."""
    return torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)


def save_data(path: Path, task: str, data: TaskData) -> None:
    """Write the samples that the trials of a task read, whatever they were made from."""
    save_tensors(path, {"task": task, "content": data.to_content()})


def load_data(path: Path) -> tuple[Task, TaskData]:
    """The task and the data that :func:`save_data` wrote; samples are read when they are used."""
    found = load_tensors(path, mmap=True)
    task = find(found["task"])
    return task, task.from_content(found["content"])
