"""IDX files under MNIST's names: a big-endian header, then unsigned bytes."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path

import numpy as np

from omniconv.tasks import files
from omniconv.tasks.dataset import NO_LICENCE, Listing, Pick

__all__ = ["read"]

PREFIXES = {"train": "train", "test": "t10k"}
CHUNK = 1 << 20


def read(directory: Path) -> Listing:
    """``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same with ``t10k``.

    Each file is plain or packed (``.gz``). The classes are the labels that occur in train.

    Raises:
        ValueError: A file is missing, unreadable or malformed; the sentence names it.
    """
    files.check_directory(directory)
    images: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for split, prefix in PREFIXES.items():
        images_path = _plain_or_packed(directory / f"{prefix}-images-idx3-ubyte")
        labels_path = _plain_or_packed(directory / f"{prefix}-labels-idx1-ubyte")
        images[split] = _array(images_path, dimensions=3)
        found[split] = _array(labels_path, dimensions=1)
        if len(images[split]) != len(found[split]):
            raise ValueError(
                f"{files.show(labels_path)} must hold one label for each of the "
                f"{len(images[split])} images of {images_path.name}, got {len(found[split])}"
            )
        size, wanted = images[split].shape[1:], images["train"].shape[1:]
        if size != wanted:
            raise ValueError(
                f"{files.show(images_path)} must hold images of the train size "
                f"{wanted[0]} x {wanted[1]}, got {size[0]} x {size[1]}"
            )
    values = np.unique(found["train"])
    unknown = np.setdiff1d(found["test"], values)
    if len(unknown):
        raise ValueError(
            f"{files.show(labels_path)} must hold labels that occur in train "
            f"({', '.join(map(str, values))}), got {unknown[0]}"
        )

    def decode(picks: Sequence[Pick]) -> list[np.ndarray]:
        return [images[split][at][:, None] for split, at in picks]

    return Listing(
        name=f"IDX {directory.resolve().name}",
        source=f"IDX files in {files.show(directory)}",
        licence=NO_LICENCE,
        classes=tuple(str(value) for value in values),
        labels={split: np.searchsorted(values, labels) for split, labels in found.items()},
        decode=decode,
    )


def _plain_or_packed(path: Path) -> Path:
    """``path`` if it exists or nothing does, else the same with ``.gz``."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if os.path.lexists(packed) and not os.path.lexists(path) else path


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _array(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of one file; not a byte is read past what its header declares and one."""
    magic = 0x0800 + dimensions
    header_size = 4 + 4 * dimensions
    wanted = f"an IDX file of unsigned bytes in {dimensions} dimension(s) (magic {magic})"
    data = bytearray()
    try:
        files.check_file(path, wanted)
        with _open(path) as file:
            header = file.read(header_size)
            if len(header) < header_size:
                raise ValueError(f"{files.show(path)} must be {wanted}, got {len(header)} bytes")
            found, *shape = (int(number) for number in np.frombuffer(header, dtype=">u4"))
            if found != magic:
                raise ValueError(f"{files.show(path)} must be {wanted}, got magic {found}")
            total = math.prod(shape)
            while chunk := file.read(min(CHUNK, total + 1 - len(data))):
                data += chunk
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(files.unreadable(path, wanted, error)) from None
    if len(data) != total or not total:
        raise ValueError(
            f"{files.show(path)} must hold the {' x '.join(map(str, shape))} bytes (one or more) "
            f"that its header declares, got {'more' if len(data) > total else len(data)}"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
