"""Walking and changing a model's modules: shared by all surgery."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from omniconv.core import args, compat

__all__ = ["check_model", "paths", "replace"]

_WRAPPERS = {
    "OptimizedModule": "compiled",
    "DistributedDataParallel": "wrapped in DistributedDataParallel",
    "DataParallel": "wrapped in DataParallel",
    "FullyShardedDataParallel": "wrapped in FullyShardedDataParallel",
    "FSDPModule": "sharded by fully_shard",
}


def check_model(model: object) -> nn.Module:
    """Refuse what surgery cannot change: no module, compiled, parallel, scripted, quantised.

    Raises:
        TypeError: Names the part of the model and says what to do instead.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {args.show(model)}")
    for path, module in model.named_modules():
        where = f"at {path!r}" if path else "itself"
        for kind in type(module).__mro__:
            if kind.__module__.startswith("torch.") and kind.__name__ in _WRAPPERS:
                raise TypeError(
                    f"model must be a plain nn.Module, but it is {_WRAPPERS[kind.__name__]} "
                    f"({where}): change the inner module before wrapping it"
                )
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"model must be a plain nn.Module, but it is scripted ({where}): change it "
                f"before torch.jit.script or trace"
            )
        if "quantized" in type(module).__module__ and type(module).__module__.startswith("torch."):
            raise TypeError(
                f"model must be a float nn.Module, but it is quantised "
                f"({type(module).__name__} {where}): change it before quantising"
            )
    return model


def paths(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every module with all paths it is reached by (a tied module has several)."""
    found: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        found.setdefault(module, []).append(path)
    return found


def replace(model: nn.Module, changes: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put every new module in all places of its old one; returns the (possibly new) root."""
    for module in list(model.modules()):
        # named_children would leave out a tied child's second name in the same parent
        for name, child in compat.children(module).items():
            if child is not None and child in changes:
                setattr(module, name, changes[child])
    return changes.get(model, model)
