"""Image folders: ``train/<class>/*``, ``test/<class>/*`` and, optionally, ``val/<class>/*``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from omniconv.core import args
from omniconv.tasks import files
from omniconv.tasks.dataset import NO_LICENCE, Listing, Pick

__all__ = ["decode", "entries", "read"]

FORMATS = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "PPM": (".pgm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""Pillow's decoders that may run; it has others that start programs."""
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
GREY = ("1", "L", "LA")
COLOUR = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def read(directory: Path) -> Listing:
    """The image files of a folder; its classes are the sorted folder names of train.

    All images must have one size. They have 1 channel if all files are grey, else 3; transparency
    is dropped. Hidden files and files with other suffixes are left out.

    Raises:
        ValueError: A folder or file is missing, unreadable or malformed; the sentence names it.
        ImportError: Pillow is not installed, once images are decoded.
    """
    files.check_directory(directory)
    roots = {"train": directory / "train", "test": directory / "test"}
    if os.path.lexists(directory / "val"):
        roots["validation"] = directory / "val"
    classes = tuple(entries(roots["train"], folders=True))
    paths: dict[str, list[Path]] = {}
    labels: dict[str, np.ndarray] = {}
    for split, root in roots.items():
        names = entries(root, folders=True)
        unknown = [name for name in names if name not in classes]
        if unknown:
            raise ValueError(
                f"{files.show(root)} must hold only class folders that train has, "
                f"got {unknown[0]!r}{args.did_you_mean(unknown[0], classes)}"
            )
        groups = {name: entries(root / name, folders=False) for name in names}
        paths[split] = [root / name / file for name, group in groups.items() for file in group]
        labels[split] = np.concatenate(
            [np.full(len(group), classes.index(name)) for name, group in groups.items()]
        )

    def decode(picks: Sequence[Pick]) -> list[np.ndarray]:
        return _decode([[paths[split][i] for i in at] for split, at in picks])

    return Listing(
        name=directory.resolve().name,
        source=f"image folder {files.show(directory)}",
        licence=NO_LICENCE,
        classes=classes,
        labels=labels,
        decode=decode,
    )


def entries(path: Path, *, folders: bool) -> list[str]:
    """Sorted names of the folders, or of the image files, in ``path``; at least one."""
    if folders:
        wanted = "a folder that holds one folder of images for each class"
    else:
        wanted = f"a folder of images ({', '.join(SUFFIXES)})"

    def fits(entry: os.DirEntry[str]) -> bool:
        if entry.name.startswith("."):
            return False
        return entry.is_dir() if folders else entry.name.lower().endswith(SUFFIXES)

    try:
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if fits(entry))
    except OSError as error:
        raise ValueError(files.unreadable(path, wanted, error)) from None
    if not names:
        raise ValueError(f"{files.show(path)} must be {wanted}, got none")
    for name in names:
        if folders and not name.isprintable():
            raise ValueError(f"{files.show(path)} must hold printable class names, got {name!r}")
    return names


def _decode(groups: list[list[Path]]) -> list[np.ndarray]:
    """One uint8 array (N, C, H, W) per group of files."""
    decoded = [[decode(path) for path in group] for group in groups]
    size = decoded[0][0].shape[:2]
    for group, images in zip(groups, decoded, strict=True):
        for path, image in zip(group, images, strict=True):
            if image.shape[:2] != size:
                raise ValueError(
                    f"{files.show(path)} must have the size of {files.show(groups[0][0])}, "
                    f"{size[0]} x {size[1]}, got {image.shape[0]} x {image.shape[1]}"
                )
    channels = max(image.shape[2] for images in decoded for image in images)
    shape = (*size, channels)
    return [
        np.stack([np.broadcast_to(image, shape).transpose(2, 0, 1) for image in images])
        for images in decoded
    ]


def decode(path: Path) -> np.ndarray:
    """Pixels (H, W, 1) of a grey image, (H, W, 3) of a colour one."""
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(f"data 'folder:DIR' needs the package pillow: {files.REMEDY}") from None
    wanted = f"an image of 8 bits per channel ({', '.join(FORMATS)})"
    try:
        files.check_file(path, wanted)
        with Image.open(path, formats=list(FORMATS)) as image:
            mode = image.mode
            if mode in GREY:
                return np.asarray(image.convert("L"))[:, :, None]
            if mode in COLOUR:
                opaque = image.convert("RGBA") if "transparency" in image.info else image
                return np.asarray(opaque.convert("RGB"))
    except Exception as error:  # a decoder of a broken file raises whatever it trips over
        raise ValueError(files.unreadable(path, wanted, error)) from None
    raise ValueError(f"{files.show(path)} must be {wanted}, got mode {mode!r}")
