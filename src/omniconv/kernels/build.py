"""A kernel's library: the wheel's, else one built before, else built now by the system's compiler.

    python -m omniconv.kernels.build FOLDER

builds every kernel into FOLDER under the names that a wheel holds them by.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from omniconv.kernels.cache import CacheUnusable, find_or_make
from omniconv.kernels.cache import find as cached

__all__ = ["KERNELS", "CannotBuild", "compile_to", "compiler", "find", "library", "wheel_name"]

HERE = Path(__file__).parent
KERNELS = ("dcls", "deform", "depthwise", "position_varying")
COMPILERS = ("g++", "clang++", "c++")
FLAGS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-shared",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-strict-aliasing",
    "-Wno-psabi",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",  # the oldest torch that can load it
)
PATIENCE = 300
"""Seconds that a build may take."""


class CannotBuild(Exception):
    """There is no library and none can be built; the message says why."""


def library(name: str) -> Path:
    """The kernel's shared object.

    Raises:
        CannotBuild: There is none, and no usable compiler or cache to build one.
    """

    def make(path: Path) -> None:
        print(f"omniconv: building the kernel {name}, once, some 10 seconds", file=sys.stderr)
        compile_to(path, name, compiler())

    try:
        return _in_wheel(name) or find_or_make(_cached_name(name), make)
    except CacheUnusable as error:
        raise CannotBuild(str(error)) from error


def find(name: str) -> Path | None:
    """The kernel's shared object if there is one; nothing is built.

    Raises:
        CannotBuild: There is none, and none could be built.
    """
    try:
        return _in_wheel(name) or cached(_cached_name(name))
    except CacheUnusable as error:
        raise CannotBuild(str(error)) from error


def wheel_name(name: str) -> str:
    """The name by which a wheel's folder ``prebuilt`` holds the library of these sources."""
    return f"{name}-{_hash(name, FLAGS)}.so"


def _in_wheel(name: str) -> Path | None:
    path = HERE / "prebuilt" / wheel_name(name)
    return path if path.is_file() else None


def _cached_name(name: str) -> str:
    version = _version(tuple(compiler()))
    depends = (*FLAGS, version, f"torch {torch.__version__}", platform.machine())
    return f"{name}-{_hash(name, depends)}.so"


def compiler() -> list[str]:
    """The command of the C++ compiler: ``$CXX``, or the first one on the path.

    Raises:
        CannotBuild: There is none.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    if named and shutil.which(named[0]):
        return named
    if named:
        raise CannotBuild(f"no C++ compiler was found: CXX is {named[0]!r}")
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        raise CannotBuild(f"no C++ compiler was found: none of {', '.join(COMPILERS)}")
    return [found]


def compile_to(path: Path, name: str, command: Sequence[str], *more: str) -> None:
    """Build the kernel's library as the file ``path``, with ``more`` flags than ``FLAGS``.

    Raises:
        CannotBuild: The compiler fails, or takes longer than ``PATIENCE``.
    """
    root = Path(torch.__file__).parent
    inputs = ["-isystem", str(root / "include"), *map(str, sorted((HERE / name).glob("*.cpp")))]
    outputs = [f"-L{root / 'lib'}", "-ltorch_cpu", "-o", str(path)]
    _run([*command, *FLAGS, *more, *inputs, *outputs])


@cache
def _version(command: tuple[str, ...]) -> str:
    return _run([*command, "--version"])


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBuild(f"the C++ compiler {command[0]} failed: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [
            f"exit code {done.returncode}"
        ]
        raise CannotBuild(f"the C++ compiler {command[0]} failed: {lines[0]}")
    return done.stdout


def _hash(name: str, parts: Sequence[str]) -> str:
    """Of the kernel's sources and all that its library depends on."""
    digest = hashlib.sha256()
    for path in (*sorted(HERE.glob("*.h")), *sorted((HERE / name).iterdir())):
        if path.suffix in (".cpp", ".h"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:20]


def main(target: Path) -> None:
    """Build every kernel into ``target``, all at once."""
    target.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        jobs = [
            pool.submit(compile_to, target / wheel_name(name), name, compiler()) for name in KERNELS
        ]
        for job in jobs:
            job.result()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
