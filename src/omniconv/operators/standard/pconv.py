r"""Partial convolution of FasterNet: the first channels are convolved, the others pass.

.. math::
    y(c, p) = b(c) + \begin{cases}
    \sum_{i < P} \sum_u w(c, i, u)\, x(i, p + u) & c < P \\ x(c, p) & c \ge P \end{cases}
    \qquad P = \max(1, \lfloor C / n_{div} \rfloor)

within each group of C channels. It is an ordinary convolution: its kernel holds ``taps`` in the
block of the first P channels and, for every other channel, a 1 under the centre tap
(kernel_size - 1) // 2. That also says what passes at other strides and paddings: the value under
the window's centre.

Shapes: as ``nn.ConvNd`` with out_channels = in_channels; taps (groups P, P, \*kernel_size).

Cost: 2 P^2 prod(kernel_size) per position and group, a 1/n_div^2 of the plain convolution; the
other channels are copied.

Source: J. Chen, S.-H. Kao, H. He, W. Zhuo, S. Wen, C.-H. Lee, S.-H. G. Chan, "Run, Don't Walk:
Chasing Higher FLOPS for Faster Neural Networks", CVPR 2023.

The official code has kernels of 3, stride 1, padding 1, no groups and no bias; there the numbers
agree. ``PartialConv2d`` is the masked convolution of inpainting.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.core import args
from omniconv.core.card import Card, ErrorInput, Sample
from omniconv.core.geometry import ConvArguments, check_floating, check_input
from omniconv.core.layer import new_parameter, transfer
from omniconv.core.registry import register
from omniconv.kernels.convolve import convolve
from omniconv.math.groups import join_groups
from omniconv.math.naive import at, naive_convolution
from omniconv.math.shift import shifted
from omniconv.operators.static_kernel import StaticKernel

__all__ = ["PConv1d", "PConv2d", "PConv3d", "pconv_kernel"]


def pconv_kernel(taps: Tensor, channels: int, groups: int = 1) -> Tensor:
    r"""The dense kernel of a partial convolution.

    .. math::
        W[c, i, u] = taps[c, i, u] \;\; (c, i < P), \qquad
        W[c, i, u] = [c = i]\,[u = \text{centre}] \;\; (c \ge P)

    Args:
        taps: (groups P, P, \*kernel_size).
        channels: Channels C of a group, at least P.
        groups: Number of groups.

    Returns:
        (groups C, C, \*kernel_size).

    Raises:
        TypeError: ``taps`` is not a floating-point tensor, or a number not an int.
        ValueError: Shapes do not fit.
    """
    check_floating("taps", taps)
    groups = args.positive_int("groups", groups)
    if taps.dim() < 3 or taps.shape[0] != groups * taps.shape[1]:
        raise ValueError(
            f"taps must have shape (groups P, P, *size) with groups={groups}, "
            f"got {tuple(taps.shape)}"
        )
    part, size = taps.shape[1], taps.shape[2:]
    others = args.integer("channels", channels, part) - part
    block = taps.unflatten(0, (groups, part))
    block = torch.cat([block, block.new_zeros(groups, part, others, *size)], 2)
    passing = torch.eye(others, part + others, dtype=taps.dtype, device=taps.device).roll(part, 1)
    for k in size:
        before = (k - 1) // 2
        passing = F.pad(passing.unsqueeze(-1), (before, k - 1 - before))
    return torch.cat([block, passing.expand(groups, *passing.shape)], 1).flatten(0, 1)


class _PConvNd(StaticKernel):
    """Partial convolution over N axes (see the module's equation).

    Arguments are torch's, in torch's order: ``out_channels`` equals ``in_channels``. Then,
    keyword-only:

    Args:
        n_div: One channel in ``n_div`` is convolved, at least one in a group.

    The biases of passing channels start as 0. The official ``partial_conv3.weight`` is ``taps``.
    """

    def setup(self, factory: dict[str, Any], *, n_div: int = 4) -> None:
        g = self.geometry
        if g.out_channels != g.in_channels:
            raise ValueError(
                f"out_channels must equal in_channels={g.in_channels}, because the channels that "
                f"are not convolved pass, got {g.out_channels}"
            )
        self.n_div = args.positive_int("n_div", n_div)
        part = max(1, g.in_channels // g.groups // self.n_div)
        self.taps = new_parameter(g.groups * part, part, *g.kernel_size, **factory)

    @classmethod
    def from_conv(
        cls, conv: nn.Module, extent: int | tuple[int, ...] | None = None, **own: Any
    ) -> Self:
        """This layer with the convolved channels' part of a trained kernel; the others pass.

        ``groups`` may divide those of ``conv``, as in place of a depthwise convolution. See
        :func:`omniconv.core.layer.transfer` for the arguments and errors.
        """
        layer, margins = transfer(cls, conv, extent, **own)
        source: Any = conv
        with torch.no_grad():
            kernel = F.pad(source.weight.detach(), margins)
            layer.load_kernel_(join_groups(kernel, source.groups, layer.groups))
            if source.bias is not None:
                layer.bias.copy_(source.bias)
        return layer

    @property
    def widths(self) -> tuple[int, int]:
        """Channels of a group that are convolved, and that pass."""
        part = self.taps.shape[1]
        return part, self.geometry.in_channels // self.geometry.groups - part

    @property
    def passing(self) -> tuple[int, ...]:
        """The channels that pass."""
        g, (part, others) = self.geometry, self.widths
        return tuple(c for c in range(g.in_channels) if c % (part + others) >= part)

    @property
    def bound(self) -> float:
        """1/sqrt(fan_in) of the depthwise convolution that the layer replaces."""
        return math.prod(self.geometry.kernel_size) ** -0.5

    def kernel(self) -> Tensor:
        """The kernel that is applied: ``pconv_kernel(taps, channels of a group, groups)``."""
        return pconv_kernel(self.taps, sum(self.widths), self.geometry.groups)

    def load_kernel_(self, weight: Tensor) -> None:
        """Set ``taps`` to their block of ``weight``; nothing else can change."""
        with torch.no_grad():
            part = self.taps.shape[1]
            blocks = weight.unflatten(0, (self.geometry.groups, -1))[:, :part, :part]
            self.taps.copy_(blocks.flatten(0, 1))

    def reset_parameters(self) -> None:
        """Draw ``taps`` as a plain layer over the convolved channels does; their biases too."""
        bound = self.taps[0].numel() ** -0.5
        nn.init.uniform_(self.taps, -bound, bound)
        self.reset_bias()
        if self.bias is not None:
            with torch.no_grad():
                self.bias.view(self.geometry.groups, -1)[:, self.taps.shape[1] :] = 0

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        r"""The convolution of ``input`` with :meth:`kernel`, without the passing channels' zeros.

        ``output_size`` is refused, as by ``nn.ConvNd``.
        """
        if output_size is not None:
            raise TypeError("output_size must be left out, because the layer is not transposed")
        check_input(self, input, self.taps)
        g = self.geometry
        if input.dim() == g.dim + 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        inside = _inside(g)
        x = input if inside is g else g.pad(input)
        widths = list(self.widths)
        first, others = x.unflatten(1, (g.groups, sum(widths))).split(widths, 2)
        bias: tuple[Tensor | None, ...] = (None, None)
        if self.bias is not None:
            bias = self.bias.unflatten(0, (g.groups, sum(widths))).split(widths, 1)
        own = None if bias[0] is None else bias[0].flatten()
        y = convolve(first.flatten(1, 2), self.taps, own, inside)
        if not widths[1]:
            return y
        passed = _under_centre(others.flatten(1, 2), inside)
        if bias[1] is not None:
            passed = passed + bias[1].reshape(-1, *[1] * g.dim).to(passed.dtype)
        parts = [part.unflatten(1, (g.groups, -1)) for part in (y, passed)]
        return torch.cat(parts, 2).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, n_div={self.n_div}"


def _inside(g: ConvArguments) -> ConvArguments:
    """The arguments that are left once the input is padded by anything else than zeros."""
    if g.padding_mode == "zeros":
        return g
    return replace(g, padding=(0,) * g.dim, padding_mode="zeros")


def _under_centre(x: Tensor, g: ConvArguments) -> Tensor:
    """The values under the windows' centre taps, 0 where these lie in the padding."""
    size = g.output_size(x.shape[2:])
    margins: list[int] = []
    first: list[int] = []
    for axis, (n, out) in enumerate(zip(x.shape[2:], size, strict=True)):
        start = g.dilation[axis] * ((g.kernel_size[axis] - 1) // 2) - g.pads[axis][0]
        before = max(0, -start)
        after = max(0, start + (out - 1) * g.stride[axis] + 1 - n)
        margins = [before, after, *margins]
        first.append(start + before)
    x = F.pad(x, margins) if any(margins) else x
    return shifted(x, first, size, g.stride, (1,) * g.dim)


class PConv1d(_PConvNd, nn.Conv1d): ...


class PConv2d(_PConvNd, nn.Conv2d): ...


class PConv3d(_PConvNd, nn.Conv3d): ...


def _reference(layer: Any, x: Tensor) -> Tensor:
    """Entry by entry of the dense kernel."""
    g = layer.geometry
    each = g.in_channels // g.groups
    part = max(1, each // layer.n_div)
    kernel = x.new_zeros(layer.kernel_shape)
    for group, c, i in itertools.product(range(g.groups), range(each), range(each)):
        row = group * each + c
        if c < part and i < part:
            kernel[row, i] = layer.taps[group * part + c, i]
        elif c >= part and c == i:
            kernel[at((k - 1) // 2 for k in g.kernel_size)][row, i] = 1
    return naive_convolution(x, kernel, layer.bias, g)


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """The convolved channels, and the passing ones' biases."""
    g = layer.geometry
    part, others = layer.widths
    inside = replace(_inside(g), in_channels=g.groups * part, out_channels=g.groups * part)
    size = shape[-g.dim :]
    if g.padding_mode != "zeros":
        size = tuple(n + sum(pads) for n, pads in zip(size, g.pads, strict=True))
    batch = shape[0] if len(shape) == g.dim + 2 else 1
    forward, backward = inside.flops((batch, g.groups * part, *size))
    outputs = batch * g.groups * others * math.prod(g.output_size(shape[-g.dim :]))
    biases = outputs if g.bias else 0
    return forward + biases, backward + biases + g.pad_flops(shape)


def _samples(dim: int) -> tuple[Sample, ...]:
    base = {"in_channels": 9, "out_channels": 9, "kernel_size": tuple((3, 2, 2)[:dim])}
    return (
        Sample(arguments=base | {"padding": 2, "stride": 2}, size=(6, 5, 4)[:dim]),
        Sample(
            arguments=base
            | {"in_channels": 16, "out_channels": 16, "groups": 2, "padding": "same"},
            size=(5, 4, 3)[:dim],
        ),
    )


def _error_inputs(dim: int) -> tuple[ErrorInput, ...]:
    base = {"in_channels": 6, "out_channels": 6, "kernel_size": 3}
    return (
        ErrorInput(arguments=base | {"out_channels": 12}, match="out_channels must equal in_ch"),
        ErrorInput(arguments=base | {"n_div": 0}, match="n_div must be an int of at least 1"),
        ErrorInput(arguments=base | {"n_div": 0.25}, match="n_div must be", error=TypeError),
    )


def _adapt(conv: Any) -> Mapping[str, Any]:
    """One group, as in FasterNet, whatever the groups of the layer that is replaced."""
    return {"groups": 1}


@register
def card() -> Card:
    return Card(
        name="pconv",
        role="mixer",
        classes={1: PConv1d, 2: PConv2d, 3: PConv3d},
        variants={"default": {}, "half": {"n_div": 2}},
        equation="y(c,p) = b(c) + sum_(i<P) sum_u w(c,i,u) x(i,p+u) for c < P = C/n_div, "
        "else b(c) + x(c,p)",
        summary="The first channels are convolved, the others pass unchanged.",
        citation="J. Chen, S.-H. Kao, H. He, W. Zhuo, S. Wen, C.-H. Lee, S.-H. G. Chan: Run, Don't "
        "Walk: Chasing Higher FLOPS for Faster Neural Networks. CVPR 2023",
        claim="On ImageNet-1k FasterNet-T0 is 2.9 points more accurate than MobileViT-XXS and 2.8 "
        "/ 3.3 / 2.4 times as fast on GPU / CPU / ARM; FasterNet-L has 83.5 % top-1, level with "
        "Swin-B at 36 % more throughput on GPU and 37 % less time on CPU (abstract).",
        source="JierunChen/FasterNet",
        source_licence="MIT",
        rows=(75,),
        reference=_reference,
        flops=_flops,
        folds=True,
        mixes_channels=False,
        preserves_function=False,
        preserves_note="The convolved channels' part, exactly; the kernels of all other channels "
        "are lost, these pass.",
        passing=lambda layer: layer.passing,
        default_extent=3,
        kernels=("depthwise",),
        samples=_samples,
        error_inputs=_error_inputs,
        adapt=_adapt,
    )
