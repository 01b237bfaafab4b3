"""Numbers: the layer equals its naive reference, and its derivatives are derivatives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck as torch_gradcheck
from torch.autograd import gradgradcheck as torch_gradgradcheck
from torch.func import functional_call

from omniconv.core.card import Sample
from omniconv.testing.registry import asserts
from omniconv.testing.subject import Subject, evaluate, tensors
from omniconv.testing.tolerances import require

DERIVED = ("basic", "everything", "own")


@asserts(1, on=())
def reference(subject: Subject, sample: Sample) -> None:
    """Outputs and gradients equal an independent, naive evaluation in float64."""
    layer = subject.trained(sample)
    inputs = subject.draw(sample)
    for training in subject.modes:
        layer.train(training)
        actual = evaluate(layer, layer, inputs)
        expected = evaluate(partial(subject.card.reference, layer), layer, inputs)
        actual.require_near(expected, length=subject.length(layer, *inputs))


@asserts(1, on=DERIVED)
def gradcheck(subject: Subject, sample: Sample) -> None:
    """Gradients equal finite differences along random directions."""
    call, arguments = _function(subject, sample)
    require(torch_gradcheck(call, arguments, fast_mode=True), "gradcheck failed")


@asserts(2, on=("basic", "everything"))
def gradcheck_full(subject: Subject, sample: Sample) -> None:
    """Gradients equal finite differences, entry by entry."""
    call, arguments = _function(subject, sample)
    require(torch_gradcheck(call, arguments), "gradcheck failed")


def _once_only(subject: Subject) -> str:
    return "" if subject.card.double_backward else "the card says double_backward=False"


@asserts(2, on=DERIVED, skip=_once_only)
def gradgradcheck(subject: Subject, sample: Sample) -> None:
    """Second derivatives equal finite differences of the first."""
    call, arguments = _function(subject, sample)
    outputs = call(*arguments)
    seeds = [torch.ones_like(output, requires_grad=True) for output in outputs]
    first = torch.autograd.grad(outputs, arguments, seeds, create_graph=True, allow_unused=True)
    # gradgradcheck passes over gradients that are not differentiable at all
    lost = any(gradient is not None and not gradient.requires_grad for gradient in first)
    require(not lost, "a gradient cannot be differentiated, not even by its cotangent")
    require(torch_gradgradcheck(call, arguments, fast_mode=True), "gradgradcheck failed")


def _function(subject: Subject, sample: Sample) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """The layer as a function of its features and parameters, and a point for it."""
    layer = subject.trained(sample)
    x, *others = subject.draw(sample)
    parameters = dict(layer.named_parameters())

    def call(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(parameters, values, strict=True))
        outputs = tensors(functional_call(layer, named, (x, *others)))
        return tuple(output for output in outputs if output.requires_grad)

    point = [t.detach().clone().requires_grad_() for t in (x, *parameters.values())]
    return call, tuple(point)
