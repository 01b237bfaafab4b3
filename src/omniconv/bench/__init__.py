"""How fast the kernels are here: against the best of torch, and against what the machine can do."""

from __future__ import annotations

__all__ = ["KERNELS"]

KERNELS = ("accelerate", "dcls", "deform", "depthwise", "position_varying")
"""What has cases: kernels, and ``accelerate_`` of whole networks, each in a module of its name.

:mod:`omniconv.bench.case` says how they are written.
"""
