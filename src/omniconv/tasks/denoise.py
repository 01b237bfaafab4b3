r"""Denoising: photographs, Gaussian noise, mean squared error, PSNR.

The input is ``clean + sigma / 255 * N(0, 1)``, not clipped. Training cuts random patches of
40 x 40 pixels and draws their noise anew; validation and test images are whole, and the noise of
each is a function of its pixels and of sigma alone: the same for every network, seed, machine and
number of threads. Where sigma varies (blind), a patch's is uniform in [0, 55], images are judged
at 25, and :func:`extras` adds 15 and 50, the levels of the paper's tables.

Source: K. Zhang, W. Zuo, Y. Chen, D. Meng, L. Zhang, "Beyond a Gaussian Denoiser: Residual
Learning of Deep CNN for Image Denoising", 2017 (DnCNN-S and DnCNN-B).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.core import args
from omniconv.tasks import photographs
from omniconv.tasks.dataset import SPLITS
from omniconv.tasks.images import PATCH, Images
from omniconv.tasks.metric import Metric
from omniconv.tasks.quality import psnr, quality, ssim

__all__ = [
    "UNIT",
    "Images",
    "batches",
    "evaluate",
    "examples",
    "extras",
    "from_content",
    "load",
    "loss",
    "metric",
    "noise",
    "quality",
    "stream",
]

UNIT = "steps"
BLIND = (0.0, 55.0)
MORE_SIGMAS = (15.0, 50.0)
"""Levels at which a network for blind denoising is judged beside 25."""

MOST_SIDE = 128
"""Side of the pictures of :func:`examples`."""


def load(spec: str, limit_train: int | None = None) -> Images:
    """The images named by ``spec``, such as ``skimage``, ``bsd:DIR`` or ``images:DIR,sigma=50``.

    See :func:`omniconv.tasks.photographs.read`.
    """
    return photographs.read(spec, limit_train)


def from_content(content: dict[str, Any]) -> Images:
    """The data of :meth:`Images.to_content`."""
    return Images.from_content(content)


def metric(data: Images) -> Metric:
    """PSNR in dB, the mean over the test set; chance is the noisy images' own, 0.1 dB matters."""
    # the last bits of a sum differ with the number of threads
    chance = round(evaluate(nn.Identity(), data, "test")[1], 6)
    return Metric("PSNR", "dB", True, chance, 0.1)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error over all pixels."""
    return F.mse_loss(outputs, targets)


def noise(image: Tensor, sigma: float) -> Tensor:
    """The fixed noise of an image: float32, deviation ``sigma / 255``.

    Drawn by numpy's PCG64, seeded with the SHA-256 of shape, sigma and pixels.

    Args:
        image: (C, H, W), uint8.
        sigma: Deviation in steps of 1/255.
    """
    pixels = np.ascontiguousarray(image.numpy())
    key = hashlib.sha256(f"{pixels.shape} {float(sigma)}".encode() + pixels.tobytes())
    source = np.random.Generator(np.random.PCG64(int.from_bytes(key.digest(), "little")))
    return torch.from_numpy(source.standard_normal(pixels.shape).astype(np.float32)) * (sigma / 255)


def batches(
    data: Images,
    split: str,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    augment: bool = True,
    steps: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Noisy and clean images, float32, clean ones from 0 to 1.

    Of train, ``steps`` batches (B, C, 40, 40), endless if None: an image at random, all alike
    probable, a patch at random in it, in one of 8 orientations if ``augment``, and its noise; all
    drawn from the generator, so that its state decides. Of validation and test, the whole images
    (1, C, H, W) in order with their fixed noise; the other arguments do not matter.

    Args:
        data: The images.
        split: ``train``, ``validation`` or ``test`` (the scored test set).
        batch_size: Patches in a batch.
        generator: A generator of the CPU; needed for train.
        augment: Whether patches are turned and mirrored.
        steps: Number of train batches.

    Raises:
        ValueError: Unknown split, ``batch_size`` or ``steps`` below 1, train without generator.
        TypeError: An argument of another type.
    """
    split = args.choice("split", split, SPLITS)
    size = args.positive_int("batch_size", batch_size)
    args.boolean("augment", augment)
    if steps is not None:
        args.positive_int("steps", steps)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {args.show(generator)}")
    if split != "train":
        return _whole(getattr(data, split), _judged(data))
    if generator is None:
        raise ValueError("split 'train' needs a generator, got None")
    return _patches(data, size, generator, augment, steps)


def stream(
    data: Images, batch_size: int, generator: torch.Generator, steps: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """``steps`` training batches, endless if None; see :func:`batches`."""
    return batches(data, "train", batch_size, generator=generator, steps=steps)


def _judged(data: Images) -> float:
    """Sigma of validation and test."""
    return photographs.SIGMA if data.sigma is None else data.sigma


def _whole(images: Iterable[Tensor], sigma: float) -> Iterator[tuple[Tensor, Tensor]]:
    for image in images:
        clean = image.float() / 255
        yield (clean + noise(image, sigma))[None], clean[None]


def _patches(
    data: Images, size: int, generator: torch.Generator, augment: bool, steps: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    # numbers of positions of a patch in each image
    room = torch.tensor([image.shape[1:] for image in data.train], dtype=torch.float64) - PATCH + 1
    for _ in itertools.count() if steps is None else range(steps):
        which = torch.randint(len(data.train), (size,), generator=generator)
        share = torch.rand(size, 2, generator=generator, dtype=torch.float64)
        corners = (share * room[which]).long().tolist()
        cut = [
            data.train[i][:, row : row + PATCH, column : column + PATCH]
            for i, (row, column) in zip(which.tolist(), corners, strict=True)
        ]
        clean = torch.stack(cut).float() / 255
        if augment:
            clean = _turn(clean, generator)
        sigma: Any = data.sigma
        if sigma is None:
            low, high = BLIND
            sigma = low + (high - low) * torch.rand(size, 1, 1, 1, generator=generator)
        yield clean + torch.randn(clean.shape, generator=generator) * (sigma / 255), clean


def _turn(patches: Tensor, generator: torch.Generator) -> Tensor:
    """Every square patch in one of its 8 orientations."""
    coins = torch.randint(2, (3, len(patches), 1, 1, 1), generator=generator, dtype=torch.bool)
    patches = torch.where(coins[0], patches.transpose(2, 3), patches)
    patches = torch.where(coins[1], patches.flip(2), patches)
    return torch.where(coins[2], patches.flip(3), patches)


@torch.no_grad()
def _outputs(
    model: nn.Module, images: Iterable[Tensor], sigma: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """What ``model`` makes of the noisy images, and the clean ones: (C, H, W), float32, CPU.

    Each image takes device and dtype of the model's first parameter; its mode is put back.
    """
    like = next(model.parameters(), torch.empty(0))
    was_training = model.training
    model.eval()
    try:
        for noisy, clean in _whole(images, sigma):
            yield model(noisy.to(like)).float().cpu()[0], clean[0]
    finally:
        model.train(was_training)


def evaluate(model: nn.Module, data: Images, split: str) -> tuple[float, float]:
    """Mean squared error of the outputs and PSNR in dB of the clipped ones, in eval mode.

    Both are taken per image and averaged over the split.
    """
    images = getattr(data, args.choice("split", split, SPLITS))
    found = [
        (loss(output, clean).item(), psnr(output, clean))
        for output, clean in _outputs(model, images, _judged(data))
    ]
    losses, scores = zip(*found, strict=True)
    return fmean(losses), fmean(scores)


def extras(model: nn.Module, data: Images) -> dict[str, float]:
    """SSIM on the scored test set, PSNR on the others, and at sigma 15 and 50 where it varies."""
    _, *others = data.tests
    sigma = _judged(data)
    found = {"SSIM": fmean(ssim(*pair) for pair in _outputs(model, data.test, sigma))}
    for other in others:
        pairs = _outputs(model, data.tests[other], sigma)
        found[f"{other} PSNR (dB)"] = fmean(psnr(*pair) for pair in pairs)
    for level in MORE_SIGMAS if data.sigma is None else ():
        pairs = _outputs(model, data.test, level)
        found[f"PSNR at sigma {level:g} (dB)"] = fmean(psnr(*pair) for pair in pairs)
    return found


def examples(data: Images, count: int) -> tuple[Tensor, Tensor]:
    """Noisy and clean centres of the first ``count`` test images (fewer if there are fewer).

    All have one size: the largest square within each of them, of at most 128 pixels.
    """
    images = data.test[: args.positive_int("count", count)]
    side = min(MOST_SIDE, *(extent for image in images for extent in image.shape[1:]))
    centres = []
    for pair in _whole(images, _judged(data)):
        height, width = pair[0].shape[2:]
        top, left = (height - side) // 2, (width - side) // 2
        centres.append([part[:, :, top : top + side, left : left + side] for part in pair])
    noisy, clean = (torch.cat(parts) for parts in zip(*centres, strict=True))
    return noisy, clean
