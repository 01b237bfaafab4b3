r"""TVConv: a kernel per position and channel, the same for all inputs, generated from learned maps.

.. math::
    y(c, p) = b(c) + \sum_q W(c, q, p)\, x(c, p + q), \qquad W = V * h_m, \qquad
    h_i = \mathrm{relu}(\mathrm{LN}(U_i * h_{i-1})), \qquad h_0 = A

Shapes: x (B, C, \*S), y (B, C, \*S'), affinity maps A (1, affinity_channels, \*feature_size), m =
``blocks`` kernels U of extent 3 and hidden_channels outputs, V (C prod(kernel_size),
hidden_channels, 3, ...), W (1, C, \*kernel_size, \*S'). All convolutions have zero padding and no
bias. LN normalises over channels and positions, with a weight and an offset for every entry.

W is generated on the grid ``feature_size``. Where the output has another one, W is interpolated
linearly between its positions (half-pixel centres, as ``F.interpolate``). For inputs of one size
give that of the output: then nothing is interpolated.

Cost: 2 prod(kernel_size) per output; once for the whole batch, W on its grid, and
2^(N+1) operations per entry of W on another grid.

Source: J. Chen, T. He, W. Zhuo, L. Ma, S. Ha, S.-H. G. Chan, "TVConv: Efficient Translation Variant
Convolution for Layout-aware Visual Processing", CVPR 2022.

The official code refuses other grids, has a network without bias unless it is asked for one from
maps as W is, and has ``TVConv_inter_layers + 1`` blocks of 16 channels (faces: 2; segmentation: 4
of 64). For inference it keeps W; here W is formed at each call, so that it never is out of date.
A starts with ones there and here, so that only the borders tell positions apart until the offsets
of LN have learned. Here V is drawn so that outputs have the variance of a depthwise convolution's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
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
from omniconv.math.precision import output_dtype, wide_dtype, without_autocast
from omniconv.operators.position_mixer import PositionMixer, aggregation_flops

__all__ = ["TVConv1d", "TVConv2d", "TVConv3d"]

EPS = 1e-5
UNUSED = ("TVConv_k", "TVConv_k_square", "stride", "channels", "h", "w")
"""Buffers of the official layer that repeat its arguments."""


class _TVConvNd(PositionMixer):
    """TVConv over N axes (see the module's equation).

    Arguments are torch's, in torch's order: ``out_channels`` equals ``in_channels``. Every channel
    has kernels of its own whatever ``groups`` says, and ``groups = in_channels`` as a depthwise
    layer. Then, keyword-only:

    Args:
        feature_size: Grid of the kernels, an int or one per axis; best the output's.
        affinity_channels: Number of affinity maps.
        hidden_channels: Channels in the network that generates the kernels.
        blocks: Number of convolutions with LN and relu in it.
    """

    def setup(
        self,
        factory: dict[str, Any],
        *,
        feature_size: int | tuple[int, ...] = 7,
        affinity_channels: int = 4,
        hidden_channels: int = 16,
        blocks: int = 2,
    ) -> None:
        channels = self.keep_channels()
        self.regroup(channels)
        g = self.geometry
        self.feature_size = args.ntuple("feature_size", feature_size, g.dim, 1)
        self.affinity_channels = args.positive_int("affinity_channels", affinity_channels)
        self.hidden_channels = args.positive_int("hidden_channels", hidden_channels)
        self.blocks = args.positive_int("blocks", blocks)
        hidden, threes = self.hidden_channels, (3,) * g.dim
        inputs = [self.affinity_channels] + [hidden] * (self.blocks - 1)
        self.affinity = new_parameter(1, self.affinity_channels, *self.feature_size, **factory)
        self.filters = nn.ParameterList(
            new_parameter(hidden, n, *threes, **factory) for n in inputs
        )
        self.scales, self.offsets = (
            nn.ParameterList(
                new_parameter(1, hidden, *self.feature_size, **factory) for _ in inputs
            )
            for _ in range(2)
        )
        self.span = new_parameter(channels * math.prod(g.kernel_size), hidden, *threes, **factory)

    def reset_parameters(self) -> None:
        """Draw U and V; V is scaled so that W has a depthwise convolution's mean square."""
        with torch.no_grad():
            self.affinity.fill_(1.0)
            for kernel in (*self.filters, self.span):
                bound = 1.0 / math.sqrt(math.prod(kernel.shape[1:]))
                kernel.uniform_(-bound, bound)
            for scale, offset in zip(self.scales, self.offsets, strict=True):
                scale.fill_(1.0)
                offset.zero_()
            drawn = self._wide_kernels(self.feature_size).square().mean().sqrt()
            self.span.mul_(self.bound / math.sqrt(3.0) / drawn.clamp_min(1e-6))
            self.reset_bias()

    def kernels(self, size: tuple[int, ...]) -> Tensor:
        r"""The kernels for an output of this spatial size, W, (1, C, \*kernel_size, \*size).

        They are formed in float32 at least, and then rounded to what a convolution would return.
        """
        with without_autocast(self.span.device):
            kernels = self._wide_kernels(size)
        return kernels.to(output_dtype(self.span))

    def _wide_kernels(self, size: tuple[int, ...]) -> Tensor:
        g = self.geometry
        convolve = (F.conv1d, F.conv2d, F.conv3d)[g.dim - 1]
        wide = wide_dtype(self.span)
        hidden = self.affinity.to(wide)
        for kernel, scale, offset in zip(self.filters, self.scales, self.offsets, strict=True):
            hidden = convolve(hidden, kernel.to(wide), padding=1)
            weights = scale[0].to(wide), offset[0].to(wide)
            hidden = F.relu(F.layer_norm(hidden, hidden.shape[1:], *weights, EPS))
        kernels = convolve(hidden, self.span.to(wide), padding=1)
        if size != self.feature_size:
            mode = ("linear", "bilinear", "trilinear")[g.dim - 1]
            kernels = F.interpolate(kernels, size, mode=mode, align_corners=False)
        return kernels.unflatten(1, (g.in_channels, *g.kernel_size))

    def forward(self, input: Tensor) -> Tensor:
        r"""TVConv of ``input`` (B, C, \*S) or (C, \*S)."""
        check_input(self, input, self.affinity)
        g = self.geometry
        if input.dim() == g.dim + 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        kernels = self.kernels(g.output_size(input.shape[2:]))
        return self.shift(self.aggregate(input, kernels))

    @classmethod
    def from_conv(
        cls, conv: nn.Module, extent: int | tuple[int, ...] | None = None, **own: Any
    ) -> Self:
        """This layer with a trained depthwise convolution's kernels at every position.

        The last LN starts constant; what was drawn for V, less its mean over the hidden channels,
        stays, so that these learn different things. See :func:`omniconv.core.layer.transfer` for
        the arguments and errors.

        Raises:
            ValueError: ``conv`` is not depthwise.
        """
        layer, margins = cls.transfer_depthwise(conv, extent, **own)
        source: Any = conv
        with torch.no_grad():
            kernel = F.pad(source.weight.detach(), margins).flatten()
            layer.scales[-1].zero_()
            layer.offsets[-1].fill_(1.0)
            layer.span -= layer.span.mean(1, keepdim=True)
            centre = layer.span[at((1,) * layer.geometry.dim)]
            centre += kernel.view(-1, 1) / layer.hidden_channels
            if source.bias is not None:
                layer.bias.copy_(source.bias)
        return layer

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The official layer's parameters under this layer's names, for ``load_state_dict``.

        Args:
            state_dict: That of an official layer with ``TVConv_Bias=False``. It fits a layer with
                ``bias=False``, its kernel size and stride, ``padding=(kernel_size - 1) // 2``,
                ``feature_size=(h, w)`` and ``blocks=TVConv_inter_layers + 1``.

        Raises:
            ValueError: A name is missing or unknown.
        """
        names = {"posi_map": "affinity", f"weight_layers.{self.blocks}.weight": "span"}
        for i in range(self.blocks):
            names[f"weight_layers.{i}.0.weight"] = f"filters.{i}"
            names[f"weight_layers.{i}.1.weight"] = f"scales.{i}"
            names[f"weight_layers.{i}.1.bias"] = f"offsets.{i}"
        given = set(state_dict) - set(UNUSED)
        if given != set(names):
            raise ValueError(
                f"state_dict must hold {', '.join(names)} for a layer with blocks={self.blocks}, "
                f"got {args.show(sorted(given))}"
            )
        found = {ours: state_dict[theirs] for theirs, ours in names.items()}
        whole = ("scales.", "offsets.")  # theirs have no batch axis
        return {k: v.unsqueeze(0) if k.startswith(whole) else v for k, v in found.items()}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, feature_size={self.feature_size}, blocks={self.blocks}"


class TVConv1d(_TVConvNd):
    dim = 1


class TVConv2d(_TVConvNd):
    dim = 2


class TVConv3d(_TVConvNd):
    dim = 3


def _reference(layer: Any, x: Tensor) -> Tensor:
    """Entry by entry: the network's convolutions, the interpolation, the sum over the window."""
    g = layer.geometry
    if x.dim() == g.dim + 1:
        return _reference(layer, x.unsqueeze(0)).squeeze(0)
    hidden = layer.affinity[0]
    for kernel, scale, offset in zip(layer.filters, layer.scales, layer.offsets, strict=True):
        hidden = _thrice(hidden, kernel)
        centred = hidden - hidden.mean()
        hidden = centred / ((centred * centred).mean() + EPS).sqrt()
        hidden = (hidden * scale[0] + offset[0]).relu()
    kernels = _thrice(hidden, layer.span).unflatten(0, (g.in_channels, -1))
    size = g.output_size(x.shape[2:])
    cells = [
        (under.flatten(2) * _between(kernels, position, size)).sum(-1)
        for position, under in windows(x, g)
    ]
    y = torch.stack(cells, -1).unflatten(-1, size)
    return y if layer.bias is None else y + layer.bias.view(-1, *[1] * g.dim)


def _thrice(x: Tensor, kernel: Tensor) -> Tensor:
    """x (C, \\*size), zero outside, convolved with a kernel (O, C, 3, ...), tap by tap."""
    wide = x.new_zeros(x.shape[0], *(n + 2 for n in x.shape[1:]))
    wide[(slice(None), *(slice(1, -1) for _ in x.shape[1:]))] = x
    total = x.new_zeros(kernel.shape[0], *x.shape[1:])
    for tap in itertools.product(range(3), repeat=x.dim() - 1):
        under = [slice(t, t + n) for t, n in zip(tap, x.shape[1:], strict=True)]
        total = total + torch.einsum("oc,c...->o...", kernel[at(tap)], wide[(slice(None), *under)])
    return total


def _between(kernels: Tensor, position: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """The kernels (C, taps) of one of ``size`` positions, on the grid of (C, taps, \\*grid)."""
    for p, n in zip(position, size, strict=True):
        grid = kernels.shape[2]
        place = min(max((p + 0.5) * grid / n - 0.5, 0.0), grid - 1.0)
        below = int(place)
        share = place - below
        kernels = (1 - share) * kernels[:, :, below] + share * kernels[
            :, :, min(below + 1, grid - 1)
        ]
    return kernels


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """Convolutions, LN and relu on the kernels' grid, their interpolation, the sums."""
    g = layer.geometry
    cells = math.prod(layer.feature_size)
    products = 2 * cells * sum(p.numel() for p in (*layer.filters, layer.span))
    hidden = layer.blocks * layer.hidden_channels * cells
    forward, backward = aggregation_flops(layer, shape, shared=True)
    forward += products + 8 * hidden
    backward += 2 * products + 14 * hidden
    size = g.output_size(shape[-g.dim :])
    if size != layer.feature_size:
        entries = g.in_channels * math.prod(g.kernel_size) * math.prod(size)
        forward += 2 ** (g.dim + 1) * entries
        backward += 2 ** (g.dim + 1) * entries
    return forward, backward


def _samples(dim: int) -> tuple[Sample, ...]:
    uneven = tuple((4, 3, 2)[:dim])
    base = {"in_channels": 3, "out_channels": 3, "kernel_size": uneven, "hidden_channels": 3}
    return (
        Sample(
            arguments=base
            | {"stride": 2, "padding": 1, "feature_size": (3, 3, 3)[:dim], "blocks": 1},
            size=(7, 6, 5)[:dim],
        ),
        Sample(
            arguments=base
            | {
                "dilation": 2,
                "padding": 2,
                "feature_size": (2, 5, 1)[:dim],
                "affinity_channels": 1,
            },
            size=(9, 6, 7)[:dim],
        ),
    )


def _error_inputs(dim: int) -> tuple[ErrorInput, ...]:
    base = {"in_channels": 4, "out_channels": 4, "kernel_size": 3}
    return (
        ErrorInput(arguments=base | {"out_channels": 8}, match="out_channels must equal in_ch"),
        ErrorInput(arguments=base | {"feature_size": 0}, match="feature_size must be an int"),
        ErrorInput(
            arguments=base | {"feature_size": None},
            match="feature_size must be an int",
            error=TypeError,
        ),
        ErrorInput(arguments=base | {"affinity_channels": 0}, match="affinity_channels must be"),
        ErrorInput(arguments=base | {"hidden_channels": -1}, match="hidden_channels must be"),
        ErrorInput(arguments=base | {"blocks": 0}, match="blocks must be an int of at least 1"),
    )


@register
def card() -> Card:
    return Card(
        name="tvconv",
        role="mixer",
        classes={1: TVConv1d, 2: TVConv2d, 3: TVConv3d},
        equation="y(c,p) = b(c) + sum_q W(c,q,p) x(c,p+q),  W = V * relu(LN(U * ... A))",
        summary="A kernel per position and channel, generated from learned maps, not the input.",
        citation="J. Chen, T. He, W. Zhuo, L. Ma, S. Ha, S.-H. G. Chan: TVConv: Efficient "
        "Translation Variant Convolution for Layout-aware Visual Processing. CVPR 2022",
        claim="Face recognition against depthwise convolution: up to 3.1 times less compute and "
        "2.3 times the throughput at a high accuracy; up to +4.21 % mean accuracy at equal "
        "compute (abstract).",
        source="JierunChen/TVConv",
        source_licence="MIT",
        rows=(71,),
        reference=_reference,
        flops=_flops,
        mixes_channels=False,
        preserves_function=True,
        preserves_note="Every depthwise convolution, exactly.",
        equivariance=(),  # kernels depend on the position
        kernels=("position_varying",),
        samples=_samples,
        error_inputs=_error_inputs,
    )
