"""Depthwise layers of torch on the library's kernel: the same layer, parameters and outputs.

A layer changes its class and nothing else, so that parameters, buffers, keys, hooks,
parametrisations, ties and every reference to it stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from omniconv.core import compat
from omniconv.core.layer import Convolution, plain_class
from omniconv.kernels import backend
from omniconv.surgery import where as choices
from omniconv.surgery.accelerated import FAST, PLAIN, Accelerated
from omniconv.surgery.modules import check_model, paths
from omniconv.surgery.report import AccelerateReport, AccelerateRow, describe
from omniconv.surgery.where import Where

__all__ = ["accelerate_", "unaccelerate_"]


def accelerate_(
    model: nn.Module, where: Where | Callable[[str, nn.Module], bool] | None = None
) -> AccelerateReport:
    """Let torch's depthwise convolutions run on the library's kernel, in place.

    A layer keeps everything but its class, which becomes a subclass of its own
    (``AcceleratedConv2d`` of ``nn.Conv2d``): parameters are the same objects, so that an optimiser
    goes on; keys, hooks, parametrisations and ties stay. Outputs and gradients are the same to
    rounding. Where the kernel is of no use (back end ``"torch"``, exported programs, other devices
    and dtypes, shapes that torch computes faster) torch's own convolution runs. Operators of this
    library need none of this: they choose their kernels by themselves.

    Accelerate before you compile or wrap the model and after :func:`omniconv.fold_`; call
    :func:`unaccelerate_` before you quantise or script it. A second call changes nothing.

    Args:
        model: Any module; compiled, parallel, scripted and quantised ones are refused by name.
        where: Predicate ``(path, module)``; default ``oc.where.depthwise``.

    Returns:
        A report that prints as a table.

    Raises:
        TypeError: The model, or ``where``. Nothing is changed then.
    """
    check_model(model)
    predicate = choices.depthwise if where is None else choices.parse(where)
    rows, chosen = [], []
    for module, names in paths(model).items():
        if not isinstance(module, compat.ConvNd):
            continue
        if not any(predicate(name, module) for name in names):
            continue
        reason = _obstacle(module)
        if not reason:
            chosen.append(module)
        status = "skipped" if reason else "accelerated"
        rows.append(AccelerateRow(", ".join(names), describe(module), status, reason))
    for module in chosen:
        _change(module, FAST)
    return AccelerateReport(tuple(rows), backend.get_backend(), model)


def unaccelerate_(model: nn.Module) -> nn.Module:
    """Undo :func:`accelerate_`: every layer is torch's own again, with the same parameters.

    Raises:
        TypeError: ``model`` is no plain module (compiled, parallel, scripted, quantised).
    """
    for module in check_model(model).modules():
        if isinstance(module, Accelerated):
            _change(module, PLAIN)
    return model


def _obstacle(module: Any) -> str:
    """Why a convolution cannot be accelerated, or an empty string."""
    if isinstance(module, Convolution):
        return f"{type(module).__name__} chooses its kernels by itself"
    if isinstance(module, Accelerated):
        return "already accelerated"
    if isinstance(module, compat.ConvTransposeNd):
        return "there is no kernel for transposed convolutions"
    kind = parametrize.type_before_parametrizations(module)
    if kind is not plain_class(len(module.kernel_size)):
        return f"{kind.__name__} is not torch's plain layer and may compute differently"
    if "forward" in vars(module):
        return "its forward was replaced"
    if not module.groups == module.in_channels > 1:
        return "it is not depthwise, and torch's own is as fast"
    return ""


def _change(module: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> None:
    """Give the module the class that ``classes`` has for its own, under its parametrisations."""
    own = type(module)
    if not parametrize.is_parametrized(module):
        module.__class__ = classes[own]
        return
    # torch derives a class for this module alone, which holds its parametrised tensors
    base = classes[parametrize.type_before_parametrizations(module)]
    namespace = {k: v for k, v in vars(own).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(f"Parametrized{base.__name__}", (base,), namespace)
