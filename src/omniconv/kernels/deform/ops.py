"""``torch.ops.omniconv.deform``, its gradients and its direct form."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake
from torch.utils.flop_counter import register_flop_formula

from omniconv.core.geometry import output_size
from omniconv.kernels.backend import is_direct, load, state
from omniconv.kernels.deform.flops import backward_flops, forward_flops
from omniconv.kernels.deform.reference import deform_reference

__all__ = ["deform", "deform_direct"]

Arguments = tuple[Any, ...]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]

LIBRARY = Library("omniconv", "FRAGMENT")
TENSORS = "Tensor x, Tensor offset, Tensor? mask, Tensor? weight"
WINDOW = (
    "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, int offset_groups"
)
LIBRARY.define(f"deform({TENSORS}, Tensor? bias, {WINDOW}) -> Tensor")
LIBRARY.define(
    f"deform_backward(Tensor grad, {TENSORS}, {WINDOW}, bool[] needed) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)

deform = torch.ops.omniconv.deform.default
deform_backward = torch.ops.omniconv.deform_backward.default


@cache
def _loaded() -> tuple[Any, Any]:
    """The C++ code, forward and backward."""
    found = state("deform") or load("deform")
    if found.reason:
        raise RuntimeError(f"the kernel deform is not there: {found.reason}")
    return torch.ops.omniconv_cpu.deform.default, torch.ops.omniconv_cpu.deform_backward.default


def _forward(*arguments: Any) -> Tensor:
    found: Tensor = _loaded()[0](*arguments)
    return found


def _backward(*arguments: Any) -> Gradients:
    found: Gradients = _loaded()[1](*arguments)
    return found


def _forward_on_gpu(*arguments: Any) -> Tensor:
    from omniconv.kernels.deform import triton

    return triton.deform(*arguments)


def _backward_on_gpu(*arguments: Any) -> Gradients:
    from omniconv.kernels.deform import triton

    return triton.deform_backward(*arguments)


LIBRARY.impl("deform", _forward, "CPU")
LIBRARY.impl("deform_backward", _backward, "CPU")
LIBRARY.impl("deform", _forward_on_gpu, "CUDA")
LIBRARY.impl("deform_backward", _backward_on_gpu, "CUDA")


def _fake_forward(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    offset_groups: int,
) -> Tensor:
    channels = x.shape[1] if weight is None else weight.shape[0]
    out = output_size(x.shape[2:], kernel_size, stride, padding, dilation)
    return x.new_empty((x.shape[0], channels, *out))


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    offset_groups: int,
    needed: Sequence[bool],
) -> Gradients:
    tensors = (x, offset, mask, weight)
    a, b, c, d = (
        x.new_empty(t.shape if t is not None and need else 0)
        for t, need in zip(tensors, needed, strict=True)
    )
    return a, b, c, d


register_fake("omniconv::deform", _fake_forward, lib=LIBRARY)
register_fake("omniconv::deform_backward", _fake_backward, lib=LIBRARY)


def _save(ctx: Any, inputs: Arguments, output: Any) -> None:
    x, offset, mask, weight, _, *ctx.window = inputs
    ctx.save_for_backward(x, offset, mask, weight)


def _gradients(ctx: Any, grad: Tensor, backward: Any) -> Arguments:
    tensors = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    needed = [n and t is not None for n, t in zip(wanted, tensors, strict=False)]
    found: list[Any] = [None] * 4
    if any(needed):
        found = list(backward(grad, *tensors, *ctx.window, needed))
    bias = grad.flatten(2).sum((0, 2)) if wanted[4] else None
    kept = (f if need else None for f, need in zip(found, needed, strict=True))
    return (*kept, bias, *[None] * 6)


def _differentiate(ctx: Any, grad: Tensor) -> Arguments:
    return _gradients(ctx, grad, deform_backward)


def _save_backward(ctx: Any, inputs: Arguments, output: Any) -> None:
    ctx.save_for_backward(*inputs[:5])
    *ctx.window, ctx.needed = inputs[5:]


def _differentiate_twice(ctx: Any, *grads: Tensor) -> Arguments:
    """The second derivatives are the reference's, and so are all higher ones."""
    grad, *tensors = ctx.saved_tensors
    window, needed = ctx.window, ctx.needed
    there = [i for i, t in enumerate(tensors) if t is not None]

    def build(*present: Tensor) -> Tensor:
        arguments: list[Any] = [*[None] * 5, *window]
        for i, t in zip(there, present, strict=True):
            arguments[i] = t
        return deform_reference(*arguments)

    def pull_back(grad: Tensor, *present: Tensor) -> Any:
        found = torch.func.vjp(build, *present)[1](grad)
        return tuple(f for i, f in zip(there, found, strict=True) if needed[i])

    present = [tensors[i] for i in there]
    cotangents = tuple(grads[i] for i in there if needed[i])
    by_grad, *found = torch.func.vjp(pull_back, grad, *present)[1](cotangents)
    result: list[Any] = [None] * 4
    for i, f in zip(there, found, strict=True):
        result[i] = f
    return (by_grad, *result, *[None] * 7)


register_autograd("omniconv::deform", _differentiate, setup_context=_save, lib=LIBRARY)
register_autograd(
    "omniconv::deform_backward", _differentiate_twice, setup_context=_save_backward, lib=LIBRARY
)


class _Direct(torch.autograd.Function):
    """The same operator for calls that nothing but autograd takes part in."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        _save(ctx, arguments, None)
        return _forward(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Arguments:
        (grad,) = grads
        if torch.is_grad_enabled() or not is_direct(grad):
            return _differentiate(ctx, grad)
        return _gradients(ctx, grad, _backward)


def deform_direct(*arguments: Any) -> Tensor:
    """``deform`` without the dispatcher (see :func:`omniconv.kernels.backend.is_direct`)."""
    found: Tensor = _Direct.apply(*arguments)
    return found


@register_flop_formula(torch.ops.omniconv.deform)
def _forward_flops(
    x: Any, offset: Any, mask: Any, weight: Any, bias: Any, kernel_size: Any, *_: Any, **__: Any
) -> int:
    return forward_flops(x, offset, mask, weight, bias, kernel_size)


@register_flop_formula(torch.ops.omniconv.deform_backward)
def _backward_flops(
    grad: Any, x: Any, offset: Any, mask: Any, weight: Any, kernel_size: Any, *rest: Any, **_: Any
) -> int:
    return backward_flops(x, offset, mask, weight, kernel_size, rest[-1])
