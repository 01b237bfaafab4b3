"""What the deformable operators share: checks, naive sampling, and DCNv3's and DCNv4's costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from omniconv.core import args
from omniconv.core.card import ErrorInput, Sample
from omniconv.core.geometry import ConvArguments, check_floating
from omniconv.kernels.deform.flops import backward_flops, forward_flops
from omniconv.math.naive import naive_pad

__all__ = [
    "adapt",
    "aggregate_flops",
    "check_places",
    "error_inputs",
    "naive_aggregate",
    "naive_linear",
    "naive_samples",
    "pointwise",
    "regular_places",
    "samples",
    "taps_of",
    "with_center",
]


def check_places(x: Tensor, offset: Any, mask: Any, g: ConvArguments) -> int:
    """Refuse offsets and masks that do not fit; the number of offset groups."""
    taps, size = math.prod(g.kernel_size), g.output_size(x.shape[2:])
    check_floating("offset", offset)
    each = taps * g.dim
    if offset.dim() != x.dim() or offset.shape[1] % each or not offset.shape[1]:
        raise ValueError(
            f"offset must have shape (batch, offset groups x {each}, *output size) for kernels of "
            f"size {g.kernel_size}, got {tuple(offset.shape)}"
        )
    groups = args.divisor("offset groups", offset.shape[1] // each, in_channels=g.in_channels)
    wanted = {"offset": (offset, each * groups), "mask": (mask, taps * groups)}
    for name, (t, rows) in wanted.items():
        if t is None:
            continue
        check_floating(name, t)
        if t.shape != (x.shape[0], rows, *size):
            raise ValueError(
                f"{name} must have shape {(x.shape[0], rows, *size)}, got {tuple(t.shape)}"
            )
        if t.dtype != x.dtype:
            raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {t.dtype}")
        if t.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {t.device}")
    return groups


def taps_of(g: ConvArguments) -> list[tuple[int, ...]]:
    """The kernel's taps in row-major order."""
    return list(itertools.product(*map(range, g.kernel_size)))


def naive_samples(x: Tensor, places: Sequence[Sequence[Tensor]], groups: int) -> Tensor:
    r"""Multilinear interpolation by its definition, a sum over all pixels of products of tents.

    Args:
        x: (B, C, \*S), padded already.
        places: Per tap and axis the coordinate in x, (B, groups, \*S').
        groups: Groups of channels that share places.

    Returns:
        (B, groups, C/groups, taps, \*S').
    """
    x = x.unflatten(1, (groups, -1))
    samples = []
    for place in places:
        found, letters = x, "ijk"[: len(place)]
        weights = []
        for axis, p in enumerate(place):
            d = p.flatten(2)[..., None] - torch.arange(x.shape[3 + axis], dtype=x.dtype)
            rising, falling = d.ge(-1) & d.lt(0), d.ge(0) & d.lt(1)
            weights.append(rising * (1 + d) + falling * (1 - d))
        terms = ",".join(f"bgp{letter}" for letter in letters)
        found = torch.einsum(f"bgc{letters},{terms}->bgcp", x, *weights)
        samples.append(found.unflatten(-1, place[0].shape[2:]))
    return torch.stack(samples, 3)


def regular_places(tap: Sequence[int], size: Sequence[int], g: ConvArguments) -> list[Tensor]:
    """Coordinates of a tap at all output positions in the padded input, one grid per axis."""
    lines = [
        torch.arange(n, dtype=torch.float64) * s + t * d
        for n, s, t, d in zip(size, g.stride, tap, g.dilation, strict=True)
    ]
    return list(torch.meshgrid(*lines, indexing="ij"))


def naive_aggregate(layer: Any, x: Tensor, raw: Tensor, weigh: Any) -> Tensor:
    """The layer from what its generator gives, by its definition; every sample sums all pixels."""
    g, size = layer.geometry, raw.shape[2:]
    kept = [tap for q, tap in enumerate(taps_of(g)) if q != layer.left_out]
    offset = raw[:, : layer.rows[0]].unflatten(1, (g.groups, layer.taps, g.dim))
    mask = weigh(raw[:, layer.rows[0] :].unflatten(1, (g.groups, layer.taps)))
    v = naive_linear(x, layer.value, layer.value_bias)
    places = []
    for q, tap in enumerate(kept):
        place = []
        for axis, grid in enumerate(regular_places(tap, size, g)):
            step = g.dilation[axis]
            centre = step * (g.kernel_size[axis] - 1) // 2
            scaled = layer.offset_scale * (tap[axis] * step - centre + offset[:, :, q, axis])
            place.append(grid - tap[axis] * step + centre + scaled)
        places.append(place)
    samples = naive_samples(naive_pad(v, g), places, g.groups)
    y = (samples * mask.unsqueeze(2)).sum(3).flatten(1, 2)
    return naive_linear(y, layer.output, layer.bias)


def naive_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A matrix at every position."""
    y = torch.einsum("oc,bc...->bo...", weight.flatten(1), x)
    return y if bias is None else y + bias.view(-1, *[1] * (x.dim() - 2))


def aggregate_flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """All but the features and the taps' weights: W_v, W_o, generator, sums."""
    g = layer.geometry
    batch, size = shape[0], g.output_size(shape[2:])
    inputs, positions = math.prod(shape), batch * math.prod(size)
    taps = g.groups * math.prod(g.kernel_size)
    outputs, rows = positions * g.out_channels, positions * sum(layer.rows)
    products = 2 * g.in_channels * (inputs + outputs + rows)
    # the input's two gradients are added
    forward, backward = products, 2 * products + 2 * inputs + rows + (outputs if g.bias else 0)
    if layer.offset_scale != 1.0:
        forward += 2 * positions * taps * g.dim
        backward += positions * taps * g.dim
    x = shape
    if g.padding_mode != "zeros":
        x = (*x[:2], *(n + sum(pads) for n, pads in zip(x[2:], g.pads, strict=True)))
    given = (x, (batch, taps * g.dim, *size), (batch, taps, *size), None)
    forward += forward_flops(*given, None, g.kernel_size)
    backward += backward_flops(*given, g.kernel_size, (True, True, True, False))
    return forward, backward + g.pad_flops(shape)


def samples(dim: int) -> tuple[Sample, ...]:
    """Configurations of DCNv3 and DCNv4."""
    uneven = tuple((4, 3, 2)[:dim])
    base = {"in_channels": 6, "out_channels": 4}
    return (
        Sample(
            arguments=base | {"kernel_size": uneven, "stride": 2, "padding": 1, "groups": 2},
            size=(7, 6, 5)[:dim],
        ),
        Sample(
            arguments=base
            | {"kernel_size": 3, "padding": 1, "padding_mode": "replicate", "dw_kernel_size": 5},
            size=(5, 4, 3)[:dim],
        ),
    )


def error_inputs(dim: int) -> tuple[ErrorInput, ...]:
    """What DCNv3 and DCNv4 refuse."""
    base = {"in_channels": 4, "out_channels": 4, "kernel_size": 3}
    rows: tuple[tuple[dict[str, Any], str, type[Exception]], ...] = (
        ({"offset_scale": math.inf}, "offset_scale must be a finite number", ValueError),
        ({"offset_scale": "1"}, "offset_scale must be a finite number", TypeError),
        ({"remove_center": 1}, "remove_center must be True or False", TypeError),
        ({"dw_kernel_size": 4}, "dw_kernel_size must be kernel_size=.* or larger", ValueError),
        ({"dw_kernel_size": 1}, "dw_kernel_size must be kernel_size=.* or larger", ValueError),
        ({"dw_kernel_size": 3.0}, "dw_kernel_size must be an int", TypeError),
    )
    return tuple(ErrorInput(arguments=base | own, match=m, error=e) for own, m, e in rows)


def adapt(conv: Any) -> dict[str, int]:
    """The paper's 16 channels per group, or the most below it that fit inputs and outputs."""
    channels = conv.in_channels
    fitting = (n for n in range(1, 17) if channels % n == 0 == conv.out_channels % (channels // n))
    return {"groups": channels // max(fitting, default=channels)}


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1-wide convolution in x's dtype."""
    call = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
    return call(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def with_center(t: Tensor, g: ConvArguments) -> Tensor:
    """Zeros put in at the tap that was left out, (B, groups, taps, ...)."""
    at = taps_of(g).index(tuple((k - 1) // 2 for k in g.kernel_size))
    zero = torch.zeros_like(t[:, :, :1])
    before, after = t.split((at, t.shape[2] - at), 2)
    return torch.cat([before, zero, after] if at else [zero, after], 2)
