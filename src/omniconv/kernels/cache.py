"""The folder of built libraries: the user's own, and whole files only, whoever is killed when."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["CacheUnusable", "find_or_make", "folder"]


class CacheUnusable(Exception):
    """Nothing can be kept in the cache; the message says why."""


def folder() -> Path:
    """``$OMNICONV_CACHE``, or omniconv's part of the platform's cache folder."""
    named = os.environ.get("OMNICONV_CACHE")
    if named:
        return Path(named).absolute()
    if sys.platform == "darwin":
        return Path("~/Library/Caches/omniconv").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "omniconv"


def find_or_make(name: str, make: Callable[[Path], None]) -> Path:
    """The cache's file ``name``, made by ``make(path)`` if it is not there.

    Of several processes that ask at once one makes it and the others wait. It is made under another
    name, synchronised and renamed.

    Raises:
        CacheUnusable: The folder cannot be made or written, or is not private to this user.
    """
    home = folder()
    try:
        _private(home)
        path = home / name
        if path.is_file():
            return path
        with _locked(home / f"{name}.lock"):
            if not path.is_file():
                for left in home.glob(f"{name}.*.part"):  # by a process that was killed
                    left.unlink(missing_ok=True)
                part = home / f"{name}.{os.getpid()}.part"
                try:
                    make(part)
                    _synchronise(part)
                    part.replace(path)
                    _synchronise(home)
                finally:
                    part.unlink(missing_ok=True)
        return path
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        raise CacheUnusable(f"the cache {home} cannot be used: {error}") from error


def _private(home: Path) -> None:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = home.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise OSError("it is no folder")
    if found.st_uid != os.geteuid():
        raise OSError("it belongs to another user")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise OSError(f"others may enter it; chmod 700 {home}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # the system releases it with the process
        yield
    finally:
        os.close(handle)


def _synchronise(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
