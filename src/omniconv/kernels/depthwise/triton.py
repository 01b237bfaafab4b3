r"""Depthwise convolution and its gradients in Triton.

Small kernels are bound by bytes: ``_taps`` and ``_taps_weight`` add one tap after the other and
read x through the first cache. From ``BAND`` taps along an axis on, products bound them, and the
tensor cores are the only units fast enough. There one line of taps is a banded matrix,

.. math:: y[r, v] = \sum_u x[r, u] \, T[u, v], \quad T[u, v] = w[u - v],

whose rows r are all lines of the batch, cut into pieces of N outputs that read U >= N + J - 1
inputs for J taps: J / U of the products count, about half. The weight gradient is the sum of the
diagonals of :math:`P = \sum_r g[r, v] x[r, u]`. float32 is split into three products of tf32, whose
error is that of float32. An infinite entry of x makes NaN of up to N outputs beside its own.

Weight gradients are summed in parts of a number that the shapes fix, then over the parts in order:
one result, whatever the device. Rows, taps and channels beyond the end are masked.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from omniconv.core.geometry import output_size
from omniconv.kernels import gpu
from omniconv.kernels.depthwise.choice import in_layout, layout_of
from omniconv.kernels.depthwise.ops import empty_like
from omniconv.kernels.gpu import read_at, split

__all__ = ["depthwise", "depthwise_input", "depthwise_weight"]

Ints = Sequence[int]
Triple = tuple[int, int, int]

BAND = 7
"""From so many taps along an axis of step 1 on, lines of taps are banded matrices."""


@dataclass(frozen=True)
class Window:
    """The kernel's geometry on three axes, in the order ``axes`` of x's."""

    axes: Triple
    kernel: Triple
    stride: Triple
    low: Triple
    dilation: Triple

    @classmethod
    def of(cls, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Window:
        """The axis with the most taps of step 1 comes last if it is a banded matrix's."""
        sides = [gpu.three(v, f) for v, f in ((kernel, 1), (stride, 1), (padding[::2], 0))]
        sides.append(gpu.three(dilation, 1))
        plain = [a for a in range(3) if sides[1][a] == sides[3][a] == 1]
        last = max(plain, key=lambda a: (sides[0][a], a), default=2)
        if sides[0][last] < BAND:
            last = 2
        axes = gpu.three([a for a in range(3) if a != last] + [last], 0)
        ordered = [gpu.three([side[a] for a in axes], 0) for side in sides]
        return cls(axes, *ordered)

    @property
    def banded(self) -> bool:
        return self.kernel[2] >= BAND and self.stride[2] == self.dilation[2] == 1

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    def view(self, tensor: Tensor) -> Tensor:
        """The tensor (., ., *size) with the axes of the window."""
        return gpu.with_axes(tensor).permute(0, 1, *(2 + a for a in self.axes))

    def piece(self) -> tuple[int, int]:
        """(inputs U, outputs N) of a banded matrix."""
        return (32, 16) if self.kernel[2] <= 17 else (64, 32)


@triton.jit
def _taps(
    x,
    weight,
    bias,
    out,
    batch,
    channels,
    size,
    out_size,
    x_strides,
    out_strides,
    SHARED: tl.constexpr,
    KERNEL: tl.constexpr,
    UP: tl.constexpr,
    BASE: tl.constexpr,
    STEP: tl.constexpr,
    DOWN: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INDEX: tl.constexpr,
):
    """out[p] = sum over taps of w[q] x[(UP p + BASE + STEP q) / DOWN], where that is whole."""
    blocks = tl.cdiv(channels, CHANNELS)
    pid = tl.program_id(0)
    p = (pid // blocks).to(INDEX) * POSITIONS + tl.arange(0, POSITIONS)
    c = (pid % blocks).to(INDEX) * CHANNELS + tl.arange(0, CHANNELS)
    b, z, y, column = split(p, out_size)
    there = b < batch
    acc = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    start = (b * x_strides[0])[:, None] + (c // SHARED * x_strides[1])[None, :]
    row = c * (KERNEL[0] * KERNEL[1] * KERNEL[2])
    for kz in range(KERNEL[0]):
        at_z, in_z = read_at(z * UP[0] + BASE[0] + kz * STEP[0], size[0], DOWN[0])
        for ky in range(KERNEL[1]):
            at_y, in_y = read_at(y * UP[1] + BASE[1] + ky * STEP[1], size[1], DOWN[1])
            line = at_z * x_strides[2] + at_y * x_strides[3]
            in_line = there & in_z & in_y
            for kx in range(KERNEL[2]):
                at, inside = read_at(column * UP[2] + BASE[2] + kx * STEP[2], size[2], DOWN[2])
                tap = (kz * KERNEL[1] + ky) * KERNEL[2] + kx
                w = tl.load(weight + row + tap, mask=c < channels, other=0.0)
                values = tl.load(
                    x + start + (line + at * x_strides[4])[:, None],
                    mask=(in_line & inside)[:, None] & (c < channels)[None, :],
                    other=0.0,
                )
                acc += values.to(tl.float32) * w.to(tl.float32)[None, :]
    if bias is not None:
        acc += tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    place = b * out_strides[0] + z * out_strides[2] + y * out_strides[3] + column * out_strides[4]
    tl.store(
        out + place[:, None] + (c * out_strides[1])[None, :],
        acc,
        mask=there[:, None] & (c < channels)[None, :],
    )


@triton.jit
def _taps_weight(
    grad,
    x,
    parts,
    batch,
    channels,
    size,
    out_size,
    x_strides,
    grad_strides,
    count,
    SHARED: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    LOW: tl.constexpr,
    DILATION: tl.constexpr,
    TAPS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INDEX: tl.constexpr,
):
    """parts[part, c, q]: the sums of g x over every ``count``-th block of positions."""
    ALL: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    blocks = tl.cdiv(channels, CHANNELS)
    groups = tl.cdiv(ALL, TAPS)
    pid = tl.program_id(0)
    c = (pid % blocks).to(INDEX) * CHANNELS + tl.arange(0, CHANNELS)
    q = pid // blocks % groups * TAPS + tl.arange(0, TAPS)
    part = pid // blocks // groups
    in_c = c < channels
    step_z = (q // (KERNEL[1] * KERNEL[2]) * DILATION[0] - LOW[0])[:, None]
    step_y = (q // KERNEL[2] % KERNEL[1] * DILATION[1] - LOW[1])[:, None]
    step_x = (q % KERNEL[2] * DILATION[2] - LOW[2])[:, None]
    positions = batch * out_size[0] * out_size[1] * out_size[2]
    acc = tl.zeros((TAPS, POSITIONS, CHANNELS), tl.float32)
    for block in range(part, tl.cdiv(positions, POSITIONS), count):
        p = tl.zeros((POSITIONS,), INDEX) + block * POSITIONS + tl.arange(0, POSITIONS)
        b, z, y, column = split(p, out_size)
        there = b < batch
        place = (
            b * grad_strides[0]
            + z * grad_strides[2]
            + y * grad_strides[3]
            + column * grad_strides[4]
        )
        g = tl.load(
            grad + place[:, None] + (c * grad_strides[1])[None, :],
            mask=there[:, None] & in_c[None, :],
            other=0.0,
        )
        at_z, in_z = read_at((z * STRIDE[0])[None, :] + step_z, size[0], 1)
        at_y, in_y = read_at((y * STRIDE[1])[None, :] + step_y, size[1], 1)
        at_x, in_x = read_at((column * STRIDE[2])[None, :] + step_x, size[2], 1)
        inside = there[None, :] & in_z & in_y & in_x & (q < ALL)[:, None]
        source = (b * x_strides[0])[None, :] + at_z * x_strides[2] + at_y * x_strides[3]
        source += at_x * x_strides[4]
        values = tl.load(
            x + source[:, :, None] + (c // SHARED * x_strides[1])[None, None, :],
            mask=inside[:, :, None] & in_c[None, None, :],
            other=0.0,
        )
        acc += values.to(tl.float32) * g.to(tl.float32)[None, :, :]
    row = ((part.to(INDEX) * channels + c) * ALL)[None, :] + q[:, None]
    tl.store(parts + row, tl.sum(acc, axis=1), mask=(q < ALL)[:, None] & in_c[None, :])


@triton.jit
def _band(
    x,
    weight,
    bias,
    out,
    batch,
    channels,
    size,
    out_size,
    pieces,
    x_strides,
    out_strides,
    SHARED: tl.constexpr,
    FLIPPED: tl.constexpr,
    KERNEL: tl.constexpr,
    UP: tl.constexpr,
    BASE: tl.constexpr,
    STEP: tl.constexpr,
    DOWN: tl.constexpr,
    ROWS: tl.constexpr,
    U: tl.constexpr,
    N: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """What ``_taps`` computes, with a step of 1 along the last axis: matrices times bands."""
    J: tl.constexpr = U - N + 1
    CUTS: tl.constexpr = (KERNEL[2] + J - 1) // J
    LINES: tl.constexpr = KERNEL[0] * KERNEL[1] * CUTS
    pid = tl.program_id(0)
    c = (pid % channels).to(INDEX)
    rows = (pid // channels).to(INDEX) * ROWS + tl.arange(0, ROWS)
    b, z, y, piece = split(rows, (out_size[0], out_size[1], pieces))
    there = b < batch
    u = tl.arange(0, U)
    v = tl.arange(0, N)
    j = u[:, None] - v[None, :]
    acc = tl.zeros((ROWS, N), tl.float32)
    for line in range(LINES):
        cut = line % CUTS
        ky = line // CUTS % KERNEL[1]
        kz = line // (CUTS * KERNEL[1])
        at_z, in_z = read_at(z * UP[0] + BASE[0] + kz * STEP[0], size[0], DOWN[0])
        at_y, in_y = read_at(y * UP[1] + BASE[1] + ky * STEP[1], size[1], DOWN[1])
        start = b * x_strides[0] + at_z * x_strides[2] + at_y * x_strides[3]
        start += c // SHARED * x_strides[1]
        at = (piece * N + BASE[2] + cut * J)[:, None] + u[None, :]
        values = tl.load(
            x + start[:, None] + at * x_strides[4],
            mask=(there & in_z & in_y)[:, None] & (at >= 0) & (at < size[2]),
            other=0.0,
        )
        tap = cut * J + j
        if FLIPPED:
            tap = KERNEL[2] - 1 - tap
        first = ((c * KERNEL[0] + kz) * KERNEL[1] + ky) * KERNEL[2]
        band = tl.load(
            weight + first + tap,
            mask=(j >= 0) & (j < J) & (tap >= 0) & (tap < KERNEL[2]),
            other=0.0,
        )
        acc = tl.dot(values, band, acc, input_precision=PRECISION)
    if bias is not None:
        acc += tl.load(bias + c).to(tl.float32)
    column = (piece * N)[:, None] + v[None, :]
    place = b * out_strides[0] + c * out_strides[1] + z * out_strides[2] + y * out_strides[3]
    tl.store(
        out + place[:, None] + column * out_strides[4],
        acc,
        mask=there[:, None] & (column < out_size[2]),
    )


@triton.jit
def _band_weight(
    grad,
    x,
    parts,
    batch,
    channels,
    size,
    out_size,
    pieces,
    x_strides,
    grad_strides,
    count,
    SHARED: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    LOW: tl.constexpr,
    DILATION: tl.constexpr,
    ROWS: tl.constexpr,
    HELD: tl.constexpr,
    U: tl.constexpr,
    N: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """What ``_taps_weight`` computes: HELD lines of taps at once, and the sums of diagonals."""
    J: tl.constexpr = U - N + 1
    CUTS: tl.constexpr = (KERNEL[2] + J - 1) // J
    LINES: tl.constexpr = KERNEL[0] * KERNEL[1] * CUTS
    groups = tl.cdiv(LINES, HELD)
    pid = tl.program_id(0)
    c = (pid % channels).to(INDEX)
    part = pid // channels // groups
    n = tl.arange(0, HELD * U)
    v = tl.arange(0, N)
    line = pid // channels % groups * HELD + n // U
    cut = line % CUTS
    step_z = (line // (CUTS * KERNEL[1]) * DILATION[0] - LOW[0])[None, :]
    step_y = (line // CUTS % KERNEL[1] * DILATION[1] - LOW[1])[None, :]
    step_x = (cut * J + n % U - LOW[2])[None, :]
    total = batch * out_size[0] * out_size[1] * pieces
    acc = tl.zeros((N, HELD * U), tl.float32)
    for block in range(part, tl.cdiv(total, ROWS), count):
        rows = tl.zeros((ROWS,), INDEX) + block * ROWS + tl.arange(0, ROWS)
        b, z, y, piece = split(rows, (out_size[0], out_size[1], pieces))
        there = b < batch
        column = (piece * N)[None, :] + v[:, None]
        place = b * grad_strides[0] + c * grad_strides[1]
        place += z * grad_strides[2] + y * grad_strides[3]
        g = tl.load(
            grad + place[None, :] + column * grad_strides[4],
            mask=there[None, :] & (column < out_size[2]),
            other=0.0,
        )
        at_z, in_z = read_at((z * STRIDE[0])[:, None] + step_z, size[0], 1)
        at_y, in_y = read_at((y * STRIDE[1])[:, None] + step_y, size[1], 1)
        at_x, in_x = read_at((piece * N)[:, None] + step_x, size[2], 1)
        start = b * x_strides[0] + c // SHARED * x_strides[1]
        values = tl.load(
            x + start[:, None] + at_z * x_strides[2] + at_y * x_strides[3] + at_x * x_strides[4],
            mask=there[:, None] & (line < LINES)[None, :] & in_z & in_y & in_x,
            other=0.0,
        )
        acc = tl.dot(g, values, acc, input_precision=PRECISION)
    diagonal = tl.minimum(v[:, None] + (n % U)[None, :], U - 1) + (n // U * U)[None, :]
    sums = tl.sum(tl.gather(acc, diagonal, axis=1), axis=0)
    tap = cut * J + n % U
    row = (part.to(INDEX) * channels + c) * (KERNEL[0] * KERNEL[1]) + line // CUTS
    tl.store(
        parts + row * KERNEL[2] + tap,
        sums,
        mask=(line < LINES) & (n % U < J) & (tap < KERNEL[2]),
    )


def depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    """See :func:`omniconv.kernels.depthwise.depthwise`; ``padding`` has 2D ints."""
    window = Window.of(weight.shape[2:], stride, padding, dilation)
    size = output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    low = gpu.three([-p for p in window.low], 0)
    steps = (window.stride, low, window.dilation, (1, 1, 1))
    return _correlate(x, weight, bias, size, window, steps, False)


def depthwise_input(
    grad: Tensor, weight: Tensor, size: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    r"""The gradient for x from that for y, one channel per channel of ``grad``: (B, C m, \*size).

    The taps of an entry are read backwards.
    """
    window = Window.of(weight.shape[2:], stride, padding, dilation)
    base, step = list(window.low), gpu.three([-d for d in window.dilation], 0)
    if window.banded:  # from its last tap on
        base[2] -= window.kernel[2] - 1
    steps = ((1, 1, 1), gpu.three(base, 0), step, window.stride)
    return _correlate(grad, weight, None, size, window, steps, True)


def _correlate(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    size: Ints,
    window: Window,
    steps: tuple[Triple, Triple, Triple, Triple],
    flipped: bool,
) -> Tensor:
    """A tensor of this size in the layout of x; ``steps`` are those of the kernels."""
    channels = weight.shape[0]
    source = x.contiguous() if window.banded else x
    out = empty_like(source, (x.shape[0], channels, *size))
    if not out.numel():
        return in_layout(out, layout_of(x))
    x3, out3 = window.view(source), window.view(out)
    rows = window.view(weight).contiguous()
    batch, _, *out_size = out3.shape
    names = ("UP", "BASE", "STEP", "DOWN")
    constants: dict[str, Any] = dict(zip(names, steps, strict=True)) | {
        "SHARED": channels // x.shape[1],
        "KERNEL": window.kernel,
        "INDEX": gpu.index_of(source, rows, out),
    }
    biases = None if bias is None else bias.contiguous()
    head = (x3, rows, biases, out3, batch, channels, tuple(x3.shape[2:]), tuple(out_size))
    if not window.banded:
        positions, wide = gpu.tile(x, 1024, channels, 1)
        blocks = triton.cdiv(out3[:, 0].numel(), positions) * triton.cdiv(channels, wide)
        tiles = {"POSITIONS": positions, "CHANNELS": wide}
        gpu.launch(_taps, blocks, *head, x3.stride(), out3.stride(), **constants, **tiles)
        return out
    inputs, outputs = window.piece()
    pieces = triton.cdiv(out_size[2], outputs)
    total = batch * out_size[0] * out_size[1] * pieces
    gpu.launch(
        _band,
        triton.cdiv(total, 64) * channels,
        *head,
        pieces,
        x3.stride(),
        out3.stride(),
        **constants,
        FLIPPED=flipped,
        ROWS=64,
        U=inputs,
        N=outputs,
        PRECISION=gpu.precision(x),
        warps=inputs // 8,
        stages=1,
    )
    return in_layout(out, layout_of(x))


def depthwise_weight(
    grad: Tensor, x: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    r"""The gradient for the weight (C m, 1, \*kernel_size) from that for y."""
    window = Window.of(kernel_size, stride, padding, dilation)
    channels = grad.shape[1]
    if not grad.numel() or not x.numel():
        return x.new_zeros(channels, 1, *kernel_size)
    if window.banded:
        grad, x = grad.contiguous(), x.contiguous()
    g3, x3 = window.view(grad), window.view(x)
    batch, _, *out_size = g3.shape
    sizes: tuple[Any, ...] = (batch, channels, tuple(x3.shape[2:]), tuple(out_size))
    constants: dict[str, Any] = {
        "SHARED": channels // x.shape[1],
        "KERNEL": window.kernel,
        "STRIDE": window.stride,
        "LOW": window.low,
        "DILATION": window.dilation,
    }
    if window.banded:
        inputs, outputs = window.piece()
        pieces = triton.cdiv(out_size[2], outputs)
        cuts = triton.cdiv(window.kernel[2], inputs - outputs + 1)
        lines = window.kernel[0] * window.kernel[1] * cuts
        held = min(triton.next_power_of_2(lines), 4)
        programs = channels * triton.cdiv(lines, held)
        steps = triton.cdiv(batch * out_size[0] * out_size[1] * pieces, 16)
        more = {"ROWS": 16, "HELD": held, "U": inputs, "N": outputs}
        constants |= more | {"PRECISION": gpu.precision(x)}
        kernel, sizes, warps = _band_weight, (*sizes, pieces), inputs // 8
    else:
        taps = min(triton.next_power_of_2(window.taps), 16)
        positions, wide = gpu.tile(x, 4096 // taps, channels, 1)
        programs = triton.cdiv(window.taps, taps) * triton.cdiv(channels, wide)
        steps = triton.cdiv(g3[:, 0].numel(), positions)
        constants |= {"TAPS": taps, "POSITIONS": positions, "CHANNELS": wide}
        kernel, warps = _taps_weight, 4
    count = gpu.splits(programs, steps)
    parts = torch.empty(count, channels, window.taps, dtype=torch.float32, device=x.device)
    arguments = (*sizes, x3.stride(), g3.stride(), count)
    constants["INDEX"] = gpu.index_of(x, grad, parts)
    gpu.launch(kernel, programs * count, g3, x3, parts, *arguments, warps=warps, **constants)
    found = parts.sum(0).to(x.dtype).view(channels, 1, *window.kernel)
    back = [2 + window.axes.index(a) for a in range(3)]
    return found.permute(0, 1, *back).reshape(channels, 1, *kernel_size)
