"""``torch.ops.omniconv.position_varying``, its gradient and its direct form."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake
from torch.utils.flop_counter import register_flop_formula

from omniconv.kernels.backend import is_direct, load, state
from omniconv.kernels.position_varying.flops import position_varying_flops
from omniconv.kernels.position_varying.reference import position_varying_reference

__all__ = ["position_varying", "position_varying_direct"]

Arguments = tuple[Any, ...]
Ints = Sequence[int]

LIBRARY = Library("omniconv", "FRAGMENT")
PARAMETERS = "Tensor x, Tensor weight, int[] stride, int[] padding, int[] dilation, bool softmax"
LIBRARY.define(f"position_varying({PARAMETERS}) -> Tensor")
LIBRARY.define(
    f"position_varying_backward(Tensor grad, {PARAMETERS}, bool[] needed) -> (Tensor, Tensor)"
)

position_varying = torch.ops.omniconv.position_varying.default
position_varying_backward = torch.ops.omniconv.position_varying_backward.default


@cache
def _loaded() -> tuple[Any, Any, Any]:
    """The C++ code: forward, gradient for x, gradient for the weights."""
    found = state("position_varying") or load("position_varying")
    if found.reason:
        raise RuntimeError(f"the kernel position_varying is not there: {found.reason}")
    home = torch.ops.omniconv_cpu
    return (
        home.position_varying.default,
        home.position_varying_input.default,
        home.position_varying_weight.default,
    )


def _new_output(x: Tensor, weight: Tensor) -> Tensor:
    """Memory for y, laid out as x."""
    shape = (*x.shape[:2], *weight.shape[x.dim() :])
    form = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if form is None or x.is_contiguous() or not x.is_contiguous(memory_format=form):
        return x.new_empty(shape)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=form)


def _forward(
    x: Tensor, weight: Tensor, stride: Ints, padding: Ints, dilation: Ints, softmax: bool
) -> Tensor:
    y = _new_output(x, weight)
    _loaded()[0](y, x, weight, stride, padding, dilation, softmax)
    return y


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    softmax: bool,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    by_x, by_weight = _new_gradients(x, weight, needed)
    if needed[0]:
        _loaded()[1](by_x, grad, weight, stride, padding, dilation, softmax)
    if needed[1]:
        _loaded()[2](by_weight, grad, x, weight, stride, padding, dilation, softmax)
    return by_x, by_weight


def _new_gradients(x: Tensor, weight: Tensor, needed: Sequence[bool]) -> tuple[Tensor, Tensor]:
    by_x = torch.empty_like(x) if needed[0] else x.new_empty(0)
    return by_x, torch.empty_like(weight) if needed[1] else weight.new_empty(0)


def _forward_on_gpu(*arguments: Any) -> Tensor:
    from omniconv.kernels.position_varying import triton

    y: Tensor = triton.position_varying(*arguments)
    return y


def _backward_on_gpu(*arguments: Any) -> tuple[Tensor, Tensor]:
    from omniconv.kernels.position_varying import triton

    found: tuple[Tensor, Tensor] = triton.position_varying_backward(*arguments)
    return found


LIBRARY.impl("position_varying", _forward, "CPU")
LIBRARY.impl("position_varying_backward", _backward, "CPU")
LIBRARY.impl("position_varying", _forward_on_gpu, "CUDA")
LIBRARY.impl("position_varying_backward", _backward_on_gpu, "CUDA")


def _fake_forward(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return _new_output(x, weight)


def _fake_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _new_gradients(x, weight, rest[-1])


register_fake("omniconv::position_varying", _fake_forward, lib=LIBRARY)
register_fake("omniconv::position_varying_backward", _fake_backward, lib=LIBRARY)


def _save(ctx: Any, inputs: Arguments, output: Any) -> None:
    x, weight, *ctx.rest = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: Any, grad: Tensor) -> Arguments:
    return _gradients(ctx, grad, position_varying_backward)


def _gradients(ctx: Any, grad: Tensor, run: Any) -> Arguments:
    needed = list(ctx.needs_input_grad[:2])
    found = run(grad, *ctx.saved_tensors, *ctx.rest, needed)
    return (*(f if n else None for f, n in zip(found, needed, strict=True)), *[None] * 4)


def _save_all(ctx: Any, inputs: Arguments, output: Any) -> None:
    *tensors, ctx.stride, ctx.padding, ctx.dilation, ctx.softmax, ctx.needed = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_twice(ctx: Any, *grads: Tensor) -> Arguments:
    """The second derivatives are the reference's, and so are all higher ones."""

    def apply(x: Tensor, weight: Tensor) -> Tensor:
        return position_varying_reference(
            x, weight, ctx.stride, ctx.padding, ctx.dilation, ctx.softmax
        )

    def pull_back(grad: Tensor, x: Tensor, weight: Tensor) -> Arguments:
        found = torch.func.vjp(apply, x, weight)[1](grad)
        return tuple(f for f, n in zip(found, ctx.needed, strict=True) if n)

    given = tuple(g for g, n in zip(grads, ctx.needed, strict=True) if n)
    found = torch.func.vjp(pull_back, *ctx.saved_tensors)[1](given)
    return (*found, *[None] * 5)


register_autograd("omniconv::position_varying", _differentiate, setup_context=_save, lib=LIBRARY)
register_autograd(
    "omniconv::position_varying_backward",
    _differentiate_twice,
    setup_context=_save_all,
    lib=LIBRARY,
)


class _Direct(torch.autograd.Function):
    """The same operator for calls that nothing but autograd takes part in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rest = rest
        return _forward(x, weight, *rest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Arguments:
        (grad,) = grads
        plain = not torch.is_grad_enabled() and is_direct(grad)
        return _gradients(ctx, grad, _backward if plain else position_varying_backward)


def position_varying_direct(
    x: Tensor, weight: Tensor, stride: Ints, padding: Ints, dilation: Ints, softmax: bool
) -> Tensor:
    """On the CPU, without the dispatcher (see :func:`omniconv.kernels.backend.is_direct`)."""
    y: Tensor = _Direct.apply(x, weight, stride, padding, dilation, softmax)
    return y


@register_flop_formula(torch.ops.omniconv.position_varying)
def _forward_flops(
    x: Any, weight: Any, stride: Any, padding: Any, dilation: Any, softmax: Any, **_: Any
) -> int:
    return position_varying_flops(x, weight, padding, softmax)[0]


@register_flop_formula(torch.ops.omniconv.position_varying_backward)
def _backward_flops(
    grad: Any,
    x: Any,
    weight: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    softmax: Any,
    needed: Any,
    **_: Any,
) -> int:
    return position_varying_flops(x, weight, padding, softmax, needed)[1]
