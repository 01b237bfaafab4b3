r"""LS (large-small) convolution: a large kernel perceives, a small generated one aggregates.

.. math::
    y(c, p) = b(c) + \sum_q H(g(c), q, p)\, x(c, p + q), \qquad
    H = \mathrm{GN}(W_3\, \mathrm{relu}(\mathrm{BN}(W_2\, \mathrm{BN}(D *
    \mathrm{relu}(\mathrm{BN}(W_1 x))))) + c_3)

Shapes: x (B, C, \*S), y (B, C, \*S'), W1 (C/2, C), D (C/2, 1, \*large_kernel), W2 (C/2, C/2),
W3 (groups \* prod(kernel_size), C/2), H (B, groups, \*kernel_size, \*S'), g(c) = c mod groups: the
channels of a group lie ``groups`` apart.

:math:`D *` is a depthwise convolution centred on the window's centre tap, (k - 1) // 2 on each
axis, with the layer's stride and dilation 1; its input is 0 outside of the image in every
``padding_mode``. GN normalises each group's kernels over taps and positions.

Cost: 2 prod(kernel_size) per output, three 1-wide convolutions and a depthwise one over C/2
channels. Memory: x, y, H and a few maps of C/2 channels.

Source: A. Wang, H. Chen, Z. Lin, J. Han, G. Ding, "LSNet: See Large, Focus Small", CVPR 2025.

The official code calls the block by the layer's name, ``x + BN(y)`` with this y; the paper's LS
convolution is perception and aggregation. It has 8 channels in a group, 3x3 under 7x7, no bias and
stride 1; there the numbers agree. GN starts with 1, as BN comes after it; here outputs start with
the variance of a depthwise convolution's.
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
from omniconv.kernels.convolve import convolution
from omniconv.math.naive import at, windows
from omniconv.math.precision import wide_dtype
from omniconv.operators.position_mixer import PositionMixer, aggregation_flops, at_most

__all__ = ["LSConv1d", "LSConv2d", "LSConv3d"]

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
OFFICIAL = {
    "cv1.c.weight": "reduce",
    **{f"cv1.bn.{name}": f"reduce_norm.{name}" for name in NORM},
    "cv2.c.weight": "perceive",
    **{f"cv2.bn.{name}": f"perceive_norm.{name}" for name in NORM},
    "cv3.c.weight": "mix",
    **{f"cv3.bn.{name}": f"mix_norm.{name}" for name in NORM},
    "cv4.weight": "span",
    "cv4.bias": "span_bias",
    "norm.weight": "scale",
    "norm.bias": "offset",
}
EPS = 1e-5


def _margins(shape: Sequence[int], large: Sequence[int], g: ConvArguments) -> list[tuple[int, int]]:
    """Zeros to add (negative: values to drop) per axis, so that D's windows are where H's are."""
    margins = []
    for axis, (n, out) in enumerate(zip(shape, g.output_size(shape), strict=True)):
        centre = g.dilation[axis] * ((g.kernel_size[axis] - 1) // 2) - g.pads[axis][0]
        before = (large[axis] - 1) // 2 - centre
        margins.append((before, (out - 1) * g.stride[axis] + large[axis] - n - before))
    return margins


def _by_group(x: Tensor, groups: int) -> Tensor:
    """Channels c = j groups + g in the order (g, j)."""
    return x.unflatten(1, (-1, groups)).transpose(1, 2).flatten(1, 2)


def _batch_norm(norm: Any, x: Tensor) -> Tensor:
    """``norm(x)``, in the dtype of x where the parameters are in half precision."""
    wide = wide_dtype(norm.weight)
    if norm.weight.dtype == wide:
        y: Tensor = norm(x)
        return y
    mean, var = norm.running_mean.to(wide), norm.running_var.to(wide)
    weights = norm.weight.to(wide), norm.bias.to(wide)
    y = F.batch_norm(x, mean, var, *weights, norm.training, norm.momentum, norm.eps)
    if norm.training:
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
        norm.num_batches_tracked.add_(1)
    return y


class _LSConvNd(PositionMixer):
    """LS convolution over N axes (see the module's equation).

    Arguments are torch's, in torch's order: ``out_channels`` equals ``in_channels``,
    ``kernel_size`` is the small kernel's, ``groups`` the number of groups of channels that share
    one. Then, keyword-only:

    Args:
        group_channels: Channels per group, instead of ``groups`` (the paper's form, with 8).
        large_kernel: Extent of the kernel that perceives, an int or one per axis.

    In training mode batch normalisation needs more than one position in the batch.
    """

    def setup(
        self,
        factory: dict[str, Any],
        *,
        group_channels: int | None = None,
        large_kernel: int | tuple[int, ...] = 7,
    ) -> None:
        channels = self.share(group_channels)
        g = self.geometry
        self.large_kernel = args.ntuple("large_kernel", large_kernel, g.dim, 1)
        hidden, ones = max(1, channels // 2), (1,) * g.dim
        kernels = g.groups * math.prod(g.kernel_size)
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[g.dim - 1]
        self.reduce = new_parameter(hidden, channels, *ones, **factory)
        self.reduce_norm = norm(hidden, eps=EPS, **factory)
        self.perceive = new_parameter(hidden, 1, *self.large_kernel, **factory)
        self.perceive_norm = norm(hidden, eps=EPS, **factory)
        self.mix = new_parameter(hidden, hidden, *ones, **factory)
        self.mix_norm = norm(hidden, eps=EPS, **factory)
        self.span = new_parameter(kernels, hidden, *ones, **factory)
        self.span_bias = new_parameter(kernels, **factory)
        self.scale = new_parameter(kernels, **factory)
        self.offset = new_parameter(kernels, **factory)

    def reset_parameters(self) -> None:
        """Draw W1, D, W2 and W3; GN gives outputs the variance of a depthwise convolution's."""
        with torch.no_grad():
            for kernel in (self.reduce, self.perceive, self.mix, self.span):
                bound = math.sqrt(3.0 / math.prod(kernel.shape[1:]))
                kernel.uniform_(-bound, bound)
            for norm in (self.reduce_norm, self.perceive_norm, self.mix_norm):
                norm.reset_parameters()
            self.span_bias.zero_()
            # the depthwise kernel has mean square 1 / (3 taps)
            self.scale.fill_(self.bound / math.sqrt(3.0))
            self.offset.zero_()
            self.reset_bias()

    def kernels(self, x: Tensor) -> Tensor:
        r"""The kernels generated from x (B, C, \*S): H, (B, groups, \*kernel_size, \*S').

        A layer in half precision forms them in float32 and rounds them once.
        """
        g = self.geometry
        dtype, wide = self.span.dtype, wide_dtype(self.span)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[g.dim - 1]
        x = x if dtype == wide else x.to(wide)
        hidden = F.relu(_batch_norm(self.reduce_norm, convolve(x, self.reduce.to(wide))))
        margins = [
            m for pair in reversed(_margins(x.shape[2:], self.large_kernel, g)) for m in pair
        ]
        hidden = F.pad(hidden, margins) if any(margins) else hidden
        perceive = self.perceive.to(wide)
        hidden = convolution(hidden, perceive, None, g.stride, 0, 1, hidden.shape[1])
        hidden = convolve(_batch_norm(self.perceive_norm, hidden), self.mix.to(wide))
        hidden = F.relu(_batch_norm(self.mix_norm, hidden))
        kernels = convolve(hidden, self.span.to(wide), self.span_bias.to(wide))
        weights = self.scale.to(wide), self.offset.to(wide)
        kernels = F.group_norm(kernels, g.groups, *weights, EPS)
        kernels = kernels if dtype == wide else kernels.to(dtype)
        return kernels.unflatten(1, (g.groups, *g.kernel_size))

    def forward(self, input: Tensor) -> Tensor:
        r"""LS convolution of ``input`` (B, C, \*S) or (C, \*S)."""
        check_input(self, input, self.reduce)
        g = self.geometry
        if input.dim() == g.dim + 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        size = g.output_size(input.shape[2:])
        if self.training and input.shape[0] * min(math.prod(input.shape[2:]), math.prod(size)) == 1:
            raise ValueError(
                f"input must have and give more than one position in training mode (batch "
                f"normalisation), got one for shape {tuple(input.shape)}; call eval() or use a "
                f"larger batch"
            )
        y = self.aggregate(_by_group(input, g.groups), self.kernels(input))
        return self.shift(_by_group(y, g.in_channels // g.groups))

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
            layer.scale.zero_()
            layer.offset.copy_(kernel.unflatten(0, (-1, layer.groups)).mean(0).flatten())
            if source.bias is not None:
                layer.bias.copy_(source.bias)
        return layer

    @staticmethod
    def from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The official parameters under this layer's names, for ``load_state_dict``.

        Args:
            state_dict: That of the official layer's ``lkp``. They fit a layer with ``bias=False``,
                ``group_channels=8``, ``kernel_size=3`` and ``padding=1``.

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
        return f"{super().extra_repr()}, large_kernel={self.large_kernel}"


class LSConv1d(_LSConvNd):
    dim = 1


class LSConv2d(_LSConvNd):
    dim = 2


class LSConv3d(_LSConvNd):
    dim = 3


def _reference(layer: Any, x: Tensor) -> Tensor:
    """Position by position: perception, normalisations by their definition, sum over the window."""
    g = layer.geometry
    if x.dim() == g.dim + 1:
        return _reference(layer, x.unsqueeze(0)).squeeze(0)
    size = g.output_size(x.shape[2:])
    hidden = torch.einsum("hc,bc...->bh...", layer.reduce.flatten(1), x)
    hidden = _normalised(hidden.flatten(2), layer.reduce_norm).relu().unflatten(2, x.shape[2:])
    seen = [_seen(layer, hidden, p) for p in itertools.product(*map(range, size))]
    hidden = _normalised(torch.stack(seen, -1), layer.perceive_norm)
    hidden = torch.einsum("hi,bip->bhp", layer.mix.flatten(1), hidden)
    hidden = _normalised(hidden, layer.mix_norm).relu()
    kernels = torch.einsum("kh,bhp->bkp", layer.span.flatten(1), hidden)
    kernels = (kernels + layer.span_bias.view(-1, 1)).unflatten(1, (g.groups, -1))
    centred = kernels - kernels.mean((2, 3), keepdim=True)
    kernels = centred / ((centred * centred).mean((2, 3), keepdim=True) + EPS).sqrt()
    kernels = kernels * layer.scale.view(g.groups, -1, 1) + layer.offset.view(g.groups, -1, 1)
    shared = [c % g.groups for c in range(g.in_channels)]
    cells = [
        (under.flatten(2) * kernels[:, shared, :, p]).sum(-1)
        for p, (_, under) in enumerate(windows(x, g))
    ]
    y = torch.stack(cells, -1).unflatten(-1, size)
    return y if layer.bias is None else y + layer.bias.view(-1, *[1] * g.dim)


def _seen(layer: Any, hidden: Tensor, position: tuple[int, ...]) -> Tensor:
    """The large kernel's sum (B, C/2) over what lies around one position's centre tap."""
    g, large = layer.geometry, layer.large_kernel
    margins = [size + max(pads) for size, pads in zip(large, g.pads, strict=True)]
    wide = hidden.new_zeros(
        *hidden.shape[:2], *(n + 2 * m for n, m in zip(hidden.shape[2:], margins, strict=True))
    )
    wide[at(slice(m, m + n) for n, m in zip(hidden.shape[2:], margins, strict=True))] = hidden
    under = []
    for axis, p in enumerate(position):
        centre = g.dilation[axis] * ((g.kernel_size[axis] - 1) // 2)
        start = p * g.stride[axis] - g.pads[axis][0] + centre - (large[axis] - 1) // 2
        under.append(slice(margins[axis] + start, margins[axis] + start + large[axis]))
    return (wide[at(under)] * layer.perceive[:, 0]).flatten(2).sum(2)


def _normalised(x: Tensor, norm: Any) -> Tensor:
    """Batch normalisation of (B, C, positions)."""
    if norm.training:
        x = x - x.mean((0, 2), keepdim=True)
        variance = (x * x).mean((0, 2))
    else:
        x, variance = x - norm.running_mean.view(-1, 1), norm.running_var
    scale = norm.weight / (variance + norm.eps).sqrt()
    return x * scale.view(-1, 1) + norm.bias.view(-1, 1)


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """Four convolutions, three batch normalisations and two relus, a group norm, the sums."""
    g = layer.geometry
    batch = shape[0] if len(shape) == g.dim + 2 else 1
    hidden, spanned = len(layer.reduce), len(layer.span)
    size = shape[-g.dim :]
    inside, outside = batch * math.prod(size), batch * math.prod(g.output_size(size))
    forward, backward = aggregation_flops(layer, shape)
    products = 2 * hidden * inside * g.in_channels
    products += 2 * hidden * outside * (math.prod(layer.large_kernel) + hidden + spanned)
    each, back = (5, 9) if layer.training else (2, 6)
    forward += products + (each + 1) * hidden * inside + (2 * each + 1) * hidden * outside
    backward += 2 * products + (back + 1) * hidden * inside + (2 * back + 1) * hidden * outside
    # group norm, the bias before it, and the input's two gradients
    return forward + 5 * spanned * outside, backward + 10 * spanned * outside + math.prod(shape)


def _samples(dim: int) -> tuple[Sample, ...]:
    uneven = tuple((4, 3, 2)[:dim])
    wide = {"in_channels": 6, "out_channels": 6, "kernel_size": uneven, "group_channels": 3}
    base = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "groups": 2}
    return (
        Sample(
            arguments=wide | {"stride": 2, "padding": 1, "large_kernel": (2, 3, 1)[:dim]},
            size=(7, 6, 5)[:dim],
        ),
        Sample(arguments=base | {"dilation": 2, "padding": 3}, size=(6, 5, 4)[:dim]),
        Sample(arguments=base | {"dilation": 3, "large_kernel": 1}, size=(9, 8, 7)[:dim]),
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
        ErrorInput(arguments=base | {"large_kernel": 0}, match="large_kernel must be an int"),
        ErrorInput(
            arguments=base | {"large_kernel": 7.0},
            match="large_kernel must be an int",
            error=TypeError,
        ),
    )


@register
def card() -> Card:
    return Card(
        name="ls_conv",
        role="mixer",
        classes={1: LSConv1d, 2: LSConv2d, 3: LSConv3d},
        equation="y(c,p) = b(c) + sum_q H(g(c),q,p) x(c,p+q),  "
        "H = GN(W3 relu(BN(W2 BN(D * relu(BN(W1 x))))))",
        summary="A small kernel per position, generated from what a large depthwise kernel sees.",
        citation="A. Wang, H. Chen, Z. Lin, J. Han, G. Ding: LSNet: See Large, Focus Small. "
        "CVPR 2025",
        claim="LSNet-T, -S and -B, with attention in their last stage: 74.9 %, 77.8 % and 80.3 % "
        "on ImageNet with 0.3, 0.5 and 1.3 GFLOPs (table of the official repository).",
        source="jameslahm/lsnet",
        source_licence="none stated",
        rows=(73,),
        reference=_reference,
        flops=_flops,
        mixes_channels=False,
        input_dependent=True,
        batch_statistics=True,
        preserves_function=True,
        preserves_note="Every depthwise convolution, exactly, with as many groups as channels "
        "(from_conv's default); groups that share a kernel get the mean of their channels'.",
        equivariance=(),  # GN's statistics run over the borders too
        kernels=("depthwise", "position_varying"),
        channel_multiple=lambda own: own.get("group_channels") or 1,
        sample_width=4,  # with few hidden channels GN divides by next to nothing
        samples=_samples,
        error_inputs=_error_inputs,
        adapt=at_most(8),
    )
