r"""Deformable convolution: every tap is moved by an offset that the input gives, per position.

.. math::
    y(o, p) = b(o) + \sum_{c, q} W(o, c, q)\, m(g(c), q, p)\,
              \tilde x(c, p + p_q + \Delta(g(c), q, p))

with :math:`p_q` the tap's regular place and :math:`\tilde x` multilinear between pixels, 0 outside
of the (padded) input; at whole coordinates its derivative is that of the cell above. Offsets and
mask come from one plain convolution r of x on the layer's own grid, whose weights start at 0:

- ``shape="free"``: :math:`\Delta_q = r_q`, one number per tap and axis.
- ``shape="square"``: :math:`\Delta_q = s\, p_q`, one number s per position, where :math:`p_q`
  counts from the kernel's centre (K - 1)/2: the layer's dilation times 1 + s.
- ``max_offset=B``: :math:`\Delta` is clipped to [-B, B] on each axis (derivative 0 beyond).
- ``round_offset=True``: :math:`\Delta` is then rounded to whole pixels, so that nothing is
  interpolated; its gradient passes as if it were not (straight through).
- ``modulated=True``: :math:`m = \sigma(r')` in (0, 1), one number per tap; else m = 1.

Shapes: as ``nn.ConvNd``; W (O, C/groups, \*kernel_size); g(c) = c \* offset_groups // C. The rows
of ``offset_weight`` (\*, C, \*kernel_size) are the offsets, ordered (offset group, tap, axis), or
one s per offset group, then the masks, (offset group, tap).

Cost: the plain convolution, the generator's with offset_groups prod(kernel_size) (dim + 1) outputs,
and 2^dim multiply-adds per input of every tap.

Source: J. Dai, H. Qi, Y. Xiong, Y. Li, G. Zhang, H. Hu, Y. Wei, "Deformable Convolutional
Networks", ICCV 2017 (v1: ``modulated=False``); X. Zhu, H. Hu, S. Lin, J. Dai, "Deformable ConvNets
v2: More Deformable, Better Results", CVPR 2019; the restricted forms: Q. Huang, D. Wang, Y. Gao,
Y. Cai, Z. Dong, B. Wu, K. Keutzer, J. Wawrzynek, "Algorithm-hardware Co-design for Deformable
Convolution", 2020 (there with ``groups=in_channels``; its low-bit numbers and its engine on an FPGA
are not here).

The official code keeps v2's masks of 1/2 at the start without more, so that its output starts at
half the plain layer's size; here the weights are drawn twice as wide for it. It splits the
generator's rows into thirds, which is the order here. As in v2's paper, the generator learns at a
tenth of the learning rate (``lr_factors``). Half precision, also under autocast, is computed in
float32 and rounded once: places need it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
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
from omniconv.kernels.deform import deform
from omniconv.kernels.deform.flops import backward_flops, forward_flops
from omniconv.math.naive import naive_convolution, naive_pad
from omniconv.math.precision import output_dtype, wide_dtype, without_autocast
from omniconv.operators.deformed import check_places, naive_samples, regular_places, taps_of

__all__ = ["DeformConv1d", "DeformConv2d", "DeformConv3d", "deform_conv"]

SHAPES = ("free", "square")
OFFICIAL = ("conv_offset", "conv_offset_mask")


def deform_conv(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: str | int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    *,
    mask: Tensor | None = None,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Deformable convolution with given offsets, in one to three dimensions.

    .. math::
        y(o, p) = b(o) + \sum_{c, q} W(o, c, q)\, m(g(c), q, p)\,
                  \tilde x(c, p + p_q + \Delta(g(c), q, p))

    Args:
        x: (B, C, \*S).
        offset: (B, offset_groups prod(kernel_size) dim, \*S') in input pixels, ordered (offset
            group, tap, axis) with taps in row-major order, as torchvision's.
        weight: (O, C/groups, \*kernel_size).
        bias: (O,) or None.
        stride: As in ``nn.ConvNd``.
        padding: As in ``nn.ConvNd``.
        dilation: As in ``nn.ConvNd``.
        groups: As in ``nn.ConvNd``.
        mask: (B, offset_groups prod(kernel_size), \*S') or None for ones.
        padding_mode: As in ``nn.ConvNd``.

    Returns:
        (B, O, \*S').

    Raises:
        TypeError: A tensor is no tensor, or of a dtype that does not fit.
        ValueError: A shape, device or argument does not fit; the message names it.
    """
    check_floating("weight", weight)
    if weight.dim() not in (3, 4, 5):
        raise ValueError(
            f"weight must have 3, 4 or 5 axes (outputs, inputs, 1 to 3 spatial), "
            f"got shape {tuple(weight.shape)}"
        )
    outputs, inputs, *extent = weight.shape
    inputs *= args.positive_int("groups", groups)
    g = ConvArguments.parse(
        len(extent),
        inputs,
        outputs,
        extent,
        stride,
        padding,
        dilation,
        groups,
        bias is not None,
        padding_mode,
    )
    check_input(SimpleNamespace(geometry=g), x, weight, name="x")
    if x.dim() != g.dim + 2:
        raise ValueError(f"x must have {g.dim + 2} axes, got shape {tuple(x.shape)}")
    if bias is not None:
        check_floating("bias", bias)
        if bias.shape != (outputs,):
            raise ValueError(f"bias must have shape ({outputs},), got {tuple(bias.shape)}")
    offset_groups = check_places(x, offset, mask, g)
    wide = wide_dtype(weight)
    mask = None if mask is None else mask.to(wide)
    bias = None if bias is None else bias.to(wide)
    tensors = (x.to(wide), offset.to(wide), mask, weight.to(wide), bias)
    return _convolve(*tensors, g, offset_groups).to(weight.dtype)


def _convolve(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    g: ConvArguments,
    offset_groups: int,
) -> Tensor:
    """The same with arguments that fit."""
    zeros = g.padding_mode == "zeros"
    return deform(
        x if zeros else g.pad(x),
        offset,
        mask,
        weight,
        bias,
        stride=g.stride,
        padding=g.pads if zeros else 0,
        dilation=g.dilation,
        groups=g.groups,
        offset_groups=offset_groups,
    )


class _DeformConvNd(ConvLayer):
    """Deformable convolution over N axes (see the module's equation).

    Arguments are torch's, in torch's order, and then, keyword-only:

    Args:
        modulated: Whether taps are weighted by a mask (v2) or not (v1).
        offset_groups: Groups of input channels that share offsets and masks.
        max_offset: Largest offset along an axis, in pixels, or None for any.
        round_offset: Whether offsets are whole numbers of pixels.
        shape: ``"free"``, or ``"square"`` for one dilation per position.
    """

    lr_factors = {"offset_weight": 0.1, "offset_bias": 0.1}  # noqa: RUF012

    def setup(
        self,
        factory: dict[str, Any],
        *,
        modulated: bool = True,
        offset_groups: int = 1,
        max_offset: int | None = None,
        round_offset: bool = False,
        shape: str = "free",
    ) -> None:
        g = self.geometry
        self.modulated = args.boolean("modulated", modulated)
        self.offset_groups = args.divisor("offset_groups", offset_groups, in_channels=g.in_channels)
        self.max_offset = (
            None if max_offset is None else args.positive_int("max_offset", max_offset)
        )
        self.round_offset = args.boolean("round_offset", round_offset)
        self.shape = args.choice("shape", shape, SHAPES)
        self.weight = new_parameter(*self.kernel_shape, **factory)
        rows = sum(self.rows)
        self.offset_weight = new_parameter(rows, g.in_channels, *g.kernel_size, **factory)
        self.offset_bias = new_parameter(rows, **factory)

    @property
    def rows(self) -> tuple[int, int]:
        """Outputs of the generator for offsets, and for masks."""
        g = self.geometry
        taps = math.prod(g.kernel_size)
        each = taps * g.dim if self.shape == "free" else 1
        return self.offset_groups * each, self.offset_groups * taps * self.modulated

    @property
    def generator(self) -> ConvArguments:
        """The arguments of the convolution that gives offsets and masks."""
        return replace(self.geometry, out_channels=sum(self.rows), groups=1, bias=True)

    def reset_parameters(self) -> None:
        """Draw W so that outputs have the plain layer's variance; the generator is 0."""
        bound = self.bound * (2 if self.modulated else 1)  # masks start at 1/2
        with torch.no_grad():
            self.weight.uniform_(-bound, bound)
            self.offset_weight.zero_()
            self.offset_bias.zero_()
            self.reset_bias()

    def places(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        r"""Offsets and mask for x (B, C, \*S), as :func:`deform_conv` takes them.

        They are in x's dtype; half-precision parameters are widened to it.
        """
        weight, bias = self.offset_weight.to(x.dtype), self.offset_bias.to(x.dtype)
        raw = convolve(x, weight, bias, self.generator)
        offset, mask = raw, None
        if self.modulated:
            offset, mask = raw.split(self.rows, 1)
            mask = mask.sigmoid()
        if self.shape == "square":
            offset = (offset.unsqueeze(2) * self._regular(x)).flatten(1, 2)
        if self.max_offset is not None:
            offset = offset.clamp(-self.max_offset, self.max_offset)
        if self.round_offset:
            offset = offset + (offset.round() - offset).detach()
        return offset, mask

    def _regular(self, x: Tensor) -> Tensor:
        """The taps' regular places from the kernel's centre, (prod(kernel_size) dim, 1, ...)."""
        g = self.geometry
        places = [
            d * (t - (k - 1) / 2)
            for tap in taps_of(g)
            for t, k, d in zip(tap, g.kernel_size, g.dilation, strict=True)
        ]
        return torch.tensor(places, dtype=x.dtype, device=x.device).view(-1, *[1] * g.dim)

    def forward(self, input: Tensor) -> Tensor:
        r"""Deformable convolution of ``input`` (B, C, \*S) or (C, \*S)."""
        check_input(self, input, self.weight)
        if input.dim() == self.geometry.dim + 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        wide = wide_dtype(self.weight)
        with without_autocast(input.device):
            x = input.to(wide)
            bias = None if self.bias is None else self.bias.to(wide)
            offset, mask = self.places(x)
            weight, groups = self.weight.to(wide), self.offset_groups
            y = _convolve(x, offset, mask, weight, bias, self.geometry, groups)
        return y.to(output_dtype(self.weight))

    @classmethod
    def from_conv(
        cls, conv: nn.Module, extent: int | tuple[int, ...] | None = None, **own: Any
    ) -> Self:
        """This layer with a trained convolution's kernel and offsets of 0: the same output.

        Masks are 1/2 and the kernel is doubled for them; without masks it is the same. See
        :func:`omniconv.core.layer.transfer` for the arguments and errors.
        """
        layer, margins = transfer(cls, conv, extent, **own)
        source: Any = conv
        with torch.no_grad():
            kernel = F.pad(source.weight.detach(), margins)
            layer.weight.copy_(2 * kernel if layer.modulated else kernel)
            layer.offset_weight.zero_()
            layer.offset_bias.zero_()
            if source.bias is not None:
                layer.bias.copy_(source.bias)
        return layer

    @staticmethod
    def from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The official layer's parameters under this layer's names, for ``load_state_dict``.

        Args:
            state_dict: ``weight``, ``bias`` where there is one, and ``conv_offset`` (v1, and v2 in
                detection libraries) or ``conv_offset_mask`` (v2) with ``.weight`` and ``.bias``:
                of layers that hold their offset convolution, over two axes.

        Raises:
            ValueError: A name is missing or unknown.
        """
        for generator in OFFICIAL:
            names = {
                "weight": "weight",
                f"{generator}.weight": "offset_weight",
                f"{generator}.bias": "offset_bias",
            }
            if set(state_dict) - {"bias"} == set(names):
                names |= {"bias": "bias"} if "bias" in state_dict else {}
                return {ours: state_dict[theirs] for theirs, ours in names.items()}
        raise ValueError(
            f"state_dict must hold weight, conv_offset.weight, conv_offset.bias (or both of "
            f"conv_offset_mask) and perhaps bias, got {args.show(sorted(state_dict))}"
        )

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, modulated={self.modulated}"
        if self.offset_groups != 1:
            text += f", offset_groups={self.offset_groups}"
        if self.max_offset is not None:
            text += f", max_offset={self.max_offset}"
        if self.round_offset:
            text += ", round_offset=True"
        return text if self.shape == "free" else f"{text}, shape={self.shape!r}"


class DeformConv1d(_DeformConvNd):
    dim = 1


class DeformConv2d(_DeformConvNd):
    dim = 2


class DeformConv3d(_DeformConvNd):
    dim = 3


def _reference(layer: Any, x: Tensor) -> Tensor:
    """Tap by tap; every sample is a sum over all pixels."""
    g = layer.geometry
    if x.dim() == g.dim + 1:
        return _reference(layer, x.unsqueeze(0)).squeeze(0)
    generator = replace(g, out_channels=len(layer.offset_bias), groups=1)
    raw = naive_convolution(x, layer.offset_weight, layer.offset_bias, generator)
    groups, taps, size = layer.offset_groups, taps_of(g), raw.shape[2:]
    masks = [torch.ones_like(raw[:, :groups])] * len(taps)
    if layer.modulated:
        masks = list(raw[:, -groups * len(taps) :].unflatten(1, (groups, -1)).unbind(2))
        masks = [1 / (1 + (-m).exp()) for m in masks]
    places = []
    for q, tap in enumerate(taps):
        place = []
        for axis, grid in enumerate(regular_places(tap, size, g)):
            if layer.shape == "square":
                moved = raw[:, :groups] * g.dilation[axis]
                moved = moved * (tap[axis] - (g.kernel_size[axis] - 1) / 2)
            else:
                moved = raw[:, q * g.dim + axis : groups * len(taps) * g.dim : len(taps) * g.dim]
            if layer.max_offset is not None:
                moved = moved.minimum(torch.full_like(moved, layer.max_offset))
                moved = moved.maximum(torch.full_like(moved, -layer.max_offset))
            if layer.round_offset:
                moved = moved - (moved - moved.round()).detach()
            place.append(grid + moved)
        places.append(place)
    samples = naive_samples(naive_pad(x, g), places, groups) * torch.stack(masks, 2).unsqueeze(2)
    columns = samples.flatten(1, 2).unflatten(1, (g.groups, -1)).flatten(4)
    rows = layer.weight.unflatten(0, (g.groups, -1)).flatten(3)
    y = torch.einsum("gocq,bgcqp->bgop", rows, columns).flatten(1, 2).unflatten(2, size)
    return y if layer.bias is None else y + layer.bias.view(-1, *[1] * g.dim)


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """Generator, offsets as restricted, masks, and the deformable sum; x has two gradients."""
    g = layer.geometry
    batch = shape[0] if len(shape) == g.dim + 2 else 1
    x = (batch, g.in_channels, *shape[-g.dim :])
    forward, backward = layer.generator.flops(x)
    positions = batch * math.prod(g.output_size(x[2:]))
    taps = layer.offset_groups * math.prod(g.kernel_size)
    offsets, masks = positions * taps * g.dim, positions * taps * layer.modulated
    forward, backward = forward + masks, backward + 3 * masks + math.prod(x) + g.pad_flops(x)
    if layer.shape == "square":
        forward += offsets
        backward += offsets * (1 if taps * g.dim == layer.offset_groups else 2)
    forward += offsets * ((layer.max_offset is not None) + 3 * layer.round_offset)
    if g.padding_mode != "zeros":
        x = (*x[:2], *(n + sum(pads) for n, pads in zip(x[2:], g.pads, strict=True)))
    size = g.output_size(shape[-g.dim :])
    offset, mask = (batch, taps * g.dim, *size), (batch, taps, *size)
    given = (x, offset, mask if layer.modulated else None, layer.weight.shape)
    bias = None if layer.bias is None else layer.bias.shape
    needed = (True, True, layer.modulated, True)
    forward += forward_flops(*given, bias, g.kernel_size)
    backward += backward_flops(*given, g.kernel_size, needed)
    return forward, backward + (positions * g.out_channels if g.bias else 0)


def _samples(dim: int) -> tuple[Sample, ...]:
    uneven = tuple((4, 3, 2)[:dim])
    base = {"in_channels": 4, "out_channels": 6, "offset_groups": 2}
    return (
        Sample(
            arguments=base | {"kernel_size": uneven, "stride": 2, "padding": 1, "groups": 2},
            size=(7, 6, 5)[:dim],
        ),
        Sample(
            arguments=base | {"kernel_size": 3, "dilation": 2, "padding": 3, "groups": 1},
            size=(5, 4, 3)[:dim],
        ),
    )


def _error_inputs(dim: int) -> tuple[ErrorInput, ...]:
    base = {"in_channels": 4, "out_channels": 4, "kernel_size": 3}
    rows: tuple[tuple[dict[str, Any], str, type[Exception]], ...] = (
        ({"modulated": 1}, "modulated must be True or False", TypeError),
        ({"offset_groups": 3}, "offset_groups must divide in_channels=4", ValueError),
        ({"max_offset": 0}, "max_offset must be an int of at least 1", ValueError),
        ({"max_offset": 1.5}, "max_offset must be an int", TypeError),
        ({"round_offset": None}, "round_offset must be True or False", TypeError),
        ({"shape": "squares"}, "shape must be one of 'free', 'square'.*did you mean", ValueError),
    )
    return tuple(ErrorInput(arguments=base | own, match=m, error=e) for own, m, e in rows)


@register
def card() -> Card:
    return Card(
        name="deform",
        classes={1: DeformConv1d, 2: DeformConv2d, 3: DeformConv3d},
        variants={
            "default": {},
            "v1": {"modulated": False},
            "bounded": {"max_offset": 1},
            "square": {"shape": "square", "max_offset": 2, "modulated": False},
        },
        equation="y(o,p) = b(o) + sum_cq W(o,c,q) m(g(c),q,p) x(c, p + p_q + D(g(c),q,p))",
        summary="Convolution whose taps are moved, and weighted, by what the input says.",
        citation="X. Zhu, H. Hu, S. Lin, J. Dai: Deformable ConvNets v2: More Deformable, Better "
        "Results. CVPR 2019; J. Dai, H. Qi, Y. Xiong, Y. Li, G. Zhang, H. Hu, Y. Wei: Deformable "
        "Convolutional Networks. ICCV 2017",
        claim="Of the restricted forms: little accuracy lost, and faster on an embedded FPGA "
        "(abstract of the co-design paper, without figures).",
        source="chengdazhi/Deformable-Convolution-V2-PyTorch",
        source_licence="MIT",
        rows=(54,),
        reference=_reference,
        flops=_flops,
        input_dependent=True,
        preserves_function=True,
        preserves_note="Every plain convolution, exactly: offsets start at 0; masks start at 1/2 "
        "and the kernel is doubled for them.",
        equivariance=(),  # places may lie outside of the image
        default_extent=3,
        kernels=("deform",),
        samples=_samples,
        error_inputs=_error_inputs,
    )
