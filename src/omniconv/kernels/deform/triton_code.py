"""The Triton code of deformable convolution; :mod:`omniconv.kernels.deform.triton` launches it.

Positions are flat over the batch and the output's three axes. Programs hold a block of positions,
and go through taps and channels.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from omniconv.kernels.deform.triton_sample import neighbour, places, sample, side
from omniconv.kernels.gpu import split

__all__ = ["_aggregate", "_by_data", "_by_weight", "_contract"]


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
