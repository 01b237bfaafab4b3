"""Image classification: load the data, draw batches, cross-entropy, accuracy in percent."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.core import args
from omniconv.tasks import data
from omniconv.tasks.dataset import SPLITS, Dataset, assemble
from omniconv.tasks.metric import Metric
from omniconv.tasks.plug import from_datasets

__all__ = [
    "UNIT",
    "Dataset",
    "batches",
    "evaluate",
    "examples",
    "extras",
    "from_content",
    "from_datasets",
    "load",
    "loss",
    "metric",
    "stream",
]

UNIT = "epochs"
PADDING = 4


def load(spec: str, limit_train: int | None = None) -> Dataset:
    """The data named by ``spec``: ``mnist5k``, ``cifar10:DIR``, ``idx:DIR`` or ``folder:DIR``.

    Args:
        spec: Name, and folder where the name needs one.
        limit_train: Keep this many train images, the classes in proportion; all if None.

    Raises:
        ValueError: Unknown name, bad ``limit_train``, or a file that is missing, unreadable or
            malformed; the sentence names it and what is expected.
        TypeError: ``spec`` is not a string or ``limit_train`` not an int.
        ImportError: A package that the reader needs is not installed; the remedy is said.
    """
    return assemble(data.read(spec), limit_train)


def from_content(content: dict[str, Any]) -> Dataset:
    """The data of :meth:`Dataset.to_content`."""
    return Dataset.from_content(content)


def metric(dataset: Dataset) -> Metric:
    """Accuracy in percent; chance is one in the number of classes, half a point matters."""
    return Metric("accuracy", "%", True, 100.0 / len(dataset.classes), 0.5)


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, classes) against labels (B,), in nats."""
    return F.cross_entropy(logits, labels)


def batches(
    dataset: Dataset,
    split: str,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    augment: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over a split; the last batch may be smaller.

    Args:
        dataset: The data.
        split: ``train``, ``validation`` or ``test``.
        batch_size: Images in a batch.
        generator: Draws the order, and the augmentation; without it the order is the stored one.
        augment: Shift every image by up to 4 pixels (zeros come in) and mirror half of them;
            ``dataset.augments`` says whether that is usual for these images. Needs a generator.

    Returns:
        Batches of images (B, C, H, W), float32, normalised by the train split's mean and
        deviation, and labels (B,), int64. The same generator state gives the same batches.

    Raises:
        ValueError: Unknown split, ``batch_size`` below 1, ``augment`` without a generator.
        TypeError: An argument of another type.
    """
    split = args.choice("split", split, SPLITS)
    batch_size = args.positive_int("batch_size", batch_size)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {args.show(generator)}")
    if args.boolean("augment", augment) and generator is None:
        raise ValueError("augment=True needs a generator, got None")
    return _draw(dataset, split, batch_size, generator, augment)


def stream(
    dataset: Dataset, batch_size: int, generator: torch.Generator, steps: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of training batches, augmented where that is usual; its first ``steps``."""
    draw = batches(dataset, "train", batch_size, generator=generator, augment=dataset.augments)
    return itertools.islice(draw, steps)


def _draw(
    dataset: Dataset,
    split: str,
    batch_size: int,
    generator: torch.Generator | None,
    augment: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    images, labels = getattr(dataset, split)
    mean, std = dataset.mean_std
    if generator is None:
        order = torch.arange(len(labels))
    else:
        order = torch.randperm(len(labels), generator=generator)
    for chosen in order.split(batch_size):
        batch = images[chosen]
        if augment and generator is not None:
            batch = _crop_and_flip(batch, generator)
        yield (batch.float() - mean) / std, labels[chosen]


def _crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pad by 4 zeros, crop each image at random to its size, mirror half of them."""
    count, _, height, width = images.shape
    row, column = torch.randint(2 * PADDING + 1, (2, count), generator=generator)
    mirrored = torch.randint(2, (count, 1, 1, 1), generator=generator, dtype=torch.bool)
    padded = F.pad(images, (PADDING,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    cropped = windows[torch.arange(count), :, row, column]
    return torch.where(mirrored, cropped.flip(3), cropped)


@torch.no_grad()
def evaluate(
    model: nn.Module, dataset: Dataset, split: str, batch_size: int = 500
) -> tuple[float, float]:
    """Mean loss and accuracy in percent of ``model`` on a split, in eval mode.

    The images take device and dtype of the model's first parameter; its mode is put back.
    """
    like = next(model.parameters(), torch.empty(0))
    was_training = model.training
    model.eval()
    total = correct = 0.0
    for images, labels in batches(dataset, split, batch_size):
        labels = labels.to(like.device)
        logits = model(images.to(like)).float()
        total += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(1) == labels).sum().item()
    model.train(was_training)
    count = dataset.sizes[split]
    return total / count, 100.0 * correct / count


def extras(model: nn.Module, dataset: Dataset) -> dict[str, float]:
    """Nothing beside the accuracy."""
    return {}


def examples(dataset: Dataset, count: int) -> tuple[Tensor, Tensor]:
    """``count`` images of the test split, spread over it, and their labels."""
    images, labels = dataset.test
    mean, std = dataset.mean_std
    chosen = torch.linspace(0, len(labels) - 1, count).round().long().unique()
    return (images[chosen].float() - mean) / std, labels[chosen]
