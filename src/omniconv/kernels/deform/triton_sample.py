"""Where deformable convolution reads, and what it finds there, in Triton."""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["neighbour", "places", "sample", "side"]


@triton.jit
def cell(at, size):
    """The entry below a coordinate, and the part of the step to the next one.

    Coordinates outside of [-1, size] are moved to where all is zero; NaN stays in the part.
    """
    at = tl.where(at < -1.0, -2.0, at)
    at = tl.where(at > size, size + 0.0, at)
    low = tl.floor(at)
    return tl.where(at == at, low, -1.0).to(tl.int32), at - low


@triton.jit
def places(
    offset,
    tap,
    points,
    z,
    y,
    x,
    size,
    there,
    DIMS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    LOW: tl.constexpr,
    DILATION: tl.constexpr,
):
    """Where a tap reads: (low, part) along z, y and x; ``offset`` points at its first axis."""
    kz = tap // (KERNEL[1] * KERNEL[2])
    ky = tap // KERNEL[2] % KERNEL[1]
    at_z = (z * STRIDE[0] - LOW[0] + kz * DILATION[0]).to(tl.float32)
    at_y = (y * STRIDE[1] - LOW[1] + ky * DILATION[1]).to(tl.float32)
    at_x = (x * STRIDE[2] - LOW[2] + tap % KERNEL[2] * DILATION[2]).to(tl.float32)
    if DIMS > 2:
        at_z += tl.load(offset, mask=there, other=0.0).to(tl.float32)
    if DIMS > 1:
        at_y += tl.load(offset + (DIMS - 2) * points, mask=there, other=0.0).to(tl.float32)
    at_x += tl.load(offset + (DIMS - 1) * points, mask=there, other=0.0).to(tl.float32)
    low_z, part_z = cell(at_z, size[0])
    low_y, part_y = cell(at_y, size[1])
    low_x, part_x = cell(at_x, size[2])
    return low_z, low_y, low_x, part_z, part_y, part_x


@triton.jit
def side(part, UP: tl.constexpr):
    """The weight of the lower or upper neighbour."""
    return part if UP else 1.0 - part


@triton.jit
def neighbour(low, size, strides, there, CORNER: tl.constexpr, INDEX: tl.constexpr):
    """Where the corner of a cell lies from the start of a channel, and whether it is inside."""
    z = low[0] + CORNER // 4
    y = low[1] + CORNER // 2 % 2
    x = low[2] + CORNER % 2
    inside = there & (z >= 0) & (z < size[0]) & (y >= 0) & (y < size[1]) & (x >= 0) & (x < size[2])
    place = z.to(INDEX) * strides[2] + y.to(INDEX) * strides[3] + x.to(INDEX) * strides[4]
    return place, inside


@triton.jit
def sample(x, c, in_c, low, part, size, strides, there, DIMS: tl.constexpr, INDEX: tl.constexpr):
    """x~ of a block of positions and channels; ``x`` points at the positions' images."""
    total = tl.zeros((there.shape[0], in_c.shape[0]), tl.float32)
    for CORNER in tl.static_range(2**DIMS):
        place, inside = neighbour(low, size, strides, there, CORNER, INDEX)
        w = side(part[2], CORNER % 2)
        if DIMS > 1:
            w *= side(part[1], CORNER // 2 % 2)
        if DIMS > 2:
            w *= side(part[0], CORNER // 4)
        values = tl.load(
            (x + place)[:, None] + (c * strides[1])[None, :],
            mask=inside[:, None] & in_c[None, :],
            other=0.0,
        )
        total += values.to(tl.float32) * w[:, None]
    return total
