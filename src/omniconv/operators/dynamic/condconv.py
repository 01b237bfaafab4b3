r"""CondConv: a kernel per sample, mixed from experts by weights that the sample itself gives.

.. math::
    y_n = K_n * x_n + b, \qquad K_n = \sum_e r_{n,e} W_e, \qquad
    r_n = \sigma(R\, \bar x_n + c), \qquad \bar x_n = \frac{1}{|S|} \sum_p x_n(p)

Shapes: x (B, C, \*S), y (B, O, \*S'), W (E, O, C/groups, \*kernel_size), kept as (E O, C/groups,
\*kernel_size), R (E, C), c (E,), b (O,).

Cost: the plain convolution, 2 E operations per kernel entry and sample, the mean of x.

Source: B. Yang, G. Bender, Q. V. Le, J. Ngiam, "CondConv: Conditionally Parameterized Convolutions
for Efficient Inference", NeurIPS 2019.

All samples run in one grouped convolution, the batch lying in the groups. That fixes the batch size
in an exported program; when exporting, and for an empty batch, the layer is a sum over the kernel's
taps of batched matrix products instead: the same numbers for the same cost.

The official code loops over the samples, and its layer takes r as an argument: the models compute
it once per MBConv block and use it for all its layers (here :func:`cond_conv` takes it). Biases,
which its models do not use, are mixed as the kernels are; here b is one for all samples. It draws
each expert as if it were alone (here the mixed kernel has the plain layer's variance).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.core import args
from omniconv.core.card import Card, ErrorInput, Sample
from omniconv.core.geometry import ConvArguments, check_floating, check_input, output_size
from omniconv.core.layer import ConvLayer, new_parameter, transfer
from omniconv.core.registry import register
from omniconv.kernels.convolve import convolution
from omniconv.math.naive import naive_convolution
from omniconv.math.shift import shifted

__all__ = ["CondConv1d", "CondConv2d", "CondConv3d", "cond_conv"]


def cond_conv(
    x: Tensor,
    routing: Tensor,
    experts: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: str | int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Convolve every sample with its own mixture of the experts.

    .. math:: y_n = \Big(\sum_e routing_{n,e}\, experts_e\Big) * x_n + bias

    Args:
        x: (B, C, \*S), one to three spatial axes.
        routing: (B, E), any real weights.
        experts: (E, O, C/groups, \*kernel_size).
        bias: (O,), (B, O) for one per sample, or None.
        stride: As in ``nn.ConvNd``.
        padding: As in ``nn.ConvNd``.
        dilation: As in ``nn.ConvNd``.
        groups: As in ``nn.ConvNd``.
        padding_mode: As in ``nn.ConvNd``.

    Returns:
        (B, O, \*S').

    Raises:
        TypeError: A tensor is no tensor, or of a dtype that does not fit.
        ValueError: A shape, device or argument does not fit; the message names it.
    """
    check_floating("experts", experts)
    if experts.dim() not in (4, 5, 6):
        raise ValueError(
            f"experts must have 4, 5 or 6 axes (experts, outputs, inputs, 1 to 3 spatial), "
            f"got shape {tuple(experts.shape)}"
        )
    count, outputs, inputs, *extent = experts.shape
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
    check_input(SimpleNamespace(geometry=g), x, experts, name="x")
    if x.dim() != g.dim + 2:
        raise ValueError(f"x must have {g.dim + 2} axes, got shape {tuple(x.shape)}")
    check_floating("routing", routing)
    if routing.dtype != experts.dtype:
        raise TypeError(
            f"routing must have the dtype of experts, {experts.dtype}, got {routing.dtype}"
        )
    if routing.shape != (x.shape[0], count):
        raise ValueError(
            f"routing must have shape (batch {x.shape[0]}, experts {count}), "
            f"got {tuple(routing.shape)}"
        )
    if bias is not None:
        check_floating("bias", bias)
        if bias.shape not in ((outputs,), (x.shape[0], outputs)):
            raise ValueError(
                f"bias must have shape ({outputs},) or ({x.shape[0]}, {outputs}), "
                f"got {tuple(bias.shape)}"
            )
    return _convolve_each(x, _mixed(routing, experts.flatten(0, 1), g), bias, g)


def _mixed(routing: Tensor, experts: Tensor, g: ConvArguments) -> Tensor:
    """The kernels (B, O, C/groups, *kernel_size) of all samples."""
    mixed = routing @ experts.reshape(routing.shape[1], -1)
    return mixed.unflatten(1, (g.out_channels, g.in_channels // g.groups, *g.kernel_size))


def _convolve_each(x: Tensor, kernels: Tensor, bias: Tensor | None, g: ConvArguments) -> Tensor:
    """Each sample with its own kernel."""
    if torch.compiler.is_exporting() or not x.shape[0]:
        y = _tap_by_tap(g.pad(x), kernels, g)
    else:
        inside = g.padding_mode == "zeros" and all(before == after for before, after in g.pads)
        padding = tuple(before for before, _ in g.pads) if inside else 0
        x = x if inside else g.pad(x)
        batch = x.shape[0]
        flat = x.reshape(1, -1, *x.shape[2:])
        kernel = kernels.flatten(0, 1)
        y = convolution(flat, kernel, None, g.stride, padding, g.dilation, batch * g.groups)
        y = y.view(batch, g.out_channels, *y.shape[2:])
    return y if bias is None else y + bias.to(y.dtype).view(-1, g.out_channels, *[1] * g.dim)


def _tap_by_tap(x: Tensor, kernels: Tensor, g: ConvArguments) -> Tensor:
    """A sum over taps of matrix products (O/groups, C/groups) by (C/groups, positions)."""
    size = output_size(x.shape[2:], g.kernel_size, g.stride, [0] * 2 * g.dim, g.dilation)
    grouped = x.unflatten(1, (g.groups, -1))
    taps = itertools.product(*map(range, g.kernel_size))
    matrices = kernels.unflatten(1, (g.groups, -1)).flatten(4).unbind(-1)
    y = None
    for tap, matrix in zip(taps, matrices, strict=True):
        term = matrix @ shifted(grouped, tap, size, g.stride, g.dilation).flatten(3)
        y = term if y is None else y + term
    assert y is not None  # a kernel has at least one tap
    return y.flatten(1, 2).unflatten(2, size)


class _CondConvNd(ConvLayer):
    """CondConv over N axes (see the module's equation).

    Arguments are torch's, in torch's order, and then, keyword-only:

    Args:
        experts: Number of kernels that are mixed.
    """

    def setup(self, factory: dict[str, Any], *, experts: int = 8) -> None:
        self.experts = args.positive_int("experts", experts)
        outputs, *rest = self.kernel_shape
        self.kernels = new_parameter(self.experts * outputs, *rest, **factory)
        self.routing = new_parameter(self.experts, self.geometry.in_channels, **factory)
        self.routing_bias = new_parameter(self.experts, **factory)

    def reset_parameters(self) -> None:
        """Draw experts so that their mixture by 1/2 has the plain kernel's variance; c is 0."""
        with torch.no_grad():
            bound = self.bound * 2 / math.sqrt(self.experts)
            self.kernels.uniform_(-bound, bound)
            bound = 1 / math.sqrt(self.geometry.in_channels)
            self.routing.uniform_(-bound, bound)
            self.routing_bias.zero_()
            self.reset_bias()

    def route(self, x: Tensor) -> Tensor:
        r"""The routing weights r (B, E) of x (B, C, \*S), each in (0, 1)."""
        return F.linear(x.flatten(2).mean(2), self.routing, self.routing_bias).sigmoid()

    def forward(self, input: Tensor) -> Tensor:
        r"""CondConv of ``input`` (B, C, \*S) or (C, \*S)."""
        check_input(self, input, self.kernels)
        g = self.geometry
        if input.dim() == g.dim + 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        kernels = _mixed(self.route(input), self.kernels, g)
        return _convolve_each(input, kernels, self.bias, g)

    @classmethod
    def from_conv(
        cls, conv: nn.Module, extent: int | tuple[int, ...] | None = None, **own: Any
    ) -> Self:
        """This layer with a trained convolution as the mixture of its experts: the same output.

        R is 0, so that all routing weights are 1/2; the experts differ by what was drawn for them,
        less its mean, so that they learn different things. See
        :func:`omniconv.core.layer.transfer` for the arguments and errors.
        """
        layer, margins = transfer(cls, conv, extent, **own)
        source: Any = conv
        with torch.no_grad():
            drawn = layer.kernels.unflatten(0, (layer.experts, -1))
            kernel = F.pad(source.weight.detach(), margins) * (2 / layer.experts)
            drawn += kernel - drawn.mean(0)
            layer.routing.zero_()
            if source.bias is not None:
                layer.bias.copy_(source.bias)
        return layer

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The official layer's parameters under this layer's names, for ``load_state_dict``.

        Args:
            state_dict: ``condconv_kernel`` (E, height * width * in * out) of a CondConv2D without
                bias, and ``kernel`` (in, E) and ``bias`` (E,) of its block's routing layer; all as
                tensors. This layer has ``bias=False``.

        Raises:
            ValueError: Names or shapes do not fit this layer.
        """
        g = self.geometry
        shapes = {
            "condconv_kernel": (self.experts, math.prod(self.kernel_shape)),
            "kernel": (g.in_channels, self.experts),
            "bias": (self.experts,),
        }
        if set(state_dict) != set(shapes) or g.groups != 1 or g.bias:
            raise ValueError(
                f"state_dict must hold exactly {', '.join(shapes)} for a layer with groups=1 and "
                f"bias=False, got {args.show(sorted(state_dict))}"
            )
        for name, shape in shapes.items():
            if tuple(state_dict[name].shape) != shape:
                raise ValueError(
                    f"{name} must have shape {shape}, got {tuple(state_dict[name].shape)}"
                )
        theirs = (self.experts, *g.kernel_size, g.in_channels, g.out_channels)
        kernels = state_dict["condconv_kernel"].reshape(theirs).movedim((-1, -2), (1, 2))
        return {
            "kernels": kernels.flatten(0, 1),
            "routing": state_dict["kernel"].t(),
            "routing_bias": state_dict["bias"],
        }

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, experts={self.experts}"


class CondConv1d(_CondConvNd):
    dim = 1


class CondConv2d(_CondConvNd):
    dim = 2


class CondConv3d(_CondConvNd):
    dim = 3


def _reference(layer: Any, x: Tensor) -> Tensor:
    """Sample by sample, expert by expert."""
    if x.dim() == layer.geometry.dim + 1:
        return _reference(layer, x.unsqueeze(0)).squeeze(0)
    experts = layer.kernels.chunk(layer.experts)
    outputs = []
    for sample in x:
        pixels = sample.flatten(1).unbind(1)
        mean = sum(pixels[1:], pixels[0]) / len(pixels)
        kernel = torch.zeros_like(experts[0])
        for row, offset, expert in zip(layer.routing, layer.routing_bias, experts, strict=True):
            kernel = kernel + expert / (1 + (-(row * mean).sum() - offset).exp())
        outputs.append(naive_convolution(sample, kernel, layer.bias, layer.geometry))
    return torch.stack(outputs)


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """Mean, routing, mixture and convolution; the input's two gradients are added."""
    g = layer.geometry
    batch = shape[0] if len(shape) == g.dim + 2 else 1
    forward, backward = g.flops(shape)
    outputs = batch * g.out_channels * math.prod(g.output_size(shape[-g.dim :]))
    entries, routes = math.prod(shape), batch * layer.experts
    products = 2 * routes * (g.in_channels + math.prod(layer.kernel_shape))
    forward += products + routes + entries + (outputs if g.bias else 0)
    backward += 2 * products + 4 * routes + 2 * entries
    return forward, backward


def _samples(dim: int) -> tuple[Sample, ...]:
    uneven = tuple((5, 3, 2)[:dim])
    base = {"in_channels": 4, "out_channels": 6, "kernel_size": uneven, "padding": 1}
    return (
        Sample(arguments=base | {"groups": 2, "stride": 2, "experts": 3}, size=(7, 6, 5)[:dim]),
        Sample(arguments=base | {"dilation": 2, "padding": 2, "experts": 1}, size=(9, 6, 7)[:dim]),
    )


def _error_inputs(dim: int) -> tuple[ErrorInput, ...]:
    base = {"in_channels": 4, "out_channels": 4, "kernel_size": 3}
    return (
        ErrorInput(arguments=base | {"experts": 0}, match="experts must be an int of at least 1"),
        ErrorInput(
            arguments=base | {"experts": 2.0}, match="experts must be an int", error=TypeError
        ),
    )


@register
def card() -> Card:
    return Card(
        name="condconv",
        classes={1: CondConv1d, 2: CondConv2d, 3: CondConv3d},
        equation="y_n = (sum_e r_ne W_e) * x_n + b,  r_n = sigmoid(R mean(x_n) + c)",
        summary="A kernel per sample, mixed from experts by the sample's own weights.",
        citation="B. Yang, G. Bender, Q. V. Le, J. Ngiam: CondConv: Conditionally Parameterized "
        "Convolutions for Efficient Inference. NeurIPS 2019",
        claim="EfficientNet-B0 with CondConv: 78.3 % on ImageNet with 413 million multiply-adds "
        "(abstract).",
        source="tensorflow/tpu",
        source_licence="Apache-2.0",
        rows=(67,),
        reference=_reference,
        flops=_flops,
        input_dependent=True,
        preserves_function=True,
        preserves_note="Every plain convolution, exactly: routing weights start at 1/2.",
        equivariance=(),  # the mean runs over the borders too
        default_extent=3,
        kernels=("depthwise",),
        samples=_samples,
        error_inputs=_error_inputs,
    )
