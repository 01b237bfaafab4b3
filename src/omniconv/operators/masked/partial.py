r"""Partial convolution: only valid pixels enter the sum, which is rescaled by how many there are.

.. math::
    y(p) = \frac{\sum_u 1}{\sum_u M(p+u)} \sum_u w(u)\, M(p+u)\, x(p+u) + b
    \quad \text{where } \sum_u M(p+u) > 0, \text{ else } 0; \qquad
    M'(p) = \Big[\sum_u M(p+u) > 0\Big]

Shapes: x (B, C, \*S), M (1 or B, 1 or C, \*S) or both unbatched, y (B, O, \*S'), M' (B, 1, \*S')
for a mask of one channel, (B, O, \*S') for one per input channel.

Cost: the plain convolution, one window sum of the mask's channels, two passes over the output.

Source: G. Liu, F. A. Reda, K. J. Shih, T.-C. Wang, A. Tao, B. Catanzaro, "Image Inpainting for
Irregular Holes Using Partial Convolutions", ECCV 2018; padding as holes: G. Liu et al., "Partial
Convolution based Padding", 2018.

The sum of 1 runs over the taps inside the image, so that a full mask gives the plain convolution,
at the borders too (a window without such a tap holds no hole: 0/0 counts as 1).

The official code divides by the whole window instead, zero padding being a hole
(``padding_is_hole=True``); it adds 1e-8 to the denominator (counts are exact here); its sum over a
mask per channel runs over all channels whatever ``groups`` (here over the group's own); and its new
mask is min(sum, 1), which for masks of 0 and 1 is the same.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.core import args
from omniconv.core.card import Card, ErrorInput, Sample
from omniconv.core.geometry import ConvArguments, check_floating, check_input
from omniconv.core.layer import ConvLayer, new_parameter, transfer
from omniconv.core.registry import register
from omniconv.kernels.convolve import convolve
from omniconv.math.naive import windows
from omniconv.math.shift import window_sum

__all__ = ["PartialConv1d", "PartialConv2d", "PartialConv3d", "partial_conv"]


def partial_conv(
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: str | int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    padding_is_hole: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Partial convolution (see the module's equation), in one to three dimensions.

    Args:
        x: (B, C, \*S) or unbatched (C, \*S). What it holds where the mask is 0 has no influence,
            not even NaN.
        mask: (1 or B, 1 or C, \*S), unbatched like ``x``, bool or floating point: 1 valid, 0 hole.
            Values between are certainties: they weigh the pixels and are summed by the same
            equation; negative ones have no meaning. No gradient flows to it. None: all valid.
        weight: (O, C/groups, \*kernel_size).
        bias: (O,) or None.
        stride: As in ``nn.ConvNd``.
        padding: As in ``nn.ConvNd``.
        dilation: As in ``nn.ConvNd``.
        groups: As in ``nn.ConvNd``; of a mask per channel, each group counts its own.
        padding_mode: As in ``nn.ConvNd``; image and mask are padded alike.
        padding_is_hole: Count zero padding as holes, as the official code does. Otherwise the sum
            of 1 leaves it out, and a window with no tap inside the image holds no hole: it gives
            b and stays valid, as in the plain convolution.

    Returns:
        y (B, O, \*S') and the new mask, (B, 1, \*S') for a mask of one channel, else (B, O, \*S'),
        in the mask's dtype (that of ``x`` for None).

    Raises:
        TypeError: A tensor is no tensor, or of a dtype that does not fit.
        ValueError: A shape, device or argument does not fit; the message names it.
    """
    check_floating("weight", weight)
    dim = weight.dim() - 2
    if dim not in (1, 2, 3):
        raise ValueError(
            f"weight must have 3, 4 or 5 axes (outputs, inputs, 1 to 3 spatial), "
            f"got shape {tuple(weight.shape)}"
        )
    outputs, inputs, *extent = weight.shape
    inputs *= args.positive_int("groups", groups)
    geometry = ConvArguments.parse(
        dim, inputs, outputs, extent, stride, padding, dilation, groups, True, padding_mode
    )
    if bias is not None:
        check_floating("bias", bias)
        if bias.shape != (outputs,):
            raise ValueError(f"bias must have shape ({outputs},), got {tuple(bias.shape)}")
    check_input(SimpleNamespace(geometry=geometry), x, weight, name="x")
    args.boolean("padding_is_hole", padding_is_hole)
    return _partial_conv(x, mask, weight, bias, geometry, padding_is_hole)


def _partial_conv(
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    g: ConvArguments,
    padding_is_hole: bool,
) -> tuple[Tensor, Tensor]:
    """The same with canonical arguments."""
    _check_mask(mask, x, g)
    if x.dim() == g.dim + 1:
        mask = None if mask is None else mask.unsqueeze(0)
        y, mask = _partial_conv(x.unsqueeze(0), mask, weight, bias, g, padding_is_hole)
        return y.squeeze(0), mask.squeeze(0)
    with torch.no_grad():
        per_channel = mask is not None and mask.shape[1] > 1
        known, total = _counts(x, mask, g, padding_is_hole)
        ratio = torch.where(known > 0, total / known, 0)
        valid = (known > 0) | (total == 0)
        new = valid.expand(x.shape[0], g.out_channels if per_channel else 1, *valid.shape[2:])
        new = new.to(x.dtype if mask is None else mask.dtype, copy=True)
    if mask is not None:
        mask = mask.detach()
        x = torch.where(mask != 0, x * mask.to(x.dtype), 0)
    raw = convolve(x, weight, None, g)
    y = raw * ratio
    if bias is not None:
        y = torch.where(valid, y + bias.view(-1, *[1] * g.dim), 0)
    return y.to(raw.dtype), new


def _counts(
    x: Tensor, mask: Tensor | None, g: ConvArguments, padding_is_hole: bool
) -> tuple[Tensor, Tensor]:
    """Both sums of the equation, in float32 at least: of M, (1 or B, 1 or O, *S'), and of 1."""
    exact = torch.promote_types(x.dtype, torch.float32)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=exact, device=x.device)
    per_channel = mask is not None and mask.shape[1] > 1
    m = ones if mask is None else mask.to(exact)
    if per_channel:
        m = m.unflatten(1, (g.groups, -1)).sum(2)
    known = window_sum(g.pad(m), g.kernel_size, g.stride, g.dilation)
    if padding_is_hole:
        total = ones.new_full((), math.prod(g.kernel_size))
    elif mask is None:
        total = known
    else:
        total = window_sum(g.pad(ones), g.kernel_size, g.stride, g.dilation)
    if per_channel:
        total = total * (g.in_channels // g.groups)
        known = known.repeat_interleave(g.out_channels // g.groups, 1) if g.groups > 1 else known
    return known, total


def _check_mask(mask: Any, x: Tensor, g: ConvArguments) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        kind = f"dtype {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool or floating-point tensor or None, got {kind}")
    if mask.device != x.device:
        raise ValueError(f"mask must be on the input's device {x.device}, got {mask.device}")
    wanted = [(1, n) for n in x.shape[: -g.dim]] + [(n,) for n in x.shape[-g.dim :]]
    fits = mask.dim() == len(wanted) and all(
        n in allowed for n, allowed in zip(mask.shape, wanted, strict=True)
    )
    if not fits:
        axes = ", ".join(" or ".join(map(str, sorted(set(allowed)))) for allowed in wanted)
        raise ValueError(
            f"mask must have shape ({axes}) for an input of shape {tuple(x.shape)}, "
            f"got {tuple(mask.shape)}"
        )


class _PartialNd(ConvLayer):
    """Partial convolution over N axes: ``layer(x, mask=None) -> (y, new_mask)``.

    See :func:`partial_conv`. Arguments are torch's, in torch's order, and then, keyword-only:

    Args:
        padding_is_hole: Count zero padding as holes, as the official code does.

    The state dict of the official layer (``weight``, ``bias``) loads as it is; with
    ``padding_is_hole=True`` the layer then gives the official numbers.
    """

    def setup(self, factory: dict[str, Any], *, padding_is_hole: bool = False) -> None:
        self.padding_is_hole = args.boolean("padding_is_hole", padding_is_hole)
        self.weight = new_parameter(*self.kernel_shape, **factory)

    def reset_parameters(self) -> None:
        """Draw weight and bias as ``nn.ConvNd`` does."""
        nn.init.uniform_(self.weight, -self.bound, self.bound)
        self.reset_bias()

    def forward(self, input: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolve the valid part of ``input``; returns the output and its mask."""
        check_input(self, input, self.weight)
        return _partial_conv(
            input, mask, self.weight, self.bias, self.geometry, self.padding_is_hole
        )

    @classmethod
    def from_conv(
        cls, conv: nn.Module, extent: int | tuple[int, ...] | None = None, **own: Any
    ) -> Self:
        """This layer with a trained convolution's kernel: with a full mask the same output.

        See :func:`omniconv.core.layer.transfer` for the arguments and errors.
        """
        layer, margins = transfer(cls, conv, extent, **own)
        source: Any = conv
        with torch.no_grad():
            layer.weight.copy_(F.pad(source.weight.detach(), margins))
            if source.bias is not None:
                layer.bias.copy_(source.bias)
        return layer

    def extra_repr(self) -> str:
        return super().extra_repr() + (", padding_is_hole=True" if self.padding_is_hole else "")


class PartialConv1d(_PartialNd):
    dim = 1


class PartialConv2d(_PartialNd):
    dim = 2


class PartialConv3d(_PartialNd):
    dim = 3


def _reference(layer: Any, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The equation, window by window."""
    g = layer.geometry
    if x.dim() == g.dim + 1:
        mask = None if mask is None else mask.unsqueeze(0)
        y, new = _reference(layer, x.unsqueeze(0), mask)
        return y.squeeze(0), new.squeeze(0)
    one_channel = mask is None or mask.shape[1] == 1
    m = (torch.ones_like(x) if mask is None else mask.to(x.dtype)).expand_as(x)
    streams = (x.masked_fill(m == 0, 0) * m, m, torch.ones_like(m))
    kernel = layer.weight.flatten(2).unflatten(0, (g.groups, -1))  # (g, O/g, C/g, taps)
    outputs, masks = [], []
    for found in zip(*(windows(stream, g) for stream in streams), strict=True):
        values, held, inside = (w.unflatten(1, (g.groups, 1, -1)).flatten(4) for _, w in found)
        inside = torch.ones_like(inside) if layer.padding_is_hole else inside
        known = held.sum((-1, -2))
        total = inside.sum((-1, -2))
        valid = (known > 0) | (total == 0)
        scale = total / known.masked_fill(known == 0, 1)
        y = ((values * kernel).sum((-1, -2)) * scale).flatten(1)
        valid = valid.expand(-1, -1, g.out_channels // g.groups).flatten(1)
        outputs.append((y if layer.bias is None else y + layer.bias) * valid)
        masks.append(valid[:, :1] if one_channel else valid)
    size = g.output_size(x.shape[2:])
    new = torch.stack(masks, -1).unflatten(-1, size)
    y = torch.stack(outputs, -1).unflatten(-1, size)
    return y, new.to(x.dtype if mask is None else mask.dtype)


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """Without a mask: the convolution, the counts of one image, ratio and bias."""
    g = layer.geometry
    forward, backward = g.flops(shape)
    size = g.output_size(shape[-g.dim :])
    outputs = math.prod(shape[: -g.dim - 1]) * g.out_channels * math.prod(size)
    padded = [n + sum(pads) for n, pads in zip(shape[-g.dim :], g.pads, strict=True)]
    forward += math.prod(size)  # the ratio
    for axis, k in enumerate(g.kernel_size):
        padded[axis] = size[axis]
        forward += (k - 1) * math.prod(padded)
    return forward + (2 if g.bias else 1) * outputs, backward + outputs


def _samples(dim: int) -> tuple[Sample, ...]:
    uneven = tuple((5, 3, 4)[:dim])
    base = {"in_channels": 4, "out_channels": 6, "kernel_size": uneven, "padding": 1}
    return (
        Sample(arguments=base | {"groups": 2, "stride": 2}, size=(7, 6, 5)[:dim]),
        Sample(arguments=base | {"padding": 2, "dilation": 2}, size=(9, 6, 7)[:dim]),
    )


def _error_inputs(dim: int) -> tuple[ErrorInput, ...]:
    base = {"in_channels": 4, "out_channels": 4, "kernel_size": 3}
    return (
        ErrorInput(
            arguments=base | {"padding_is_hole": 1},
            match="padding_is_hole must be True or False",
            error=TypeError,
        ),
        ErrorInput(arguments=base | {"groups": 3}, match="groups must divide in_channels=4"),
    )


@register
def card() -> Card:
    return Card(
        name="partial",
        role="masked",
        classes={1: PartialConv1d, 2: PartialConv2d, 3: PartialConv3d},
        variants={"default": {}, "padding_is_hole": {"padding_is_hole": True}},
        equation="y(p) = b + sum(1)/sum(M) sum_u w(u) M(p+u) x(p+u) where sum(M) > 0, else 0; "
        "M'(p) = [sum(M) > 0]",
        summary="Convolution over the valid pixels only, rescaled by their number; updates a mask.",
        citation="G. Liu, F. A. Reda, K. J. Shih, T.-C. Wang, A. Tao, B. Catanzaro: Image "
        "Inpainting for Irregular Holes Using Partial Convolutions. ECCV 2018",
        claim="Inpainting of irregular holes better than by the methods before it, by figures and "
        "by eye (abstract, without figures).",
        source="NVIDIA/partialconv",
        source_licence="BSD-3-Clause",
        rows=(50,),
        reference=_reference,
        flops=_flops,
        preserves_function=True,
        preserves_note="Every plain convolution, exactly, where the mask is full or left out; "
        "with padding_is_hole in the interior only.",
        default_extent=3,
        kernels=("depthwise",),
        samples=_samples,
        error_inputs=_error_inputs,
    )
