"""A user's own ``torch.utils.data.Dataset`` as the data of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omniconv.core import args
from omniconv.tasks.dataset import SPLITS, Dataset, Split

__all__ = ["from_datasets"]


def from_datasets(
    train: Any, validation: Any, test: Any, name: str, classes: Sequence[str], licence: str
) -> Dataset:
    """Three map-style datasets of (image, label) items, read once into memory.

    Args:
        train: Has a length and items (image, label). An image is a tensor or array (C, H, W) or
            (H, W), or a Pillow image; uint8, or floating point for images of any scale. A label
            is an int from 0.
        validation: As ``train``, other images.
        test: As ``train``, other images.
        name: Name for people.
        classes: Names of the classes, at least two.
        licence: Licence of the images.

    Raises:
        ValueError: Empty split, images that differ in shape, channels or dtype, label out of
            range, an image that is not finite.
        TypeError: An argument or item of another type.
    """
    for argument, value in (("name", name), ("licence", licence)):
        if not isinstance(value, str):
            raise TypeError(f"{argument} must be a string, got {args.show(value)}")
    names = isinstance(classes, Sequence) and not isinstance(classes, str)
    if not names or not all(isinstance(c, str) for c in classes):
        raise TypeError(f"classes must be a sequence of strings, got {args.show(classes)}")
    if len(classes) < 2:
        raise ValueError(f"classes must name at least 2 classes, got {args.show(classes)}")
    given = zip(SPLITS, (train, validation, test), strict=True)
    splits = {split: _split(split, items, len(classes)) for split, items in given}
    like = splits["train"].images
    for split, (images, _) in splits.items():
        if images.shape[1:] != like.shape[1:] or images.dtype != like.dtype:
            raise ValueError(
                f"{split} must hold images like train's, {tuple(like.shape[1:])} {like.dtype}, "
                f"got {tuple(images.shape[1:])} {images.dtype}"
            )
    _, channels, height, width = like.shape
    source = f"datasets of type {type(train).__name__}"
    return Dataset(name, source, licence, tuple(classes), channels, (height, width), **splits)


def _split(split: str, items: Any, classes: int) -> Split:
    """All items of one dataset."""
    try:
        count = len(items)
    except TypeError:
        raise TypeError(
            f"{split} must be a dataset with a length and (image, label) items, "
            f"got {args.show(items)}"
        ) from None
    if not count:
        raise ValueError(f"{split} must hold at least one image, got none")
    images, labels = [], []
    for i in range(count):
        item = items[i]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise TypeError(f"{split}[{i}] must be (image, label), got {args.show(item)}")
        images.append(_image(f"{split}[{i}]", item[0]))
        labels.append(args.integer(f"label of {split}[{i}]", item[1], 0, classes - 1))
        if images[i].shape != images[0].shape or images[i].dtype != images[0].dtype:
            raise ValueError(
                f"{split}[{i}] must be like {split}[0], {tuple(images[0].shape)} "
                f"{images[0].dtype}, got {tuple(images[i].shape)} {images[i].dtype}"
            )
    return Split(torch.stack(images), torch.tensor(labels))


def _image(name: str, image: Any) -> Tensor:
    """One image as a tensor (C, H, W), uint8 or float32."""
    if isinstance(image, Tensor):
        pixels = image.detach().cpu()
    else:
        array = np.array(image)
        if array.dtype.kind not in "uif":
            raise TypeError(f"{name} must be uint8 or floating point, got {args.show(image)}")
        pixels = torch.from_numpy(array)
        if hasattr(image, "getbands") and pixels.ndim == 3:
            pixels = pixels.permute(2, 0, 1)
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3 or not pixels.numel():
        raise ValueError(f"{name} must be (C, H, W) or (H, W), got {tuple(pixels.shape)}")
    if pixels.dtype != torch.uint8:
        if not pixels.is_floating_point():
            raise TypeError(f"{name} must be uint8 or floating point, got {pixels.dtype}")
        pixels = pixels.float()
        if not pixels.isfinite().all():
            raise ValueError(f"{name} must be finite")
    return pixels.contiguous()
