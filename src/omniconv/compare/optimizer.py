"""Optimisers of the trials, with the arithmetic of ``torch.optim``'s.

Written out because constructing any ``torch.optim`` optimiser imports torch's compiler, which
takes a second: in a trial of five that is a lot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["OPTIMIZERS", "SGD", "Adam", "Optimizer"]


class Optimizer:
    """Parameters in groups and one list of tensors of state for each.

    Args:
        groups: As of :func:`omniconv.core.params.param_groups`.
        momentum: Decay of the mean gradient, from 0 to 1.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], momentum: float) -> None:
        self.momentum = momentum
        self.parameters = [(p, g["lr"], g["weight_decay"]) for g in groups for p in g["params"]]
        self.state: list[list[Tensor]] = [[] for _ in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One step with all learning rates times ``factor``; gradients are used up."""
        self.steps += 1
        for (parameter, lr, decay), state in zip(self.parameters, self.state, strict=True):
            gradient = parameter.grad
            if gradient is None:
                continue
            if decay:
                gradient = gradient.add(parameter, alpha=decay)
            self.update(parameter, gradient, state, lr * factor)
            parameter.grad = None

    def update(self, parameter: Tensor, gradient: Tensor, state: list[Tensor], lr: float) -> None:
        """Change a parameter and its state."""
        raise NotImplementedError


class SGD(Optimizer):
    """g = grad + decay p;  v = momentum v + g (v = g in the first step);  p = p - lr factor v."""

    def update(self, parameter: Tensor, gradient: Tensor, state: list[Tensor], lr: float) -> None:
        if self.momentum:
            if state:
                state[0].mul_(self.momentum).add_(gradient)
            else:
                state.append(gradient.clone())
            gradient = state[0]
        parameter.add_(gradient, alpha=-lr)


class Adam(Optimizer):
    """g = grad + decay p;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
    p = p - lr factor (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + 1e-8), b1 the momentum, b2 0.999.
    """

    SECOND = 0.999
    EPSILON = 1e-8

    def update(self, parameter: Tensor, gradient: Tensor, state: list[Tensor], lr: float) -> None:
        if not state:
            state += [torch.zeros_like(gradient), torch.zeros_like(gradient)]
        mean, square = state
        mean.lerp_(gradient, 1 - self.momentum)
        square.mul_(self.SECOND).addcmul_(gradient, gradient, value=1 - self.SECOND)
        size = math.sqrt(1 - self.SECOND**self.steps)
        divisor = (square.sqrt() / size).add_(self.EPSILON)
        parameter.addcdiv_(mean, divisor, value=-lr / (1 - self.momentum**self.steps))


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam}
