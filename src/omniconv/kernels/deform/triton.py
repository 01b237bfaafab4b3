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

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from omniconv.core.geometry import output_size
from omniconv.kernels import gpu
from omniconv.kernels.deform.triton_code import _aggregate, _by_data, _by_weight, _contract

__all__ = ["deform", "deform_backward"]

Ints = Sequence[int]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


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
        self.constants: dict[str, Any] = {
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
