r"""Gated convolution: a soft mask per channel and position, learned from the input.

.. math::
    y = \phi(W_f * x + b_f) \cdot \sigma(W_g * x + b_g)

Shapes: x (B, C, \*S), y (B, O, \*S'), W_f and W_g (O, C/groups, \*kernel_size), kept as one tensor
(2 O, C/groups, \*kernel_size), W_f first. Channels of x may hold a mask or a sketch.

Cost: one plain convolution with 2 O outputs, four operations per output.

Source: J. Yu, Z. Lin, J. Yang, X. Shen, X. Lu, T. Huang, "Free-Form Image Inpainting with Gated
Convolution", ICCV 2019. With the identity for :math:`\phi` it is the gated linear unit of
Y. N. Dauphin et al. (2017), with tanh the unit of A. van den Oord et al. (PixelCNN, WaveNet, 2016).

The official code counts both halves as the layer's channels, so that its ``cnum`` is 2 O here, and
does not gate a layer with 3 channels or without activation (its last one: a plain convolution). It
pads as TensorFlow's "SAME": at stride 2 and even sizes nothing before and one after; pad the input
with ``F.pad(x, (0, 1, 0, 1))`` for that. Its kernels are (height, width, in, out).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
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
from omniconv.math.naive import naive_convolution

__all__ = ["GatedConv1d", "GatedConv2d", "GatedConv3d", "gated_conv"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "relu": F.relu,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.2),
    "tanh": torch.tanh,
    "identity": lambda x: x,
}
"""The slope of TensorFlow's leaky ReLU, which the official code uses, is 0.2."""

FLOPS = {"elu": (2, 3), "relu": (1, 1), "leaky_relu": (1, 1), "tanh": (1, 3), "identity": (0, 0)}

GAIN = {"elu": 2.592239, "relu": 3.258007, "leaky_relu": 2.963127, "tanh": 1.0, "identity": 1.93168}
"""Factors on W_f's draw: Var(phi(gain u) sigma(v)) = Var(u) for normal u, v of variance 1/3, which
is a plain layer's output for white input. Bounded, tanh cannot reach it."""


def gated_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: str | int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    *,
    activation: str = "elu",
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Gated convolution (see the module's equation), in one to three dimensions.

    Args:
        x: (B, C, \*S) or unbatched (C, \*S).
        weight: (2 O, C/groups, \*kernel_size): W_f, then W_g.
        bias: (2 O,), b_f, then b_g, or None.
        stride: As in ``nn.ConvNd``.
        padding: As in ``nn.ConvNd``.
        dilation: As in ``nn.ConvNd``.
        groups: As in ``nn.ConvNd``; features and gates of a group see the same channels.
        activation: phi: "elu", "relu", "leaky_relu" (slope 0.2), "tanh" or "identity".
        padding_mode: As in ``nn.ConvNd``.

    Returns:
        (B, O, \*S') or (O, \*S').

    Raises:
        TypeError: A tensor is no tensor, or of a dtype that does not fit.
        ValueError: A shape, device or argument does not fit; the message names it.
    """
    check_floating("weight", weight)
    if weight.dim() not in (3, 4, 5) or weight.shape[0] % 2:
        raise ValueError(
            f"weight must have 3, 4 or 5 axes (twice the outputs, inputs, 1 to 3 spatial), "
            f"got shape {tuple(weight.shape)}"
        )
    outputs, inputs, *extent = weight.shape
    inputs *= args.positive_int("groups", groups)
    geometry = ConvArguments.parse(
        len(extent),
        inputs,
        outputs // 2,
        extent,
        stride,
        padding,
        dilation,
        groups,
        bias is not None,
        padding_mode,
    )
    if bias is not None:
        check_floating("bias", bias)
        if bias.shape != (outputs,):
            raise ValueError(f"bias must have shape ({outputs},), got {tuple(bias.shape)}")
    activation = args.choice("activation", activation, ACTIVATIONS)
    check_input(SimpleNamespace(geometry=geometry), x, weight, name="x")
    return _gated_conv(x, weight, bias, geometry, activation)


def _gated_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, g: ConvArguments, activation: str
) -> Tensor:
    """The same with canonical arguments: one convolution, its outputs ordered (group, half)."""
    if x.dim() == g.dim + 1:
        return _gated_conv(x.unsqueeze(0), weight, bias, g, activation).squeeze(0)
    bias = None if bias is None else _by_group(bias, g.groups)
    both = convolve(x, _by_group(weight, g.groups), bias, g)
    features, gates = both.unflatten(1, (g.groups, 2, -1)).unbind(2)
    return (ACTIVATIONS[activation](features) * gates.sigmoid()).flatten(1, 2)


def _by_group(rows: Tensor, groups: int) -> Tensor:
    """Rows ordered (half, group, rest) brought to (group, half, rest)."""
    if groups == 1:
        return rows
    return rows.unflatten(0, (2, groups, -1)).transpose(0, 1).flatten(0, 2)


class _GatedNd(ConvLayer):
    """Gated convolution over N axes (see the module's equation).

    Arguments are torch's, in torch's order, and then, keyword-only:

    Args:
        activation: phi: "elu" (the paper's), "relu", "leaky_relu" (slope 0.2), "tanh", "identity".

    ``out_channels`` counts the outputs. ``weight`` (2 out_channels, ...) holds W_f, then W_g;
    ``bias`` is b_f, ``gate_bias`` b_g.
    """

    gate_bias: Tensor | None

    def setup(self, factory: dict[str, Any], *, activation: str = "elu") -> None:
        self.activation = args.choice("activation", activation, ACTIVATIONS)
        outputs, *rest = self.kernel_shape
        self.weight = new_parameter(2 * outputs, *rest, **factory)
        gate_bias = new_parameter(outputs, **factory) if self.geometry.bias else None
        self.register_parameter("gate_bias", gate_bias)

    def reset_parameters(self) -> None:
        """Draw the gates as ``nn.ConvNd`` does, the features wider by ``GAIN``."""
        gain = GAIN[self.activation]
        with torch.no_grad():
            self.weight.uniform_(-self.bound, self.bound)
            self.weight[: self.geometry.out_channels] *= gain
            self.reset_bias()
            if self.bias is not None and self.gate_bias is not None:
                self.bias *= gain
                self.gate_bias.uniform_(-self.bound, self.bound)

    def forward(self, input: Tensor) -> Tensor:
        r"""Gated convolution of ``input`` (B, C, \*S) or (C, \*S)."""
        check_input(self, input, self.weight)
        bias = None
        if self.bias is not None and self.gate_bias is not None:
            bias = torch.cat((self.bias, self.gate_bias))
        return _gated_conv(input, self.weight, bias, self.geometry, self.activation)

    @classmethod
    def from_conv(
        cls, conv: nn.Module, extent: int | tuple[int, ...] | None = None, **own: Any
    ) -> Self:
        """This layer with a trained convolution's kernel, doubled, behind gates that are 1/2.

        y = phi(2 z) / 2 where the convolution gives z: z itself with ``activation="identity"``,
        and for z >= 0 with "elu", "relu" and "leaky_relu". See
        :func:`omniconv.core.layer.transfer` for the arguments and errors.
        """
        layer, margins = transfer(cls, conv, extent, **own)
        source: Any = conv
        with torch.no_grad():
            layer.weight.zero_()
            layer.weight[: layer.out_channels] = 2 * F.pad(source.weight.detach(), margins)
            if source.bias is not None:
                layer.bias.copy_(2 * source.bias)
                layer.gate_bias.zero_()
        return layer

    @staticmethod
    def from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The official layer's parameters under this layer's names, for ``load_state_dict``.

        Args:
            state_dict: ``kernel`` (height, width, in, 2 O) and ``bias`` (2 O,) of a ``gen_conv``
                with ELU, as tensors.

        Raises:
            ValueError: A name is missing or unknown, or the last axis cannot be halved.
        """
        if set(state_dict) != {"kernel", "bias"}:
            raise ValueError(
                f"state_dict must hold exactly kernel, bias, got {args.show(sorted(state_dict))}"
            )
        kernel, bias = state_dict["kernel"], state_dict["bias"]
        if kernel.dim() < 3 or kernel.shape[-1] % 2 or bias.shape != kernel.shape[-1:]:
            raise ValueError(
                f"kernel must have shape (*size, in, 2 O) and bias (2 O,), "
                f"got {tuple(kernel.shape)} and {tuple(bias.shape)}"
            )
        feature_bias, gate_bias = bias.chunk(2)
        weight = kernel.movedim((-1, -2), (0, 1)).contiguous()
        return {"bias": feature_bias, "weight": weight, "gate_bias": gate_bias}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}"


class GatedConv1d(_GatedNd):
    dim = 1


class GatedConv2d(_GatedNd):
    dim = 2


class GatedConv3d(_GatedNd):
    dim = 3


def _reference(layer: Any, x: Tensor) -> Tensor:
    """Two naive convolutions and the scalar functions from their definitions."""
    outputs = layer.out_channels
    z = naive_convolution(x, layer.weight[:outputs], layer.bias, layer.geometry)
    gate = naive_convolution(x, layer.weight[outputs:], layer.gate_bias, layer.geometry)
    below = z.clamp(max=0)
    phi = {
        "elu": z.clamp(min=0) + below.exp() - 1,
        "relu": z.clamp(min=0),
        "leaky_relu": z.clamp(min=0) + below / 5,
        "tanh": 1 - 2 / ((2 * z).exp() + 1),
        "identity": z,
    }[layer.activation]
    return phi / (1 + (-gate).exp())


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """The convolution with twice the outputs; activation, sigmoid and product."""
    g = layer.geometry
    forward, backward = replace(g, out_channels=2 * g.out_channels).flops(shape)
    outputs = math.prod(shape[: -g.dim - 1]) * g.out_channels
    outputs *= math.prod(g.output_size(shape[-g.dim :]))
    there, back = FLOPS[layer.activation]
    return forward + (there + 2) * outputs, backward + (back + 5) * outputs


def _samples(dim: int) -> tuple[Sample, ...]:
    uneven = tuple((5, 3, 2)[:dim])
    base = {"in_channels": 4, "out_channels": 6, "kernel_size": uneven, "padding": 1}
    return (
        Sample(arguments=base | {"groups": 2, "stride": 2}, size=(7, 6, 5)[:dim]),
        Sample(arguments=base | {"dilation": 2, "padding": 2}, size=(9, 6, 7)[:dim]),
    )


def _error_inputs(dim: int) -> tuple[ErrorInput, ...]:
    base = {"in_channels": 4, "out_channels": 4, "kernel_size": 3}
    return (
        ErrorInput(arguments=base | {"activation": "ELU"}, match="activation must be one of 'elu'"),
        ErrorInput(
            arguments=base | {"activation": F.elu},
            match="activation must be one of",
            error=TypeError,
        ),
    )


@register
def card() -> Card:
    return Card(
        name="gated",
        classes={1: GatedConv1d, 2: GatedConv2d, 3: GatedConv3d},
        variants={"default": {}, **{a: {"activation": a} for a in ACTIVATIONS if a != "elu"}},
        equation="y = phi(W_f * x + b_f) sigmoid(W_g * x + b_g)",
        summary="Convolution times a learned soft mask per channel and position.",
        citation="J. Yu, Z. Lin, J. Yang, X. Shen, X. Lu, T. Huang: Free-Form Image Inpainting "
        "with Gated Convolution. ICCV 2019",
        claim="Free-form inpainting and user-guided inpainting, of higher quality and with more "
        "freedom than by the methods before it (abstract, without figures).",
        source="JiahuiYu/generative_inpainting",
        source_licence="CC-BY-NC-4.0",
        rows=(305,),
        reference=_reference,
        flops=_flops,
        input_dependent=True,
        preserves_note="Every plain convolution, exactly, with activation='identity'; with ELU and "
        "ReLUs its positive outputs, exactly, and phi(2 z) / 2 for its negative outputs z.",
        default_extent=3,
        kernels=("depthwise",),
        samples=_samples,
        error_inputs=_error_inputs,
    )
