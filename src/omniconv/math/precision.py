"""Computing in float32 at least: for layers whose coordinates must not be rounded.

A sampling place rounded to bfloat16 is off by up to half a pixel at pixel 128, so that layers with
such places compute wholly in a wide type and round their output once.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["output_dtype", "wide_dtype", "without_autocast"]


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """The tensor's dtype, float32 for half precision."""
    return torch.promote_types(tensor.dtype, torch.float32)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast on this device lowers nothing."""
    active = _autocasts(device)
    return torch.autocast(device.type, enabled=False) if active else nullcontext()


def output_dtype(parameter: Tensor) -> torch.dtype:
    """What torch's convolution with this parameter returns: autocast's dtype, or its own."""
    lowered = _autocasts(parameter.device) and parameter.dtype != torch.float64
    return torch.get_autocast_dtype(parameter.device.type) if lowered else parameter.dtype


def _autocasts(device: torch.device) -> bool:
    return device.type != "meta" and torch.is_autocast_enabled(device.type)
