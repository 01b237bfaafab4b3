"""CIFAR-10's binary version: records of one label byte and 3 x 32 x 32 pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from omniconv.core import args
from omniconv.tasks import files
from omniconv.tasks.dataset import NO_LICENCE, Listing, Pick

__all__ = ["read"]

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
RECORD = 1 + 3 * 32 * 32


def read(directory: Path) -> Listing:
    """``data_batch_1.bin`` to ``data_batch_5.bin`` (those there are) and ``test_batch.bin``.

    ``batches.meta.txt`` names the classes where it exists, else they are the published ten.

    Raises:
        ValueError: A file is missing, unreadable or malformed; the sentence names it.
    """
    files.check_directory(directory)
    batches = [directory / f"data_batch_{i}.bin" for i in range(1, 6)]
    present = [path for path in batches if os.path.lexists(path)]
    if not present:
        raise ValueError(
            f"{files.show(directory)} must hold at least one of data_batch_1.bin to "
            "data_batch_5.bin, got none"
        )
    records = {
        "train": np.concatenate([_records(path) for path in present]),
        "test": _records(directory / "test_batch.bin"),
    }

    def decode(picks: Sequence[Pick]) -> list[np.ndarray]:
        return [records[split][at, 1:].reshape(-1, 3, 32, 32) for split, at in picks]

    return Listing(
        name="CIFAR-10",
        source=f"CIFAR-10 binary files in {files.show(directory)}",
        licence=NO_LICENCE,
        classes=_classes(directory / "batches.meta.txt"),
        labels={split: values[:, 0] for split, values in records.items()},
        decode=decode,
    )


def _records(path: Path) -> np.ndarray:
    """Records (N, 3073) of one file, labels checked."""
    wanted = f"a CIFAR-10 binary file (records of {RECORD} bytes: a label 0-9, then the pixels)"
    data = np.frombuffer(files.read_bytes(path, wanted), dtype=np.uint8)
    if not len(data) or len(data) % RECORD:
        raise ValueError(f"{files.show(path)} must be {wanted}, got {len(data)} bytes")
    records = data.reshape(-1, RECORD)
    bad = np.flatnonzero(records[:, 0] > 9)
    if len(bad):
        raise ValueError(
            f"{files.show(path)} must be {wanted}, "
            f"got label {records[bad[0], 0]} in record {bad[0]}"
        )
    return records


def _classes(path: Path) -> tuple[str, ...]:
    """The class names in ``path``, the published ones if there is no such file."""
    if not os.path.lexists(path):
        return CLASSES
    wanted = "a list of 10 different printable class names, one a line, in UTF-8"
    try:
        text = files.read_bytes(path, wanted).decode()
    except UnicodeDecodeError:
        raise ValueError(f"{files.show(path)} must be {wanted}, but it is not UTF-8") from None
    names = tuple(line.strip() for line in text.split("\n") if line.strip())
    if len(names) != 10 or len(set(names)) != 10 or not all(name.isprintable() for name in names):
        raise ValueError(f"{files.show(path)} must be {wanted}, got {args.show(names)}")
    return names
