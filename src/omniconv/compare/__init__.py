"""The main job: train networks that differ in one convolution, measure them, judge them.

:func:`plan_from_flags` makes a plan, :func:`run` carries it out. Names are imported at first use:
the processes that train start from here, too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omniconv.compare.comparison import rebuild, run
    from omniconv.compare.plan import Plan, parse
    from omniconv.compare.plan import from_flags as plan_from_flags
    from omniconv.compare.refused import Refused

__all__ = ["Plan", "Refused", "parse", "plan_from_flags", "rebuild", "run"]

_HOMES = {
    "Plan": ("omniconv.compare.plan", "Plan"),
    "Refused": ("omniconv.compare.refused", "Refused"),
    "parse": ("omniconv.compare.plan", "parse"),
    "plan_from_flags": ("omniconv.compare.plan", "from_flags"),
    "rebuild": ("omniconv.compare.comparison", "rebuild"),
    "run": ("omniconv.compare.comparison", "run"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'omniconv.compare' has no attribute {name!r}")
    home, attribute = _HOMES[name]
    return getattr(import_module(home), attribute)
