r"""Recursive gated convolution: products of a depthwise convolution's outputs, order after order.

.. math::
    (p_0, q_0, \dots, q_{n-1}) = \phi_{in}(x), \qquad
    p_{k+1} = s\, D_k(q_k) \cdot g_k(p_k), \qquad y = \phi_{out}(p_n) + b

:math:`\phi_{in}, \phi_{out}` and :math:`g_k` are 1-wide convolutions (:math:`g_0` is the identity),
:math:`D_k` the parts of one depthwise convolution. :math:`q_k` has
:math:`C_k = \max(1, \lfloor C / 2^{n-1-k} \rfloor)` channels, :math:`p_0` has :math:`C_0`.

Shapes: x (B, C, \*S), y (B, O, \*S'), project_in (C_0 + sum C_k, C), which is 2 C rows where
2^(n-1) divides C, depthwise (sum C_k, 1, \*kernel_size), mixes[k-1] (C_k, C_(k-1)), project_out
(O, C). Each group of channels is a layer of its own.

Stride, padding and dilation are the depthwise convolution's; :math:`p_0` is taken under the
window's centre tap, (kernel_size - 1) // 2. Padding surrounds :math:`\phi_{in}(x)`.

Cost: 1-wide convolutions C -> 2 C and C -> O, sum C_(k-1) C_k between the orders (below C^2 2/3),
2 prod(kernel_size) for each of sum C_k < 2 C channels.

Source: Y. Rao, W. Zhao, Y. Tang, J. Zhou, S.-N. Lim, J. Lu, "HorNet: Efficient High-Order Spatial
Interactions with Recursive Gated Convolutions", NeurIPS 2022.

The official code multiplies by s (HorNet passes 1/3; the paper divides by alpha), keeps the
number of channels, and has odd square kernels of 7, stride 1 and "same" padding; there the numbers
agree. It needs channels that 2^(n-1) divides. Its variant with a global filter is not here.
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
from omniconv.core.geometry import check_floating, check_input
from omniconv.core.layer import ConvLayer, new_parameter, transfer
from omniconv.core.registry import register
from omniconv.kernels.convolve import convolution
from omniconv.math.groups import join_groups
from omniconv.math.naive import at, windows
from omniconv.math.shift import shifted

__all__ = ["GnConv1d", "GnConv2d", "GnConv3d", "recursive_gating"]

OFFICIAL = {"proj_in": "project_in", "dwconv": "depthwise", "proj_out": "project_out"}


def recursive_gating(
    p: Tensor, gates: Sequence[Tensor], mixes: Sequence[tuple[Tensor, Tensor]], groups: int = 1
) -> Tensor:
    r"""Multiply by one gate after the other, with a 1-wide convolution in between.

    .. math:: p_1 = q_0\, p_0, \qquad p_{k+1} = q_k\, (G_k p_k + c_k)

    Args:
        p: (B, C_0, \*S), one to three spatial axes.
        gates: The n gates :math:`q_k`, (B, C_k, \*S).
        mixes: n - 1 pairs :math:`G_k` (C_k, C_(k-1)/groups, 1, ...) and :math:`c_k` (C_k,).
        groups: Groups of the 1-wide convolutions.

    Returns:
        :math:`p_n`, shaped as the last gate.

    Raises:
        TypeError: ``p`` or a gate is not a floating-point tensor.
        ValueError: Numbers or shapes do not fit.
    """
    check_floating("p", p)
    dim = p.dim() - 2
    if dim not in (1, 2, 3):
        raise ValueError(f"p must have 3 to 5 axes, got shape {tuple(p.shape)}")
    groups = args.positive_int("groups", groups)
    for name, given in (("gates", gates), ("mixes", mixes)):
        if not isinstance(given, (list, tuple)):
            raise TypeError(f"{name} must be a list or tuple, got {args.show(given)}")
    if not gates:
        raise ValueError("gates must hold at least one tensor, got none")
    if len(mixes) != len(gates) - 1:
        raise ValueError(
            f"mixes must be one fewer than gates, got {len(mixes)} for {len(gates)} gates"
        )
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dim - 1]
    for k, gate in enumerate(gates):
        check_floating(f"gates[{k}]", gate)
        if k:
            p = convolve(p, *_mix(mixes, k - 1, p, groups), groups=groups)
        if gate.shape != p.shape:
            raise ValueError(
                f"gates[{k}] must have shape {tuple(p.shape)}, got {tuple(gate.shape)}"
            )
        p = p * gate
    return p


def _mix(mixes: Sequence[Any], k: int, p: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The k-th kernel and bias, which must fit p."""
    pair = mixes[k]
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise TypeError(f"mixes[{k}] must be a pair of tensors, got {args.show(pair)}")
    weight, bias = pair
    check_floating(f"mixes[{k}][0]", weight)
    check_floating(f"mixes[{k}][1]", bias)
    if p.shape[1] % groups or len(weight) % groups:
        raise ValueError(f"groups must divide {p.shape[1]} and {len(weight)}, got {groups}")
    shape = (len(weight), p.shape[1] // groups, *[1] * (p.dim() - 2))
    if weight.shape != shape:
        raise ValueError(f"mixes[{k}][0] must have shape {shape}, got {tuple(weight.shape)}")
    if bias.shape != shape[:1]:
        raise ValueError(f"mixes[{k}][1] must have shape {shape[:1]}, got {tuple(bias.shape)}")
    return weight, bias


class _GnConvNd(ConvLayer):
    """Recursive gated convolution over N axes (see the module's equation).

    Arguments are torch's, in torch's order, and then, keyword-only:

    Args:
        order: Number of gates n (HorNet: 2 to 5, from stage to stage; the official default is 5).
        scale: Factor s on the depthwise convolution's output, above 0.
    """

    def setup(self, factory: dict[str, Any], *, order: int = 3, scale: float = 1.0) -> None:
        g = self.geometry
        self.order = args.positive_int("order", order)
        self.scale = args.real("scale", scale, 0.0, exclusive=True)
        each, ones = g.in_channels // g.groups, (1,) * g.dim
        self.widths = tuple(max(1, each >> k) for k in reversed(range(self.order)))
        """Channels of the gates, per group."""
        gates = g.groups * sum(self.widths)
        rows = gates + g.groups * self.widths[0]
        self.project_in = new_parameter(rows, each, *ones, **factory)
        self.project_in_bias = new_parameter(rows, **factory)
        self.depthwise = new_parameter(gates, 1, *g.kernel_size, **factory)
        self.depthwise_bias = new_parameter(gates, **factory)
        pairs = list(itertools.pairwise(self.widths))
        self.mixes = nn.ParameterList(
            [new_parameter(g.groups * to, of, *ones, **factory) for of, to in pairs]
        )
        self.mix_biases = nn.ParameterList(
            [new_parameter(g.groups * to, **factory) for _, to in pairs]
        )
        self.project_out = new_parameter(g.out_channels, each, *ones, **factory)

    def reset_parameters(self) -> None:
        """Draw rows of unit norm, and ``project_out`` for the plain layer's output variance.

        All factors of a product then have variance 1 whatever their number; inner biases are 0.
        """
        with torch.no_grad():
            for rows in (self.project_in, self.depthwise, *self.mixes):
                nn.init.uniform_(rows, -1.0, 1.0)
                rows.div_(
                    torch.linalg.vector_norm(rows, dim=tuple(range(1, rows.dim())), keepdim=True)
                )
            for bias in (self.project_in_bias, self.depthwise_bias, *self.mix_biases):
                bias.zero_()
            bound = 1.0 / math.sqrt(self.project_out.shape[1])
            nn.init.uniform_(self.project_out, -bound, bound)
            self.reset_bias()

    def forward(self, input: Tensor) -> Tensor:
        r"""Recursive gated convolution of ``input`` (B, C, \*S) or (C, \*S)."""
        check_input(self, input, self.project_in)
        g = self.geometry
        if input.dim() == g.dim + 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[g.dim - 1]
        total = sum(self.widths)
        hidden = g.pad(convolve(input, self.project_in, self.project_in_bias, groups=g.groups))
        p, q = _split(hidden, (self.widths[0], total), g.groups)
        q = convolution(
            q,
            self.depthwise * self.scale,
            self.depthwise_bias * self.scale,
            stride=g.stride,
            dilation=g.dilation,
            groups=g.groups * total,
        )
        centre = tuple((k - 1) // 2 for k in g.kernel_size)
        p = shifted(p, centre, q.shape[2:], g.stride, g.dilation)
        gates = _split(q, self.widths, g.groups)
        mixes = list(zip(self.mixes, self.mix_biases, strict=True))
        p = recursive_gating(p, gates, mixes, g.groups)
        return convolve(p, self.project_out, self.bias, groups=g.groups)

    @classmethod
    def from_conv(
        cls, conv: nn.Module, extent: int | tuple[int, ...] | None = None, **own: Any
    ) -> Self:
        """This layer as the depthwise and pointwise convolution nearest to a trained one.

        The last gate multiplies by 1; it sees the input itself, and each input channel gets the
        best kernel that all outputs share up to a factor. That is exact for depthwise and for
        1-wide convolutions. Lower orders keep their fresh values and join as they are learned.
        ``groups`` may divide those of ``conv``: the channels of several groups are mixed later.
        See :func:`omniconv.core.layer.transfer` for the arguments and errors.
        """
        layer, margins = transfer(cls, conv, extent, **own)
        source: Any = conv
        g = layer.geometry
        last = layer.widths[-1]
        with torch.no_grad():
            kernel = F.pad(source.weight.detach(), margins).double()
            kernel = join_groups(kernel, source.groups, g.groups).flatten(2)
            kernel = kernel.unflatten(0, (g.groups, -1)).transpose(1, 2)  # (g, i, o, taps)
            left, values, right = torch.linalg.svd(kernel, full_matrices=False)
            factors = (left[..., 0] * values[..., :1]).transpose(1, 2)  # (g, o, i)
            layer.project_out.copy_(factors.reshape(layer.project_out.shape))
            rows = layer.project_in.view(g.groups, -1, last)
            rows[:, -last:] = torch.eye(last, dtype=rows.dtype, device=rows.device)
            taps = layer.depthwise.view(g.groups, -1, right.shape[-1])
            taps[:, -last:] = (right[..., 0, :] / layer.scale).to(taps)
            if layer.order > 1:
                layer.mixes[-1].zero_()
                layer.mix_biases[-1].fill_(1)
            else:
                rows[:, : layer.widths[0]] = 0
                layer.project_in_bias.view(g.groups, -1)[:, : layer.widths[0]] = 1
            if source.bias is not None:
                layer.bias.copy_(source.bias)
        return layer

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The official layer's parameters, for this layer's ``load_state_dict``.

        They fit a layer with ``kernel_size=7, padding=3``, its order and scale, equal channels,
        one group and a bias.

        Raises:
            ValueError: Names or shapes do not fit this layer.
        """
        names = {f"{theirs}.weight": ours for theirs, ours in OFFICIAL.items()}
        names |= {f"{theirs}.bias": f"{ours}_bias" for theirs, ours in OFFICIAL.items()}
        names["proj_out.bias"] = "bias"
        for k in range(self.order - 1):
            names |= {f"pws.{k}.weight": f"mixes.{k}", f"pws.{k}.bias": f"mix_biases.{k}"}
        if set(state_dict) != set(names):
            raise ValueError(
                f"state_dict must hold exactly {', '.join(names)}, "
                f"got {args.show(sorted(state_dict))}"
            )
        wanted = self.state_dict()
        for theirs, ours in names.items():
            shape = tuple(wanted[ours].shape) if ours in wanted else None
            if tuple(state_dict[theirs].shape) != shape:
                raise ValueError(
                    f"{theirs} must have shape {shape}, got {tuple(state_dict[theirs].shape)}"
                )
        return {ours: state_dict[theirs] for theirs, ours in names.items()}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, order={self.order}, scale={self.scale:g}"


def _split(x: Tensor, widths: Sequence[int], groups: int) -> list[Tensor]:
    """Parts of these widths in each group's channels, (B, groups * width, ...) each."""
    parts = x.unflatten(1, (groups, sum(widths))).split(list(widths), 2)
    return [part.flatten(1, 2) for part in parts]


class GnConv1d(_GnConvNd):
    dim = 1


class GnConv2d(_GnConvNd):
    dim = 2


class GnConv3d(_GnConvNd):
    dim = 3


def _reference(layer: Any, x: Tensor) -> Tensor:
    """Group by group, position by position."""
    g = layer.geometry
    if x.dim() == g.dim + 1:
        return _reference(layer, x.unsqueeze(0)).squeeze(0)
    outputs = []
    for group, part in enumerate(x.unflatten(1, (g.groups, -1)).unbind(1)):

        def rows(tensor: Tensor, group: int = group) -> Tensor:
            return tensor.flatten(1).chunk(g.groups)[group]

        def values(bias: Tensor, group: int = group) -> Tensor:
            return bias.chunk(g.groups)[group]

        hidden = torch.einsum("oc,bc...->bo...", rows(layer.project_in), part)
        hidden = hidden + values(layer.project_in_bias).view(-1, *[1] * g.dim)
        cells = []
        for _, under in windows(hidden, g):
            first = layer.widths[0]
            middle = [(k - 1) // 2 for k in g.kernel_size]
            p = under[at(middle)][:, :first]
            q = (under[:, first:].flatten(2) * rows(layer.depthwise)).sum(-1)
            q = (q + values(layer.depthwise_bias)) * layer.scale
            for k, gate in enumerate(q.split(layer.widths, 1)):
                if k:
                    p = p @ rows(layer.mixes[k - 1]).T + values(layer.mix_biases[k - 1])
                p = p * gate
            cells.append(p @ rows(layer.project_out).T)
        outputs.append(torch.stack(cells, -1))
    y = torch.cat(outputs, 1).unflatten(-1, g.output_size(x.shape[2:]))
    return y if layer.bias is None else y + layer.bias.view(-1, *[1] * g.dim)


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """Projections, depthwise convolution with its scaled kernel, products and mixes."""
    g = layer.geometry
    batch = shape[0] if len(shape) == g.dim + 2 else 1
    size = shape[-g.dim :]
    inputs, outputs = batch * math.prod(size), batch * math.prod(g.output_size(size))
    rows, each = layer.project_in.shape[:2]
    gates = len(layer.depthwise)
    convolutions = [  # (sites, rows, terms, whether there is a bias)
        (inputs, rows, each, True),
        (outputs, gates, math.prod(g.kernel_size), True),
        *((outputs, len(mix), mix.shape[1], True) for mix in layer.mixes),
        (outputs, g.out_channels, each, g.bias),
    ]
    forward = sum(2 * sites * count * terms for sites, count, terms, _ in convolutions)
    backward = 2 * forward + sum(sites * count for sites, count, _, bias in convolutions if bias)
    scaled = layer.depthwise.numel() + gates
    backward += g.pad_flops((batch, rows, *size))
    return forward + scaled + outputs * gates, backward + scaled + 2 * outputs * gates


def _adapt(conv: Any) -> dict[str, int]:
    """One group in place of a depthwise convolution, as in HorNet."""
    return {"groups": 1} if conv.groups == conv.in_channels else {}


def _samples(dim: int) -> tuple[Sample, ...]:
    base = {"in_channels": 8, "out_channels": 8, "padding": 1}
    uneven = tuple((4, 3, 2)[:dim])
    return (
        Sample(arguments=base | {"kernel_size": uneven, "stride": 2}, size=(6, 5, 4)[:dim]),
        Sample(
            arguments=base | {"kernel_size": 3, "groups": 2, "padding": 3}, size=(3, 2, 2)[:dim]
        ),
    )


def _error_inputs(dim: int) -> tuple[ErrorInput, ...]:
    base = {"in_channels": 4, "out_channels": 4, "kernel_size": 3}
    return (
        ErrorInput(arguments=base | {"order": 0}, match="order must be an int of at least 1, got"),
        ErrorInput(arguments=base | {"order": 2.0}, match="order must be an int", error=TypeError),
        ErrorInput(arguments=base | {"scale": 0}, match="scale must be a finite number in"),
        ErrorInput(arguments=base | {"scale": "1"}, match="scale must be", error=TypeError),
    )


@register
def card() -> Card:
    return Card(
        name="gnconv",
        classes={1: GnConv1d, 2: GnConv2d, 3: GnConv3d},
        variants={
            "default": {},
            "order1": {"order": 1},
            "order5": {"order": 5, "scale": 1 / 3},
        },
        equation="(p0, q0..q(n-1)) = proj_in x,  p(k+1) = s DW(qk) gk(pk),  y = b + proj_out pn",
        summary="Products of depthwise outputs, order after order, with growing width.",
        citation="Y. Rao, W. Zhao, Y. Tang, J. Zhou, S.-N. Lim, J. Lu: HorNet: Efficient "
        "High-Order Spatial Interactions with Recursive Gated Convolutions. NeurIPS 2022",
        claim="HorNet with 7x7 kernels on ImageNet-1k: 82.8 % (T, 4.0 GFLOPs), 84.0 % (S, 8.8), "
        "84.3 % (B, 15.6) top-1 (table of the released models); above Swin and ConvNeXt of similar "
        "design on ImageNet, COCO and ADE20K (abstract, without figures).",
        source="raoyongming/HorNet",
        source_licence="MIT",
        rows=(82,),
        reference=_reference,
        flops=_flops,
        preserves_function=False,
        preserves_note="Depthwise and 1-wide convolutions, exactly; else the nearest depthwise "
        "convolution followed by a 1-wide one.",
        default_extent=7,
        kernels=("depthwise",),
        samples=_samples,
        error_inputs=_error_inputs,
        adapt=_adapt,
    )
