"""How fast the kernels are here: against the best of torch, and against what the machine can do."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["KERNELS"]

KERNELS = tuple(
    name
    for name in ("dcls", "deform", "depthwise", "position_varying")
    if find_spec(f"omniconv.bench.{name}") is not None
)
"""Kernels with cases, each in a module of its name (see :mod:`omniconv.bench.case`)."""
