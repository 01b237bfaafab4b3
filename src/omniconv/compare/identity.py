"""What a number depends on, as a hash: a trial is found again where it would come out equal."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

import omniconv
from omniconv.compare import worker
from omniconv.compare.rows import DEPTHWISE, PLAIN
from omniconv.core.registry import card
from omniconv.kernels import backend

__all__ = ["environment", "identify", "machine"]

ROOMS = (
    "core",
    "math",
    "kernels",
    "constraints",
    "regularize",
    "init",
    "operators",
    "blocks",
    "surgery",
    "models",
    "tasks",
    "compare/budget.py",
    "compare/network.py",
    "compare/whole.py",
)
"""What every worker runs."""

SOURCES = {".py", ".cpp", ".h"}

OWN = {
    "trial": ("compare/trial.py", "compare/optimizer.py", "compare/pictures.py"),
    "cost": ("compare/cost.py", "analysis"),
}


def environment(operators: Iterable[str], back_end: str = "auto") -> dict[str, Any]:
    """Everything here that numbers depend on, the job and its data aside.

    That is: the source of omniconv and of the operators, the kernels that their networks run on
    here with this back end (built now where they are not yet), versions, CPU capability.
    """
    names = sorted(set(operators))
    return {
        "source": {kind: _source(kind) for kind in OWN},
        "operators": {name: [_operator_source(name), _kernels(name, back_end)] for name in names},
        "torch": torch.__version__,
        "numpy": np.__version__,
        "omniconv": omniconv.__version__,
        "device": "cpu",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
    }


def identify(
    kind: str,
    content: Mapping[str, Any],
    operators: Iterable[str],
    data: str,
    here: Mapping[str, Any],
) -> str:
    """SHA-256 of a job, the content of its data, and what its numbers depend on besides.

    Args:
        kind: ``trial`` or ``cost``.
        content: The job, canonical.
        operators: Names of the operators that it uses.
        data: Hash of the data.
        here: :func:`environment`, of these operators at least.
    """
    whole = {
        **here,
        "kind": kind,
        "content": content,
        "data": data,
        "source": here["source"][kind],
        "operators": {name: here["operators"][name] for name in sorted(set(operators))},
    }
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _source(kind: str) -> str:
    """Hash of the files of omniconv that a worker runs."""
    root = Path(omniconv.__file__).parent
    digest = hashlib.sha256()
    for name in (*ROOMS, *OWN[kind]):
        for path in sorted((root / name).rglob("*")) or [root / name]:
            if path.suffix in SOURCES and path.is_file():
                digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
                digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def _operator_source(name: str) -> str:
    """Hash of the file that an operator's layer is written in."""
    if name in (PLAIN, DEPTHWISE):
        return ""
    module = import_module(card(name).layer(2).__module__)
    path = getattr(module, "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


def _kernels(name: str, back_end: str) -> list[str]:
    """The kernels that run here in an operator's network, which is accelerated."""
    if back_end == "torch":
        return []
    own = () if name in (PLAIN, DEPTHWISE) else card(name).kernels
    return [kernel for kernel in sorted({*own, "depthwise"}) if backend.load(kernel).path]


def machine(threads: int) -> dict[str, Any]:
    """The machine and the versions, for people."""
    from omniconv.compare.prepare import physical_memory

    memory = physical_memory()
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "threads": threads,
        "memory_gb": None if memory is None else round(memory / 2**30, 1),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "allocator": worker.allocator(),
    }


def _processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model") and value.strip():
            return " ".join(value.split())
    return platform.processor() or platform.machine()
