r"""Position-varying depthwise convolution and its gradients in Triton.

Bytes bound it: every weight is used C / G times. Blocks of positions times channels read a weight
once for all their channels, and x through the first cache. Weights are normalised where they are
read; what a softmax over q needs is one number per position and group,
:math:`n_p = \log \sum_q e^{w_{q,p}}`. The gradient for x gathers: entry u takes the tap q of the
position (u + lo - q d) / s, where that is whole. The one for the weights sums channels, and the
batch where weights are shared, in one order: all results are deterministic.
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
from omniconv.kernels.gpu import read_at, split
from omniconv.kernels.position_varying import ops

__all__ = ["position_varying", "position_varying_backward"]

Ints = Sequence[int]


@triton.jit
def log_sum(weight, step, there, TAPS: tl.constexpr):
    """log sum exp over the taps, ``step`` apart, of a block of positions."""
    top = tl.load(weight, mask=there, other=0.0).to(tl.float32)
    for q in range(1, TAPS):
        top = tl.maximum(top, tl.load(weight + q * step, mask=there, other=0.0).to(tl.float32))
    total = tl.zeros_like(top)
    for q in range(TAPS):
        total += tl.exp(tl.load(weight + q * step, mask=there, other=0.0).to(tl.float32) - top)
    return top + tl.log(total)


@triton.jit
def _norm(weight, norm, points, TAPS: tl.constexpr, POSITIONS: tl.constexpr, INDEX: tl.constexpr):
    """norm[row, p] of weight[row, q, p], for rows of the batch and groups."""
    blocks = tl.cdiv(points, POSITIONS)
    pid = tl.program_id(0)
    row = (pid // blocks).to(INDEX)
    p = (pid % blocks).to(INDEX) * POSITIONS + tl.arange(0, POSITIONS)
    found = log_sum(weight + row * TAPS * points + p, points, p < points, TAPS)
    tl.store(norm + row * points + p, found, mask=p < points)


@triton.jit
def _apply(
    x,
    weight,
    norm,
    out,
    batch,
    groups,
    channels,
    size,
    out_size,
    points,
    weight_step,
    x_strides,
    out_strides,
    SOFTMAX: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    KERNEL: tl.constexpr,
    UP: tl.constexpr,
    BASE: tl.constexpr,
    STEP: tl.constexpr,
    DOWN: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INDEX: tl.constexpr,
):
    """out[p] = sum over taps of w[q] x[(UP p + BASE + STEP q) / DOWN], where that is whole.

    The weights are those of position p, or TRANSPOSED those of the place that is read.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    blocks = tl.cdiv(channels, CHANNELS)
    pid = tl.program_id(0)
    local = pid % blocks * CHANNELS + tl.arange(0, CHANNELS)
    b = (pid // blocks % batch).to(INDEX)
    g = (pid // blocks // batch % groups).to(INDEX)
    p = (pid // blocks // batch // groups).to(INDEX) * POSITIONS + tl.arange(0, POSITIONS)
    rest, z, y, column = split(p, out_size)
    there = rest == 0
    c = g * channels + local
    in_c = local < channels
    row = b * weight_step + g
    weights = weight + row * TAPS * points
    start = (b * x_strides[0] + c * x_strides[1])[None, :]
    if SOFTMAX and not TRANSPOSED:
        n = log_sum(weights + p, points, there, TAPS)
    acc = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    for kz in range(KERNEL[0]):
        at_z, in_z = read_at(z * UP[0] + BASE[0] + kz * STEP[0], size[0], DOWN[0])
        for ky in range(KERNEL[1]):
            at_y, in_y = read_at(y * UP[1] + BASE[1] + ky * STEP[1], size[1], DOWN[1])
            in_line = there & in_z & in_y
            for kx in range(KERNEL[2]):
                at, in_x = read_at(column * UP[2] + BASE[2] + kx * STEP[2], size[2], DOWN[2])
                inside = in_line & in_x
                tap = (kz * KERNEL[1] + ky) * KERNEL[2] + kx
                place = p
                if TRANSPOSED:
                    place = (at_z * size[1] + at_y) * size[2] + at
                if SOFTMAX:
                    w = tl.load(
                        weights + tap * points + place, mask=inside, other=float("-inf")
                    ).to(tl.float32)
                    if TRANSPOSED:
                        n = tl.load(norm + row * points + place, mask=inside, other=0.0)
                    w = tl.exp(w - n)
                else:
                    w = tl.load(weights + tap * points + place, mask=inside, other=0.0).to(
                        tl.float32
                    )
                source = at_z * x_strides[2] + at_y * x_strides[3] + at * x_strides[4]
                values = tl.load(
                    x + start + source[:, None],
                    mask=inside[:, None] & in_c[None, :],
                    other=0.0,
                )
                acc += values.to(tl.float32) * w[:, None]
    target = z * out_strides[2] + y * out_strides[3] + column * out_strides[4]
    tl.store(
        out + (b * out_strides[0] + c * out_strides[1])[None, :] + target[:, None],
        acc,
        mask=there[:, None] & in_c[None, :],
    )


@triton.jit
def _by_weight(
    grad,
    x,
    out,
    batch,
    groups,
    channels,
    size,
    out_size,
    points,
    x_strides,
    grad_strides,
    SUMMED: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    LOW: tl.constexpr,
    DILATION: tl.constexpr,
    HELD: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INDEX: tl.constexpr,
):
    """out[row, q, p]: the sum of g x over a group's channels, and over the batch where SUMMED."""
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    parts = tl.cdiv(TAPS, HELD)
    blocks = tl.cdiv(points, POSITIONS)
    pid = tl.program_id(0)
    first = pid % parts * HELD
    p = (pid // parts % blocks).to(INDEX) * POSITIONS + tl.arange(0, POSITIONS)
    row = (pid // parts // blocks).to(INDEX)
    g = row % groups
    rest, z, y, column = split(p, out_size)
    there = rest == 0
    place = (z * grad_strides[2] + y * grad_strides[3] + column * grad_strides[4])[:, None]
    for q in range(first, tl.minimum(first + HELD, TAPS)):
        kz = q // (KERNEL[1] * KERNEL[2])
        ky = q // KERNEL[2] % KERNEL[1]
        at_z, in_z = read_at(z * STRIDE[0] - LOW[0] + kz * DILATION[0], size[0], 1)
        at_y, in_y = read_at(y * STRIDE[1] - LOW[1] + ky * DILATION[1], size[1], 1)
        at, in_x = read_at(column * STRIDE[2] - LOW[2] + q % KERNEL[2] * DILATION[2], size[2], 1)
        inside = there & in_z & in_y & in_x
        source = (at_z * x_strides[2] + at_y * x_strides[3] + at * x_strides[4])[:, None]
        acc = tl.zeros((POSITIONS, CHANNELS), tl.float32)
        for step in range(batch if SUMMED else 1):
            b = row // groups + step
            for lowest in range(0, channels, CHANNELS):
                local = lowest + tl.arange(0, CHANNELS)
                c = (g * channels + local)[None, :]
                mask = inside[:, None] & (local < channels)[None, :]
                theirs = grad + b * grad_strides[0] + c * grad_strides[1] + place
                ours = x + b * x_strides[0] + c * x_strides[1] + source
                acc += tl.load(theirs, mask=mask, other=0.0).to(tl.float32) * tl.load(
                    ours, mask=mask, other=0.0
                ).to(tl.float32)
        tl.store(out + (row * TAPS + q) * points + p, tl.sum(acc, axis=1), mask=there)


@triton.jit
def _softmax_backward(
    weight,
    norm,
    by_softmax,
    out,
    points,
    TAPS: tl.constexpr,
    POSITIONS: tl.constexpr,
    INDEX: tl.constexpr,
):
    """out = a (t - sum over q of a t), for a = e^(w - n) and their gradient t."""
    blocks = tl.cdiv(points, POSITIONS)
    pid = tl.program_id(0)
    row = (pid // blocks).to(INDEX)
    p = (pid % blocks).to(INDEX) * POSITIONS + tl.arange(0, POSITIONS)
    there = p < points
    place = row * TAPS * points + p
    n = tl.load(norm + row * points + p, mask=there, other=0.0)
    mean = tl.zeros((POSITIONS,), tl.float32)
    for q in range(TAPS):
        w = tl.load(weight + place + q * points, mask=there, other=0.0).to(tl.float32)
        mean += tl.exp(w - n) * tl.load(by_softmax + place + q * points, mask=there, other=0.0)
    for q in range(TAPS):
        w = tl.load(weight + place + q * points, mask=there, other=0.0).to(tl.float32)
        t = tl.load(by_softmax + place + q * points, mask=there, other=0.0)
        tl.store(out + place + q * points, tl.exp(w - n) * (t - mean), mask=there)


def position_varying(
    x: Tensor, weight: Tensor, stride: Ints, padding: Ints, dilation: Ints, softmax: bool
) -> Tensor:
    """See :func:`omniconv.kernels.position_varying.position_varying`; ``padding`` has 2D ints."""
    y = ops._new_output(x, weight)
    window = _window(x, weight, stride, padding, dilation)
    low = gpu.three([-p for p in window["LOW"]], 0)
    steps = (window["STRIDE"], low, window["DILATION"], (1, 1, 1))
    _gather(x, weight.contiguous(), None, y, window["KERNEL"], steps, softmax, False)
    return y


def position_varying_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    softmax: bool,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """The gradients for x and the weight, empty where not needed."""
    by_x, by_weight = ops._new_gradients(x, weight, needed)
    if not grad.numel():
        return by_x.zero_(), by_weight.zero_()
    window = _window(x, weight, stride, padding, dilation)
    kernel, taps = window["KERNEL"], math.prod(window["KERNEL"])
    rows, w = math.prod(weight.shape[:2]), weight.contiguous()
    points = math.prod(grad.shape[2:])
    norm = None
    if softmax:
        norm = torch.empty(rows, points, dtype=torch.float32, device=w.device)
        size = {"TAPS": taps, "POSITIONS": 256, "INDEX": gpu.index_of(w)}
        blocks = rows * triton.cdiv(points, 256)
        gpu.launch(_norm, blocks, w, norm, points, **size)
    if needed[0]:
        back = gpu.three([-d for d in window["DILATION"]], 0)
        steps = ((1, 1, 1), window["LOW"], back, window["STRIDE"])
        _gather(grad, w, norm, by_x, kernel, steps, softmax, True)
    if needed[1]:
        out = by_weight if by_weight.is_contiguous() else torch.empty_like(w)
        sums = torch.empty_like(w, dtype=torch.float32) if softmax else out
        _weight_sums(grad, x, sums, weight.shape[1], window)
        if softmax:
            gpu.launch(_softmax_backward, blocks, w, norm, sums, out, points, **size)
        if out is not by_weight:
            by_weight.copy_(out)
    return by_x, by_weight


def _window(x: Tensor, weight: Tensor, stride: Ints, padding: Ints, dilation: Ints) -> Any:
    return {
        "KERNEL": gpu.three(weight.shape[2 : x.ndim], 1),
        "STRIDE": gpu.three(stride, 1),
        "LOW": gpu.three(padding[::2], 0),
        "DILATION": gpu.three(dilation, 1),
    }


def _gather(
    x: Tensor,
    weight: Tensor,
    norm: Tensor | None,
    out: Tensor,
    kernel: tuple[int, int, int],
    steps: tuple[Any, Any, Any, Any],
    softmax: bool,
    transposed: bool,
) -> None:
    if not out.numel():
        return
    x3, out3 = gpu.with_axes(x), gpu.with_axes(out)
    batch, total, *out_size = out3.shape
    groups = weight.shape[1]
    positions, wide = gpu.tile(x, 1024, total // groups, 8)
    blocks = triton.cdiv(math.prod(out_size), positions) * triton.cdiv(total // groups, wide)
    gpu.launch(
        _apply,
        blocks * batch * groups,
        *(x3, weight, norm, out3, batch, groups, total // groups),
        *(tuple(x3.shape[2:]), tuple(out_size)),
        math.prod(x3.shape[2:] if transposed else out_size),
        groups if weight.shape[0] > 1 else 0,
        *(x3.stride(), out3.stride()),
        SOFTMAX=softmax,
        TRANSPOSED=transposed,
        KERNEL=kernel,
        **dict(zip(("UP", "BASE", "STEP", "DOWN"), steps, strict=True)),
        POSITIONS=positions,
        CHANNELS=wide,
        INDEX=gpu.index_of(x, weight, out),
    )


def _weight_sums(grad: Tensor, x: Tensor, out: Tensor, groups: int, window: Any) -> None:
    """Into ``out``, shaped as the weight."""
    g3, x3 = gpu.with_axes(grad), gpu.with_axes(x)
    batch, channels = x.shape[0], x.shape[1] // groups
    points = math.prod(g3.shape[2:])
    positions, wide = gpu.tile(x, 1024, channels, 8)
    held = min(math.prod(window["KERNEL"]), 8)
    parts = triton.cdiv(math.prod(window["KERNEL"]), held)
    gpu.launch(
        _by_weight,
        parts * triton.cdiv(points, positions) * out.shape[0] * groups,
        *(g3, x3, out, batch, groups, channels, tuple(x3.shape[2:]), tuple(g3.shape[2:])),
        *(points, x3.stride(), g3.stride()),
        SUMMED=out.shape[0] < batch,
        **window,
        HELD=held,
        POSITIONS=positions,
        CHANNELS=wide,
        INDEX=gpu.index_of(x, grad, out),
    )
