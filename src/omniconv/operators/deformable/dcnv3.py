r"""DCNv3: softmax-weighted sums of values at places that the input gives, per group of channels.

.. math::
    y(p) = W_o \Big(\sum_q m(g(c), q, p)\, \tilde v\big(c,\, p_0 + s\,(p_q + \Delta(g(c), q, p))
    \big)\Big)_c + b, \qquad v = W_v x + b_v

    \Delta = W_\Delta h + b_\Delta, \qquad m = \mathrm{softmax}_q (W_m h + b_m), \qquad
    h = \mathrm{GELU}(\mathrm{LN}(d * x + b_d))

where :math:`p_0` is the window's centre, :math:`p_q` the tap's regular place from there and
:math:`\tilde v` multilinear between pixels, 0 outside of the (padded) values; at whole coordinates
its derivative is that of the cell above. The depthwise convolution d runs on the layer's own grid;
LN normalises over the channels at each position. The centre of K taps with dilation D is at
floor(D (K - 1) / 2) from the window's start.

Shapes: as ``nn.ConvNd``; W_v (C, C), W_o (O, C), d (C, 1, \*kernel_size); g(c) = c * groups // C.
``point`` holds W_Δ, rows ordered (group, tap, axis) in input pixels, then W_m, (group, tap).

Cost: two 1-wide convolutions, the depthwise one, groups prod(kernel_size) (dim + 1) outputs of the
generator, and 2^dim multiply-adds per tap and channel: nothing grows with the kernel times C^2.

Source: W. Wang, J. Dai, Z. Chen, Z. Huang, Z. Li, X. Zhu, X. Hu, T. Lu, L. Lu, H. Li, X. Wang,
Y. Qiao, "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions",
CVPR 2023. Its formula has s = 1.

The official code has C = O, kernels and everything else alike on both axes, stride 1, and dilation
1 in d; there the numbers agree. It orders taps column by column and axes (x, y)
(``from_official`` permutes) and its reference swaps the paddings of the two axes. Its
``center_feature_scale`` is not here. Half precision, also under autocast, is computed in float32
and rounded once: places need it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.core import args
from omniconv.core.card import Card
from omniconv.core.geometry import ConvArguments, check_floating, check_input
from omniconv.core.layer import ConvLayer, new_parameter, transfer
from omniconv.core.registry import register
from omniconv.kernels.convolve import convolve
from omniconv.kernels.deform import deform
from omniconv.math.groups import join_groups
from omniconv.math.naive import naive_convolution
from omniconv.math.precision import output_dtype, wide_dtype, without_autocast
from omniconv.operators.deformed import (
    adapt,
    aggregate_flops,
    check_places,
    error_inputs,
    naive_aggregate,
    naive_linear,
    pointwise,
    samples,
    taps_of,
    with_center,
)

__all__ = ["DCNv3Conv1d", "DCNv3Conv2d", "DCNv3Conv3d", "deform_aggregate"]

EPS = 1e-6
"""The layer norm's, as in the official code."""

LEAST = 1e-3
"""Least softmax weight that ``from_conv`` gives a tap, of the mean one: it can still grow."""

OFFICIAL = {
    "input_proj": "value",
    "output_proj": "output",
    "dw_conv.0": "depthwise",
    "dw_conv.1.1": "norm",
    "offset": "offset",
    "mask": "mask",
}


def deform_aggregate(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: int | tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    padding: str | int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    *,
    offset_scale: float = 1.0,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Sums of x at moved places, weighted per group of channels: DCNv3's and DCNv4's core.

    .. math::
        y(c, p) = \sum_q m(g(c), q, p)\,
        \tilde x\big(c,\, p_0 + s\,(p_q + \Delta(g(c), q, p))\big)

    Args:
        x: (B, C, \*S), one to three spatial axes.
        offset: (B, groups prod(kernel_size) dim, \*S') in input pixels, ordered (group, tap, axis)
            with taps in row-major order.
        mask: (B, groups prod(kernel_size), \*S'), any weights.
        kernel_size: As in ``nn.ConvNd``.
        stride: As in ``nn.ConvNd``.
        padding: As in ``nn.ConvNd``.
        dilation: As in ``nn.ConvNd``.
        offset_scale: s, the factor on regular places and offsets around the window's centre.
        padding_mode: As in ``nn.ConvNd``.

    Returns:
        (B, C, \*S').

    Raises:
        TypeError: A tensor is no tensor, or of a dtype that does not fit.
        ValueError: A shape, device or argument does not fit; the message names it.
    """
    check_floating("x", x)
    if x.dim() not in (3, 4, 5):
        raise ValueError(
            f"x must have 3, 4 or 5 axes (batch, channels, 1 to 3 spatial), got shape "
            f"{tuple(x.shape)}"
        )
    window = (kernel_size, stride, padding, dilation)
    g = ConvArguments.parse(x.dim() - 2, x.shape[1], x.shape[1], *window, padding_mode=padding_mode)
    check_input(SimpleNamespace(geometry=g), x, name="x")
    check_floating("mask", mask)
    check_places(x, offset, mask, g)
    scale = args.real("offset_scale", offset_scale)
    wide = wide_dtype(x)
    y = _aggregate(x.to(wide), offset.to(wide), mask.to(wide), g, scale)
    return y.to(x.dtype)


def _aggregate(x: Tensor, offset: Tensor, mask: Tensor, g: ConvArguments, scale: float) -> Tensor:
    """The same with arguments that fit."""
    taps = taps_of(g)
    groups = mask.shape[1] // len(taps)
    if scale != 1.0:
        shift = [
            (scale - 1) * (t * d - d * (k - 1) // 2)
            for tap in taps
            for t, d, k in zip(tap, g.dilation, g.kernel_size, strict=True)
        ]
        shifts = torch.tensor(shift * groups, dtype=x.dtype, device=x.device)
        offset = offset * scale + shifts.view(-1, *[1] * g.dim)
    zeros = g.padding_mode == "zeros"
    return deform(
        x if zeros else g.pad(x),
        offset,
        mask,
        kernel_size=g.kernel_size,
        stride=g.stride,
        padding=g.pads if zeros else 0,
        dilation=g.dilation,
        offset_groups=groups,
    )


class _DCNv3Nd(ConvLayer):
    """DCNv3 over N axes (see the module's equation).

    Arguments are torch's, in torch's order; ``groups`` is the number of groups of channels that
    share places and weights (the paper: 16 channels each), ``bias`` is W_o's. Then, keyword-only:

    Args:
        offset_scale: s, the factor on regular places and offsets.
        remove_center: Leave the tap (kernel_size - 1) // 2 out, unless it is the only one.
        dw_kernel_size: Extent of d, one for all axes, larger than ``kernel_size`` by an even number
            (default: the same).
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("norm_weight", "norm_bias")

    def setup(
        self,
        factory: dict[str, Any],
        *,
        offset_scale: float = 1.0,
        remove_center: bool = False,
        dw_kernel_size: int | None = None,
    ) -> None:
        g = self.geometry
        channels, ones = g.in_channels, (1,) * g.dim
        self.offset_scale = args.real("offset_scale", offset_scale)
        self.remove_center = args.boolean("remove_center", remove_center)
        self.generator = self._generator(dw_kernel_size)
        rows = sum(self.rows)
        self.value = new_parameter(channels, channels, *ones, **factory)
        self.value_bias = new_parameter(channels, **factory)
        if self.generator is not None:
            self.depthwise = new_parameter(channels, 1, *self.generator.kernel_size, **factory)
            self.depthwise_bias = new_parameter(channels, **factory)
        self._add_norm(factory)
        self.point = new_parameter(rows, channels, *ones, **factory)
        self.point_bias = new_parameter(rows, **factory)
        self.output = new_parameter(g.out_channels, channels, *ones, **factory)

    def _generator(self, extent: int | None) -> ConvArguments | None:
        """The arguments of the depthwise convolution, its window around the layer's."""
        g = self.geometry
        size = g.kernel_size
        if extent is not None:
            size = (args.positive_int("dw_kernel_size", extent),) * g.dim
        grown = [n - k for n, k in zip(size, g.kernel_size, strict=True)]
        if any(n < 0 or n % 2 for n in grown):
            raise ValueError(
                f"dw_kernel_size must be kernel_size={g.kernel_size} or larger by an even number "
                f"on each axis, got {extent}"
            )
        padding = g.padding
        if padding != "same":
            more = (n // 2 * d for n, d in zip(grown, g.dilation, strict=True))
            padding = tuple(p + n for (p, _), n in zip(g.pads, more, strict=True))
        channels = g.in_channels
        return replace(
            g, out_channels=channels, groups=channels, kernel_size=size, padding=padding, bias=True
        )

    def _add_norm(self, factory: dict[str, Any]) -> None:
        self.norm_weight = new_parameter(self.geometry.in_channels, **factory)
        self.norm_bias = new_parameter(self.geometry.in_channels, **factory)

    @property
    def taps(self) -> int:
        """Taps that are summed over."""
        taps = math.prod(self.geometry.kernel_size)
        return taps - (self.remove_center and taps > 1)

    @property
    def rows(self) -> tuple[int, int]:
        """Outputs of the generator for offsets, and for masks."""
        g = self.geometry
        return g.groups * self.taps * g.dim, g.groups * self.taps

    def reset_parameters(self) -> None:
        """Draw W_v, W_o so that outputs have the plain layer's variance; W_Δ and W_m are 0."""
        g = self.geometry
        with torch.no_grad():
            # v keeps the variance, the mean of independent taps has 1/taps of it, and a plain
            # layer's output has a third
            bound = math.sqrt(3 / g.in_channels)
            self.value.uniform_(-bound, bound)
            bound = math.sqrt(self.taps / g.in_channels)
            self.output.uniform_(-bound, bound)
            self.value_bias.zero_()
            self.point.zero_()
            weights = self.point.new_full((g.groups, self.taps), 1 / self.taps)
            self.point_bias.copy_(self._constant(weights))
            if self.generator is not None:
                bound = math.prod(self.generator.kernel_size) ** -0.5
                self.depthwise.uniform_(-bound, bound)
                self.depthwise_bias.uniform_(-bound, bound)
            self._reset_norm()
            self.reset_bias()

    def _reset_norm(self) -> None:
        self.norm_weight.fill_(1)
        self.norm_bias.zero_()

    def _constant(self, weights: Tensor) -> Tensor:
        """The generator's bias for offsets of 0 and these weights (groups, taps), of sum 1."""
        return torch.cat((weights.new_zeros(self.rows[0]), (weights * self.taps).log().flatten()))

    def _features(self, x: Tensor) -> Tensor:
        """h, (B, C, *S'), from which places and weights are generated."""
        assert self.generator is not None
        weight, bias = self.depthwise.to(x.dtype), self.depthwise_bias.to(x.dtype)
        h = convolve(x, weight, bias, self.generator).movedim(1, -1)
        weight, bias = self.norm_weight.to(x.dtype), self.norm_bias.to(x.dtype)
        return F.gelu(F.layer_norm(h, h.shape[-1:], weight, bias, EPS)).movedim(-1, 1)

    def _weights(self, raw: Tensor) -> Tensor:
        """The taps' weights from what the generator gives, (B, groups, taps, *S')."""
        return raw.softmax(2)

    def places(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Offsets and weights for x (B, C, \*S), as :func:`deform_aggregate` takes them."""
        g = self.geometry
        raw = pointwise(self._features(x), self.point, self.point_bias)
        offset, mask = (t.unflatten(1, (g.groups, self.taps, -1)) for t in raw.split(self.rows, 1))
        mask = self._weights(mask)
        if self.taps < len(taps_of(g)):
            offset, mask = with_center(offset, g), with_center(mask, g)
        return offset.flatten(1, 3), mask.flatten(1, 3)

    def forward(self, input: Tensor) -> Tensor:
        r"""DCNv3 of ``input`` (B, C, \*S) or (C, \*S)."""
        check_input(self, input, self.value)
        g = self.geometry
        if self.generator is not None and not torch.compiler.is_compiling():
            check_input(SimpleNamespace(geometry=self.generator), input)  # it may pad more
        if input.dim() == g.dim + 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        with without_autocast(input.device):
            x = input.to(wide_dtype(self.value))
            offset, mask = self.places(x)
            v = pointwise(x, self.value, self.value_bias)
            y = _aggregate(v, offset, mask, g, self.offset_scale)
            y = pointwise(y, self.output, self.bias)
        return y.to(output_dtype(self.value))

    @classmethod
    def from_conv(
        cls, conv: nn.Module, extent: int | tuple[int, ...] | None = None, **own: Any
    ) -> Self:
        """This layer with the nearest to a trained kernel that it represents without offsets.

        W_v is the identity. Within a group of input channels the kernel becomes a matrix (W_o's
        columns) times one weight per tap: the group's first singular vector over the taps, of
        which the softmax keeps what is positive; the matrix is the least-squares one for it. See
        :func:`omniconv.core.layer.transfer` for the arguments and errors.
        """
        layer, margins = transfer(cls, conv, extent, **own)
        source: Any = conv
        with torch.no_grad():
            kernel = join_groups(F.pad(source.weight.detach(), margins).double(), source.groups, 1)
            kept = [q for q in range(len(taps_of(layer.geometry))) if q != layer.left_out]
            taps = kernel.flatten(2)[..., kept].unflatten(1, (layer.groups, -1)).transpose(0, 1)
            taps = taps.flatten(1, 2)  # (groups, O C/groups, taps)
            weights = layer.representable(torch.linalg.eigh(taps.mT @ taps)[1][..., -1])
            matrix = (taps @ weights.unsqueeze(2)).squeeze(2) / weights.square().sum(1, True)
            matrix = matrix.unflatten(1, (layer.out_channels, -1)).transpose(0, 1).flatten(1)
            layer.output.copy_(matrix.view_as(layer.output))
            layer.value.copy_(torch.eye(layer.in_channels).view_as(layer.value))
            layer.value_bias.zero_()
            layer.point.zero_()
            layer.point_bias.copy_(layer._constant(weights))
            if source.bias is not None:
                layer.bias.copy_(source.bias)
        return layer

    @property
    def left_out(self) -> int | None:
        """Number of the tap that is left out."""
        g = self.geometry
        center = tuple((k - 1) // 2 for k in g.kernel_size)
        return taps_of(g).index(center) if self.taps < len(taps_of(g)) else None

    @staticmethod
    def representable(vectors: Tensor) -> Tensor:
        """The weights (groups, taps) nearest to these directions, of sum 1."""
        vectors = vectors * torch.where(vectors.sum(1, True) < 0, -1.0, 1.0)
        weights = vectors / vectors.clamp(min=0).sum(1, True)
        weights = weights.clamp(min=LEAST / weights.shape[1])
        return weights / weights.sum(1, True)

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The official layer's parameters under this layer's names, for ``load_state_dict``.

        They fit a layer over two axes with in_channels = out_channels, a square kernel and the
        official ``group``, ``pad``, ``offset_scale``, ``remove_center`` and ``dw_kernel_size``.

        Raises:
            ValueError: Names or shapes do not fit this layer.
        """
        names = {f"{theirs}.{end}" for theirs in OFFICIAL for end in ("weight", "bias")}
        self._check_official(state_dict, names)
        parts = {
            ours: (state_dict[f"{theirs}.weight"], state_dict[f"{theirs}.bias"])
            for theirs, ours in OFFICIAL.items()
        }
        found: dict[str, Tensor] = {}
        for ours in ("depthwise", "norm"):
            weight, bias = parts[ours]
            found |= {"norm_weight" if ours == "norm" else ours: weight, f"{ours}_bias": bias}
        groups = self.geometry.groups
        rows = [
            torch.cat(
                (o.unflatten(0, (groups, -1)), m.unflatten(0, (groups, -1))), 1
            )  # (groups, 3 taps, ...): DCNv4's order
            for o, m in zip(parts["offset"], parts["mask"], strict=True)
        ]
        return found | self._shared_official(rows, parts["value"], parts["output"])

    def _check_official(self, state_dict: Mapping[str, Tensor], names: set[str]) -> None:
        g = self.geometry
        if g.dim != 2 or g.in_channels != g.out_channels or len(set(g.kernel_size)) > 1:
            raise ValueError(
                f"state_dict fits a layer over two axes with a square kernel and as many outputs "
                f"as inputs, got {self}"
            )
        if set(state_dict) != names:
            raise ValueError(
                f"state_dict must hold exactly {', '.join(sorted(names))}, "
                f"got {args.show(sorted(state_dict))}"
            )

    def _shared_official(
        self,
        rows: list[Tensor],
        value: tuple[Tensor, Tensor],
        output: tuple[Tensor, Tensor | None],
    ) -> dict[str, Tensor]:
        """Generator, W_v and W_o, the generator's rows (groups, 3 taps, ...) in official order."""
        kept = [tap for q, tap in enumerate(taps_of(self.geometry)) if q != self.left_out]
        # theirs run through columns first, as ours with the axes swapped, and x comes before y
        order = [sorted(kept, key=lambda tap: tap[::-1]).index(tap) for tap in kept]
        points = []
        for t in rows:
            offset, mask = t[:, : 2 * self.taps], t[:, 2 * self.taps : 3 * self.taps]
            offset = offset.unflatten(1, (self.taps, 2))[:, order].flip(2)
            points.append(torch.cat((offset.flatten(0, 2), mask[:, order].flatten(0, 1))))
        found = {
            "value": value[0][..., None, None],
            "value_bias": value[1],
            "point": points[0][..., None, None],
            "point_bias": points[1],
            "output": output[0][..., None, None],
        }
        return found if output[1] is None else found | {"bias": output[1]}

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.offset_scale != 1.0:
            text += f", offset_scale={self.offset_scale}"
        if self.remove_center:
            text += ", remove_center=True"
        if self.generator is not None and self.generator.kernel_size != self.kernel_size:
            text += f", dw_kernel_size={self.generator.kernel_size[0]}"
        return text


class DCNv3Conv1d(_DCNv3Nd):
    dim = 1


class DCNv3Conv2d(_DCNv3Nd):
    dim = 2


class DCNv3Conv3d(_DCNv3Nd):
    dim = 3


def _reference(layer: Any, x: Tensor) -> Tensor:
    """Step by step from the definitions."""
    if x.dim() == layer.geometry.dim + 1:
        return _reference(layer, x.unsqueeze(0)).squeeze(0)
    wide = [-1, *[1] * layer.geometry.dim]
    h = naive_convolution(x, layer.depthwise, layer.depthwise_bias, layer.generator)
    h = h - h.mean(1, keepdim=True)
    h = h / (h.square().mean(1, keepdim=True) + EPS).sqrt()
    h = h * layer.norm_weight.view(wide) + layer.norm_bias.view(wide)
    h = h * (1 + (h / math.sqrt(2)).erf()) / 2
    raw = naive_linear(h, layer.point, layer.point_bias)
    return naive_aggregate(layer, x, raw, lambda m: m.exp() / m.exp().sum(2, keepdim=True))


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """Depthwise convolution, layer norm (7, 13), GELU (5, 11), softmax (5, 4), and the rest."""
    g = layer.geometry
    shape = shape if len(shape) == g.dim + 2 else (1, *shape)
    forward, backward = aggregate_flops(layer, shape)
    positions = shape[0] * math.prod(g.output_size(shape[2:]))
    there, back = layer.generator.flops(shape)
    features, masks = positions * g.in_channels, positions * layer.rows[1]
    forward += there + 12 * features + 5 * masks
    return forward, backward + back + 24 * features + 4 * masks


@register
def card() -> Card:
    return Card(
        name="dcnv3",
        classes={1: DCNv3Conv1d, 2: DCNv3Conv2d, 3: DCNv3Conv3d},
        variants={
            "default": {},
            "scaled, no centre": {"offset_scale": 0.75, "remove_center": True},
        },
        equation="y(p) = W_o sum_q softmax_q(m(g(c),q,p)) v(c, p_0 + s (p_q + D(g(c),q,p))) + b",
        summary="Softmax-weighted sums of projected values at places that the input gives.",
        citation="W. Wang, J. Dai, Z. Chen, Z. Huang, Z. Li, X. Zhu, X. Hu, T. Lu, L. Lu, H. Li, "
        "X. Wang, Y. Qiao: InternImage: Exploring Large-Scale Vision Foundation Models with "
        "Deformable Convolutions. CVPR 2023",
        claim="InternImage-H: 65.4 box AP on COCO test-dev, 62.9 mean IoU on ADE20K (abstract).",
        source="OpenGVLab/InternImage",
        source_licence="MIT",
        rows=(137,),  # that system is this layer without the softmax
        reference=_reference,
        flops=_flops,
        input_dependent=True,
        preserves_note="Nearest: within a group of input channels one weight per tap, not negative "
        "(softmax), times a matrix; every 1-wide convolution, exactly.",
        equivariance=(),  # places may lie outside of the image
        default_extent=3,
        kernels=("deform", "depthwise"),
        sample_width=2,
        samples=samples,
        error_inputs=error_inputs,
        adapt=adapt,
    )
