"""The job of a worker: measure which way computes a depthwise convolution here, and keep it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from omniconv.compare.worker import Report
from omniconv.kernels import backend
from omniconv.kernels.depthwise.choice import table, tune
from omniconv.kernels.depthwise.ops import KERNEL

__all__ = ["work"]


def work(job: Mapping[str, Any], report: Report) -> None:
    """Measure with ``threads``; the ``end`` has the table's ``path`` and the ``table``."""
    torch.set_num_threads(job["threads"])
    if reason := backend.load("depthwise").reason:
        raise RuntimeError(f"there is no compiled kernel to measure: {reason}")
    path = tune(KERNEL)
    report({"event": "end", "path": str(path), "table": table()})
