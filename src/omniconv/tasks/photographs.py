"""The readers of images without labels, and the ``--data`` argument that chooses one."""

from __future__ import annotations

import os
import re
from pathlib import Path

from omniconv.core import args
from omniconv.tasks import files, folder, skimage_files
from omniconv.tasks.dataset import NO_LICENCE
from omniconv.tasks.images import Album, Images, assemble, draw

__all__ = ["SIGMA", "parse", "read"]

SIGMA = 25.0
"""Deviation of the noise unless the argument says another."""

NAMES = ("skimage", "images", "bsd")
FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
TEST_SHARE = 0.2
MOST_SIGMA = 255.0
WANTED = (
    "data must be 'skimage', images:DIR or bsd:DIR, with ,sigma=50 or ,sigma=blind behind it "
    "where the noise is not 25"
)


def read(spec: str, limit_train: int | None = None) -> Images:
    """The images that ``spec`` names, all decoded.

    - ``skimage``: 13 grey photographs in the package scikit-image: 6 train, 2 validation, 5 test;
    - ``images:DIR``: the image files in ``train``, ``test`` and, optionally, ``validation`` (or
      ``val``) of a folder; without these, those in the folder itself, a fifth as test images;
    - ``bsd:DIR``: ``train400``, tested on ``bsd68`` and, beside it, ``set12``.

    Without a validation split, a tenth of train (at least one image) becomes it, always the same
    one. Images have 1 channel if all files are grey, else 3; transparency is dropped. Hidden files
    and files with other suffixes are left out. Behind the name, ``,sigma=50`` sets the noise, and
    ``,sigma=blind`` lets it vary.

    Args:
        spec: The name.
        limit_train: Keep this many train images; all if None.

    Raises:
        ValueError: Unknown name or option, bad ``limit_train``, or a file that is missing,
            unreadable, too small or in two splits; the sentence names it.
        TypeError: ``spec`` is not a string or ``limit_train`` not an int.
        ImportError: A package that the reader needs is not installed; the remedy is said.
    """
    name, directory, sigma = parse(spec)
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise ImportError(f"data {name!r} needs the package pillow: {files.REMEDY}") from None
    if name == "skimage":
        album = skimage_files.read()
    else:
        files.check_directory(directory)
        album = _bsd(directory) if name == "bsd" else _folder(directory)
    return assemble(album, limit_train, sigma)


def parse(spec: str) -> tuple[str, Path, float | None]:
    """Name, folder (meaningless for ``skimage``) and sigma (None: blind) of the argument.

    What follows the last comma is an option where it has a ``=`` and no separator of folders.

    Raises:
        ValueError: ``spec`` is malformed.
        TypeError: It is not a string.
    """
    if not isinstance(spec, str):
        raise TypeError(f"{WANTED}, got {args.show(spec)} ({type(spec).__name__})")
    base = spec
    sigma: float | None = SIGMA
    match = re.fullmatch(rf"(.*),([^,={re.escape(os.sep)}]*)=([^,{re.escape(os.sep)}]*)", spec)
    if match:
        base, option, value = match.groups()
        if option != "sigma":
            hint = args.did_you_mean(option, ["sigma"])
            raise ValueError(f"{WANTED}, got option {option!r} in {args.show(spec)}{hint}")
        sigma = _sigma(value)
    name, colon, directory = base.partition(":")
    if name not in NAMES:
        raise ValueError(f"{WANTED}, got {args.show(spec)}{args.did_you_mean(name, NAMES)}")
    if name == "skimage" and colon:
        raise ValueError(f"{WANTED}, got {args.show(spec)} with a folder")
    if name != "skimage" and not directory:
        raise ValueError(f"{WANTED}, got {args.show(spec)} without a folder")
    return name, Path(directory).expanduser(), sigma


def _sigma(value: str) -> float | None:
    if value == "blind":
        return None
    number = float(value) if re.fullmatch(r"\d+(\.\d+)?", value, re.ASCII) else 0.0
    if not 0 < number <= MOST_SIGMA:
        raise ValueError(
            f"sigma must be 'blind' or a number above 0 and up to {MOST_SIGMA:g}, "
            f"got {args.show(value)}"
        )
    return number


def _folder(directory: Path) -> Album:
    """A folder of images, split or to be split."""
    present = [name for name in FOLDERS if os.path.lexists(directory / name)]
    if {"validation", "val"} <= set(present):
        raise ValueError(f"{files.show(directory)} must hold validation or val, got both")
    if present:
        sets = {FOLDERS[name]: _files(directory / name) for name in ["train", "test", *present]}
    else:
        paths = _files(directory)
        if len(paths) < 3:
            raise ValueError(
                f"{files.show(directory)} must hold at least 3 images, one for each split, "
                f"got {len(paths)}"
            )
        chosen = set(draw(len(paths), max(1, round(TEST_SHARE * len(paths)))))
        sets = {
            "train": [path for i, path in enumerate(paths) if i not in chosen],
            "test": [path for i, path in enumerate(paths) if i in chosen],
        }
    return Album(
        name=directory.resolve().name,
        source=f"image folder {files.show(directory)}",
        licence=NO_LICENCE,
        train=sets["train"],
        validation=sets.get("validation", []),
        tests={"test": sets["test"]},
        decode=folder.decode,
    )


def _bsd(directory: Path) -> Album:
    """The sets of the papers on denoising, names in upper or lower case.

    Set12's fourth image, the starfish, is partly in Train400; BSD68 shares nothing with it.
    """
    try:
        found = {name.lower(): name for name in sorted(os.listdir(directory))}
    except OSError as error:
        raise ValueError(files.unreadable(directory, "a folder", error)) from None
    train, test, more = (
        _files(directory / found.get(name, name)) for name in ("train400", "bsd68", "set12")
    )
    return Album(
        name="BSD (Train400, BSD68, Set12)",
        source=f"image folders train400, bsd68 and set12 in {files.show(directory)}",
        licence=NO_LICENCE,
        train=train,
        validation=[],
        tests={"BSD68": test, "Set12": more},
        decode=folder.decode,
    )


def _files(path: Path) -> list[Path]:
    return [path / name for name in folder.entries(path, folders=False)]
