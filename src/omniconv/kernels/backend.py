"""The choice between a kernel and its torch reference, in plain Python.

The back end is ``"auto"``, a kernel wherever there is one, or ``"torch"``, the reference always. It
starts as the environment's ``OMNICONV_BACKEND``. Keys, parameters and formulas never depend on it.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from omniconv.core import args
from omniconv.core.compat import constant_result, is_transforming, is_watched
from omniconv.kernels import build

__all__ = [
    "BACKENDS",
    "State",
    "get_backend",
    "is_direct",
    "kernel_for",
    "load",
    "set_backend",
    "state",
    "used",
]

BACKENDS = ("auto", "torch")
DTYPES = (torch.float32, torch.float64)

_backend = args.choice("OMNICONV_BACKEND", os.environ.get("OMNICONV_BACKEND", "auto"), BACKENDS)
_states: dict[str, State] = {}
_used: set[str] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class State:
    """A kernel in this process: loaded ``path``, or the ``reason`` why it cannot be."""

    path: str = ""
    reason: str = ""


def get_backend() -> str:
    """The back end in use: ``"auto"`` or ``"torch"``."""
    return _backend


def set_backend(name: str) -> None:
    """Use this back end from now on, in this process.

    Raises:
        ValueError: ``name`` is neither ``"auto"`` nor ``"torch"``.
    """
    global _backend
    _backend = args.choice("name", name, BACKENDS)


def kernel_for(
    name: str,
    *tensors: Tensor,
    dtypes: Collection[torch.dtype] = DTYPES,
    gpu_dtypes: Collection[torch.dtype] = (),
) -> bool:
    """Whether the kernel ``name`` computes on these tensors; else its torch reference does.

    It does not where the back end is ``"torch"``; while a program is exported or traced, so that
    it holds torch's operators only; under ``torch.func`` and forward-mode derivatives; for
    tensors of several devices or dtypes, or of others than ``dtypes`` on the CPU and
    ``gpu_dtypes`` on CUDA; and where it can be neither found nor built, which a warning says once.
    """
    if _backend == "torch" or torch.compiler.is_exporting():
        return False
    device, dtype = tensors[0].device, tensors[0].dtype
    if any(t.device != device or t.dtype != dtype for t in tensors):
        return False
    if dtype not in {"cpu": dtypes, "cuda": gpu_dtypes}.get(device.type, ()):
        return False
    if not torch.compiler.is_compiling() and (torch.jit.is_tracing() or is_transforming()):
        return False
    return _ready_on_gpu(name) if device.type == "cuda" else _ready(name)


def used() -> list[str]:
    """The kernels that were chosen in this process so far."""
    return sorted(_used)


def is_direct(*tensors: Tensor) -> bool:
    """Whether nothing but autograd takes part in a call on these tensors, all on the CPU.

    Then a kernel may run without torch's dispatcher, whose layers in Python take as long as the
    kernel of a small layer (0.1 ms each in cold caches). Else something, such as a compiler or a
    counter of FLOPs, has to see the operator.
    """
    plain = all(type(t) in (Tensor, torch.nn.Parameter) and t.is_cpu for t in tensors)
    return plain and not (torch.compiler.is_compiling() or is_watched() or is_transforming())


@constant_result
def _ready(name: str) -> bool:
    found = _states.get(name)
    if found is None:
        found = load(name)
        if found.reason:
            warnings.warn(
                f"omniconv computes {name} by its torch reference, which is slower: {found.reason}",
                RuntimeWarning,
                stacklevel=2,
            )
    if not found.reason:
        _used.add(name)
    return not found.reason


@constant_result
def _ready_on_gpu(name: str) -> bool:
    found = find_spec("triton") is not None
    if found:
        _used.add(name)
    return found


def load(name: str) -> State:
    """Load the kernel's library into this process, building it where none is found."""
    with _lock:
        if name not in _states:
            try:
                path = build.library(name)
                torch.ops.load_library(path)
                _states[name] = State(path=str(path))
            except (build.CannotBuild, OSError) as error:
                _states[name] = State(reason=" ".join(str(error).split()))
        return _states[name]


def state(name: str) -> State | None:
    """What :func:`load` gave in this process; None before its first call."""
    return _states.get(name)
