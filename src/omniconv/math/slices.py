"""Evaluating a function a few rows at a time, so that intermediates exist for one slice only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["in_slices"]


def in_slices(function: Callable[..., Tensor], rows: int, *tensors: Tensor) -> Tensor:
    """``function(*tensors)``, evaluated ``rows`` rows of axis 0 at a time.

    The backward pass evaluates each slice again instead of keeping its intermediates. Second
    derivatives are right; while a graph is being compiled or exported nothing is sliced, because
    the compiler plans memory itself.

    Args:
        function: Maps tensors of n rows to one tensor of n rows, each row for itself.
        rows: Rows of a slice, at least 1.
        *tensors: Arguments with the same number of rows.
    """
    if rows >= tensors[0].shape[0] or torch.compiler.is_compiling():
        return function(*tensors)
    result: Tensor = _Slices.apply(function, rows, *tensors)
    return result


def _slices(rows: int, tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


class _Slices(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., Tensor], rows: int, *tensors: Tensor) -> Tensor:
        return torch.cat([function(*part) for part in _slices(rows, tensors)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.function, ctx.rows, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = []
        for *part, cotangent in _slices(ctx.rows, (*ctx.saved_tensors, grad)):
            pull_back = torch.func.vjp(ctx.function, *part)[1]
            gradients.append(pull_back(cotangent))
        return None, None, *(torch.cat(pieces) for pieces in zip(*gradients, strict=True))
