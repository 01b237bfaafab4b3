"""Stochastic gradient descent with momentum, the arithmetic of ``torch.optim.SGD``.

Written out because constructing any ``torch.optim`` optimiser imports torch's compiler, which
takes a second: in a trial of five that is a lot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["SGD"]


class SGD:
    """g = grad + decay p;  v = momentum v + g (v = g in the first step);  p = p - lr factor v.

    Args:
        groups: As of :func:`omniconv.core.params.param_groups`.
        momentum: From 0 to 1.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], momentum: float) -> None:
        self.momentum = momentum
        self.parameters = [(p, g["lr"], g["weight_decay"]) for g in groups for p in g["params"]]
        self.velocities: list[Tensor | None] = [None] * len(self.parameters)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One step with all learning rates times ``factor``; gradients are used up."""
        for index, (parameter, lr, decay) in enumerate(self.parameters):
            gradient = parameter.grad
            if gradient is None:
                continue
            if decay:
                gradient = gradient.add(parameter, alpha=decay)
            if self.momentum:
                velocity = self.velocities[index]
                if velocity is None:
                    velocity = self.velocities[index] = gradient.clone()
                else:
                    velocity.mul_(self.momentum).add_(gradient)
                gradient = velocity
            parameter.add_(gradient, alpha=-lr * factor)
            parameter.grad = None
