"""How fast the kernels are here: against the best of torch, and against what the machine can do."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["KERNELS"]

KERNELS = tuple(
    name
    for name in ("accelerate", "dcls", "deform", "depthwise", "position_varying")
    if find_spec(f"omniconv.bench.{name}") is not None
)
"""What has cases: kernels, and ``accelerate_`` of whole networks, each in a module of its name.

:mod:`omniconv.bench.case` says how they are written.
"""
