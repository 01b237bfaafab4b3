"""``torch.ops.omniconv.dcls``, its gradient and its direct form: schema, derivatives, FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake
from torch.utils.flop_counter import register_flop_formula

from omniconv.kernels.backend import is_direct, load, state
from omniconv.kernels.dcls.flops import dcls_flops
from omniconv.kernels.dcls.reference import INTERPOLATIONS, dcls_reference

__all__ = ["dcls", "dcls_direct"]

Arguments = tuple[Any, ...]

LIBRARY = Library("omniconv", "FRAGMENT")
PARAMETERS = "Tensor taps, Tensor position, Tensor? width, int[] size, str interpolation"
LIBRARY.define(f"dcls({PARAMETERS}) -> Tensor")
LIBRARY.define(f"dcls_backward(Tensor grad, {PARAMETERS}) -> (Tensor, Tensor, Tensor)")

FOOTPRINT = {name: number for number, name in enumerate(INTERPOLATIONS)}
"""The C++ code's numbers."""

dcls = torch.ops.omniconv.dcls.default
dcls_backward = torch.ops.omniconv.dcls_backward.default


@cache
def _loaded() -> tuple[Any, Any]:
    """The C++ code, forward and backward."""
    found = state("dcls") or load("dcls")
    if found.reason:
        raise RuntimeError(f"the kernel dcls is not there: {found.reason}")
    return torch.ops.omniconv_cpu.dcls.default, torch.ops.omniconv_cpu.dcls_backward.default


def _forward(
    taps: Tensor, position: Tensor, width: Tensor | None, size: Sequence[int], interpolation: str
) -> Tensor:
    found: Tensor = _loaded()[0](taps, position, width, list(size), FOOTPRINT[interpolation])
    return found


def _backward(
    grad: Tensor,
    taps: Tensor,
    position: Tensor,
    width: Tensor | None,
    size: Sequence[int],
    interpolation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = _loaded()[1](
        grad, taps, position, width, list(size), FOOTPRINT[interpolation]
    )
    return found


LIBRARY.impl("dcls", _forward, "CPU")
LIBRARY.impl("dcls_backward", _backward, "CPU")


def _fake_forward(
    taps: Tensor, position: Tensor, width: Tensor | None, size: list[int], interpolation: str
) -> Tensor:
    return taps.new_empty((*taps.shape[:2], *size))


def _fake_backward(
    grad: Tensor,
    taps: Tensor,
    position: Tensor,
    width: Tensor | None,
    size: list[int],
    interpolation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    widths = taps.new_empty(0 if width is None else width.shape)
    return taps.new_empty(taps.shape), taps.new_empty(position.shape), widths


register_fake("omniconv::dcls", _fake_forward, lib=LIBRARY)
register_fake("omniconv::dcls_backward", _fake_backward, lib=LIBRARY)


def _save(ctx: Any, inputs: Arguments, output: Any) -> None:
    *tensors, ctx.size, ctx.interpolation = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> Arguments:
    taps, position, width = ctx.saved_tensors
    found = dcls_backward(grad, taps, position, width, ctx.size, ctx.interpolation)
    return (*found[:2], None if width is None else found[2], None, None)


def _differentiate_twice(ctx: Any, *grads: Tensor) -> Arguments:
    """The second derivatives are the reference's, and so are all higher ones."""
    size, interpolation = ctx.size, ctx.interpolation
    grad, *parameters = (t for t in ctx.saved_tensors if t is not None)

    def build(taps: Tensor, position: Tensor, width: Tensor | None = None) -> Tensor:
        return dcls_reference(taps, position, width, size, interpolation)

    def pull_back(grad: Tensor, *parameters: Tensor) -> Any:
        return torch.func.vjp(build, *parameters)[1](grad)

    found = torch.func.vjp(pull_back, grad, *parameters)[1](grads[: len(parameters)])
    return (*found, *[None] * (4 - len(found)), None, None)


register_autograd("omniconv::dcls", _differentiate, setup_context=_save, lib=LIBRARY)
register_autograd("omniconv::dcls_backward", _differentiate_twice, setup_context=_save, lib=LIBRARY)


class _Direct(torch.autograd.Function):
    """The same operator for calls that nothing but autograd takes part in."""

    @staticmethod
    def forward(
        ctx: Any,
        taps: Tensor,
        position: Tensor,
        width: Tensor | None,
        size: Sequence[int],
        interpolation: str,
    ) -> Tensor:
        ctx.save_for_backward(taps, position, width)
        ctx.size, ctx.interpolation = size, interpolation
        return _forward(taps, position, width, size, interpolation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Arguments:
        (grad,) = grads
        if torch.is_grad_enabled() or not is_direct(grad):
            return _differentiate(ctx, grad)
        taps, position, width = ctx.saved_tensors
        found = _backward(grad, taps, position, width, ctx.size, ctx.interpolation)
        return (*found[:2], None if width is None else found[2], None, None)


def dcls_direct(
    taps: Tensor, position: Tensor, width: Tensor | None, size: Sequence[int], interpolation: str
) -> Tensor:
    """``dcls`` without the dispatcher (see :func:`omniconv.kernels.backend.is_direct`)."""
    found: Tensor = _Direct.apply(taps, position, width, size, interpolation)
    return found


@register_flop_formula(torch.ops.omniconv.dcls)
def _forward_flops(taps: Any, position: Any, width: Any, size: Any, form: str, **_: Any) -> int:
    return dcls_flops(taps, size, form)[0]


@register_flop_formula(torch.ops.omniconv.dcls_backward)
def _backward_flops(
    grad: Any, taps: Any, position: Any, width: Any, size: Any, form: str, **_: Any
) -> int:
    return dcls_flops(taps, size, form)[1]
