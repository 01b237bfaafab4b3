"""Images with labels in three splits, held as uint8 tensors in memory.

A reader finds out labels first (:class:`Listing`); :func:`assemble` then makes the splits and asks
for the pixels of the images that are used, and of no others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from omniconv.core import args

__all__ = ["NO_LICENCE", "SPLITS", "Dataset", "Listing", "Pick", "Split", "assemble", "stratified"]

SPLITS = ("train", "validation", "test")
FACTS = ("name", "source", "licence", "classes", "channels", "size")
NO_LICENCE = "not stated in the files"
VALIDATION_SHARE = 0.1
SEED = 0


class Split(NamedTuple):
    """``images`` (N, C, H, W), uint8 or float32, and ``labels`` (N,), int64; both contiguous."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in three disjoint splits.

    Attributes:
        name: Name for people.
        source: Where the images came from.
        licence: Licence of the images.
        classes: Names of the classes; a label is an index into them.
        channels: Channels of an image.
        size: Height and width in pixels.
        train: The split that is learned from.
        validation: The split that curves and tuning see.
        test: The split that is scored once.
    """

    name: str
    source: str
    licence: str
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    train: Split
    validation: Split
    test: Split

    def to_content(self) -> dict[str, Any]:
        """Tensors in plain containers."""
        content: dict[str, Any] = {name: getattr(self, name) for name in FACTS}
        return content | {name: tuple(getattr(self, name)) for name in SPLITS}

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Dataset:
        """The inverse of :meth:`to_content`."""
        return cls(**{**content, **{name: Split(*content[name]) for name in SPLITS}})

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images in each split."""
        return {name: len(getattr(self, name).labels) for name in SPLITS}

    @property
    def augments(self) -> bool:
        """Whether training usually crops and flips these images: colour, 32x32."""
        return self.channels == 3 and self.size == (32, 32)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the classes and, split by split, pixels and labels."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for name in SPLITS:
            images, labels = getattr(self, name)
            digest.update(f"{name} {tuple(images.shape)} {images.dtype}".encode())
            digest.update(images.numpy())
            digest.update(labels.numpy())
        return digest.hexdigest()

    @cached_property
    def mean_std(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the train split's channels, each (C, 1, 1), float32.

        In the images' own unit (0 to 255 for uint8); a constant channel has deviation 1.
        """
        channels = self.train.images.transpose(0, 1).flatten(1)
        if channels.dtype == torch.uint8:
            counts = torch.stack([c.bincount(minlength=256) for c in channels]).double()
            values = torch.arange(256, dtype=torch.float64)
            share = counts / channels.shape[1]
            mean = share @ values
            variance = (share * (values - mean[:, None]) ** 2).sum(1)
        else:
            variance, mean = torch.var_mean(channels.double(), dim=1, correction=0)
        std = torch.where(variance > 0, variance.sqrt(), 1.0)
        return mean.float()[:, None, None], std.float()[:, None, None]


Pick = tuple[str, np.ndarray]


class Listing(NamedTuple):
    """What a reader knows before it decodes pixels.

    Attributes:
        name: Name for people.
        source: Where the images are.
        licence: Licence of the images.
        classes: Names of the classes.
        labels: Labels (N,) of ``train`` and ``test``, and of ``validation`` where it exists.
        decode: From picks (split, indices) to uint8 images (N, C, H, W), one array per pick.
    """

    name: str
    source: str
    licence: str
    classes: tuple[str, ...]
    labels: dict[str, np.ndarray]
    decode: Callable[[Sequence[Pick]], list[np.ndarray]]


def stratified(labels: np.ndarray, size: int, seed: int = SEED) -> np.ndarray:
    """Indices of ``size`` samples, the classes in proportion and at least one of each.

    Every class is put in random order; sample r of n has rank (r + 1/2) / n, the first of a class
    comes before all others, and the ``size`` lowest ranks are taken. So a larger draw contains the
    smaller ones. The order comes from raw PCG64 output, whose stream numpy keeps fixed.

    Args:
        labels: Classes (N,), any integers.
        size: Number of samples, from the number of classes to N.
        seed: Another seed draws other samples.

    Returns:
        Sorted indices (size,), int64.
    """
    labels = np.asarray(labels)
    noise = np.random.PCG64(seed).random_raw(len(labels))
    order = np.lexsort((noise, labels))
    sorted_labels = labels[order]
    _, first, counts = np.unique(sorted_labels, return_index=True, return_counts=True)
    place = np.arange(len(labels)) - np.repeat(first, counts)
    rank = np.where(place == 0, -1.0, (place + 0.5) / np.repeat(counts, counts))
    lowest = np.lexsort((sorted_labels, rank))[:size]
    return np.sort(order[lowest]).astype(np.int64)


def assemble(listing: Listing, limit_train: int | None = None) -> Dataset:
    """The :class:`Dataset` of a listing; only the images it holds are decoded.

    Without a validation split, a stratified tenth of train (at least one image per class) becomes
    it, always the same one. ``limit_train`` then takes that many of the remaining train images.

    Raises:
        ValueError: A class has too few images, or ``limit_train`` does not fit.
        TypeError: ``limit_train`` is not an int.
    """
    own_validation = "validation" in listing.labels
    _check_classes(listing, train_minimum=1 if own_validation else 2)
    count = len(listing.classes)
    labels = listing.labels["train"]
    train = np.arange(len(labels))
    if own_validation:
        held_out = ("validation", np.arange(len(listing.labels["validation"])))
    else:
        indices = stratified(labels, max(count, round(VALIDATION_SHARE * len(labels))))
        train = np.delete(train, indices)
        held_out = ("train", indices)
    if limit_train is not None:
        name = "limit_train (one image of each class up to the whole train split)"
        size = args.integer(name, limit_train, minimum=count, maximum=len(train))
        train = train[stratified(labels[train], size)]
    picks = [("train", train), held_out, ("test", np.arange(len(listing.labels["test"])))]
    splits = [
        Split(
            torch.from_numpy(np.ascontiguousarray(images)),
            torch.from_numpy(listing.labels[file][indices].astype(np.int64)),
        )
        for (file, indices), images in zip(picks, listing.decode(picks), strict=True)
    ]
    _, channels, height, width = splits[0].images.shape
    return Dataset(
        listing.name,
        listing.source,
        listing.licence,
        listing.classes,
        channels,
        (height, width),
        *splits,
    )


def _check_classes(listing: Listing, train_minimum: int) -> None:
    """At least two classes, and enough images of each in every split."""
    count = len(listing.classes)
    if count < 2:
        raise ValueError(f"{listing.source} must hold at least 2 classes, got {count}")
    for split, labels in listing.labels.items():
        needed = train_minimum if split == "train" else 1
        for label, found in enumerate(np.bincount(labels, minlength=count)):
            if found < needed:
                raise ValueError(
                    f"{listing.source} must hold at least {needed} {split} image(s) of every "
                    f"class, got {found} of class {listing.classes[label]!r}"
                )
