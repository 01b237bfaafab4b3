"""Cases of the kernel ``dcls``: a layer's dense kernel, built from taps at real positions.

17 x 17 with 34 taps, 96 -> 96 channels, is the size of the paper's layers. The released code's form
takes part in the smaller shapes, where the package DCLS is installed: a second for 2 million
products of tap and entry, minutes for the paper's size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from omniconv.bench.case import Ask, Call, Case, Pass, bytes_of, gradients, step
from omniconv.kernels.dcls import INTERPOLATIONS, NARROWEST, dcls
from omniconv.kernels.dcls.flops import dcls_flops
from omniconv.kernels.dcls.reference import dcls_reference

__all__ = ["cases"]

SHAPES: dict[str, tuple[tuple[int, int, int, tuple[int, ...]], ...]] = {
    "default": ((96, 96, 34, (17, 17)), (64, 64, 9, (7, 7))),
    "large": ((384, 1, 40, (31, 31)), (192, 192, 34, (17, 17)), (64, 64, 40, (9, 9, 9))),
    "odd": ((33, 7, 5, (1, 20)), (5, 3, 1, (8, 9)), (17, 3, 6, (5, 3, 4)), (64, 32, 5, (33,))),
}
"""Outputs, inputs of a group, taps, sizes of the kernel."""

RELEASED = {"bilinear": "v1", "gauss": "gauss", "triangle": "max"}
"""Our names of interpolations -> the package's."""

MOST_PRODUCTS = 10_000_000
"""Of taps and entries of the kernel, which the released code holds all at once."""


def cases(ask: Ask) -> Iterator[Case]:
    """The suite's shapes with each interpolation; kernels have no layout, and float32 only."""
    if ask.dtype != torch.float32 or ask.layout != "nchw":
        return
    for outputs, inputs, taps, size in SHAPES[ask.suite]:
        for interpolation in INTERPOLATIONS:
            extent = " x ".join(map(str, size))
            name = f"{interpolation}, {outputs} x {inputs}, {taps} taps in {extent}"
            yield Case(name, partial(_passes, ask, (outputs, inputs, taps), size, interpolation))


def _passes(
    ask: Ask, shape: tuple[int, int, int], size: Sequence[int], interpolation: str
) -> list[Pass]:
    limit = torch.tensor([(s - 1) / 2 for s in size]).repeat_interleave(shape[2])
    places = (*shape[:2], len(size) * shape[2])
    taps = ask.tensor(*shape).requires_grad_()
    limit = limit.to(ask.device)
    position = (
        (0.5 * limit * ask.tensor(*places)).clamp(-0.99 * limit, 0.99 * limit).requires_grad_()
    )
    width = None
    if interpolation != "bilinear":
        width = ask.tensor(*places, scale=0.5, seed=1).requires_grad_()
    given = [t for t in (taps, position, width) if t is not None]
    grad = ask.tensor(*shape[:2], *size)

    def build(form: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        taps, position, width = (*tensors, None)[:3]
        return form(taps, position, width, size, interpolation)

    @cache
    def reference() -> tuple[Tensor, ...]:
        exact = [t.detach().double().requires_grad_() for t in given]
        found: tuple[Tensor, ...] = step(
            partial(build, dcls_reference), *exact, grad=grad.double()
        )()
        return found

    name = "scattered" if width is None else "separable"
    ours, plain = partial(build, dcls), partial(build, dcls_reference)
    flops = _flops(shape, position, width, size, interpolation)
    data = bytes_of(*given)
    released = _released(shape, size, interpolation)

    def forward(form: Callable[..., Tensor]) -> Call:
        return lambda: form(*(t.detach() for t in given))

    return [
        Pass(
            name="forward",
            ours=forward(ours),
            torch={name: forward(plain)},
            reference=lambda: reference()[0],
            flops=flops[0],
            bytes=data + bytes_of(grad),
            length=shape[2],
        ),
        Pass(
            name="gradients",
            ours=gradients(ours, *given, grad=grad),
            torch={name: gradients(plain, *given, grad=grad)},
            reference=lambda: reference()[1:],
            flops=flops[1],
            bytes=2 * data + bytes_of(grad),
            length=math.prod(size),
        ),
        Pass(
            name="step",
            ours=step(ours, *given, grad=grad),
            torch={name: step(plain, *given, grad=grad)},
            reference=reference,
            flops=sum(flops),
            bytes=2 * data + 2 * bytes_of(grad),
            length=math.prod(size),
            peers={"DCLS": step(released, *given, grad=grad)} if released else {},
        ),
    ]


def _flops(
    shape: tuple[int, int, int],
    position: Tensor,
    width: Tensor | None,
    size: Sequence[int],
    interpolation: str,
) -> tuple[int, int]:
    """FLOPs (forward, gradients) without the entries that a footprint does not reach."""
    if width is None or interpolation == "gauss":
        return dcls_flops(shape, size, interpolation)
    places = position.detach().unflatten(-1, (len(size), -1))
    reach = NARROWEST[interpolation] + width.detach().abs().unflatten(-1, (len(size), -1))
    reached = torch.ones(shape)
    along = 0
    for axis, extent in enumerate(size):
        grid = torch.arange(extent, device=places.device) - (extent - 1) / 2
        near = (grid - places[..., axis, :, None]).abs() < reach[..., axis, :, None]
        entries = near.sum(-1).cpu()
        reached = reached * entries
        along += int(entries.sum())
    # joined profiles and their sum; back to taps and profiles; a profile's entries take 6
    joined = int(reached.sum())
    return 2 * joined + 6 * along, 4 * joined + 8 * along


def _released(
    shape: tuple[int, int, int], size: Sequence[int], interpolation: str
) -> Callable[..., Tensor] | None:
    """The released code's kernel of our parameters; None where it cannot be had."""
    if len(size) != 2 or math.prod((*shape, *size)) > MOST_PRODUCTS:
        return None
    logging.disable(logging.WARNING)  # it warns of a CUDA kernel that is not installed
    try:
        from DCLS.construct.modules import ConstructKernel2d
    except ImportError:
        return None
    outputs, inputs, taps = shape
    construct = ConstructKernel2d(outputs, inputs, 1, taps, size, RELEASED[interpolation])

    def rows(coordinates: Tensor, shift: float = 0.0) -> Tensor:
        """(O, I, 2 m) as (2, O, I, m), the last axis first; it counts from an entry."""
        found = coordinates.unflatten(-1, (2, -1)).movedim(-2, 0).flip(0)
        even = [shift * (1 - s % 2) for s in reversed(size)]
        return found + found.new_tensor(even).view(-1, 1, 1, 1)

    def kernel(taps: Tensor, position: Tensor, width: Tensor | None = None) -> Tensor:
        sigma = None if width is None else rows(width)
        found: Tensor = construct(taps, rows(position, -0.5), sigma)
        return found

    return kernel
