r"""Separable-kernel convolution: the kernel is a sum of outer products of one-way filters.

.. math::
    W(o, i, u) = \sum_{r=1}^R c_r(o, i) \prod_a f_{ra}(o, u_a)

for every output channel (CP form over the input channels and the axes). With
``factor_channels=False`` every pair of channels has filters of its own,
:math:`W(o, i, u) = \sum_r \prod_a f_{ra}(o, i, u_a)`.

Shapes: as ``nn.ConvNd``; channel factors (O, R, I/groups), filter of axis a (O, R, k_a), without
channel factors (O I/groups, R, k_a). Transposed layers: I for O and O/groups for I/groups.

Cost: where it needs at most an eighth of the operations, the layer runs as a chain: a 1-wide
convolution to O R channels, one depthwise convolution along each axis, the last of which sums over
r; :math:`2 R (I/groups + \sum_a k_a)` per output instead of :math:`2\,I/groups \prod_a k_a`. Else
the kernel is formed and convolved with. Both give the same output, for every padding mode: padding
along one axis commutes with a filter along another.
Parameters: :math:`O R (I/groups + \sum_a k_a)`.

Source: H. Boukraichi, N. Akkari, F. Casenave, D. Ryckelynck, "A priori compression of convolutional
neural networks for wave simulators", 2023: three-way and two-way kernels are replaced by one-way
filters before training.

There is no official code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.core import args
from omniconv.core.card import Card, ErrorInput, Sample
from omniconv.core.geometry import ConvArguments, check_floating, check_input
from omniconv.core.layer import new_parameter
from omniconv.core.registry import register
from omniconv.kernels.convolve import convolution
from omniconv.math.cp import cp_nearest, cp_product
from omniconv.math.naive import naive_convolution
from omniconv.operators.static_kernel import StaticKernel

__all__ = [
    "SeparableKernelConv1d",
    "SeparableKernelConv2d",
    "SeparableKernelConv3d",
    "SeparableKernelConvTranspose1d",
    "SeparableKernelConvTranspose2d",
    "SeparableKernelConvTranspose3d",
    "separable_kernel",
]

SAVING = 8
"""A chain reads and writes its channels once per axis: below this saving it is not faster."""


def separable_kernel(factors: Sequence[Tensor]) -> Tensor:
    r"""Sums of outer products of one-way filters.

    .. math:: W[a, u_0, u_1, \dots] = \sum_r \prod_j factors_j[a, r, u_j]

    Half-precision factors are multiplied in float32.

    Args:
        factors: At least one tensor (A, R, size); A and R are the same for all.

    Returns:
        (A, size of each factor), in the dtype of the first.

    Raises:
        TypeError: ``factors`` is no sequence, or a factor is not a floating-point tensor.
        ValueError: Shapes do not fit.
    """
    if not isinstance(factors, Sequence) or not factors:
        raise TypeError(f"factors must be a sequence of tensors, got {args.show(factors)}")
    for j, factor in enumerate(factors):
        check_floating(f"factors[{j}]", factor)
        if factor.dim() != 3 or factor.shape[:2] != factors[0].shape[:2]:
            wanted = ", ".join(map(str, factors[0].shape[:2])) if factors[0].dim() == 3 else "A, R"
            raise ValueError(
                f"factors[{j}] must have shape ({wanted}, size), got {tuple(factor.shape)}"
            )
    wide = torch.float64 if factors[0].dtype == torch.float64 else torch.float32
    return cp_product([factor.to(wide) for factor in factors]).to(factors[0].dtype)


class _SeparableKernelNd(StaticKernel):
    """Separable-kernel convolution over N axes (see the module's equation).

    Arguments are torch's, in torch's order, and then, keyword-only:

    Args:
        rank: Number of outer products, R.
        factor_channels: Whether the pairs of an output channel share their filters up to a factor.
        chain: Whether the layer runs as a chain of one-way convolutions, which needs
            ``factor_channels=True`` and no transposed form. Default: where that saves enough.
    """

    def setup(
        self,
        factory: dict[str, Any],
        *,
        rank: int = 1,
        factor_channels: bool = True,
        chain: bool | None = None,
    ) -> None:
        g = self.geometry
        self.rank = args.positive_int("rank", rank)
        self.factor_channels = args.boolean("factor_channels", factor_channels)
        possible = self.factor_channels and not g.transposed
        if chain is not None and args.boolean("chain", chain) and not possible:
            form = "in a transposed layer" if g.transposed else "with factor_channels=False"
            raise ValueError(f"chain must be None or False {form}, got True")
        self.given_chain = chain
        self.chain = possible and _saves(g, self.rank) if chain is None else chain
        rows, columns = self.kernel_shape[:2]
        if self.factor_channels:
            self.channels = new_parameter(rows, self.rank, columns, **factory)
        else:
            rows *= columns
            self.register_parameter("channels", None)
        for axis, k in enumerate(g.kernel_size):
            self.register_parameter(f"filter{axis}", new_parameter(rows, self.rank, k, **factory))

    def factors(self) -> list[Tensor]:
        """Channel factors, where there are any, and the filters of each axis."""
        filters = [getattr(self, f"filter{axis}") for axis in range(self.geometry.dim)]
        return filters if self.channels is None else [self.channels, *filters]

    def kernel(self) -> Tensor:
        """The kernel that is applied: ``separable_kernel(factors)``."""
        return separable_kernel(self.factors()).view(self.kernel_shape)

    def load_kernel_(self, weight: Tensor) -> None:
        """Set the factors of a kernel near ``weight`` in least squares.

        See :func:`omniconv.math.cp.cp_nearest`: the nearest one where two factors are multiplied,
        a local minimum where there are more.
        """
        with torch.no_grad():
            each = weight if self.factor_channels else weight.flatten(0, 1)
            for factor, value in zip(self.factors(), cp_nearest(each, self.rank), strict=True):
                factor.copy_(value)

    def reset_parameters(self) -> None:
        """Draw filters of norm 1, and the first factor for the plain layer's output variance."""
        with torch.no_grad():
            first, *filters = self.factors()
            # the plain layer's kernel has mean square bound^2 / 3
            entries = math.prod(factor.shape[2] for factor in filters)
            limit = self.bound * math.sqrt(entries / self.rank)
            nn.init.uniform_(first, -limit, limit)
            for factor in filters:
                nn.init.uniform_(factor, -1.0, 1.0)
                factor.div_(factor.norm(dim=2, keepdim=True))
            self.reset_bias()

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The convolution of ``input`` with :meth:`kernel`, as a chain where :attr:`chain` says so.

        ``output_size`` is that of ``nn.ConvTransposeNd``; the others refuse it.
        """
        if not self.chain or output_size is not None:
            return super().forward(input, output_size)
        check_input(self, input, next(self.parameters()))
        g = self.geometry
        if input.dim() == g.dim + 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        channels, *filters = self.factors()
        x = convolution(input, channels.flatten(0, 1)[(..., *[None] * g.dim)], groups=g.groups)
        for axis, factor in enumerate(filters):
            last = axis == g.dim - 1
            line = [factor.shape[2] if a == axis else 1 for a in range(g.dim)]
            x, padding = _padded(x, axis, g)
            x = convolution(
                x,
                factor.view(*factor.shape[:2], *line)
                if last
                else factor.flatten(0, 1).view(-1, 1, *line),
                self.bias if last else None,
                [g.stride[axis] if a == axis else 1 for a in range(g.dim)],
                padding,
                [g.dilation[axis] if a == axis else 1 for a in range(g.dim)],
                g.out_channels if last else x.shape[1],
            )
        return x

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, rank={self.rank}"
        text += "" if self.factor_channels else ", factor_channels=False"
        return text + (f", chain={self.given_chain}" if self.given_chain is not None else "")


def _saves(g: ConvArguments, rank: int) -> bool:
    """Whether a chain needs at most 1 / SAVING of the plain convolution's operations."""
    ahead = math.prod(g.stride)  # positions of a stage for each output position
    chain = g.in_channels // g.groups * ahead
    for k, s in zip(g.kernel_size, g.stride, strict=True):
        ahead //= s
        chain += k * ahead
    return SAVING * rank * chain <= g.in_channels // g.groups * math.prod(g.kernel_size)


def _padded(x: Tensor, axis: int, g: ConvArguments) -> tuple[Tensor, list[int]]:
    """``x`` padded along one axis, or the padding that a convolution can do itself."""
    before, after = g.pads[axis]
    if g.padding_mode == "zeros" and before == after:
        return x, [before if a == axis else 0 for a in range(g.dim)]
    if before or after:
        flat = [
            m for a in reversed(range(g.dim)) for m in ((before, after) if a == axis else (0, 0))
        ]
        x = F.pad(x, flat, mode="constant" if g.padding_mode == "zeros" else g.padding_mode)
    return x, [0] * g.dim


class SeparableKernelConv1d(_SeparableKernelNd, nn.Conv1d): ...


class SeparableKernelConv2d(_SeparableKernelNd, nn.Conv2d): ...


class SeparableKernelConv3d(_SeparableKernelNd, nn.Conv3d): ...


class SeparableKernelConvTranspose1d(_SeparableKernelNd, nn.ConvTranspose1d): ...


class SeparableKernelConvTranspose2d(_SeparableKernelNd, nn.ConvTranspose2d): ...


class SeparableKernelConvTranspose3d(_SeparableKernelNd, nn.ConvTranspose3d): ...


def _reference(layer: Any, x: Tensor) -> Tensor:
    """Entry by entry of every pair of channels."""
    rows, columns = layer.kernel_shape[:2]
    planes = []
    for row, column in itertools.product(range(rows), range(columns)):
        entries = []
        for tap in itertools.product(*map(range, layer.kernel_size)):
            total = x.new_zeros(())
            for r in range(layer.rank):
                term = x.new_ones(())
                if layer.factor_channels:
                    term = layer.channels[row, r, column]
                line = row if layer.factor_channels else row * columns + column
                for axis, t in enumerate(tap):
                    term = term * getattr(layer, f"filter{axis}")[line, r, t]
                total = total + term
            entries.append(total)
        planes.append(torch.stack(entries).view(layer.kernel_size))
    kernel = torch.stack(planes).view(layer.kernel_shape)
    return naive_convolution(x, kernel, layer.bias, layer.geometry)


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """The chain's convolutions, or the kernel's products and the plain convolution."""
    if layer.chain:
        return _chain_flops(layer, shape)
    forward, backward = layer.geometry.flops(shape)
    first, *middle = layer.factors()
    entries = first.numel()
    if not middle:
        return forward + entries, backward
    for factor in middle[:-1]:
        before, k = entries, factor.shape[2]
        entries *= k
        forward += entries
        # a product for either factor, summed over what was broadcast
        backward += 2 * entries
        backward += ((k > 1) + (before > factor.shape[0] * factor.shape[1])) * entries
    product = 2 * entries * middle[-1].shape[2]
    return forward + product, backward + 2 * product


def _chain_flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    g = layer.geometry
    batch = shape[0] if len(shape) == g.dim + 2 else 1
    size = list(shape[-g.dim :])
    wide = batch * g.out_channels * layer.rank
    forward = 2 * wide * math.prod(size) * (g.in_channels // g.groups)
    pads = 0
    for axis, (k, out) in enumerate(zip(g.kernel_size, g.output_size(size), strict=True)):
        size[axis] += sum(g.pads[axis])
        sides = sum(p > 0 for p in g.pads[axis])
        if g.padding_mode != "zeros":
            passes = sides if g.padding_mode == "circular" else min(sides, 1)
            pads += passes * wide * math.prod(size)
        size[axis] = out
        forward += 2 * wide * k * math.prod(size)
    bias = batch * g.out_channels * math.prod(size) if g.bias else 0
    return forward, 2 * forward + bias + pads


def _samples(dim: int) -> tuple[Sample, ...]:
    """The first runs as a chain by itself."""
    channels, size = ((16, 17), (8, 5), (4, 3))[dim - 1]
    base = {"in_channels": 4, "out_channels": 6, "kernel_size": (4, 3, 2)[:dim], "padding": 1}
    return (
        Sample(
            arguments=base | {"in_channels": channels, "kernel_size": size, "out_channels": 3},
            size=(18, 6, 4)[:dim] if dim == 1 else (5, 4, 3)[:dim],
        ),
        Sample(arguments=base | {"rank": 5, "groups": 2}, size=(6, 5, 4)[:dim]),
    )


def _error_inputs(dim: int) -> tuple[ErrorInput, ...]:
    base = {"in_channels": 4, "out_channels": 4, "kernel_size": 3}
    return (
        ErrorInput(arguments=base | {"rank": 0}, match="rank must be an int of at least 1, got 0"),
        ErrorInput(arguments=base | {"rank": 1.0}, match="rank must be an int", error=TypeError),
        ErrorInput(
            arguments=base | {"factor_channels": 1},
            match="factor_channels must be True or False",
            error=TypeError,
        ),
        ErrorInput(
            arguments=base | {"factor_channels": False, "chain": True},
            match="chain must be None or False",
        ),
        ErrorInput(
            arguments=base | {"chain": "yes"}, match="chain must be True or False", error=TypeError
        ),
    )


@register
def card() -> Card:
    return Card(
        name="separable_kernel",
        classes={1: SeparableKernelConv1d, 2: SeparableKernelConv2d, 3: SeparableKernelConv3d},
        transposed={
            1: SeparableKernelConvTranspose1d,
            2: SeparableKernelConvTranspose2d,
            3: SeparableKernelConvTranspose3d,
        },
        variants={
            "default": {},
            "rank2": {"rank": 2},
            "pairs": {"rank": 2, "factor_channels": False},
        },
        equation="W(o,i,u) = sum_r c_r(o,i) prod_a f_ra(o,u_a),  y(p) = b + sum_u W(u) x(p+u)",
        summary="Kernel of few outer products of one-way filters; runs as a chain of them.",
        citation="H. Boukraichi, N. Akkari, F. Casenave, D. Ryckelynck: A priori compression of "
        "convolutional neural networks for wave simulators. 2023",
        claim="The accuracy of plain layers with fewer parameters and less memory, in networks "
        "that predict finite-element solutions of the 2-D wave equation (abstract, without "
        "figures).",
        rows=(33,),
        reference=_reference,
        flops=_flops,
        folds=True,
        preserves_note="Kernels of this rank or below over two factors, and all where the rank "
        "reaches the product of all sizes but the largest; else the nearest in least squares "
        "(truncated SVD for two factors, alternating least squares for more).",
        default_extent=3,
        kernels=("depthwise",),
        samples=_samples,
        error_inputs=_error_inputs,
    )
