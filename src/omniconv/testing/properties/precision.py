"""Precision: every floating-point type against float64 on the same rounded values.

In float64 the layer itself serves, which the ``reference`` property has compared with its naive
reference in the same configurations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from omniconv.core.card import Sample
from omniconv.testing.registry import asserts
from omniconv.testing.subject import Subject, evaluate
from omniconv.testing.tolerances import require

ON = ("basic", "everything", "same", "own")


def _lacks(dtype: str) -> Callable[[Subject], str]:
    def reason(subject: Subject) -> str:
        return "" if dtype in subject.card.dtypes else f"the card's dtypes lack {dtype}"

    return reason


@asserts(1, on=ON, skip=_lacks("float32"))
def float32(subject: Subject, sample: Sample) -> None:
    """In float32 outputs and gradients are right to rounding."""
    _check(subject, sample, torch.float32)


@asserts(1, on=ON, skip=_lacks("bfloat16"))
def bfloat16(subject: Subject, sample: Sample) -> None:
    """In bfloat16 outputs and gradients are right to rounding."""
    _check(subject, sample, torch.bfloat16)


@asserts(1, on=ON, skip=_lacks("float16"))
def float16(subject: Subject, sample: Sample) -> None:
    """In float16 outputs and gradients are right to rounding."""
    _check(subject, sample, torch.float16)


@asserts(1, on=ON, skip=_lacks("bfloat16"))
def autocast(subject: Subject, sample: Sample) -> None:
    """Under autocast to bfloat16 float32 layers take float32 and bfloat16 inputs."""
    layer = subject.trained(sample, dtype=torch.bfloat16).float()
    inputs = subject.draw(sample, torch.bfloat16)

    def call(*arguments: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(*arguments)

    for given in (torch.float32, torch.bfloat16):
        _compare(subject, layer, call, _cast(inputs, given), torch.bfloat16)


def _check(subject: Subject, sample: Sample, dtype: torch.dtype) -> None:
    layer = subject.trained(sample, dtype=dtype)
    inputs = subject.draw(sample, dtype)
    for training in subject.modes:
        outputs = _compare(subject, layer.train(training), layer, inputs, dtype)
        require(outputs[0].dtype == dtype, f"a {dtype} input gave a {outputs[0].dtype} output")


def _compare(
    subject: Subject,
    layer: Any,
    call: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    actual = evaluate(call, layer, inputs)
    wide = copy.deepcopy(layer).double()
    exact, cotangents = (_cast(t, torch.float64) for t in (inputs, actual.cotangents))
    expected = evaluate(wide, wide, exact, cotangents)
    actual.require_near(expected, length=subject.length(layer, *inputs), dtype=dtype)
    return actual.outputs


def _cast(values: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(t.to(dtype) if t.is_floating_point() else t for t in values)
