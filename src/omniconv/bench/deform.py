"""Cases of the kernel ``deform``: v1, v2 (with a mask), and the sums of v3 and v4 without a weight.

torch has no such operator; ``grid_sample`` reads all samples at once, the reference gathers their
corners. torchvision's operator takes part where it can be imported. Offsets are odd multiples of
1/64, so that no rounding carries a place into another cell, where gradients jump.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from omniconv.bench.case import (
    Ask,
    Call,
    Case,
    Pass,
    bytes_of,
    gradients,
    in_layout,
    lazily,
    step,
)
from omniconv.core.geometry import output_size
from omniconv.kernels.deform import deform
from omniconv.kernels.deform.flops import backward_flops, forward_flops
from omniconv.kernels.deform.reference import deform_reference

__all__ = ["cases"]

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
SPREAD = 1.5
"""Deviation of the offsets, in pixels."""


@dataclass(frozen=True)
class _Shape:
    """One case; no ``outputs`` stand for a sum without weight."""

    name: str
    batch: int
    channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    outputs: int = 0
    masked: bool = True
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    offset_groups: int = 1

    @property
    def dim(self) -> int:
        return len(self.size)

    @property
    def pads(self) -> list[int]:
        return [self.dilation * (k // 2) for k in self.kernel for _ in range(2)]

    @property
    def window(self) -> tuple[Any, ...]:
        """What the operators call kernel_size, stride, padding, dilation, groups, offset_groups."""
        steps, spread = [self.stride] * self.dim, [self.dilation] * self.dim
        return list(self.kernel), steps, self.pads, spread, self.groups, self.offset_groups

    def __str__(self) -> str:
        extent, kernel = " x ".join(map(str, self.size)), " x ".join(map(str, self.kernel))
        words = [f"{self.name}, {self.batch} x {self.channels} x {extent}, K = {kernel}"]
        words += [f"{self.outputs} outputs"] * bool(self.outputs)
        words += [f"{self.offset_groups} groups of offsets"] * (self.offset_groups > 1)
        words += [f"stride {self.stride}"] * (self.stride > 1)
        words += [f"dilation {self.dilation}"] * (self.dilation > 1)
        return ", ".join(words)


SHAPES: dict[str, tuple[_Shape, ...]] = {
    "default": (
        _Shape("v1", 8, 64, (56, 56), (3, 3), 64, masked=False),
        _Shape("v2", 8, 64, (56, 56), (3, 3), 64),
        _Shape("v3, v4", 8, 64, (56, 56), (3, 3), offset_groups=4),
    ),
    "large": (
        _Shape("v2", 4, 128, (56, 56), (5, 5), 128, offset_groups=4),
        _Shape("v2", 2, 256, (28, 28), (3, 3), 256),
        _Shape("v3, v4", 8, 128, (28, 28), (3, 3), offset_groups=8),
        _Shape("v2", 1, 32, (12, 28, 28), (3, 3, 3), 32),
    ),
    "odd": (
        _Shape("v1", 3, 6, (13, 17), (3, 2), 5, masked=False, stride=2, dilation=2),
        _Shape("v2", 2, 12, (9, 11), (3, 3), 8, groups=2, offset_groups=3),
        _Shape("v3, v4", 2, 10, (15, 8), (5, 3), offset_groups=5),
        _Shape("v2", 3, 4, (101,), (7,), 6),
        _Shape("v3, v4", 2, 4, (5, 6, 7), (2, 3, 3), offset_groups=2),
    ),
}


def cases(ask: Ask) -> Iterator[Case]:
    """The suite's shapes; on the CPU in float32 only."""
    if ask.dtype == torch.float32 or ask.device == "cuda":
        for shape in SHAPES[ask.suite]:
            yield Case(str(shape), partial(_passes, ask, shape))


def _sampled(shape: _Shape, grid: Tensor, *tensors: Tensor) -> Tensor:
    """One ``grid_sample`` for all taps: the offsets' groups are images, the taps lines of places.

    ``grid`` is (1, Q, \\*S', D): where taps are without offsets, in pixels.
    """
    x, offset, mask, weight = _named(shape, tensors)
    images, dim, taps = shape.batch * shape.offset_groups, shape.dim, math.prod(shape.kernel)
    output = offset.shape[2:]
    moved = offset.reshape(images, taps, dim, *output).movedim(2, -1) + grid
    last = x.new_tensor([n - 1 for n in shape.size])
    places = (2 * moved / last - 1).flip(-1)  # from -1 to 1, the last axis first
    source = x.reshape(images, -1, *shape.size)
    folded = places.reshape(images, taps * output[0], *output[1:], dim)
    found = F.grid_sample(source, folded, align_corners=True)
    found = found.reshape(images, -1, taps, math.prod(output))
    if mask is not None:
        found = found * mask.reshape(images, 1, taps, -1)
    if weight is None:
        return found.sum(2).reshape(shape.batch, -1, *output)
    columns = found.reshape(shape.batch, shape.groups, -1, math.prod(output))
    rows = weight.reshape(shape.groups, shape.outputs // shape.groups, -1)
    return (rows @ columns).reshape(shape.batch, -1, *output)


def _named(
    shape: _Shape, tensors: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    x, offset, *rest = tensors
    mask = rest.pop(0) if shape.masked else None
    return x, offset, mask, rest.pop(0) if shape.outputs else None


def _torchvision(shape: _Shape) -> Callable[..., Tensor] | None:
    """torchvision's operator, where it can compute this and can be imported."""
    if shape.dim != 2 or not shape.outputs:
        return None
    try:
        from torchvision.ops import deform_conv2d
    except (ImportError, RuntimeError):  # the latter: it was built for another torch
        return None

    def form(*tensors: Tensor) -> Tensor:
        x, offset, mask, weight = _named(shape, tensors)
        geometry = shape.stride, shape.pads[::2], shape.dilation
        found: Tensor = deform_conv2d(x, offset, weight, None, *geometry, mask)
        return found

    return form


def _grid(ask: Ask, shape: _Shape, output: Sequence[int]) -> Tensor:
    """(1, Q, \\*S', D): where taps read without offsets."""
    axes = zip(shape.kernel, output, shape.pads[::2], strict=True)
    lines = [
        (torch.arange(n) * shape.stride - low)[None, :] + torch.arange(k)[:, None] * shape.dilation
        for k, n, low in axes
    ]
    shaped = []
    for axis, found in enumerate(lines):
        view = [1] * (2 * shape.dim)
        view[axis], view[shape.dim + axis] = found.shape
        shaped.append(found.view(view).expand(*shape.kernel, *output))
    return torch.stack(shaped, -1).flatten(0, shape.dim - 1)[None].to(ask.device, ask.dtype)


def _passes(ask: Ask, shape: _Shape) -> list[Pass]:
    taps, og = math.prod(shape.kernel), shape.offset_groups
    kernel_size, stride, pads, dilation, _, _ = shape.window
    output = output_size(shape.size, kernel_size, stride, pads, dilation)
    x = ask.tensor(shape.batch, shape.channels, *shape.size)
    drawn = ask.tensor(shape.batch, og * taps * shape.dim, *output, scale=SPREAD, seed=1)
    offset = (32 * drawn).floor() / 32 + 1 / 64
    given = [x, offset]
    if shape.masked:
        given.append(ask.tensor(shape.batch, og * taps, *output, seed=2).sigmoid())
    if shape.outputs:
        given.append(ask.tensor(shape.outputs, shape.channels // shape.groups, *shape.kernel))
    grad = ask.tensor(shape.batch, shape.outputs or shape.channels, *output, seed=3)
    for tensor in given:
        tensor.requires_grad_()

    def ours(*tensors: Tensor) -> Tensor:
        x, offset, mask, weight = _named(shape, tensors)
        size = None if shape.outputs else kernel_size
        padding = pads[::2]
        return deform(
            *(x, offset, mask, weight),
            kernel_size=size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=shape.groups,
            offset_groups=og,
        )

    def gathered(*tensors: Tensor) -> Tensor:
        x, offset, mask, weight = _named(shape, tensors)
        return deform_reference(x, offset, mask, weight, None, *shape.window)

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        convolve = CONVOLUTIONS[shape.dim - 1]
        return convolve(x, weight, None, stride, pads[::2], dilation, shape.groups)

    forms: dict[str, Callable[..., Tensor]] = {"gather": gathered}
    if shape.dim > 1:
        forms["grid_sample"] = partial(_sampled, shape, _grid(ask, shape, output))
    peer = _torchvision(shape)

    @cache
    def reference() -> tuple[Tensor, ...]:
        exact = [t.detach().double().requires_grad_() for t in given]
        found: tuple[Tensor, ...] = step(gathered, *exact, grad=grad.double())()
        return found

    def forward(form: Callable[..., Tensor], *tensors: Tensor, grad: Tensor) -> Call:
        detached = [t.detach() for t in tensors]
        return lambda: form(*detached)

    def convolution(run: Callable[..., Call]) -> dict[str, Call]:
        if not shape.outputs:
            return {}
        names = {f"convolution {layout}": layout for layout in ("nchw", "channels_last")}
        pair = (x, given[-1])
        return {
            name: run(
                plain,
                *(in_layout(t.detach(), layout).requires_grad_() for t in pair),
                grad=in_layout(grad, layout),
            )
            for name, layout in names.items()
        }

    def a_pass(name: str, run: Callable[..., Call], which: slice, **own: int) -> Pass:
        return Pass(
            name=name,
            ours=run(ours, *given, grad=grad),
            torch={
                key: lazily(partial(run, form, *given, grad=grad)) for key, form in forms.items()
            },
            compiled={
                key: lazily(partial(run, torch.compile(form), *given, grad=grad))
                for key, form in forms.items()
            },
            peers={"torchvision": run(peer, *given, grad=grad)} if peer else {},
            yardsticks=convolution(run),
            reference=lambda: reference()[which],
            **own,
        )

    _, _, mask, weight = _named(shape, tuple(given))
    sizes = (
        *(x.shape, offset.shape),
        None if mask is None else mask.shape,
        None if weight is None else weight.shape,
    )
    flops = (
        forward_flops(*sizes, None, kernel_size),
        backward_flops(*sizes, kernel_size, [size is not None for size in sizes]),
    )
    data, out = bytes_of(*given), bytes_of(grad)
    # grid_sample rounds places at the scale of the image: an error of that many roundings
    ahead = taps * (shape.channels // shape.groups if shape.outputs else 1) + max(shape.size) ** 2
    back = max(shape.batch * math.prod(output), taps * 4 * (shape.outputs or 1))
    return [
        a_pass("forward", forward, slice(0, 1), flops=flops[0], bytes=data + out, length=ahead),
        a_pass(
            "gradients",
            gradients,
            slice(1, None),
            flops=flops[1],
            bytes=2 * data + out,
            length=back,
        ),
        a_pass("step", step, slice(None), flops=sum(flops), bytes=2 * data + 2 * out, length=back),
    ]
