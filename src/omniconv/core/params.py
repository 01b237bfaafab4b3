"""Optimiser groups and constraints that layers declare for their own parameters."""

from __future__ import annotations

from typing import Any

from torch import nn

from omniconv.core import args

__all__ = ["constrain_", "param_groups"]


def param_groups(model: nn.Module, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimiser, with every layer's declared exceptions.

    A layer declares ``no_weight_decay`` (names of parameters that must not decay) and
    ``lr_factors`` (name -> factor on ``lr``). Shared parameters appear once; parameters that do
    not require gradients are left out.

    Args:
        model: Any module.
        lr: Base learning rate, above 0.
        weight_decay: Weight decay of all other parameters, at least 0.

    Returns:
        Groups with ``params``, ``lr`` and ``weight_decay``, the ordinary parameters first.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {args.show(model)}")
    lr = args.real("lr", lr, 0.0)
    weight_decay = args.real("weight_decay", weight_decay, 0.0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(lr, weight_decay): []}
    seen: set[int] = set()
    for module in model.modules():
        spared = getattr(module, "no_weight_decay", ())
        factors = getattr(module, "lr_factors", {})
        spared = spared if isinstance(spared, (tuple, list, set, frozenset)) else ()
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            key = (lr * factors.get(name, 1.0), 0.0 if name in spared else weight_decay)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
        if parameters
    ]


def constrain_(model: nn.Module) -> nn.Module:
    """Project every parameter onto the set its layer declares, in place.

    Layers whose parameters live in a set (DCLS positions: the kernel's box) define
    ``constrain_()``. Call this after each optimiser step::

        optimizer.register_step_post_hook(lambda *_: oc.constrain_(model))
    """
    for module in model.modules():
        project = getattr(module, "constrain_", None)
        if callable(project):
            project()
    return model
