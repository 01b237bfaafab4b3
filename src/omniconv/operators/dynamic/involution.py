r"""Involution: a kernel per position, generated from the input there, shared by groups of channels.

.. math::
    y(c, p) = b(c) + \sum_q H(g(c), q, p)\, x(c, p + q), \qquad
    H(p) = W_1\, \mathrm{relu}(\mathrm{BN}(W_0\, \bar x(p)))

Shapes: x (B, C, \*S), y (B, C, \*S'), W0 (C/reduction, C), W1 (groups \* prod(kernel_size),
C/reduction), H (B, groups, \*kernel_size, \*S'), g(c) = c \* groups // C.

:math:`\bar x(p)` is the mean of x over the cell of one stride that starts under the window's
centre tap, clipped to the image, and 0 where no pixel is left. With stride 1 it is the pixel there.

Cost: 2 prod(kernel_size) per output, and two 1-wide convolutions at the output's size. Memory: x,
y and H; nothing grows with prod(kernel_size) times the channels.

Source: D. Li, J. Hu, C. Wang, X. Li, Q. She, L. Zhu, T. Zhang, Q. Chen, "Involution: Inverting the
Inherence of Convolution for Visual Recognition", CVPR 2021.

The official code has 16 channels in a group (``group_channels=16``), no bias, odd square kernels,
dilation 1 and "same" padding, and averages with AvgPool(stride, stride), which fits sizes that the
stride divides; there the numbers agree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.core import args
from omniconv.core.card import Card, ErrorInput, Sample
from omniconv.core.geometry import ConvArguments, check_input
from omniconv.core.layer import new_parameter
from omniconv.core.registry import register
from omniconv.kernels.position_varying import parse, position_varying
from omniconv.math.naive import at, windows
from omniconv.operators.position_mixer import PositionMixer, aggregation_flops, at_most

__all__ = ["Involution1d", "Involution2d", "Involution3d", "involution"]

OFFICIAL = {
    "conv1.conv.weight": "reduce",
    "conv1.bn.weight": "norm.weight",
    "conv1.bn.bias": "norm.bias",
    "conv1.bn.running_mean": "norm.running_mean",
    "conv1.bn.running_var": "norm.running_var",
    "conv1.bn.num_batches_tracked": "norm.num_batches_tracked",
    "conv2.conv.weight": "span",
    "conv2.conv.bias": "span_bias",
}


def involution(
    x: Tensor,
    kernels: Tensor,
    stride: int | tuple[int, ...] = 1,
    dilation: int | tuple[int, ...] = 1,
    padding: int | Sequence[int] | Sequence[Sequence[int]] = 0,
) -> Tensor:
    r"""Apply one kernel per position, shared by the channels of a group.

    .. math::
        y[b, c, p] = \sum_q kernels[b, g(c), q, p]\; x[b, c, p \cdot stride - lo + q \cdot dilation]

    Args:
        x: (B, C, \*S); one to three spatial axes.
        kernels: (B, groups, \*kernel_size, \*S'), where groups divides C and S' is the output size
            (S + lo + hi - dilation (kernel_size - 1) - 1) // stride + 1.
        stride: Steps between positions, an int or one per axis.
        dilation: Steps between taps, an int or one per axis.
        padding: Zeros around x: an int, one per axis, or a pair (lo, hi) per axis.

    Returns:
        (B, C, \*S'), in the dtype of ``x``; half-precision products are summed in float32.

    Raises:
        TypeError: ``x`` or ``kernels`` is no floating-point tensor, or their dtypes differ.
        ValueError: Shapes, devices or arguments do not fit.
    """
    parse("kernels", x, kernels, stride, padding, dilation, shared=False)
    return position_varying(x, kernels, stride, padding, dilation)


def _margins(shape: Sequence[int], g: ConvArguments) -> list[tuple[int, int]]:
    """Zeros to add (negative: values to drop) at both ends, to leave the cells of all positions."""
    margins = []
    for axis, (n, out) in enumerate(zip(shape, g.output_size(shape), strict=True)):
        first = g.dilation[axis] * ((g.kernel_size[axis] - 1) // 2) - g.pads[axis][0]
        margins.append((-first, first + out * g.stride[axis] - n))
    return margins


def _cell_means(x: Tensor, g: ConvArguments) -> Tensor:
    """The means that generate the kernels (see the module's text), (B, C, *S')."""
    margins = _margins(x.shape[2:], g)
    means = _strided_means(x, margins, g.stride)
    if any(s > 1 for s in g.stride) and any(m > 0 for pair in margins for m in pair):
        inside = _strided_means(x.new_ones(1, 1, *x.shape[2:]), margins, g.stride)
        means = means / inside.clamp_min(0.5 / math.prod(g.stride))
    return means


def _strided_means(
    x: Tensor, margins: Sequence[tuple[int, int]], stride: tuple[int, ...]
) -> Tensor:
    """Means over the cells that the margins leave, zeros included."""
    kept: Any = [
        slice(max(0, -before), n + min(0, after))
        for n, (before, after) in zip(x.shape[2:], margins, strict=True)
    ]
    x = x[(..., *kept)]
    added = [max(0, m) for pair in reversed(margins) for m in pair]
    x = F.pad(x, added) if any(added) else x
    if all(s == 1 for s in stride):
        return x
    for axis, s in reversed(list(enumerate(stride, 2))):
        x = x.unflatten(axis, (x.shape[axis] // s, s))
    return x.mean(tuple(range(3, x.dim(), 2)))


class _InvolutionNd(PositionMixer):
    """Involution over N axes (see the module's equation).

    Arguments are torch's, in torch's order: ``out_channels`` equals ``in_channels``, ``groups`` is
    the number of groups of channels that share a kernel. Then, keyword-only:

    Args:
        group_channels: Channels per group, instead of ``groups`` (the paper's form, with 16).
        reduction: The kernel is generated through ``max(1, in_channels // reduction)`` channels.

    In training mode the generator's batch normalisation needs more than one position in the batch.
    """

    def setup(
        self, factory: dict[str, Any], *, group_channels: int | None = None, reduction: int = 4
    ) -> None:
        g = self.geometry
        channels = self.share(group_channels)
        self.reduction = args.positive_int("reduction", reduction)
        hidden, ones = max(1, channels // self.reduction), (1,) * g.dim
        kernels = self.geometry.groups * math.prod(g.kernel_size)
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[g.dim - 1]
        self.reduce = new_parameter(hidden, channels, *ones, **factory)
        self.norm = norm(hidden, **factory)
        self.span = new_parameter(kernels, hidden, *ones, **factory)
        self.span_bias = new_parameter(kernels, **factory)

    def reset_parameters(self) -> None:
        """Draw W0 and W1 so that outputs have the variance of a depthwise convolution's."""
        entries, hidden = math.prod(self.geometry.kernel_size), self.reduce.shape[0]
        with torch.no_grad():
            # W0 keeps unit variance; half of a normalised value's square survives the relu; the
            # depthwise kernel has mean square 1 / (3 entries)
            bound = math.sqrt(3.0 / self.geometry.in_channels)
            nn.init.uniform_(self.reduce, -bound, bound)
            self.norm.reset_parameters()
            bound = math.sqrt(2.0 / (entries * hidden))
            nn.init.uniform_(self.span, -bound, bound)
            self.span_bias.zero_()
            self.reset_bias()

    def kernels(self, x: Tensor) -> Tensor:
        """The kernels generated from x (B, C, \\*S): H, (B, groups, \\*kernel_size, \\*S')."""
        g = self.geometry
        means = _cell_means(x, g)
        if self.norm.training and means.shape[0] * math.prod(means.shape[2:]) == 1:
            raise ValueError(
                f"input must give more than one output position in training mode (batch "
                f"normalisation), got one for shape {tuple(x.shape)}; call eval() or use a "
                f"larger batch"
            )
        convolve = (F.conv1d, F.conv2d, F.conv3d)[g.dim - 1]
        hidden = F.relu(self.norm(convolve(means, self.reduce)))
        return convolve(hidden, self.span, self.span_bias).unflatten(1, (g.groups, *g.kernel_size))

    def forward(self, input: Tensor) -> Tensor:
        r"""Involution of ``input`` (B, C, \*S) or (C, \*S)."""
        check_input(self, input, self.reduce)
        g = self.geometry
        if input.dim() == g.dim + 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        return self.shift(self.aggregate(input, self.kernels(input)))

    @classmethod
    def from_conv(
        cls, conv: nn.Module, extent: int | tuple[int, ...] | None = None, **own: Any
    ) -> Self:
        """This layer with a trained depthwise convolution's kernels, the same at every position.

        ``groups`` is the number of channels unless ``groups`` or ``group_channels`` is given: the
        same output. Groups that share a kernel get the mean of their channels' kernels. See
        :func:`omniconv.core.layer.transfer` for the arguments and errors.

        Raises:
            ValueError: ``conv`` is not depthwise.
        """
        layer, margins = cls.transfer_depthwise(conv, extent, **own)
        source: Any = conv
        with torch.no_grad():
            kernel = F.pad(source.weight.detach(), margins).flatten(1)
            layer.span.zero_()
            layer.span_bias.copy_(kernel.unflatten(0, (layer.groups, -1)).mean(1).flatten())
            if source.bias is not None:
                layer.bias.copy_(source.bias)
        return layer

    @staticmethod
    def from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The official layer's parameters under this layer's names, for ``load_state_dict``.

        They fit a layer with ``bias=False``, ``group_channels=16``, the official kernel size and
        stride, and ``padding=(kernel_size - 1) // 2``.

        Raises:
            ValueError: A name is missing or unknown.
        """
        if set(state_dict) != set(OFFICIAL):
            raise ValueError(
                f"state_dict must hold exactly {', '.join(OFFICIAL)}, "
                f"got {args.show(sorted(state_dict))}"
            )
        return {ours: state_dict[theirs] for theirs, ours in OFFICIAL.items()}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, reduction={self.reduction}"


class Involution1d(_InvolutionNd):
    dim = 1


class Involution2d(_InvolutionNd):
    dim = 2


class Involution3d(_InvolutionNd):
    dim = 3


def _reference(layer: Any, x: Tensor) -> Tensor:
    """Position by position: mean of the cell, generated kernel, sum over the window."""
    g = layer.geometry
    if x.dim() == g.dim + 1:
        return _reference(layer, x.unsqueeze(0)).squeeze(0)
    size = g.output_size(x.shape[2:])
    positions = itertools.product(*map(range, size))
    means = torch.stack([_reference_mean(x, position, g) for position in positions], -1)
    hidden = torch.einsum("hc,bcp->bhp", layer.reduce.flatten(1), means)
    if layer.training:
        centred = hidden - hidden.mean((0, 2), keepdim=True)
        variance = (centred * centred).mean((0, 2))
    else:
        centred = hidden - layer.norm.running_mean.view(-1, 1)
        variance = layer.norm.running_var
    scale = layer.norm.weight / (variance + layer.norm.eps).sqrt()
    hidden = (centred * scale.view(-1, 1) + layer.norm.bias.view(-1, 1)).relu()
    kernels = torch.einsum("kh,bhp->bkp", layer.span.flatten(1), hidden)
    kernels = (kernels + layer.span_bias.view(-1, 1)).unflatten(1, (g.groups, -1))
    each = g.in_channels // g.groups
    cells = [
        (under.flatten(2) * kernels[..., p].repeat_interleave(each, 1)).sum(-1)
        for p, (_, under) in enumerate(windows(x, g))
    ]
    y = torch.stack(cells, -1).unflatten(-1, size)
    return y if layer.bias is None else y + layer.bias.view(-1, *[1] * g.dim)


def _reference_mean(x: Tensor, position: tuple[int, ...], g: ConvArguments) -> Tensor:
    """The mean (B, C) of the pixels in one position's cell."""
    ranges = []
    for axis, p in enumerate(position):
        centre = (g.kernel_size[axis] - 1) // 2 * g.dilation[axis]
        start = p * g.stride[axis] + centre - g.pads[axis][0]
        ranges.append(
            [i for i in range(start, start + g.stride[axis]) if 0 <= i < x.shape[axis + 2]]
        )
    pixels = [x[at(pixel)] for pixel in itertools.product(*ranges)]
    return torch.stack(pixels).mean(0) if pixels else x.new_zeros(x.shape[:2])


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """Cell means, generator and sum over the taps."""
    g = layer.geometry
    batch = shape[0] if len(shape) == g.dim + 2 else 1
    size = g.output_size(shape[-g.dim :])
    positions, taps = math.prod(size), math.prod(g.kernel_size)
    outputs, hidden = batch * g.in_channels * positions, batch * len(layer.reduce) * positions
    forward, backward = aggregation_flops(layer, shape)
    if any(s > 1 for s in g.stride):
        cells = positions * math.prod(g.stride)
        forward += batch * g.in_channels * cells
        backward += batch * g.in_channels * cells
        if any(m > 0 for pair in _margins(shape[-g.dim :], g) for m in pair):
            forward += cells + positions + outputs
            backward += outputs
    generator = 2 * hidden * (g.in_channels + g.groups * taps)
    trained = layer.norm.training
    forward += generator + hidden * (6 if trained else 3)
    backward += (
        2 * generator + batch * g.groups * taps * positions + hidden * (10 if trained else 7)
    )
    return forward, backward + math.prod(shape)


def _samples(dim: int) -> tuple[Sample, ...]:
    base = {"in_channels": 4, "out_channels": 4}
    uneven = tuple((4, 3, 2)[:dim])
    return (
        Sample(
            arguments=base
            | {"kernel_size": uneven, "stride": 2, "padding": 1, "group_channels": 2},
            size=(7, 6, 5)[:dim],
        ),
        Sample(
            arguments=base | {"kernel_size": 3, "dilation": 2, "padding": 3, "group_channels": 1},
            size=(6, 5, 4)[:dim],
        ),
    )


def _error_inputs(dim: int) -> tuple[ErrorInput, ...]:
    base = {"in_channels": 6, "out_channels": 6, "kernel_size": 3}
    return (
        ErrorInput(arguments=base | {"out_channels": 12}, match="out_channels must equal in_ch"),
        ErrorInput(
            arguments=base | {"group_channels": 4}, match="group_channels must divide in_channels=6"
        ),
        ErrorInput(
            arguments=base | {"groups": 3, "group_channels": 3}, match="group_channels must be 2"
        ),
        ErrorInput(arguments=base | {"reduction": 0}, match="reduction must be an int of at least"),
        ErrorInput(
            arguments=base | {"reduction": 4.0}, match="reduction must be an int", error=TypeError
        ),
    )


@register
def card() -> Card:
    return Card(
        name="involution",
        role="mixer",
        classes={1: Involution1d, 2: Involution2d, 3: Involution3d},
        variants={"default": {}, "reduction": {"reduction": 1}},
        equation="y(c,p) = b(c) + sum_q H(g(c),q,p) x(c,p+q),  H(p) = W1 relu(BN(W0 x(p)))",
        summary="A kernel per position, generated from the input there, shared by channel groups.",
        citation="D. Li, J. Hu, C. Wang, X. Li, Q. She, L. Zhu, T. Zhang, Q. Chen: Involution: "
        "Inverting the Inherence of Convolution for Visual Recognition. CVPR 2021",
        claim="Against networks of plain convolutions, all with ResNet-50 as the base: up to +1.6 "
        "points top-1 on ImageNet, +2.5 and +2.4 box AP on COCO, +4.7 mean IoU on Cityscapes, at "
        "66 %, 65 %, 72 % and 57 % of the compute (abstract).",
        source="d-li14/involution",
        source_licence="MIT",
        rows=(96,),
        reference=_reference,
        flops=_flops,
        mixes_channels=False,
        input_dependent=True,
        batch_statistics=True,
        preserves_function=True,
        preserves_note="Every depthwise convolution, exactly, with as many groups as channels "
        "(from_conv's default); groups that share a kernel get the mean of their channels'.",
        default_extent=7,
        channel_multiple=lambda own: own.get("group_channels") or 1,
        samples=_samples,
        error_inputs=_error_inputs,
        adapt=at_most(16),
        kernels=("position_varying",),
    )
