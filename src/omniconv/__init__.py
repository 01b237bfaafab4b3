"""omniconv: any convolution, in any PyTorch model: correct, fast, honestly compared.

Public names are found without being imported: ``omniconv.DCLSConv2d`` imports its file at first
use, through the generated ``_index``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from omniconv import _index

__version__ = "0.1.0"

FACES: dict[str, tuple[str, str | None]] = {
    "accelerate_": ("omniconv.surgery.accelerate", "accelerate_"),
    "AccelerateReport": ("omniconv.surgery.report", "AccelerateReport"),
    "analysis": ("omniconv.analysis", None),
    "card": ("omniconv.core.registry", "card"),
    "constrain_": ("omniconv.core.params", "constrain_"),
    "create": ("omniconv.core.registry", "create"),
    "fold_": ("omniconv.surgery.fold", "fold_"),
    "functional": ("omniconv.functional", None),
    "list_operators": ("omniconv.core.registry", "list_operators"),
    "models": ("omniconv.models", None),
    "nn": ("omniconv.nn", None),
    "optimize_density": ("omniconv.search.density", "optimize_density"),
    "param_groups": ("omniconv.core.params", "param_groups"),
    "register": ("omniconv.core.registry", "register"),
    "swap_": ("omniconv.surgery.swap", "swap_"),
    "SwapReport": ("omniconv.surgery.report", "SwapReport"),
    "testing": ("omniconv.testing", None),
    "unaccelerate_": ("omniconv.surgery.accelerate", "unaccelerate_"),
    "where": ("omniconv.surgery.where", None),
}


def __getattr__(name: str) -> Any:
    if name in FACES:
        home, attribute = FACES[name]
        module = import_module(home)
        value = module if attribute is None else getattr(module, attribute)
    elif name in _index.NN:
        value = getattr(import_module(_index.NN[name]), name)
    else:
        raise AttributeError(f"module 'omniconv' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *FACES, *_index.NN})
