"""What the kernels' Triton forms share: three axes, launches, and where an output reads its input.

Every form works on three spatial axes; missing ones lead, with one entry. Kernels are compiled for
a geometry (sizes of the kernel, stride, dilation, padding); sizes and strides of tensors are
arguments. Imported only where a kernel runs on a GPU: it needs Triton.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler import ASTSource

__all__ = [
    "index_of",
    "launch",
    "precision",
    "read_at",
    "source",
    "split",
    "splits",
    "three",
    "tile",
    "with_axes",
]

NAMES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
}
NARROW = 2**30
"""From this many entries between a tensor's first and last one, offsets take 64 bits."""

PROGRAMS = 1024
"""A reduction is split until there are about so many programs, on every device: its result must
not depend on the device's size."""


def launch(
    kernel: Any, programs: int, *args: Any, warps: int = 4, stages: int = 2, **constants: Any
) -> None:
    """Run a kernel on the device of its first tensor.

    All launches pass here: the tests compile what they find in these arguments for other devices.
    """
    first = next(t for t in args if isinstance(t, Tensor))
    with torch.cuda.device_of(first):
        options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
        kernel[(programs,)](*args, **options, **constants)


def source(kernel: Any, args: Sequence[Any], constants: dict[str, Any]) -> Any:
    """What :func:`launch` would have Triton compile for these arguments: the same special cases.

    Ones and None are constants, multiples of 16 and tensors are known to be aligned.
    """
    fixed: dict[tuple[int, ...], Any] = {}
    aligned: dict[tuple[int, ...], Any] = {}

    def kind(value: Any, path: tuple[int, ...]) -> Any:
        if isinstance(value, tuple):
            return tuple(kind(v, (*path, i)) for i, v in enumerate(value))
        if value is None or (not isinstance(value, Tensor) and value == 1):
            fixed[path] = value
            return "constexpr"
        if isinstance(value, Tensor) or value % 16 == 0:
            aligned[path] = [["tt.divisibility", 16]]
        if isinstance(value, Tensor):
            return "*" + NAMES[value.dtype]
        return "i32" if abs(value) < 2**31 else "i64"

    names = [p.name for p in kernel.params]
    signature = {
        name: kind(value, (i,)) for i, (name, value) in enumerate(zip(names, args, strict=False))
    }
    for name in names[len(args) :]:
        signature[name], fixed[names.index(name),] = "constexpr", constants[name]
    return ASTSource(kernel, signature=signature, constexprs=fixed, attrs=aligned)


def three(values: Sequence[int], fill: int) -> tuple[int, int, int]:
    """One value per axis of three, ``fill`` for those that are missing."""
    a, b, c = (*[fill] * (3 - len(values)), *values)
    return a, b, c


def with_axes(tensor: Tensor, lead: int = 2) -> Tensor:
    """A view with three axes behind the ``lead`` first ones."""
    missing = 3 + lead - tensor.ndim
    return tensor[(slice(None),) * lead + (None,) * missing]


def index_of(*tensors: Tensor) -> Any:
    """The integers that reach every entry of these tensors: 32 bits where they do, else 64."""
    extent = max(
        sum((s - 1) * abs(step) for s, step in zip(t.shape, t.stride(), strict=True))
        for t in tensors
    )
    return tl.int32 if extent < NARROW else tl.int64


def tile(tensor: Tensor, entries: int, channels: int, most: int) -> tuple[int, int]:
    """(positions, channels) of a block of ``entries``, along the axis whose entries are neighbours.

    ``channels``: how many a block can use; ``most``: how many it may hold where neighbours are
    positions.
    """
    inner = tensor.stride(1) == 1 and tensor.stride(-1) != 1
    wide = min(triton.next_power_of_2(channels), 64 if inner else most)
    return entries // wide, wide


def splits(programs: int, steps: int) -> int:
    """Into how many parts a reduction of so many steps is split; fixed by the shapes alone."""
    return max(1, min(steps, math.ceil(PROGRAMS / max(programs, 1))))


def precision(tensor: Tensor) -> str:
    """How float32 is multiplied on tensor cores: three products, with the error of float32."""
    return "tf32x3" if tensor.dtype == torch.float32 else "tf32"


@triton.jit
def split(p, size):
    """The parts (rest, z, y, x) of a flat index over (rest, \\*size)."""
    x = p % size[2]
    rest = p // size[2]
    y = rest % size[1]
    rest = rest // size[1]
    return rest // size[0], rest % size[0], y, x


@triton.jit
def read_at(at, size, DOWN: tl.constexpr):
    """The index that lies at ``at`` on a grid of step ``DOWN``, and whether there is one inside."""
    index = at // DOWN
    inside = (at >= 0) & (index < size)
    if DOWN != 1:
        inside = inside & (index * DOWN == at)
    return index, inside
