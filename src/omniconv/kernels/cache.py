"""The folder of built libraries: the user's own, and whole files only, whoever is killed when."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["CacheUnusable", "find", "find_or_make", "folder"]


KEPT = 8
"""Files of one kind that stay, the newest: those of other versions of torch, say."""


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


def find(name: str) -> Path | None:
    """The cache's file ``name``, if it is there.

    Raises:
        CacheUnusable: As for :func:`find_or_make`.
    """
    with _usable() as home:
        path = home / name
        return path if path.is_file() else None


def find_or_make(name: str, make: Callable[[Path], None]) -> Path:
    """The cache's file ``name``, ``<kind>-<hash>...``, made by ``make(path)`` if it is not there.

    Of several processes that ask at once one makes it and the others wait. It is made under another
    name, synchronised and renamed. A lock ends with its process, however that ends.

    Raises:
        CacheUnusable: The folder cannot be made or written, or is not private to this user.
    """
    with _usable() as home:
        path = home / name
        if path.is_file():
            return path
        kind = name.partition("-")[0]
        with _locked(home / f"{kind}.lock"):
            if not path.is_file():
                for left in home.glob(f"{kind}-*.part"):  # by a process that was killed
                    left.unlink(missing_ok=True)
                part = home / f"{name}.{os.getpid()}.part"
                try:
                    make(part)
                    _synchronise(part)
                    part.replace(path)
                    _synchronise(home)
                    _forget(home, kind)
                finally:
                    part.unlink(missing_ok=True)
        return path


@contextmanager
def _usable() -> Iterator[Path]:
    try:
        home = folder()
    except RuntimeError as error:
        raise CacheUnusable(f"there is no cache: {error}; set OMNICONV_CACHE") from error
    try:
        _check(home)
        yield home
    except OSError as error:
        raise CacheUnusable(f"the cache {home} cannot be used: {error}") from error


def _check(home: Path) -> None:
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
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _forget(home: Path, kind: str) -> None:
    found = sorted(home.glob(f"{kind}-*.so"), key=lambda path: path.stat().st_mtime)
    for path in found[:-KEPT]:
        path.unlink(missing_ok=True)


def _synchronise(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
