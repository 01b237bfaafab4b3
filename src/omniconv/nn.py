"""The operators' layers, imported at first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from omniconv._index import NN as _NAMES


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'omniconv.nn' has no attribute {name!r}")
    value = getattr(import_module(_NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_NAMES)
