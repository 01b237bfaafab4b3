"""Run a model for measurement and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from omniconv.core import args as parse

__all__ = ["leaf", "preserved"]


def leaf(tensor: Tensor) -> Tensor:
    """The same values without history: the caller's graph is not part of a measured backward."""
    tensor = tensor.clone() if tensor.is_inference() else tensor
    return tensor.detach().requires_grad_(tensor.requires_grad)


@contextmanager
def preserved(*models: nn.Module) -> Iterator[None]:
    """Restore buffers, gradients, training flags and random state on leaving.

    Measuring runs a model, and a run in training mode moves the statistics of normalisation
    layers, fills ``.grad`` and draws random numbers. State in plain Python attributes is not seen.
    """
    for model in models:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {parse.show(model)}")
    modules = {id(m): m for model in models for m in model.modules()}.values()
    flags = [(m, m.training) for m in modules]
    buffers = [
        (m, name, b, b.clone()) for m in modules for name, b in m.named_buffers(recurse=False)
    ]
    gradients = [(p, p.grad) for model in models for p in model.parameters()]
    gpus = {p.device for p, _ in gradients if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=[d.index for d in gpus]):
        try:
            yield
        finally:
            for module, training in flags:
                module.training = training
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    setattr(module, name, buffer.copy_(value))
            for parameter, gradient in gradients:
                parameter.grad = gradient
