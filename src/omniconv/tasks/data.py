"""The readers by name, and the ``--data`` argument that chooses one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from omniconv.core import args
from omniconv.tasks import cifar10, folder, idx, mnist5k
from omniconv.tasks.dataset import Listing

__all__ = ["READERS", "read"]

READERS: dict[str, Callable[[Path], Listing]] = {
    "cifar10": cifar10.read,
    "idx": idx.read,
    "folder": folder.read,
}
"""Readers of a folder; ``mnist5k`` needs none."""


def read(spec: str) -> Listing:
    """The listing that ``mnist5k``, ``cifar10:DIR``, ``idx:DIR`` or ``folder:DIR`` names.

    Nothing is unpickled, and no pixel of an image folder is decoded yet.

    Raises:
        ValueError: Unknown name, or a file that is missing, unreadable or malformed.
        TypeError: ``spec`` is not a string.
        ImportError: A package that the reader needs is not installed; the remedy is said.
    """
    wanted = f"data must be 'mnist5k', {', '.join(f'{name}:DIR' for name in READERS)}"
    if not isinstance(spec, str):
        raise TypeError(f"{wanted}, got {args.show(spec)} ({type(spec).__name__})")
    if spec == "mnist5k":
        return mnist5k.read()
    scheme, _, directory = spec.partition(":")
    if scheme not in READERS:
        hint = args.did_you_mean(scheme, ["mnist5k", *READERS])
        raise ValueError(f"{wanted}, got {args.show(spec)}{hint}")
    if not directory:
        raise ValueError(f"{wanted}, got {args.show(spec)} without a folder")
    return READERS[scheme](Path(directory).expanduser())
