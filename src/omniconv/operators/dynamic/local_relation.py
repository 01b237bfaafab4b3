r"""Local relation layer: each window's weights are a softmax of how well its pixels go together.

.. math::
    y(c, p) = b(c) + \sum_q w(g(c), q, p)\, x(c, p + q), \qquad
    w(g, \cdot, p) = \mathrm{softmax}_q \big( \Phi(Q_g x(p) + a_g, K_g x(p + q)) + G_g(q) \big)

.. math::
    G(q) = V\, \mathrm{relu}(U o(q) + u), \qquad
    \Phi(s, t) = s t, \quad -|s - t| \quad \text{or} \quad -(s - t)^2

Shapes: x (B, C, \*S), y (B, C, \*S'), Q and K (groups, C), a (groups), U (hidden, N), u (hidden),
V (groups, hidden), o (N, \*kernel_size), g(c) = c \* groups // C.

p stands for the pixel under the window's centre tap, (k - 1) // 2 on each axis, and o(q) for the
tap's offset from it in units of half the kernel. Pixels outside of the image are what
``padding_mode`` says and take part in the softmax. A bias of K or of V would change nothing: it
cancels, or a stands for it.

Cost: per position and group 5 prod(kernel_size) for the softmax and 2 or 3 prod(kernel_size) for
the relations, 2 prod(kernel_size) per output, a 1-wide convolution to 2 groups. Memory: x, y and a
few tensors (B, groups, \*kernel_size, \*S').

Source: H. Hu, Z. Zhang, Z. Xie, S. Lin, "Local Relation Networks for Image Recognition", ICCV 2019.

The paper's layer ends with a 1-wide convolution that mixes the channels: follow this one by
``nn.ConvNd(C, O, 1)``, as ``swap_`` does where it replaces a dense convolution.

There is no official code.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.core import args
from omniconv.core.card import Card, ErrorInput, Sample
from omniconv.core.geometry import check_input
from omniconv.core.layer import new_parameter
from omniconv.core.registry import register
from omniconv.math.naive import at, windows
from omniconv.math.shift import shifted
from omniconv.operators.position_mixer import PositionMixer, aggregation_flops, at_most

__all__ = ["LocalRelation1d", "LocalRelation2d", "LocalRelation3d"]

COMPOSABILITIES = ("product", "absolute", "squared")
HALVINGS = 50
FLOOR = 1e-2
"""What an absent tap weighs in a fit, and its share of an equal one."""


def _nearest_shares(kernel: Tensor) -> Tensor:
    """The point nearest to each row among those that are not negative and add up to 1."""
    ordered = kernel.sort(1, descending=True).values
    count = torch.arange(1, kernel.shape[1] + 1, device=kernel.device)
    excess = (ordered.cumsum(1) - 1) / count
    last = (ordered > excess).sum(1, keepdim=True) - 1
    return (kernel - excess.gather(1, last)).clamp_min(0)


def _fitted(units: Tensor, shares: Tensor) -> Tensor:
    """V (groups, hidden), so that softmax(units V) is near shares (groups, taps)."""
    taps = len(units)
    logs = shares.clamp_min(FLOOR / taps).log()
    weight = shares + FLOOR
    columns = torch.cat((units, torch.ones_like(units[:, :1])), 1)
    weighted = weight.unsqueeze(1) * columns.t()
    normal = weighted @ columns
    normal.diagonal(dim1=1, dim2=2).add_(1e-9)
    return torch.linalg.solve(normal, weighted @ logs.unsqueeze(2))[:, :-1, 0]


class _LocalRelationNd(PositionMixer):
    """Local relation layer over N axes (see the module's equation).

    Arguments are torch's, in torch's order: ``out_channels`` equals ``in_channels``, ``groups`` is
    the number of groups of channels that share weights. Then, keyword-only:

    Args:
        group_channels: Channels per group, instead of ``groups`` (the paper's form, with 8).
        composability: How query s and key t are compared: ``"product"``, s t; ``"absolute"``,
            -abs(s - t); ``"squared"``, -(s - t)^2.
        hidden: Width of the geometry prior's hidden layer.
    """

    def setup(
        self,
        factory: dict[str, Any],
        *,
        group_channels: int | None = None,
        composability: str = "product",
        hidden: int = 16,
    ) -> None:
        channels = self.share(group_channels)
        g = self.geometry
        self.composability = args.choice("composability", composability, COMPOSABILITIES)
        self.hidden = args.positive_int("hidden", hidden)
        ones = (1,) * g.dim
        self.query = new_parameter(g.groups, channels, *ones, **factory)
        self.query_bias = new_parameter(g.groups, **factory)
        self.key = new_parameter(g.groups, channels, *ones, **factory)
        self.prior_in = new_parameter(self.hidden, g.dim, **factory)
        self.prior_bias = new_parameter(self.hidden, **factory)
        self.prior_out = new_parameter(g.groups, self.hidden, **factory)

    def reset_parameters(self) -> None:
        """Draw small relations and a prior that is highest at the centre.

        The prior falls so fast that outputs have the variance of a depthwise convolution's: the
        squares of its softmax add up to 1/3. Queries and keys have a variance of 0.1.
        """
        with torch.no_grad():
            bound = math.sqrt(0.3 / self.geometry.in_channels)
            self.query.uniform_(-bound, bound)
            self.key.uniform_(-bound, bound)
            self.query_bias.zero_()
            self.prior_in.uniform_(-1.0, 1.0)
            self.prior_bias.zero_()
            self.prior_out.uniform_(-1.0, 0.0)
            prior = self.prior().flatten(1).to(torch.float64)
            low, high = torch.zeros_like(prior[:, :1]), torch.full_like(prior[:, :1], 1e3)
            for _ in range(HALVINGS):  # the sum grows with the prior's slope
                middle = (low + high) / 2
                flat = (middle * prior).softmax(1).square().sum(1, keepdim=True) < 1.0 / 3.0
                low, high = torch.where(flat, middle, low), torch.where(flat, high, middle)
            self.prior_out.mul_(low.to(self.prior_out.dtype))
            self.reset_bias()

    def hidden_units(self) -> Tensor:
        """The prior's hidden layer, (taps, hidden)."""
        g = self.geometry
        like = self.prior_in
        axes = []
        for k in g.kernel_size:
            centre, unit = (k - 1) // 2, max(1, k // 2)
            ends = -centre / unit, (k - 1 - centre) / unit
            axes.append(torch.linspace(*ends, k, dtype=like.dtype, device=like.device))
        offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
        return F.relu(F.linear(offsets, self.prior_in, self.prior_bias))

    def prior(self) -> Tensor:
        r"""The geometry prior G, (groups, \*kernel_size)."""
        prior = F.linear(self.hidden_units(), self.prior_out)
        return prior.t().unflatten(1, self.geometry.kernel_size)

    def logits(self, x: Tensor) -> Tensor:
        r"""What the softmax is taken of, (B, groups, \*kernel_size, \*S'), for x (B, C, \*S)."""
        g = self.geometry
        convolve = (F.conv1d, F.conv2d, F.conv3d)[g.dim - 1]
        related = g.pad(convolve(x, torch.cat((self.query, self.key))))
        query, key = related.split(g.groups, 1)
        centre = [(k - 1) // 2 for k in g.kernel_size]
        size = g.output_size(x.shape[2:])
        query = shifted(query, centre, size, g.stride, g.dilation)
        query = query + self.query_bias.to(query.dtype).view(-1, *[1] * g.dim)
        query = query.unflatten(1, (g.groups, *[1] * g.dim))
        taps = itertools.product(*map(range, g.kernel_size))
        keys = torch.stack([shifted(key, tap, size, g.stride, g.dilation) for tap in taps], 2)
        keys = keys.unflatten(2, g.kernel_size)
        prior = self.prior()[(..., *[None] * g.dim)]
        if self.composability == "product":
            return query * keys + prior
        apart = query - keys
        return prior - (apart.abs() if self.composability == "absolute" else apart * apart)

    def forward(self, input: Tensor) -> Tensor:
        r"""Local relation layer on ``input`` (B, C, \*S) or (C, \*S)."""
        check_input(self, input, self.query)
        if input.dim() == self.dim + 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        return self.shift(self.aggregate(input, self.logits(input), softmax=True))

    @classmethod
    def from_conv(
        cls, conv: nn.Module, extent: int | tuple[int, ...] | None = None, **own: Any
    ) -> Self:
        """This layer with the prior that comes nearest to a trained depthwise convolution.

        Each group gets the point nearest to its channels' mean kernel among those that are not
        negative and add up to 1, and the prior its logarithms in least squares, weighted by it:
        exactly where there are as many hidden units as taps. Queries start at 0, or at a tenth
        with the keys where only that keeps them learning. See
        :func:`omniconv.core.layer.transfer` for the arguments and errors.

        Raises:
            ValueError: ``conv`` is not depthwise.
        """
        layer, margins = cls.transfer_depthwise(conv, extent, **own)
        source: Any = conv
        with torch.no_grad():
            kernel = F.pad(source.weight.detach(), margins).flatten(1)
            shares = _nearest_shares(kernel.unflatten(0, (layer.groups, -1)).mean(1).double())
            layer.prior_bias.uniform_(-1.0, 1.0)
            layer.prior_out.copy_(_fitted(layer.hidden_units().double(), shares))
            if layer.composability == "product":
                layer.query.zero_()
            else:
                layer.query.mul_(0.1)
                layer.key.mul_(0.1)
            if source.bias is not None:
                layer.bias.copy_(source.bias)
        return layer

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, composability={self.composability!r}"


class LocalRelation1d(_LocalRelationNd):
    dim = 1


class LocalRelation2d(_LocalRelationNd):
    dim = 2


class LocalRelation3d(_LocalRelationNd):
    dim = 3


def _reference(layer: Any, x: Tensor) -> Tensor:
    """Position by position: relations, exponentials, weighted mean of the window."""
    g = layer.geometry
    if x.dim() == g.dim + 1:
        return _reference(layer, x.unsqueeze(0)).squeeze(0)
    each = g.in_channels // g.groups
    taps = itertools.product(*map(range, g.kernel_size))
    prior = torch.stack([_prior(layer, tap) for tap in taps], 1)
    centre = tuple((k - 1) // 2 for k in g.kernel_size)
    cells = []
    for _, under in windows(x, g):
        query = under[at(centre)] @ layer.query.flatten(1).t() + layer.query_bias
        values = under.flatten(2)
        keys = torch.einsum("gc,bct->bgt", layer.key.flatten(1), values)
        shares = (
            (_related(layer, query.unsqueeze(2), keys) + prior).exp().repeat_interleave(each, 1)
        )
        cells.append((shares * values).sum(2) / shares.sum(2))
    y = torch.stack(cells, -1).unflatten(-1, g.output_size(x.shape[2:]))
    return y if layer.bias is None else y + layer.bias.view(-1, *[1] * g.dim)


def _related(layer: Any, query: Tensor, key: Tensor) -> Tensor:
    if layer.composability == "product":
        return query * key
    apart = query - key
    return (
        -(apart**2) if layer.composability == "squared" else torch.where(apart > 0, -apart, apart)
    )


def _prior(layer: Any, tap: tuple[int, ...]) -> Tensor:
    """The prior (groups,) of one tap."""
    hidden = layer.prior_bias
    for axis, (t, k) in enumerate(zip(tap, layer.kernel_size, strict=True)):
        hidden = hidden + layer.prior_in[:, axis] * ((t - (k - 1) // 2) / max(1, k // 2))
    return layer.prior_out @ torch.where(hidden > 0, hidden, torch.zeros_like(hidden))


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """Queries, keys and prior; the relation of each pair; softmax and sums."""
    g = layer.geometry
    batch = shape[0] if len(shape) == g.dim + 2 else 1
    inside, size = shape[-g.dim :], g.output_size(shape[-g.dim :])
    taps, queries = math.prod(g.kernel_size), batch * g.groups * math.prod(size)
    pairs = queries * taps
    forward, backward = aggregation_flops(layer, shape, softmax=True)
    products = 4 * batch * math.prod(inside) * g.in_channels * g.groups
    prior = 2 * taps * layer.hidden * (g.dim + g.groups)
    forward += products + prior + taps * layer.hidden + queries
    backward += 2 * products + 2 * prior - 2 * taps * layer.hidden * g.dim
    backward += 2 * taps * layer.hidden + queries  # relu and biases
    per_pair, back = {"product": (2, 2), "absolute": (3, 4), "squared": (3, 5)}[layer.composability]
    forward += per_pair * pairs
    backward += (back + 1) * pairs + (pairs if taps > 1 else 0)
    padded = [n + sum(pads) for n, pads in zip(inside, g.pads, strict=True)]
    related = (batch, 2 * g.groups, *inside)
    backward += (taps - 1) * batch * g.groups * math.prod(padded)
    return forward, backward + g.pad_flops(related) + math.prod(shape)


def _samples(dim: int) -> tuple[Sample, ...]:
    base = {"in_channels": 4, "out_channels": 4}
    uneven = tuple((4, 3, 2)[:dim])
    return (
        Sample(
            arguments=base
            | {"kernel_size": uneven, "stride": 2, "padding": 1, "group_channels": 2, "hidden": 3},
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
        ErrorInput(arguments=base | {"composability": "square"}, match="did you mean 'squared'"),
        ErrorInput(
            arguments=base | {"composability": None},
            match="composability must be one of",
            error=TypeError,
        ),
        ErrorInput(arguments=base | {"hidden": 0}, match="hidden must be an int of at least 1"),
    )


@register
def card() -> Card:
    return Card(
        name="local_relation",
        role="mixer",
        classes={1: LocalRelation1d, 2: LocalRelation2d, 3: LocalRelation3d},
        variants={
            "default": {},
            "absolute": {"composability": "absolute"},
            "squared": {"composability": "squared"},
        },
        equation="y(c,p) = b(c) + sum_q w(q,p) x(c,p+q),  "
        "w = softmax_q(Phi(Q x(p) + a, K x(p+q)) + G(q))",
        summary="Weights of a window by how well each of its pixels goes with the centre.",
        citation="H. Hu, Z. Zhang, Z. Xie, S. Lin: Local Relation Networks for Image Recognition. "
        "ICCV 2019",
        claim="Greater modelling capacity than regular convolutions on ImageNet, without a figure "
        "(abstract).",
        rows=(310,),
        reference=_reference,
        flops=_flops,
        mixes_channels=False,
        input_dependent=True,
        preserves_note="No convolution exactly by default; the nearest whose taps are positive and "
        "add up to 1, as far as the prior can follow.",
        default_extent=7,
        kernels=("position_varying",),
        channel_multiple=lambda own: own.get("group_channels") or 1,
        samples=_samples,
        error_inputs=_error_inputs,
        adapt=at_most(8),
    )
