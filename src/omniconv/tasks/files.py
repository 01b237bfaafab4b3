"""Reading files with one clear error: the path, what is expected, what was found."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["REMEDY", "check_directory", "check_file", "read_bytes", "show", "unreadable"]

REMEDY = 'pip install "omniconv[compare]"'
"""What to do where a package is missing."""


def show(path: Path) -> str:
    """The path in quotes, control characters escaped."""
    return repr(str(path))


def unreadable(path: Path, wanted: str, error: Exception) -> str:
    """The sentence for a file or folder that ended in ``error``."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{show(path)} must be {wanted}, but it cannot be read: {' '.join(reason.split())}"


def check_directory(path: Path) -> None:
    """Refuse what is no folder."""
    if not os.path.isdir(path):
        raise ValueError(f"{show(path)} must be a folder, but there is none")


def check_file(path: Path, wanted: str) -> None:
    """Refuse what is no regular file: a pipe would block, a device never end."""
    if not os.path.lexists(path):
        raise ValueError(f"{show(path)} must be {wanted}, but it does not exist")
    if path.exists() and not path.is_file():
        raise ValueError(f"{show(path)} must be {wanted}, but it is not a regular file")


def read_bytes(path: Path, wanted: str) -> bytes:
    """The whole file.

    Raises:
        ValueError: The file is missing, no regular file or unreadable.
    """
    try:
        check_file(path, wanted)
        return path.read_bytes()
    except OSError as error:
        raise ValueError(unreadable(path, wanted, error)) from None
