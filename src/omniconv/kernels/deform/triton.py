r"""Deformable convolution and its gradients in Triton.

Bytes bound it: 2^D reads per channel, tap and position. No column matrix is stored; a block of
positions computes its places once per tap for many channels, and samples go from registers into
the product with the weight (float32 as three products of tf32).

Where an entry of x is read from is known only at run time, so its gradient is a scatter. Atomic
sums of floats would depend on the order in which programs run; these are sums of integers, which
do not. A contribution is at most b = max |g| max |m| max over (c, q) of sum_o |W|, and an entry
gets at most N = Q P of them: times the power of two 2^k with b N 2^k < 2^62 they fit, and what is
cut off is less than 2^-45 b for N < 2^15. Where g, m or W are not finite, the whole gradient is
NaN. The gradients for offsets and mask are sums inside one program; the weight's is summed in
parts, then over the parts in order.
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

from omniconv.kernels import gpu
from omniconv.kernels.deform.reference import output_size
from omniconv.kernels.gpu import split

__all__ = ["deform", "deform_backward"]

Ints = Sequence[int]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


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


@triton.jit
def _aggregate(
    x,
    offset,
    mask,
    weight,
    bias,
    out,
    batch,
    offset_groups,
    channels,
    size,
    out_size,
    x_strides,
    SHARED: tl.constexpr,
    DIMS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    LOW: tl.constexpr,
    DILATION: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INDEX: tl.constexpr,
):
    """No weight, or one input channel per group; an offset group has ``channels`` outputs."""
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    points = out_size[0] * out_size[1] * out_size[2]
    blocks = tl.cdiv(channels, CHANNELS)
    pid = tl.program_id(0)
    local = pid % blocks * CHANNELS + tl.arange(0, CHANNELS)
    group = (pid // blocks % offset_groups).to(INDEX)
    p = (pid // blocks // offset_groups).to(INDEX) * POSITIONS + tl.arange(0, POSITIONS)
    b, z, y, column = split(p, out_size)
    there = b < batch
    in_c = local < channels
    o = group * channels + local
    first = (b * offset_groups + group) * TAPS
    point = p - b * points
    acc = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    for tap in range(TAPS):
        at = offset + (first + tap) * DIMS * points + point
        low_z, low_y, low_x, part_z, part_y, part_x = places(
            at, tap, points, z, y, column, size, there, DIMS, KERNEL, STRIDE, LOW, DILATION
        )
        value = sample(
            x + b * x_strides[0],
            o // SHARED,
            in_c,
            (low_z, low_y, low_x),
            (part_z, part_y, part_x),
            size,
            x_strides,
            there,
            DIMS,
            INDEX,
        )
        if mask is not None:
            m = tl.load(mask + (first + tap) * points + point, mask=there, other=0.0)
            value *= m.to(tl.float32)[:, None]
        if weight is not None:
            w = tl.load(weight + o * TAPS + tap, mask=in_c, other=0.0)
            value *= w.to(tl.float32)[None, :]
        acc += value
    if bias is not None:
        acc += tl.load(bias + o, mask=in_c, other=0.0).to(tl.float32)[None, :]
    target = ((b * offset_groups * channels) * points + point)[:, None] + (o * points)[None, :]
    tl.store(out + target, acc, mask=there[:, None] & in_c[None, :])


@triton.jit
def _contract(
    x,
    offset,
    mask,
    weight,
    bias,
    out,
    batch,
    groups,
    offset_groups,
    inputs,
    outputs,
    run,
    size,
    out_size,
    x_strides,
    DIMS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    LOW: tl.constexpr,
    DILATION: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """With a weight (O, Q, C / groups): samples times weights, ``run`` channels share offsets.

    A group has ``inputs`` and ``outputs`` channels; runs end where a group or offset group does.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    points = out_size[0] * out_size[1] * out_size[2]
    blocks = tl.cdiv(outputs, OUTPUTS)
    pid = tl.program_id(0)
    local = pid % blocks * OUTPUTS + tl.arange(0, OUTPUTS)
    g = (pid // blocks % groups).to(INDEX)
    p = (pid // blocks // groups).to(INDEX) * POSITIONS + tl.arange(0, POSITIONS)
    b, z, y, column = split(p, out_size)
    there = b < batch
    in_o = local < outputs
    o = g * outputs + local
    point = p - b * points
    acc = tl.zeros((POSITIONS, OUTPUTS), tl.float32)
    for start in range(0, inputs, run):
        group = (g * inputs + start) * offset_groups // (groups * inputs)
        first = (b * offset_groups + group) * TAPS
        for tap in range(TAPS):
            at = offset + (first + tap) * DIMS * points + point
            low_z, low_y, low_x, part_z, part_y, part_x = places(
                at, tap, points, z, y, column, size, there, DIMS, KERNEL, STRIDE, LOW, DILATION
            )
            if mask is not None:
                m = tl.load(mask + (first + tap) * points + point, mask=there, other=0.0)
            for lowest in range(0, run, CHANNELS):
                c = lowest + tl.arange(0, CHANNELS)
                value = sample(
                    x + b * x_strides[0],
                    g * inputs + start + c,
                    c < run,
                    (low_z, low_y, low_x),
                    (part_z, part_y, part_x),
                    size,
                    x_strides,
                    there,
                    DIMS,
                    INDEX,
                )
                if mask is not None:
                    value *= m.to(tl.float32)[:, None]
                w = tl.load(
                    weight + ((o * TAPS + tap) * inputs + start)[None, :] + c[:, None],
                    mask=in_o[None, :] & (c < run)[:, None],
                    other=0.0,
                )
                acc = tl.dot(value.to(w.dtype), w, acc, input_precision=PRECISION)
    if bias is not None:
        acc += tl.load(bias + o, mask=in_o, other=0.0).to(tl.float32)[None, :]
    target = ((b * groups * outputs) * points + point)[:, None] + (o * points)[None, :]
    tl.store(out + target, acc, mask=there[:, None] & in_o[None, :])


@triton.jit
def _by_data(
    grad,
    x,
    offset,
    mask,
    weight,
    scale,
    by_x,
    by_offset,
    by_mask,
    batch,
    groups,
    offset_groups,
    inputs,
    outputs,
    run,
    size,
    out_size,
    x_strides,
    sum_strides,
    grad_strides,
    DENSE: tl.constexpr,
    DIMS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    LOW: tl.constexpr,
    DILATION: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """The gradients for x (integers), offsets and mask: one tap of an offset group per program.

    Each is left out where its pointer is None. Without a weight a group is a channel.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    points = out_size[0] * out_size[1] * out_size[2]
    pid = tl.program_id(0)
    tap = pid % TAPS
    group = (pid // TAPS % offset_groups).to(INDEX)
    p = (pid // TAPS // offset_groups).to(INDEX) * POSITIONS + tl.arange(0, POSITIONS)
    b, z, y, column = split(p, out_size)
    there = b < batch
    point = p - b * points
    row = (b * offset_groups + group) * TAPS + tap
    at = offset + row * DIMS * points + point
    low_z, low_y, low_x, part_z, part_y, part_x = places(
        at, tap, points, z, y, column, size, there, DIMS, KERNEL, STRIDE, LOW, DILATION
    )
    low = (low_z, low_y, low_x)
    m = tl.full((POSITIONS,), 1.0, tl.float32)
    if mask is not None:
        m = tl.load(mask + row * points + point, mask=there, other=0.0).to(tl.float32)
    if by_x is not None:
        factor = tl.load(scale)
    place_g = b * grad_strides[0] + z * grad_strides[2] + y * grad_strides[3]
    place_g += column * grad_strides[4]
    sum_m = tl.zeros((POSITIONS,), tl.float32)
    sum_z = tl.zeros((POSITIONS,), tl.float32)
    sum_y = tl.zeros((POSITIONS,), tl.float32)
    sum_x = tl.zeros((POSITIONS,), tl.float32)
    held = groups * inputs // offset_groups
    for start in range(0, held, run):
        for lowest in range(0, run, CHANNELS):
            local = lowest + tl.arange(0, CHANNELS)
            in_c = local < run
            c = group * held + start + local
            d = tl.zeros((POSITIONS, CHANNELS), tl.float32)
            if DENSE:
                g = (group * held + start) // inputs
                inner = c - g * inputs
                for lowest_o in range(0, outputs, OUTPUTS):
                    o = lowest_o + tl.arange(0, OUTPUTS)
                    theirs = tl.load(
                        grad + place_g[:, None] + ((g * outputs + o) * grad_strides[1])[None, :],
                        mask=there[:, None] & (o < outputs)[None, :],
                        other=0.0,
                    )
                    w = tl.load(
                        weight
                        + (((g * outputs + o) * TAPS + tap) * inputs)[:, None]
                        + inner[None, :],
                        mask=(o < outputs)[:, None] & in_c[None, :],
                        other=0.0,
                    )
                    d = tl.dot(theirs, w, d, input_precision=PRECISION)
            else:
                for r in range(outputs):
                    o = c * outputs + r
                    theirs = tl.load(
                        grad + place_g[:, None] + (o * grad_strides[1])[None, :],
                        mask=there[:, None] & in_c[None, :],
                        other=0.0,
                    ).to(tl.float32)
                    if weight is not None:
                        w = tl.load(weight + o * TAPS + tap, mask=in_c, other=0.0)
                        theirs *= w.to(tl.float32)[None, :]
                    d += theirs
            for CORNER in tl.static_range(2**DIMS):
                place, inside = neighbour(low, size, x_strides, there, CORNER, INDEX)
                w_z = tl.full((POSITIONS,), 1.0, tl.float32)
                w_y = tl.full((POSITIONS,), 1.0, tl.float32)
                w_x = side(part_x, CORNER % 2)
                if DIMS > 1:
                    w_y = side(part_y, CORNER // 2 % 2)
                if DIMS > 2:
                    w_z = side(part_z, CORNER // 4)
                both = inside[:, None] & in_c[None, :]
                if by_offset is not None or by_mask is not None:
                    values = tl.load(
                        x + (b * x_strides[0] + place)[:, None] + (c * x_strides[1])[None, :],
                        mask=both,
                        other=0.0,
                    )
                    s = tl.sum(d * values.to(tl.float32), axis=1)
                    sum_m += s * w_z * w_y * w_x
                    sum_x += s * w_z * w_y * (CORNER % 2 * 2 - 1)
                    sum_y += s * w_z * w_x * (CORNER // 2 % 2 * 2 - 1)
                    sum_z += s * w_y * w_x * (CORNER // 4 * 2 - 1)
                if by_x is not None:
                    at_sum, _ = neighbour(low, size, sum_strides, there, CORNER, INDEX)
                    part = d * (w_z * w_y * w_x * m)[:, None] * factor
                    tl.atomic_add(
                        by_x
                        + (b * sum_strides[0] + at_sum)[:, None]
                        + (c * sum_strides[1])[None, :],
                        part.to(tl.int64),
                        mask=both,
                        sem="relaxed",
                    )
    if by_mask is not None:
        tl.store(by_mask + row * points + point, sum_m, mask=there)
    if by_offset is not None:
        target = by_offset + row * DIMS * points + point
        if DIMS > 2:
            tl.store(target, sum_z * m, mask=there)
        if DIMS > 1:
            tl.store(target + (DIMS - 2) * points, sum_y * m, mask=there)
        tl.store(target + (DIMS - 1) * points, sum_x * m, mask=there)


@triton.jit
def _by_weight(
    grad,
    x,
    offset,
    mask,
    parts,
    batch,
    groups,
    offset_groups,
    inputs,
    outputs,
    run,
    size,
    out_size,
    x_strides,
    grad_strides,
    count,
    DENSE: tl.constexpr,
    DIMS: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    LOW: tl.constexpr,
    DILATION: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """parts[part, o, q, c]: sums of g m x~ over every ``count``-th block of positions.

    Not DENSE: one channel per group, and blocks of OUTPUTS that share an offset group.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    points = out_size[0] * out_size[1] * out_size[2]
    pid = tl.program_id(0)
    tap = pid % TAPS
    rest = pid // TAPS
    if DENSE:
        blocks = tl.cdiv(outputs, OUTPUTS)
        chunks = tl.cdiv(run, CHANNELS)
        local = rest % blocks * OUTPUTS + tl.arange(0, OUTPUTS)
        inner = rest // blocks % chunks * CHANNELS + tl.arange(0, CHANNELS)
        start = rest // blocks // chunks % (inputs // run) * run
        rest = rest // blocks // chunks // (inputs // run)
        g = (rest % groups).to(INDEX)
        part = rest // groups
        in_o = local < outputs
        in_c = inner < run
        o = g * outputs + local
        c = g * inputs + start + inner
        group = (g * inputs + start) * offset_groups // (groups * inputs)
        acc = tl.zeros((OUTPUTS, CHANNELS), tl.float32)
    else:
        held = groups * outputs // offset_groups
        blocks = tl.cdiv(held, CHANNELS)
        local = rest % blocks * CHANNELS + tl.arange(0, CHANNELS)
        group = (rest // blocks % offset_groups).to(INDEX)
        part = rest // blocks // offset_groups
        in_o = local < held
        in_c = in_o
        o = group * held + local
        c = o // outputs
        acc = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    for block in range(part, tl.cdiv(batch * points, POSITIONS), count):
        p = tl.zeros((POSITIONS,), INDEX) + block * POSITIONS + tl.arange(0, POSITIONS)
        b, z, y, column = split(p, out_size)
        there = b < batch
        point = p - b * points
        row = (b * offset_groups + group) * TAPS + tap
        at = offset + row * DIMS * points + point
        low_z, low_y, low_x, part_z, part_y, part_x = places(
            at, tap, points, z, y, column, size, there, DIMS, KERNEL, STRIDE, LOW, DILATION
        )
        value = sample(
            x + b * x_strides[0],
            c,
            in_c,
            (low_z, low_y, low_x),
            (part_z, part_y, part_x),
            size,
            x_strides,
            there,
            DIMS,
            INDEX,
        )
        if mask is not None:
            m = tl.load(mask + row * points + point, mask=there, other=0.0)
            value *= m.to(tl.float32)[:, None]
        place_g = b * grad_strides[0] + z * grad_strides[2] + y * grad_strides[3]
        place_g += column * grad_strides[4]
        if DENSE:
            g_block = tl.load(
                grad + (o * grad_strides[1])[:, None] + place_g[None, :],
                mask=in_o[:, None] & there[None, :],
                other=0.0,
            )
            acc = tl.dot(g_block, value.to(g_block.dtype), acc, input_precision=PRECISION)
        else:
            g_block = tl.load(
                grad + place_g[:, None] + (o * grad_strides[1])[None, :],
                mask=there[:, None] & in_o[None, :],
                other=0.0,
            )
            acc += g_block.to(tl.float32) * value
    where = part.to(INDEX) * groups * outputs + o
    if DENSE:
        target = ((where * TAPS + tap) * inputs + start)[:, None] + inner[None, :]
        tl.store(parts + target, acc, mask=in_o[:, None] & in_c[None, :])
    else:
        tl.store(parts + where * TAPS + tap, tl.sum(acc, axis=0), mask=in_o)


class Call:
    """What the kernels of one call share: sizes, geometry, tensors without gaps."""

    def __init__(
        self,
        x: Tensor,
        offset: Tensor,
        mask: Tensor | None,
        weight: Tensor | None,
        window: tuple[Ints, Ints, Ints, Ints],
        groups: int,
        offset_groups: int,
    ) -> None:
        kernel, stride, padding, dilation = window
        self.x, self.offset = gpu.with_axes(x), offset.contiguous()
        self.mask = None if mask is None else mask.contiguous()
        self.batch, self.channels = x.shape[:2]
        self.groups, self.offset_groups = groups, offset_groups
        self.taps, self.size = math.prod(kernel), tuple(self.x.shape[2:])
        self.out = output_size(x.shape[2:], kernel, stride, padding, dilation)
        self.out_size = gpu.three(self.out, 1)
        self.points = math.prod(self.out)
        if weight is None:  # every channel is a group
            self.groups = self.channels
        self.inputs = self.channels // self.groups
        self.outputs = 1 if weight is None else weight.shape[0] // groups
        self.dense = self.inputs > 1
        self.weight = None if weight is None else weight.flatten(2).transpose(1, 2).contiguous()
        self.run = (
            math.gcd(self.inputs, self.channels // offset_groups)
            if self.dense
            else (self.channels // offset_groups)
        )
        self.constants = {
            "DIMS": len(kernel),
            "KERNEL": gpu.three(kernel, 1),
            "STRIDE": gpu.three(stride, 1),
            "LOW": gpu.three(padding[::2], 0),
            "DILATION": gpu.three(dilation, 1),
        }

    def blocks(self, positions: int) -> int:
        return triton.cdiv(self.batch * self.points, positions)

    @property
    def dot(self) -> dict[str, Any]:
        """The sizes of matrices; 16 is the least that tensor cores take."""
        outputs = min(max(triton.next_power_of_2(self.outputs), 16), 64)
        return {"CHANNELS": 16, "OUTPUTS": outputs, "PRECISION": gpu.precision(self.x)}

    @property
    def sizes(self) -> tuple[Any, ...]:
        numbers = (self.inputs, self.outputs, self.run, self.size, self.out_size)
        return self.batch, self.groups, self.offset_groups, *numbers


def deform(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    offset_groups: int,
) -> Tensor:
    """See :func:`omniconv.kernels.deform.deform`; ``padding`` has 2D ints."""
    window = (kernel_size, stride, padding, dilation)
    call = Call(x, offset, mask, weight, window, groups, offset_groups)
    out = x.new_empty((call.batch, call.groups * call.outputs, *call.out))
    if not out.numel():
        return out
    bias = None if bias is None else bias.contiguous()
    index = gpu.index_of(x, call.offset, out, *(() if weight is None else (weight,)))
    head = (call.x, call.offset, call.mask, call.weight, bias, out)
    if call.dense:
        positions = 64
        programs = call.blocks(positions) * groups * triton.cdiv(call.outputs, call.dot["OUTPUTS"])
        gpu.launch(
            _contract,
            programs,
            *(*head, *call.sizes, call.x.stride()),
            **(call.constants | call.dot),
            POSITIONS=positions,
            INDEX=index,
            warps=8,
        )
        return out
    channels = call.groups * call.outputs // offset_groups
    positions, wide = gpu.tile(x, 1024, channels, 8)
    gpu.launch(
        _aggregate,
        call.blocks(positions) * offset_groups * triton.cdiv(channels, wide),
        *(*head, call.batch, offset_groups, channels, call.size, call.out_size, call.x.stride()),
        SHARED=call.outputs,
        **call.constants,
        POSITIONS=positions,
        CHANNELS=wide,
        INDEX=index,
    )
    return out


def deform_backward(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    offset_groups: int,
    needed: Sequence[bool],
) -> Gradients:
    """The gradients for x, offset, mask and weight, empty where not needed."""
    window = (kernel_size, stride, padding, dilation)
    call = Call(x, offset, mask, weight, window, groups, offset_groups)
    tensors = (x, offset, mask, weight)
    found = [
        x.new_empty(t.shape if t is not None and need else 0)
        for t, need in zip(tensors, needed, strict=True)
    ]
    if not grad.numel():
        a, b, c, d = (f.zero_() for f in found)
        return a, b, c, d
    g3 = gpu.with_axes(grad)
    if any(needed[:3]):
        _data(call, g3, found, needed)
    if needed[3] and weight is not None:
        found[3] = _weight(call, g3).to(x.dtype).transpose(1, 2).reshape(weight.shape)
    a, b, c, d = found
    return a, b, c, d


def _data(call: Call, grad: Tensor, found: list[Tensor], needed: Sequence[bool]) -> None:
    """Into ``found``."""
    sums = scale = back = None
    x = call.x
    if needed[0]:
        scale, back = _scales(call, grad)
        sums = torch.zeros_like(x, dtype=torch.int64)
    tiles, positions = call.dot, 32
    tiles["OUTPUTS"] = min(tiles["OUTPUTS"], 32)
    if not call.dense:
        positions, tiles["CHANNELS"] = gpu.tile(x, 512, call.run, 4)
    gpu.launch(
        _by_data,
        call.blocks(positions) * call.offset_groups * call.taps,
        *(grad, x, call.offset, call.mask, call.weight, scale, sums),
        *(found[i] if needed[i] and found[i].numel() else None for i in (1, 2)),
        *(*call.sizes, x.stride(), x.stride() if sums is None else sums.stride(), grad.stride()),
        DENSE=call.dense,
        **(call.constants | tiles),
        POSITIONS=positions,
        INDEX=gpu.index_of(x, grad, call.offset, *(() if call.weight is None else (call.weight,))),
        warps=4 if call.dense else 8,
    )
    if sums is not None and back is not None:
        found[0].copy_((sums.float() * back).view(found[0].shape))


def _scales(call: Call, grad: Tensor) -> tuple[Tensor, Tensor]:
    """2^k of the module's first lines, and what takes it back."""
    bound = grad.abs().amax().double()
    if call.mask is not None:
        bound = bound * call.mask.abs().amax()
    if call.weight is not None:
        grouped = call.weight.abs().double().unflatten(0, (call.groups, -1))
        bound = bound * grouped.sum(1).amax()
    most = (call.taps * call.points).bit_length()
    k = (62 - most - torch.frexp(bound).exponent).clamp(-126, 126)
    one = torch.ones((), dtype=torch.float32, device=grad.device)
    back = torch.where(bound.isfinite(), torch.ldexp(one, -k), math.nan)
    return torch.ldexp(one, k), back


def _weight(call: Call, grad: Tensor) -> Tensor:
    """(O, Q, C / groups) in float32."""
    x, tiles = call.x, call.dot
    if call.dense:
        positions = 32
        programs = triton.cdiv(call.outputs, tiles["OUTPUTS"]) * call.groups * call.taps
        programs *= triton.cdiv(call.run, tiles["CHANNELS"]) * (call.inputs // call.run)
    else:
        held = call.groups * call.outputs // call.offset_groups
        positions, tiles["CHANNELS"] = gpu.tile(x, 1024, held, 8)
        programs = triton.cdiv(held, tiles["CHANNELS"]) * call.offset_groups * call.taps
    count = gpu.splits(programs, call.blocks(positions))
    shape = (count, call.groups * call.outputs, call.taps, call.inputs)
    parts = torch.empty(shape, dtype=torch.float32, device=x.device)
    gpu.launch(
        _by_weight,
        programs * count,
        *(grad, x, call.offset, call.mask, parts),
        *(*call.sizes, x.stride(), grad.stride(), count),
        DENSE=call.dense,
        **(call.constants | tiles),
        POSITIONS=positions,
        INDEX=gpu.index_of(x, grad, call.offset, parts),
    )
    return parts.sum(0)
