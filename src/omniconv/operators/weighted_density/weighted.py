r"""Weighted convolution: the kernel is scaled by a density of the distance to its centre.

.. math::
    y(p) = b + \sum_u \Phi(u)\, w(u)\, x(p + u), \qquad
    \Phi(u) = \prod_a \alpha_a(u_a), \quad
    \alpha = (a_1, \dots, a_r, 1, a_r, \dots, a_1)

Shapes: as ``nn.ConvNd``; kernel (O, I/groups, \*kernel_size), profile of an axis of size k:
r = (k - 1) // 2 free values, listed from the outside inwards (even sizes have two ones in the
middle).

Cost: the plain convolution plus one multiplication per kernel entry.

A fixed density is kept as the product of its profiles, the buffer ``phi``; a trainable one as the
profiles' free values, the parameter ``density``.

Source: S. Cammarasana, G. Patane, "Optimal Density Functions for Weighted Convolution in Learning
Models", 2025, and "Optimal Weighted Convolution for Classification and Denoising", 2025.

The official code pads by 1 whatever the kernel size, has no ``padding_mode``, has no bias by
default, and its trainable form holds exactly three values, so that it runs with 7-wide kernels
only. Here padding is torch's, and both forms take any size, also a different one per axis.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from omniconv.core import args
from omniconv.core.card import Card, ErrorInput, Sample
from omniconv.core.geometry import check_floating
from omniconv.core.layer import new_parameter
from omniconv.core.registry import register
from omniconv.math.naive import at, naive_convolution
from omniconv.operators.static_kernel import StaticKernel

__all__ = [
    "WeightedConv1d",
    "WeightedConv2d",
    "WeightedConv3d",
    "WeightedConvTranspose1d",
    "WeightedConvTranspose2d",
    "WeightedConvTranspose3d",
    "weighted_kernel",
]

Density = float | Sequence[float] | Sequence[Sequence[float]]


def weighted_kernel(raw: Tensor, density: Sequence[Tensor]) -> Tensor:
    r"""The kernel ``raw`` scaled by the outer product of one profile per axis.

    .. math:: W[o, i, u] = raw[o, i, u] \prod_a \alpha_a(u_a)

    Args:
        raw: (O, I/groups, \*kernel_size).
        density: One tensor per axis with the r = (k - 1) // 2 values from the outside inwards.

    Returns:
        The kernel, shaped as ``raw``.

    Raises:
        TypeError: ``raw`` or a profile is not a floating-point tensor.
        ValueError: The number of profiles or of their values does not fit ``raw``.
    """
    check_floating("raw", raw)
    if raw.dim() < 3:
        raise ValueError(f"raw must have at least 3 axes, got shape {tuple(raw.shape)}")
    if not isinstance(density, Sequence):
        raise TypeError(f"density must be a sequence of tensors, got {type(density).__name__}")
    size = raw.shape[2:]
    if len(density) != len(size):
        raise ValueError(
            f"density must hold {len(size)} profiles (one per axis), got {len(density)}"
        )
    phi = one = raw.new_ones(1)
    for axis, (values, k) in enumerate(zip(density, size, strict=True)):
        check_floating(f"density[{axis}]", values)
        if values.shape != ((k - 1) // 2,):
            raise ValueError(
                f"density[{axis}] must hold {(k - 1) // 2} values for kernel size {k}, "
                f"got shape {tuple(values.shape)}"
            )
        middle = [one.to(values)] * (2 - k % 2)
        profile = torch.cat([values, *middle, values.flip(0) if len(values) > 1 else values])
        phi = phi.unsqueeze(-1) * profile if axis else profile
    return raw * phi


class _WeightedNd(StaticKernel):
    """Weighted convolution over N axes (see the module's equation).

    Arguments are torch's, in torch's order, and then, keyword-only:

    Args:
        density: The profile. A number a stands for a^distance (1 at the centre); a sequence lists
            the r = (k - 1) // 2 values from the outside inwards, the same for every axis; a
            sequence of sequences gives one profile per axis.
        trainable_density: Whether the profile is learned with the weights (no weight decay).
    """

    density: Tensor
    phi: Tensor
    no_weight_decay = ("density",)

    def setup(
        self,
        factory: dict[str, Any],
        *,
        density: Density = 0.7,
        trainable_density: bool = False,
    ) -> None:
        self.initial_density = _parse_density(density, self.geometry.kernel_size)
        self.trainable_density = args.boolean("trainable_density", trainable_density)
        self.raw = new_parameter(*self.kernel_shape, **factory)
        if self.trainable_density:
            self.density = new_parameter(sum(map(len, self.initial_density)), **factory)
        else:
            self.register_buffer("phi", torch.empty(self.geometry.kernel_size, **factory))

    def profiles(self) -> tuple[Tensor, ...]:
        """The free values of each axis, from the outside inwards."""
        if self.trainable_density:
            return self.density.split([len(profile) for profile in self.initial_density])
        lines = []  # through the middle of the other axes, where their profiles are 1
        for axis, profile in enumerate(self.initial_density):
            at = [k // 2 for k in self.geometry.kernel_size]
            lines.append(self.phi.movedim(axis, -1)[(*at[:axis], *at[axis + 1 :])][: len(profile)])
        return tuple(lines)

    def kernel(self) -> Tensor:
        """The kernel that is applied: ``weighted_kernel(raw, profiles)``."""
        if self.trainable_density:
            return weighted_kernel(self.raw, self.profiles())
        return self.raw * self.phi

    def load_kernel_(self, weight: Tensor) -> None:
        """Set ``raw`` so that the kernel is ``weight``; entries with density 0 stay 0."""
        with torch.no_grad():
            phi = self._outer(self.profiles()) if self.trainable_density else self.phi
            self.raw.copy_(torch.where(phi == 0, 0, weight / torch.where(phi == 0, 1, phi)))

    def reset_parameters(self) -> None:
        """Draw ``raw`` so that outputs have the plain layer's variance; restore the density."""
        with torch.no_grad():
            profiles = [torch.tensor(p, dtype=torch.float64) for p in self.initial_density]
            if self.trainable_density:
                self.density.copy_(torch.cat(profiles))
            else:
                self.phi.copy_(self._outer(profiles))
            # the plain layer's kernel has mean square bound^2 / 3
            energy = math.prod(_energy(profile, k) for profile, k in self._axes())
            entries = math.prod(self.geometry.kernel_size)
            scale = math.sqrt(entries / energy)
            nn.init.uniform_(self.raw, -scale * self.bound, scale * self.bound)
            self.reset_bias()

    def _outer(self, profiles: Sequence[Tensor]) -> Tensor:
        """Phi, of the kernel's size."""
        ones = profiles[0].new_ones(1, 1, *self.geometry.kernel_size)
        return weighted_kernel(ones, profiles)[0, 0]

    def _axes(self) -> list[tuple[tuple[float, ...], int]]:
        return list(zip(self.initial_density, self.geometry.kernel_size, strict=True))

    def extra_repr(self) -> str:
        shown: Any = self.initial_density
        text = f"{super().extra_repr()}, density={shown}"
        return text + (", trainable_density=True" if self.trainable_density else "")


def _energy(profile: tuple[float, ...], k: int) -> float:
    return 2 * sum(a * a for a in profile) + (2 - k % 2)


def _parse_density(density: Any, kernel_size: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """One profile per axis, from the outside inwards."""
    needed = [(k - 1) // 2 for k in kernel_size]
    if isinstance(density, Tensor):
        density = density.tolist()
    if not isinstance(density, Sequence) or isinstance(density, (str, bytes)):
        ratio = args.real("density", density)
        return tuple(tuple(ratio**j for j in range(r, 0, -1)) for r in needed)
    nested = [isinstance(entry, Sequence) and not isinstance(entry, str) for entry in density]
    if any(nested):
        if not all(nested) or len(density) != len(kernel_size):
            raise ValueError(
                f"density must be a number, one profile or {len(kernel_size)} profiles (one per "
                f"axis), got {args.show(density)}"
            )
        profiles = list(density)
    else:
        profiles = [density] * len(kernel_size)
    for axis, (profile, r) in enumerate(zip(profiles, needed, strict=True)):
        if len(profile) != r:
            raise ValueError(
                f"density must hold {r} values for kernel size {kernel_size[axis]} (axis {axis}), "
                f"from the outside inwards, got {args.show(profile)}"
            )
    return tuple(tuple(args.real("density", value) for value in p) for p in profiles)


class WeightedConv1d(_WeightedNd, nn.Conv1d): ...


class WeightedConv2d(_WeightedNd, nn.Conv2d): ...


class WeightedConv3d(_WeightedNd, nn.Conv3d): ...


class WeightedConvTranspose1d(_WeightedNd, nn.ConvTranspose1d): ...


class WeightedConvTranspose2d(_WeightedNd, nn.ConvTranspose2d): ...


class WeightedConvTranspose3d(_WeightedNd, nn.ConvTranspose3d): ...


def _reference(layer: Any, x: Tensor) -> Tensor:
    """Entry by entry: the density of a tap is the product of its axes' profile values."""
    kernel = torch.empty_like(layer.raw)
    for tap in itertools.product(*map(range, layer.kernel_size)):
        phi = x.new_ones(())
        for position, k, values in zip(tap, layer.kernel_size, layer.profiles(), strict=True):
            rank = min(position, k - 1 - position)  # steps from the border
            phi = phi * (values[rank] if rank < len(values) else 1.0)
        kernel[at(tap)] = layer.raw[at(tap)] * phi
    return naive_convolution(x, kernel, layer.bias, layer.geometry)


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """The plain convolution, and the kernel's products with the density."""
    plain, plain_backward = layer.geometry.flops(shape)
    entries = math.prod(layer.kernel_shape)
    forward, backward = plain + entries, plain_backward + entries
    if layer.trainable_density:
        # Phi's gradient is a product and a sum; each outer product sends one of both to its two
        # factors (nothing is summed over an axis of size 1); the two mirrored halves of a profile
        # are added
        outer = list(itertools.accumulate(layer.kernel_size, operator.mul))[1:]
        forward += sum(outer)
        sizes = zip(layer.kernel_size[1:], outer, strict=True)
        backward += 2 * entries + sum((3 if k == 1 else 4) * n for k, n in sizes)
        backward += sum(map(len, layer.initial_density))
    return forward, backward


def _samples(dim: int) -> tuple[Sample, ...]:
    uneven = tuple((5, 3, 4)[:dim])
    profiles = [(0.3, 0.8), (1.2,), (0.6,)][:dim]
    base = {"in_channels": 4, "out_channels": 6, "kernel_size": uneven, "padding": 1}
    return (
        Sample(arguments=base | {"density": profiles}, size=(7, 6, 5)[:dim]),
        Sample(arguments=base | {"kernel_size": 5, "density": [0.0, 0.5]}, size=(7, 6, 5)[:dim]),
    )


def _error_inputs(dim: int) -> tuple[ErrorInput, ...]:
    base = {"in_channels": 4, "out_channels": 4, "kernel_size": 5}
    return (
        ErrorInput(arguments=base | {"density": [0.5]}, match="density must hold 2 values"),
        ErrorInput(arguments=base | {"density": float("nan")}, match="density must be a finite"),
        ErrorInput(arguments=base | {"density": "0.5"}, match="density must be", error=TypeError),
        ErrorInput(
            arguments=base | {"trainable_density": 1},
            match="trainable_density must be True or False",
            error=TypeError,
        ),
    )


@register
def card() -> Card:
    return Card(
        name="weighted",
        classes={1: WeightedConv1d, 2: WeightedConv2d, 3: WeightedConv3d},
        transposed={
            1: WeightedConvTranspose1d,
            2: WeightedConvTranspose2d,
            3: WeightedConvTranspose3d,
        },
        variants={"default": {}, "trainable": {"trainable_density": True}},
        equation="y(p) = b + sum_u Phi(u) w(u) x(p+u),  Phi(u) = prod_a alpha_a(u_a)",
        summary="Kernel scaled by a fixed or learned density of the distance to its centre.",
        citation="S. Cammarasana, G. Patane: Optimal Weighted Convolution for Classification and "
        "Denoising. 2025",
        claim="VGG on CIFAR-100: 66.94 % accuracy against 56.89 % with plain convolutions; DnCNN "
        "on DIV2K: 22.63 dB against 20.17 dB; parameters the same, time comparable (abstract). The "
        "first paper: up to 53 % less loss in denoising for 11 % more time (abstract).",
        source="cammarasana123/weightedConvolution2.0",
        source_licence="GPL-3.0",
        rows=(27, 28),
        reference=_reference,
        flops=_flops,
        folds=True,
        preserves_function=True,
        preserves_note="Every plain convolution, exactly; entries whose density is 0 are lost.",
        default_extent=3,
        kernels=("depthwise",),
        samples=_samples,
        error_inputs=_error_inputs,
    )
