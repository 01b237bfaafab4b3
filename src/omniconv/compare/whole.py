"""Files that are whole or absent: written aside, fsynced, renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from omniconv.tasks.dataset import SPLITS, Dataset, Split

__all__ = ["load_dataset", "load_tensors", "save_dataset", "save_tensors", "write"]

FACTS = ("name", "source", "licence", "classes", "channels", "size")


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
    write(path, lambda file: torch.save(content, file))


def load_tensors(path: Path, *, mmap: bool = False) -> Any:
    """What :func:`save_tensors` wrote; nothing in the file can run code."""
    return torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)


def save_dataset(path: Path, dataset: Dataset) -> None:
    """Write the images and labels that the trials read, whatever they were made from."""
    content = {name: getattr(dataset, name) for name in FACTS}
    content |= {name: tuple(getattr(dataset, name)) for name in SPLITS}
    save_tensors(path, content)


def load_dataset(path: Path) -> Dataset:
    """The dataset that :func:`save_dataset` wrote; its images are read when they are used."""
    content = load_tensors(path, mmap=True)
    return Dataset(**content | {name: Split(*content[name]) for name in SPLITS})
