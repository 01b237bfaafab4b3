"""``torch.ops.omniconv.depthwise`` and its gradients: schema, derivatives, FLOPs.

The three operators are bilinear, so that every derivative of one is another one of them.
``depthwise_input`` gives one channel per channel of ``grad``; where m outputs share a channel of
x, autograd adds them up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake
from torch.utils.flop_counter import register_flop_formula

from omniconv.core.geometry import output_size
from omniconv.kernels.backend import is_direct, load, state
from omniconv.kernels.depthwise.choice import BY_TORCH, Way, is_channels_last, way
from omniconv.kernels.depthwise.flops import depthwise_flops

__all__ = ["depthwise", "depthwise_direct", "depthwise_input", "depthwise_weight", "empty_like"]

Arguments = tuple[Any, ...]
Ints = Sequence[int]

LIBRARY = Library("omniconv", "FRAGMENT")
GEOMETRY = "int[] stride, int[] padding, int[] dilation"
LIBRARY.define(f"depthwise(Tensor x, Tensor weight, Tensor? bias, {GEOMETRY}) -> Tensor")
LIBRARY.define(f"depthwise_input(Tensor grad, Tensor weight, int[] size, {GEOMETRY}) -> Tensor")
LIBRARY.define(f"depthwise_weight(Tensor grad, Tensor x, int[] kernel_size, {GEOMETRY}) -> Tensor")

depthwise = torch.ops.omniconv.depthwise.default
depthwise_input = torch.ops.omniconv.depthwise_input.default
depthwise_weight = torch.ops.omniconv.depthwise_weight.default

FORWARD, INPUT, WEIGHT = range(3)
"""The C++ code's numbers of the passes."""


@cache
def _loaded() -> Callable[..., None]:
    """The C++ code."""
    found = state("depthwise") or load("depthwise")
    if found.reason:
        raise RuntimeError(f"the kernel depthwise is not there: {found.reason}")
    return torch.ops.omniconv_cpu.depthwise.default


def empty_like(x: Tensor, shape: Ints) -> Tensor:
    """A new tensor of this shape in the layout of ``x``."""
    if is_channels_last(x):
        return x.new_empty((shape[0], *shape[2:], shape[1])).movedim(-1, 1)
    return x.new_empty(shape)


def _dense(x: Tensor) -> Tensor:
    return x if is_channels_last(x) else x.contiguous()


def run(which: int, out: Tensor, h: Tensor, x: Tensor, bias: Tensor | None, *rest: Ints) -> None:
    """The C++ code, into ``out``; ``rest`` is stride, padding, dilation."""
    _loaded()(which, out, _dense(h), _dense(x), bias, *map(list, rest))


def _kernel_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    out = _fake_forward(x, weight, bias, stride, padding, dilation)
    biases = None if bias is None else bias.contiguous()
    run(FORWARD, out, weight.contiguous(), x, biases, stride, padding, dilation)
    return out


def _kernel_input(grad: Tensor, weight: Tensor, size: Ints, *geometry: Ints) -> Tensor:
    out = _fake_input(grad, weight, size, *geometry)
    run(INPUT, out, weight.contiguous(), grad, None, *geometry)
    return out


def _kernel_weight(grad: Tensor, x: Tensor, kernel_size: Ints, *geometry: Ints) -> Tensor:
    out = _fake_weight(grad, x, kernel_size, *geometry)
    run(WEIGHT, out, grad, x, None, *geometry)
    return out


KERNEL = Way(_kernel_forward, _kernel_input, _kernel_weight)
"""The kernel, whatever the table says."""
BY_WAY = {"kernel": KERNEL, **BY_TORCH}


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Ints) -> Tensor:
    chosen = way("forward", x, len(weight), x.shape[2:], weight.shape[2:], *geometry)
    return BY_WAY[chosen].forward(x, weight, bias, *geometry)


def _input(grad: Tensor, weight: Tensor, size: Ints, *geometry: Ints) -> Tensor:
    chosen = way("input", grad, len(weight), size, weight.shape[2:], *geometry)
    return BY_WAY[chosen].input(grad, weight, size, *geometry)


def _weight(grad: Tensor, x: Tensor, kernel_size: Ints, *geometry: Ints) -> Tensor:
    chosen = way("weight", x, grad.shape[1], x.shape[2:], kernel_size, *geometry)
    return BY_WAY[chosen].weight(grad, x, kernel_size, *geometry)


def _forward_on_gpu(*arguments: Any) -> Tensor:
    from omniconv.kernels.depthwise import triton

    return triton.depthwise(*arguments)


def _input_on_gpu(*arguments: Any) -> Tensor:
    from omniconv.kernels.depthwise import triton

    return triton.depthwise_input(*arguments)


def _weight_on_gpu(*arguments: Any) -> Tensor:
    from omniconv.kernels.depthwise import triton

    return triton.depthwise_weight(*arguments)


LIBRARY.impl("depthwise", _forward, "CPU")
LIBRARY.impl("depthwise_input", _input, "CPU")
LIBRARY.impl("depthwise_weight", _weight, "CPU")
LIBRARY.impl("depthwise", _forward_on_gpu, "CUDA")
LIBRARY.impl("depthwise_input", _input_on_gpu, "CUDA")
LIBRARY.impl("depthwise_weight", _weight_on_gpu, "CUDA")


def _fake_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    size = output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    return empty_like(x, (x.shape[0], weight.shape[0], *size))


def _fake_input(
    grad: Tensor, weight: Tensor, size: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    return empty_like(grad, (*grad.shape[:2], *size))


def _fake_weight(
    grad: Tensor, x: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    return x.new_empty((grad.shape[1], 1, *kernel_size))


register_fake("omniconv::depthwise", _fake_forward, lib=LIBRARY)
register_fake("omniconv::depthwise_input", _fake_input, lib=LIBRARY)
register_fake("omniconv::depthwise_weight", _fake_weight, lib=LIBRARY)


def _save(ctx: Any, inputs: Arguments, output: Any) -> None:
    x, weight, bias, *ctx.geometry = inputs
    ctx.biased = bias is not None
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: Any, grad: Tensor) -> Arguments:
    return _gradients(ctx, grad, depthwise_input, depthwise_weight)


def _gradients(ctx: Any, grad: Tensor, by_input: Any, by_weight: Any) -> Arguments:
    x, weight = ctx.saved_tensors
    found: list[Tensor | None] = [None, None, None]
    if ctx.needs_input_grad[0]:
        spread = by_input(grad, weight, x.shape[2:], *ctx.geometry)
        many = weight.shape[0] != x.shape[1]
        found[0] = spread.unflatten(1, (x.shape[1], -1)).sum(2) if many else spread
    if ctx.needs_input_grad[1]:
        found[1] = by_weight(grad, x, weight.shape[2:], *ctx.geometry)
    if ctx.biased and ctx.needs_input_grad[2]:
        found[2] = grad.sum([0, *range(2, grad.dim())])
    return (*found, None, None, None)


def _save_input(ctx: Any, inputs: Arguments, output: Any) -> None:
    grad, weight, ctx.size, *ctx.geometry = inputs
    ctx.save_for_backward(grad, weight)


def _differentiate_input(ctx: Any, seed: Tensor) -> Arguments:
    grad, weight = ctx.saved_tensors
    by_grad, by_weight, _ = ctx.needs_input_grad[:3]
    return (
        depthwise(seed, weight, None, *ctx.geometry) if by_grad else None,
        depthwise_weight(grad, seed, weight.shape[2:], *ctx.geometry) if by_weight else None,
        *[None] * 4,
    )


def _save_weight(ctx: Any, inputs: Arguments, output: Any) -> None:
    grad, x, _, *ctx.geometry = inputs
    ctx.save_for_backward(grad, x)


def _differentiate_weight(ctx: Any, seed: Tensor) -> Arguments:
    grad, x = ctx.saved_tensors
    by_grad = by_x = None
    if ctx.needs_input_grad[0]:
        by_grad = depthwise(x, seed, None, *ctx.geometry)
    if ctx.needs_input_grad[1]:
        by_x = depthwise_input(grad, seed, x.shape[2:], *ctx.geometry)
        if grad.shape[1] != x.shape[1]:
            by_x = by_x.unflatten(1, (x.shape[1], -1)).sum(2)
    return by_grad, by_x, None, None, None, None


register_autograd("omniconv::depthwise", _differentiate, setup_context=_save, lib=LIBRARY)
register_autograd(
    "omniconv::depthwise_input", _differentiate_input, setup_context=_save_input, lib=LIBRARY
)
register_autograd(
    "omniconv::depthwise_weight", _differentiate_weight, setup_context=_save_weight, lib=LIBRARY
)


class _Direct(torch.autograd.Function):
    """The same operator for calls that nothing but autograd takes part in."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _save(ctx, inputs, None)
        return _forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Arguments:
        (grad,) = grads
        if torch.is_grad_enabled() or not is_direct(grad):
            return _differentiate(ctx, grad)
        return _gradients(ctx, grad, _input, _weight)


def depthwise_direct(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    """``depthwise`` without the dispatcher (see :func:`omniconv.kernels.backend.is_direct`)."""
    found: Tensor = _Direct.apply(x, weight, bias, stride, padding, dilation)
    return found


@register_flop_formula(torch.ops.omniconv.depthwise)
def _forward_flops(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return depthwise_flops(out_shape, weight[2:])


@register_flop_formula(torch.ops.omniconv.depthwise_input)
def _input_flops(grad: Any, weight: Any, *_: Any, **__: Any) -> int:
    return depthwise_flops(grad, weight[2:])


@register_flop_formula(torch.ops.omniconv.depthwise_weight)
def _weight_flops(grad: Any, x: Any, kernel_size: Any, *_: Any, **__: Any) -> int:
    return depthwise_flops(grad, kernel_size)
