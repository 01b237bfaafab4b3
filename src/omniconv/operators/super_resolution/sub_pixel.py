r"""Sub-pixel convolution: a convolution whose channels become the pixels of a finer grid.

.. math::
    y(c, r p + i) = b(c, i) + \sum_u w(c, i, u)\, x(p + u), \qquad 0 \le i < r

Shapes: x (B, C, \*S), y (B, O, \*(r S')), where S' is the convolution's output; weight
(O prod(r), C/groups, \*kernel_size), row c prod(r) + i with i in row-major order; bias
(O prod(r),).

Cost: 2 prod(kernel_size) C/groups per output.

It is a transposed convolution of stride r: where kernel_size - 1 >= padding, its kernel has the
extent r kernel_size and its padding is r (kernel_size - 1 - padding).

Initialisation (ICNR): the rows of one output channel start equal, so that a fresh layer is
nearest-neighbour upsampling of a convolution and has no checkerboard.

Source: W. Shi, J. Caballero, F. Huszar, J. Totz, A. P. Aitken, R. Bishop, D. Rueckert, Z. Wang,
"Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional
Neural Network", CVPR 2016; A. Aitken, C. Ledig, L. Theis, J. Caballero, Z. Wang, W. Shi,
"Checkerboard artifact free sub-pixel convolution", 2017.

There is no official code. The state dict of torch's ``nn.Conv2d`` before an ``nn.PixelShuffle``
loads as it is and gives the same numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from omniconv.core import args
from omniconv.core.card import Card, ErrorInput, Sample
from omniconv.core.geometry import check_floating, check_input
from omniconv.core.layer import ConvLayer, new_parameter
from omniconv.core.registry import register
from omniconv.kernels.convolve import convolve
from omniconv.math.naive import at, naive_convolution

__all__ = ["SubPixelConv1d", "SubPixelConv2d", "SubPixelConv3d", "depth_to_space", "icnr"]


def depth_to_space(x: Tensor, factor: int | tuple[int, ...]) -> Tensor:
    r"""Channels become pixels; for two axes and one factor ``F.pixel_shuffle``.

    .. math:: y[b, c, r p + i] = x[b, c \prod r + i, p]

    Args:
        x: (B, C prod(factor), \*S), one to three spatial axes.
        factor: r, an int or one per axis.

    Returns:
        (B, C, \*(r S)).

    Raises:
        TypeError: ``x`` is not a floating-point tensor, or ``factor`` no int.
        ValueError: Shapes do not fit.
    """
    check_floating("x", x)
    dim = x.dim() - 2
    if dim not in (1, 2, 3):
        raise ValueError(f"x must have 3 to 5 axes, got shape {tuple(x.shape)}")
    factors = args.ntuple("factor", factor, dim, 1)
    if x.shape[1] % math.prod(factors):
        raise ValueError(
            f"x must have a multiple of {math.prod(factors)} channels for factor={factors}, "
            f"got {x.shape[1]}"
        )
    y = x.unflatten(1, (x.shape[1] // math.prod(factors), *factors))
    pairs = [axis for a in range(dim) for axis in (2 + dim + a, 2 + a)]
    y = y.permute(0, 1, *pairs)
    for axis in range(2, 2 + dim):
        y = y.flatten(axis, axis + 1)
    return y


def icnr(weight: Tensor, factor: int | tuple[int, ...]) -> Tensor:
    r"""The sub-pixel kernel that upsamples the convolution with ``weight`` to nearest neighbours.

    Args:
        weight: (O, C/groups, \*kernel_size), one to three spatial axes.
        factor: r, an int or one per axis.

    Returns:
        (O prod(factor), C/groups, \*kernel_size): every row prod(factor) times.

    Raises:
        TypeError: ``weight`` is not a floating-point tensor, or ``factor`` no int.
        ValueError: Shapes do not fit.
    """
    check_floating("weight", weight)
    dim = weight.dim() - 2
    if dim not in (1, 2, 3):
        raise ValueError(f"weight must have 3 to 5 axes, got shape {tuple(weight.shape)}")
    return weight.repeat_interleave(math.prod(args.ntuple("factor", factor, dim, 1)), 0)


class _SubPixelNd(ConvLayer):
    """Sub-pixel convolution over N axes (see the module's equation).

    Arguments are torch's, in torch's order, those of the convolution on the coarse grid. Then,
    keyword-only:

    Args:
        upscale_factor: r, an int or one per axis.
        icnr: Whether the layer starts as nearest-neighbour upsampling (else as torch's layer).
    """

    def setup(
        self,
        factory: dict[str, Any],
        *,
        upscale_factor: int | tuple[int, ...] = 2,
        icnr: bool = True,
    ) -> None:
        g = self.geometry
        self.upscale_factor = args.ntuple("upscale_factor", upscale_factor, g.dim, 1)
        self.icnr = args.boolean("icnr", icnr)
        rows, *others = self.kernel_shape
        pixels = math.prod(self.upscale_factor)
        self.weight = new_parameter(rows * pixels, *others, **factory)
        if g.bias:
            self.bias = new_parameter(rows * pixels, **factory)

    def reset_parameters(self) -> None:
        """Draw weight and bias as ``nn.ConvNd`` does, once per output channel with ``icnr``."""
        nn.init.uniform_(self.weight, -self.bound, self.bound)
        self.reset_bias()
        if self.icnr:
            pixels = math.prod(self.upscale_factor)
            with torch.no_grad():
                self.weight.copy_(icnr(self.weight[::pixels], self.upscale_factor))
                if self.bias is not None:
                    self.bias.copy_(self.bias[::pixels].repeat_interleave(pixels))

    def forward(self, input: Tensor) -> Tensor:
        r"""Convolve ``input`` (B, C, \*S) or (C, \*S) and spread the channels over r S' pixels."""
        check_input(self, input, self.weight)
        if input.dim() == self.dim + 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        y = convolve(input, self.weight, self.bias, self.geometry)
        return depth_to_space(y, self.upscale_factor)

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, upscale_factor={self.upscale_factor}"
        return text + ("" if self.icnr else ", icnr=False")


class SubPixelConv1d(_SubPixelNd):
    dim = 1


class SubPixelConv2d(_SubPixelNd):
    dim = 2


class SubPixelConv3d(_SubPixelNd):
    dim = 3


def _reference(layer: Any, x: Tensor) -> Tensor:
    """The convolution by its definition; then each sub-lattice of the output is filled."""
    if x.dim() == layer.dim + 1:
        return _reference(layer, x.unsqueeze(0)).squeeze(0)
    z = naive_convolution(x, layer.weight, layer.bias, layer.geometry)
    factors = layer.upscale_factor
    size = [n * r for n, r in zip(z.shape[2:], factors, strict=True)]
    y = z.new_zeros(z.shape[0], layer.out_channels, *size)
    for place, offset in enumerate(itertools.product(*map(range, factors))):
        lattice = at(slice(i, None, r) for i, r in zip(offset, factors, strict=True))
        y[lattice] = z[:, place :: math.prod(factors)]
    return y


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """The convolution; moving its channels is free."""
    return replace(layer.geometry, out_channels=len(layer.weight)).flops(shape)


def _rates(own: Mapping[str, Any], dim: int) -> tuple[tuple[int, int], ...]:
    return tuple(
        (1, r) for r in args.ntuple("upscale_factor", own.get("upscale_factor", 2), dim, 1)
    )


def _samples(dim: int) -> tuple[Sample, ...]:
    base = {"in_channels": 4, "out_channels": 2, "kernel_size": tuple((3, 2, 2)[:dim])}
    return (
        Sample(
            arguments=base | {"upscale_factor": (3, 2, 1)[:dim], "groups": 2, "padding": 1},
            size=(4, 3, 2)[:dim],
        ),
        Sample(arguments=base | {"upscale_factor": 1, "stride": 2}, size=(5, 4, 4)[:dim]),
    )


def _error_inputs(dim: int) -> tuple[ErrorInput, ...]:
    base = {"in_channels": 4, "out_channels": 4, "kernel_size": 3}
    return (
        ErrorInput(
            arguments=base | {"upscale_factor": 0},
            match="upscale_factor must be an int of at least 1, got 0",
        ),
        ErrorInput(
            arguments=base | {"upscale_factor": 1.5},
            match="upscale_factor must be an int",
            error=TypeError,
        ),
        ErrorInput(
            arguments=base | {"icnr": 1}, match="icnr must be True or False", error=TypeError
        ),
    )


@register
def card() -> Card:
    return Card(
        name="sub_pixel",
        role="resampler",
        classes={1: SubPixelConv1d, 2: SubPixelConv2d, 3: SubPixelConv3d},
        variants={"default": {}, "plain_draw": {"icnr": False, "upscale_factor": 3}},
        equation="y(c, r p + i) = b(c,i) + sum_u w(c,i,u) x(p+u),  0 <= i < r",
        summary="A convolution whose channels become the pixels of a finer grid.",
        citation="W. Shi, J. Caballero, F. Huszar, J. Totz, A. P. Aitken, R. Bishop, D. Rueckert, "
        "Z. Wang: Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel "
        "Convolutional Neural Network. CVPR 2016",
        claim="0.15 dB on images and 0.39 dB on videos above the convolutional networks before it, "
        "and an order of magnitude faster; 1080p video in real time on one K2 GPU (abstract).",
        rows=(235,),
        reference=_reference,
        flops=_flops,
        rates=_rates,
        default_extent=3,
        kernels=("depthwise",),
        samples=_samples,
        error_inputs=_error_inputs,
    )
