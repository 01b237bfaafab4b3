"""Images without labels in three splits, held in their own sizes as uint8 tensors in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from omniconv.core import args
from omniconv.tasks import files
from omniconv.tasks.dataset import SPLITS, VALIDATION_SHARE, stratified

__all__ = ["LEAST", "PATCH", "Album", "Images", "assemble", "draw"]

PATCH = 40
"""Side of a training patch."""

LEAST = {"train": PATCH, "validation": 11, "test": 11}
"""Least height and width: a patch, and the window of the structural similarity."""

FACTS = ("name", "source", "licence", "channels", "sigma")


@dataclass(frozen=True, eq=False)
class Images:
    """Images (C, H, W), uint8, in disjoint splits, and the noise that is put on them.

    Attributes:
        name: Name for people.
        source: Where the images came from.
        licence: Licence of the images.
        channels: Channels of every image.
        sigma: Deviation of the noise in steps of 1/255; None where it varies (blind).
        train: The images that patches are cut from.
        validation: The images that curves and tuning see.
        tests: Test sets by name; the first is the one that is scored.
        classes: Empty; there are no labels.
    """

    name: str
    source: str
    licence: str
    channels: int
    sigma: float | None
    train: tuple[Tensor, ...]
    validation: tuple[Tensor, ...]
    tests: Mapping[str, tuple[Tensor, ...]]
    classes: tuple[str, ...] = ()

    @property
    def test(self) -> tuple[Tensor, ...]:
        """The test set that is scored."""
        return next(iter(self.tests.values()))

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images in train, validation and the scored test set."""
        return {split: len(getattr(self, split)) for split in SPLITS}

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the noise and, set by set, shapes and pixels."""
        digest = hashlib.sha256(f"sigma {self.sigma}".encode())
        sets = {"train": self.train, "validation": self.validation}
        for name, images in [*sets.items(), *self.tests.items()]:
            digest.update(f"{name!r} {len(images)}".encode())
            for image in images:
                digest.update(f"{tuple(image.shape)}".encode())
                digest.update(image.numpy().tobytes())
        return digest.hexdigest()

    def to_content(self) -> dict[str, Any]:
        """Tensors in plain containers."""
        content: dict[str, Any] = {name: getattr(self, name) for name in FACTS}
        return content | {
            "train": list(self.train),
            "validation": list(self.validation),
            "tests": {name: list(images) for name, images in self.tests.items()},
        }

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Images:
        """The inverse of :meth:`to_content`."""
        return cls(
            **{name: content[name] for name in FACTS},
            train=tuple(content["train"]),
            validation=tuple(content["validation"]),
            tests={name: tuple(images) for name, images in content["tests"].items()},
        )


class Album(NamedTuple):
    """What a reader knows before it decodes pixels.

    Attributes:
        name: Name for people.
        source: Where the images are.
        licence: Licence of the images.
        train: Files of the train split.
        validation: Files of the validation split; where empty, it is made of train.
        tests: Files of the test sets by name, the scored one first.
        decode: From a file to its pixels (H, W, C), uint8, C 1 or 3.
    """

    name: str
    source: str
    licence: str
    train: Sequence[Path]
    validation: Sequence[Path]
    tests: Mapping[str, Sequence[Path]]
    decode: Callable[[Path], np.ndarray]


def draw(count: int, size: int) -> np.ndarray:
    """Sorted indices of ``size`` of ``count`` images, always the same; larger draws hold them."""
    return stratified(np.zeros(count, dtype=np.int64), size)


def assemble(album: Album, limit_train: int | None, sigma: float | None) -> Images:
    """The :class:`Images` of an album; only those it holds are decoded.

    Without a validation split, a tenth of train (at least one image) becomes it. ``limit_train``
    then takes that many of the remaining train images. Grey images get 3 channels where others
    have them.

    Raises:
        ValueError: Too few images, one that is unreadable, too small or in two splits, or a
            ``limit_train`` that does not fit.
        TypeError: ``limit_train`` is not an int.
    """
    train, validation = list(album.train), list(album.validation)
    if not validation:
        if len(train) < 2:
            raise ValueError(
                f"{album.source} must hold at least 2 train images, one of them for validation, "
                f"got {len(train)}"
            )
        held_out = set(draw(len(train), max(1, round(VALIDATION_SHARE * len(train)))))
        validation = [path for i, path in enumerate(train) if i in held_out]
        train = [path for i, path in enumerate(train) if i not in held_out]
    if limit_train is not None:
        size = args.integer("limit_train", limit_train, minimum=1, maximum=len(train))
        train = [train[i] for i in draw(len(train), size)]
    sets = {"train": train, "validation": validation, **album.tests}
    pixels = {name: [_pixels(album, name, path) for path in sets[name]] for name in sets}
    _check_disjoint(sets, pixels)
    channels = max(image.shape[2] for images in pixels.values() for image in images)
    tensors = {
        name: tuple(
            torch.from_numpy(
                np.repeat(image, channels // image.shape[2], 2).transpose(2, 0, 1)
            ).contiguous()
            for image in images
        )
        for name, images in pixels.items()
    }
    return Images(
        name=album.name,
        source=album.source,
        licence=album.licence,
        channels=channels,
        sigma=sigma,
        train=tensors["train"],
        validation=tensors["validation"],
        tests={name: tensors[name] for name in album.tests},
    )


def _pixels(album: Album, name: str, path: Path) -> np.ndarray:
    """The pixels of a file, if there are enough of them for the set ``name``."""
    image = album.decode(path)
    least = LEAST.get(name, LEAST["test"])
    if min(image.shape[:2]) < least:
        raise ValueError(
            f"{files.show(path)} must have at least {least} x {least} pixels, "
            f"got {image.shape[0]} x {image.shape[1]}"
        )
    return image


def _check_disjoint(
    sets: Mapping[str, Sequence[Path]], pixels: Mapping[str, Sequence[np.ndarray]]
) -> None:
    """Refuse an image that is in two splits; test sets may share some."""
    seen: dict[bytes, tuple[str, Path]] = {}
    for name, paths in sets.items():
        split = name if name in SPLITS else "test"
        for image, path in zip(pixels[name], paths, strict=True):
            other, same = seen.setdefault(_key(image), (split, path))
            if other != split:
                raise ValueError(
                    f"{files.show(path)} ({split}) must be no {other} image, "
                    f"but it has the pixels of {files.show(same)}"
                )


def _key(image: np.ndarray) -> bytes:
    return hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).digest()
