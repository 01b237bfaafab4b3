r"""Inception depthwise convolution: a share of the channels passes, others see a box or a band.

.. math::
    y(c, p) = b(c) + \begin{cases}
        x(c, p) & \text{identity} \\
        \sum_{u \in B_j} w_j(c, u)\, x(c, p + u) & \text{branch } j
    \end{cases}

The channels are split in this order: identity; the square, whose box :math:`B_0` is small on every
axis; one band per axis, from the last axis to the first, whose box is as long as the kernel on that
axis and 1 wide on all others. Each branch has ``int(branch_ratio * channels)`` channels (at least
1), the identity the rest.

Shapes: as a depthwise ``nn.ConvNd``; kernel (C, 1, \*kernel_size), which is 0 outside the boxes.
``kernel_size`` holds the bands' lengths. All boxes are centred on the tap (k - 1) // 2 of each
axis, where ``padding="same"`` puts the pixel itself, and ``dilation`` spreads their taps alike.

Cost: 2 :math:`\sum_j |B_j|` per position and ``branch_ratio`` of the channels; the dense kernel is
formed only where ``weight`` is read.

Source: W. Yu, P. Zhou, S. Yan, X. Wang, "InceptionNeXt: When Inception Meets ConvNeXt", CVPR 2024.

The official code has two axes, stride 1, dilation 1 and the same length on both axes, pads each
branch by half of its own size, which keeps the grid for odd sizes only, gives the identity no bias,
and raises an error below 1 / branch_ratio channels. Here the identity's bias starts at 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.core import args
from omniconv.core.card import Card, ErrorInput, Sample
from omniconv.core.geometry import ConvArguments, check_floating, check_input
from omniconv.core.layer import new_parameter, plain_class
from omniconv.core.registry import register
from omniconv.kernels.convolve import convolution
from omniconv.math.naive import naive_convolution
from omniconv.operators.static_kernel import StaticKernel

__all__ = [
    "InceptionDWConv1d",
    "InceptionDWConv2d",
    "InceptionDWConv3d",
    "inception_kernel",
]

Margins = list[tuple[int, int]]


def inception_kernel(branches: Sequence[Tensor], identity: int, size: Sequence[int]) -> Tensor:
    r"""The depthwise kernel that does what identity and branches do.

    Args:
        branches: Kernels (channels, 1, \*box) of the branches, no box larger than ``size``.
        identity: Number of channels in front that pass.
        size: Extent of the kernel on each axis.

    Returns:
        (identity + channels of all branches, 1, \*size): each box around the tap (k - 1) // 2.

    Raises:
        TypeError: A branch is not a floating-point tensor, or an argument has the wrong type.
        ValueError: A box does not fit ``size``.
    """
    if not isinstance(size, Sequence) or isinstance(size, str) or not size:
        raise TypeError(f"size must be a sequence of ints of at least 1, got {args.show(size)}")
    size = args.ntuple("size", size, len(size), 1)
    identity = args.integer("identity", identity, 0)
    if not isinstance(branches, Sequence) or not branches:
        raise TypeError(f"branches must be a sequence of tensors, got {args.show(branches)}")
    parts = []
    for number, branch in enumerate(branches):
        check_floating(f"branches[{number}]", branch)
        box = tuple(branch.shape[2:])
        if (
            branch.dim() != len(size) + 2
            or branch.shape[1] != 1
            or any(b > s or b < 1 for b, s in zip(box, size, strict=True))
        ):
            raise ValueError(
                f"branches[{number}] must have shape (channels, 1, *box) with a box within {size}, "
                f"got {tuple(branch.shape)}"
            )
        parts.append(_within(branch, size))
    if identity:
        delta = branches[0].new_ones(identity, 1, *[1] * len(size))
        parts.insert(0, _within(delta, size))
    return torch.cat(parts)


def _starts(box: Sequence[int], size: Sequence[int]) -> list[int]:
    """The first tap of a centred box in a kernel."""
    return [(s - 1) // 2 - (b - 1) // 2 for b, s in zip(box, size, strict=True)]


def _within(branch: Tensor, size: Sequence[int]) -> Tensor:
    box = branch.shape[2:]
    flat: list[int] = []
    for start, b, s in reversed(list(zip(_starts(box, size), box, size, strict=True))):
        flat += [start, s - b - start]
    return F.pad(branch, flat)


class _InceptionDWNd(StaticKernel):
    """Inception depthwise convolution over N axes (see the module's equation).

    Arguments are torch's, in torch's order: ``out_channels`` equals ``in_channels``. The layer is
    depthwise whatever ``groups`` says, and has ``groups = in_channels`` as such a layer. Then,
    keyword-only:

    Args:
        square: Size of the small box, an int or one per axis; the kernel's where that is smaller.
        branch_ratio: Share of the channels in each branch, at most 1 / (1 + number of axes).

    At least one channel per branch is needed.
    """

    square: Tensor

    def setup(
        self,
        factory: dict[str, Any],
        *,
        square: int | tuple[int, ...] = 3,
        branch_ratio: float = 0.125,
    ) -> None:
        g = self.geometry
        channels, count = g.in_channels, g.dim + 1
        if g.out_channels != channels:
            raise ValueError(
                f"out_channels must equal in_channels={channels}, because the layer does not mix "
                f"channels, got {g.out_channels}"
            )
        if channels < count:
            raise ValueError(
                f"in_channels must be at least {count} (one per branch), got {channels}"
            )
        boxes = args.ntuple("square", square, g.dim, 1)
        self.square_size = tuple(min(b, k) for b, k in zip(boxes, g.kernel_size, strict=True))
        ratio = args.real("branch_ratio", branch_ratio, 0.0, 1 / count)
        self.branch_ratio = ratio
        self.branch_channels = max(1, int(channels * ratio))
        self.identity_channels = channels - count * self.branch_channels
        self.geometry = replace(g, groups=channels)
        self.geometry.attach(self)
        for name, box in self.boxes().items():
            self.register_parameter(name, new_parameter(self.branch_channels, 1, *box, **factory))

    def boxes(self) -> dict[str, tuple[int, ...]]:
        """Name of each branch's kernel -> its box, in the order of the channels."""
        size = self.geometry.kernel_size
        found = {"square": self.square_size}
        for axis in reversed(range(len(size))):
            found[f"band{axis}"] = tuple(k if a == axis else 1 for a, k in enumerate(size))
        return found

    def branches(self) -> list[Tensor]:
        """The branches' kernels (channels, 1, *box), in the order of the channels."""
        return [getattr(self, name) for name in self.boxes()]

    def kernel(self) -> Tensor:
        """The depthwise kernel: ``inception_kernel(branches, identity, kernel_size)``."""
        size = self.geometry.kernel_size
        return inception_kernel(self.branches(), self.identity_channels, size)

    def load_kernel_(self, weight: Tensor) -> None:
        """Take what ``weight`` (C, 1, *kernel_size) holds inside the boxes: the nearest kernel."""
        with torch.no_grad():
            first = self.identity_channels
            for branch in self.branches():
                part = weight[first : first + self.branch_channels]
                box = branch.shape[2:]
                for axis, start in enumerate(_starts(box, self.geometry.kernel_size)):
                    part = part.narrow(2 + axis, start, box[axis])
                branch.copy_(part)
                first += self.branch_channels

    def reset_parameters(self) -> None:
        """Draw each branch as torch draws a depthwise layer of its size; the identity's bias is 0.

        Branches then have the plain depthwise layer's variance, the identity its input's.
        """
        with torch.no_grad():
            for branch in self.branches():
                bound = 1.0 / math.sqrt(math.prod(branch.shape[2:]))
                nn.init.uniform_(branch, -bound, bound)
            self.reset_bias()
            if self.bias is not None:
                self.bias[: self.identity_channels] = 0

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        r"""The branches of ``input`` (B, C, \*S) or (C, \*S), each computed within its box."""
        check_input(self, input, self.square)
        g = self.geometry
        if input.dim() == g.dim + 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        widths = [self.identity_channels, *[self.branch_channels] * (g.dim + 1)]
        passing, *parts = input.split(widths, 1)
        biases = [None] * len(widths) if self.bias is None else list(self.bias.split(widths))
        outputs = []
        for x, branch, bias in zip(parts, self.branches(), biases[1:], strict=True):
            outputs.append(_convolve(x, branch, bias, g))
        if self.identity_channels:
            passing = _identity(passing, g).to(outputs[0].dtype)
            if biases[0] is not None:
                passing = passing + biases[0].to(passing.dtype).view(-1, *[1] * g.dim)
            outputs.insert(0, passing)
        return torch.cat(outputs, 1)

    @classmethod
    def from_conv(
        cls, conv: nn.Module, extent: int | tuple[int, ...] | None = None, **own: Any
    ) -> Self:
        """This layer with what a depthwise convolution's kernel holds inside the boxes.

        The first channels pass, whatever their kernel was. See
        :func:`omniconv.core.layer.transfer` for the arguments and errors.

        Raises:
            ValueError: ``conv`` is not depthwise, or has fewer channels than there are branches.
        """
        source: Any = conv
        if isinstance(conv, plain_class(cls.dim)) and not (
            source.groups == source.in_channels == source.out_channels
        ):
            raise ValueError(
                f"conv must be depthwise (groups = in_channels = out_channels), because the layer "
                f"does not mix channels, got groups={source.groups}, "
                f"in_channels={source.in_channels}, out_channels={source.out_channels}"
            )
        return super().from_conv(conv, extent, **own)

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The official layer's parameters, for this layer's ``load_state_dict``.

        They fit a layer over two axes with bias, the official ``square`` and ``branch_ratio``,
        ``kernel_size`` the band's (odd) and ``padding="same"``.

        Raises:
            ValueError: Names or shapes do not fit this layer.
        """
        theirs = {"square": "dwconv_hw", "band1": "dwconv_w", "band0": "dwconv_h"}
        if list(theirs) != list(self.boxes()) or self.bias is None:
            raise ValueError(
                f"layer must have two axes and a bias, as the official one, got {self!r}"
            )
        wanted = [f"{name}.{kind}" for name in theirs.values() for kind in ("weight", "bias")]
        if set(state_dict) != set(wanted):
            raise ValueError(
                f"state_dict must hold exactly {', '.join(wanted)}, "
                f"got {args.show(sorted(state_dict))}"
            )
        found = {ours: state_dict[f"{name}.weight"] for ours, name in theirs.items()}
        for ours, tensor in found.items():
            shape = tuple(getattr(self, ours).shape)
            if tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{theirs[ours]}.weight must have shape {shape}, got {tuple(tensor.shape)}"
                )
        biases = [state_dict[f"{name}.bias"] for name in theirs.values()]
        return found | {"bias": torch.cat([biases[0].new_zeros(self.identity_channels), *biases])}

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, square={self.square_size}, branch_ratio={self.branch_ratio:g}"
        )


def _margins(shape: Sequence[int], box: Sequence[int], g: ConvArguments) -> Margins:
    """What a box needs on both ends of each axis: entries to add, or (negative) to leave out."""
    margins = []
    axes = zip(_starts(box, g.kernel_size), g.output_size(shape), shape, strict=True)
    for axis, (start, out, n) in enumerate(axes):
        d = g.dilation[axis]
        before = g.pads[axis][0] - start * d
        margins.append((before, (out - 1) * g.stride[axis] + (box[axis] - 1) * d + 1 - n - before))
    return margins


def _take(x: Tensor, margins: Margins, mode: str) -> Tensor:
    """``x`` padded where a margin is positive, and cut where it is negative (a view)."""
    added = [max(0, m) for pair in reversed(margins) for m in pair]
    if any(added):
        x = F.pad(x, added, mode="constant" if mode == "zeros" else mode)
    for axis, (before, after) in enumerate(margins, 2):
        cut = max(0, -before)
        if before < 0 or after < 0:
            x = x.narrow(axis, cut, x.shape[axis] - cut - max(0, -after))
    return x


def _convolve(x: Tensor, branch: Tensor, bias: Tensor | None, g: ConvArguments) -> Tensor:
    margins = _margins(x.shape[2:], branch.shape[2:], g)
    padding = [
        before if g.padding_mode == "zeros" and before == after > 0 else 0
        for before, after in margins
    ]
    rest = [(0, 0) if p else pair for p, pair in zip(padding, margins, strict=True)]
    x = _take(x, rest, g.padding_mode)
    return convolution(x, branch, bias, g.stride, padding, g.dilation, x.shape[1])


def _identity(x: Tensor, g: ConvArguments) -> Tensor:
    """The pixels under the centre tap, one per output position."""
    x = _take(x, _margins(x.shape[2:], [1] * g.dim, g), g.padding_mode)
    steps: Any = (..., *(slice(None, None, s) for s in g.stride))
    return x[steps]


class InceptionDWConv1d(_InceptionDWNd, nn.Conv1d): ...


class InceptionDWConv2d(_InceptionDWNd, nn.Conv2d): ...


class InceptionDWConv3d(_InceptionDWNd, nn.Conv3d): ...


def _reference(layer: Any, x: Tensor) -> Tensor:
    """Channel by channel, tap by tap."""
    size, dim = layer.kernel_size, len(layer.kernel_size)
    centre = tuple((k - 1) // 2 for k in size)
    zero, one = x.new_zeros(()), x.new_ones(())
    rows = []
    for channel in range(layer.in_channels):
        branch, place = divmod(channel - layer.identity_channels, layer.branch_channels)
        entries = []
        for tap in itertools.product(*map(range, size)):
            away = [t - c for t, c in zip(tap, centre, strict=True)]
            if branch < 0:
                entries.append(zero if any(away) else one)
            elif branch == 0:
                at = [a + (b - 1) // 2 for a, b in zip(away, layer.square_size, strict=True)]
                inside = all(0 <= a < b for a, b in zip(at, layer.square_size, strict=True))
                entries.append(layer.square[(place, 0, *at)] if inside else zero)
            else:
                axis = dim - branch
                inside = not any(a for i, a in enumerate(away) if i != axis)
                line = getattr(layer, f"band{axis}")[place].flatten()
                entries.append(line[tap[axis]] if inside else zero)
        rows.append(torch.stack(entries).view(1, *size))
    return naive_convolution(x, torch.stack(rows), layer.bias, layer.geometry)


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """The branches' convolutions, the biases, and the gradients of paddings."""
    g = layer.geometry
    batch = shape[0] if len(shape) == g.dim + 2 else 1
    size = shape[-g.dim :]
    positions = batch * math.prod(g.output_size(size))
    forward = sum(2 * positions * branch.numel() for branch in layer.branches())
    backward = 2 * forward
    if g.bias:
        forward += positions * layer.identity_channels
        backward += positions * g.in_channels
    for channels, box in _split(layer):
        added = [[max(0, m) for m in pair] for pair in _margins(size, box, g)]
        sides = sum(m > 0 for pair in added for m in pair)
        if g.padding_mode != "zeros" and channels:
            entries = math.prod(n + sum(pair) for n, pair in zip(size, added, strict=True))
            passes = sides if g.padding_mode == "circular" else min(sides, 1)
            backward += passes * batch * channels * entries
    return forward, backward


def _split(layer: Any) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Channels and box of the identity and of every branch."""
    yield layer.identity_channels, (1,) * layer.geometry.dim
    for box in layer.boxes().values():
        yield layer.branch_channels, box


def _samples(dim: int) -> tuple[Sample, ...]:
    base = {"in_channels": 9, "out_channels": 9, "square": (2, 3, 1)[:dim]}
    return (
        Sample(
            arguments=base
            | {
                "kernel_size": (5, 4, 2)[:dim],
                "padding": (4, 0, 1)[:dim],
                "dilation": (1, 2, 1)[:dim],
            },
            size=(6, 7, 3)[:dim],
        ),
        Sample(
            arguments=base
            | {"kernel_size": 3, "padding": 2, "stride": 2, "padding_mode": "reflect", "groups": 9},
            size=(5, 4, 3)[:dim],
        ),
    )


def _error_inputs(dim: int) -> tuple[ErrorInput, ...]:
    base = {"in_channels": 16, "out_channels": 16, "kernel_size": 5}
    return (
        ErrorInput(arguments=base | {"out_channels": 32}, match="out_channels must equal in_ch"),
        ErrorInput(
            arguments=base | {"in_channels": dim, "out_channels": dim},
            match=f"in_channels must be at least {dim + 1}",
        ),
        ErrorInput(arguments=base | {"square": 0}, match="square must be an int"),
        ErrorInput(
            arguments=base | {"branch_ratio": 0.6}, match="branch_ratio must be a finite number in"
        ),
        ErrorInput(
            arguments=base | {"branch_ratio": "1/8"},
            match="branch_ratio must be a finite number",
            error=TypeError,
        ),
    )


def _multiple(own: Mapping[str, Any]) -> int:
    return 4  # the branches over three axes


@register
def card() -> Card:
    return Card(
        name="inception_dw",
        role="mixer",
        classes={1: InceptionDWConv1d, 2: InceptionDWConv2d, 3: InceptionDWConv3d},
        variants={"default": {}, "quarter": {"branch_ratio": 0.25, "square": 2}},
        equation="y(c,p) = b(c) + x(c,p) for most channels, else b(c) + sum_{u in B} w(c,u) "
        "x(c,p+u) in a small box B or a band B along one axis",
        summary="Most channels pass; the others see a small box or a long band along one axis.",
        citation="W. Yu, P. Zhou, S. Yan, X. Wang: InceptionNeXt: When Inception Meets ConvNeXt. "
        "CVPR 2024",
        claim="InceptionNeXt-T against ConvNeXt-T: 1.6 times the training throughput and 0.2 "
        "points more top-1 on ImageNet-1k (abstract).",
        source="sail-sg/inceptionnext",
        source_licence="Apache-2.0",
        rows=(36,),
        reference=_reference,
        flops=_flops,
        folds=True,
        mixes_channels=False,
        passing=lambda layer: tuple(range(layer.identity_channels)),
        preserves_note="Depthwise convolutions, inside the boxes of the branches (the nearest in "
        "the Frobenius norm); the first channels pass.",
        default_extent=11,
        kernels=("depthwise",),
        channel_multiple=_multiple,
        samples=_samples,
        error_inputs=_error_inputs,
    )
