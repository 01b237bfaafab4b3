r"""Self-moving point convolution: a continuous kernel from a few points that move.

.. math::
    K(o, i, u) = \sum_{k=1}^m w_{oik}\, g_k(u), \qquad
    g_k(u) = \Bigl(1 - \frac{\lVert u - p_k \rVert_1}{r_k}\Bigr)_+

With ``average=True`` it is the mean of :math:`w\, g` over the points :math:`N(u)` within their
radius of u, as in the paper: the sum divided by :math:`|N(u)|`, and 0 where there is none. Then K
jumps where a point comes or goes; the sum is continuous. Positions and radii are shared by all
channels (``shared=False``: each output channel, transposed: input channel, has its own).

Shapes: as ``nn.ConvNd``; point weights (O, I/groups, m), positions (1, d m) or (O, d m): the m
coordinates along the first axis, then those along the next; radii (1, m) or (O, m). The longest
axis of the kernel spans [-1, 1]; neighbouring entries lie 2 / (longest - 1) apart on every axis.

Cost: the plain convolution, plus :math:`2 m \prod_a S_a` per pair of channels for the kernel, and
:math:`(3 d + 3) m \prod_a S_a` for the points' profiles (``shared=False``: as many for each output
channel, in memory too).

Source: S. Kim, E. Park, "SMPConv: Self-moving Point Representations for Continuous Convolution",
CVPR 2023. From its code: positions have deviation 0.2, radii start at two entries (4 / longest) and
do not decay, and there is one point for four entries.

The official code has two forms. The one for ImageNet is depthwise and square, shares its points
and takes the sum. The other one has points for each output channel and divides by
:math:`|N(u)| + 10^{-6}`. Both lay a kernel over two axes out as the formula does, then transpose it
and turn it upside down. :meth:`from_official` converts the parameters of both.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from omniconv.core import args
from omniconv.core.card import Card, ErrorInput, Sample
from omniconv.core.geometry import check_floating
from omniconv.core.layer import new_parameter, plain_class
from omniconv.core.registry import register
from omniconv.math.naive import at, naive_convolution
from omniconv.operators.static_kernel import StaticKernel

__all__ = [
    "SMPConv1d",
    "SMPConv2d",
    "SMPConv3d",
    "SMPConvTranspose1d",
    "SMPConvTranspose2d",
    "SMPConvTranspose3d",
    "smp_kernel",
]

SPREAD = 0.2
"""Deviation of the positions that ``reset_parameters`` draws, cut at 1."""
NARROWEST = 1e-3
"""Smaller radii count as this one."""


def smp_kernel(
    weights: Tensor,
    position: Tensor,
    radius: Tensor,
    size: Sequence[int],
    average: bool = False,
) -> Tensor:
    r"""The kernel of moving points, sampled on a grid (see the module's equation).

    Half-precision arguments are evaluated in float32. Derivatives: of :math:`|x|` at 0: 0, of
    :math:`x_+` at 0: 1, of a radius below 0.001, which counts as 0.001: 0.

    Args:
        weights: (A, B, m).
        position: (1, d m), shared by all, or (A, d m).
        radius: (1, m) or (A, m), as ``position``.
        size: Extent of the kernel on each of the d axes.
        average: Divide by the number of points within their radius.

    Returns:
        (A, B, \*size), in the dtype of ``weights``.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes do not fit.
    """
    for name, tensor in (("weights", weights), ("position", position), ("radius", radius)):
        check_floating(name, tensor)
    if weights.dim() != 3:
        raise ValueError(f"weights must have 3 axes (A, B, m), got shape {tuple(weights.shape)}")
    if not isinstance(size, Sequence) or isinstance(size, str) or not size:
        raise TypeError(f"size must be a sequence of ints of at least 1, got {args.show(size)}")
    size = args.ntuple("size", size, len(size), 1)
    average = args.boolean("average", average)
    rows, columns, m = weights.shape
    for name, tensor, count in (("position", position, len(size) * m), ("radius", radius, m)):
        if tuple(tensor.shape) not in ((1, count), (rows, count)):
            raise ValueError(
                f"{name} must have shape {(1, count)} or {(rows, count)}, got {tuple(tensor.shape)}"
            )
    if len(position) != len(radius):
        raise ValueError(
            f"radius must have as many rows as position, {len(position)}, got {len(radius)}"
        )
    wide = torch.float64 if weights.dtype == torch.float64 else torch.float32
    profiles = _profiles(position.to(wide), radius.to(wide), size, average).flatten(2)
    sets = len(position)
    flat = weights.to(wide).reshape(sets, rows // sets * columns, m)
    return torch.bmm(flat, profiles).view(rows, columns, *size).to(weights.dtype)


def _step(size: Sequence[int]) -> float:
    """Distance between neighbouring entries."""
    return 2.0 / max(max(size) - 1, 1)


def _profiles(position: Tensor, radius: Tensor, size: Sequence[int], average: bool) -> Tensor:
    """What every point gives to every entry for weight 1, (sets, m, *size)."""
    dim = len(size)
    coordinates = position.unflatten(1, (dim, -1)).unbind(1)
    distance: Any = 0
    for axis, (place, s) in enumerate(zip(coordinates, size, strict=True)):
        end = (s - 1) / 2 * _step(size)
        grid = torch.linspace(-end, end, s, dtype=place.dtype, device=place.device)
        shape = [s if a == axis else 1 for a in range(dim)]
        away = (grid.view(shape) - place.view(*place.shape, *[1] * dim)).abs()
        distance = away if axis == 0 else distance + away
    reach = radius.clamp(min=NARROWEST).view(*radius.shape, *[1] * dim)
    profiles = (1 - distance / reach).clamp(min=0)
    if average:
        profiles = profiles / (distance < reach).sum(1, keepdim=True).clamp(min=1)
    return profiles


class _SMPNd(StaticKernel):
    """Self-moving point convolution over N axes (see the module's equation).

    Arguments are torch's, in torch's order, and then, keyword-only:

    Args:
        points: Number of points. Default: a quarter of the kernel's entries, at least 1.
        average: Divide by the number of points within their radius, as in the paper.
        shared: Whether all channels share positions and radii.
    """

    weights: Tensor
    position: Tensor
    radius: Tensor
    no_weight_decay = ("position", "radius")

    def setup(
        self,
        factory: dict[str, Any],
        *,
        points: int | None = None,
        average: bool = False,
        shared: bool = True,
    ) -> None:
        g = self.geometry
        if points is None:
            points = max(1, math.prod(g.kernel_size) // 4)
        count = args.positive_int("points", points)
        self.average = args.boolean("average", average)
        self.shared = args.boolean("shared", shared)
        rows, columns = self.kernel_shape[:2]
        sets = 1 if self.shared else rows
        self.weights = new_parameter(rows, columns, count, **factory)
        self.position = new_parameter(sets, g.dim * count, **factory)
        self.radius = new_parameter(sets, count, **factory)

    def kernel(self) -> Tensor:
        """The kernel that is applied: ``smp_kernel(weights, position, radius, ...)``."""
        size = self.geometry.kernel_size
        return smp_kernel(self.weights, self.position, self.radius, size, self.average)

    def load_kernel_(self, weight: Tensor) -> None:
        """Put the points on the entries with the largest sums of squares over their channels.

        Radii reach the neighbouring entries (with ``average``: a little further, because the mean
        jumps there), and weights solve least squares: with a point for every entry other than 0,
        or with ``average`` for every entry, the kernel is ``weight``. Further points have weight 0
        and lie in the centre.
        """
        size = self.geometry.kernel_size
        sets, m = self.radius.shape
        with torch.no_grad():
            entries = weight.double().flatten(2).reshape(sets, -1, math.prod(size))
            count = min(m, entries.shape[-1])
            index = entries.square().sum(1).topk(count, -1).indices
            places = torch.zeros(sets, len(size), m, dtype=torch.float64, device=weight.device)
            rest = index
            for axis, s in reversed(list(enumerate(size))):
                places[:, axis, :count] = (2 * (rest % s) - (s - 1)).double() * (_step(size) / 2)
                rest = rest // s
            self.position.copy_(places.flatten(1))
            # beyond the neighbour the matrix stays diagonally dominant: 2 d (1 - 1/reach) < 1
            reach = 1 + 1 / (4 * len(size)) if self.average else 1
            self.radius.fill_(reach * _step(size))
            rounded = self.position.double(), self.radius.double()
            basis = _profiles(*rounded, size, self.average).flatten(2)[:, :count]
            solved = torch.linalg.solve(basis @ basis.mT, basis @ entries.mT).mT
            self.weights.zero_()[..., :count] = solved.reshape(*weight.shape[:2], count)

    @classmethod
    def from_conv(
        cls, conv: nn.Module, extent: int | tuple[int, ...] | None = None, **own: Any
    ) -> Self:
        """As :meth:`StaticKernel.from_conv`; by default with a point for each of its entries."""
        if isinstance(conv, plain_class(cls.dim, cls.is_transposed)):
            own = _one_point_per_entry(conv) | own
        return super().from_conv(conv, extent, **own)

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of an official kernel, for this layer's ``load_state_dict``.

        Args:
            state_dict: ``weight_coord``, ``radius``, ``weights`` of ``SMPKernel`` (this layer:
                ``shared=False, average=True``) or, with ``kernel_coord``, of the ImageNet
                ``SMPConv`` (depthwise, one kernel size for both axes). A bias becomes 0.

        Raises:
            ValueError: Names or shapes do not fit this layer.
        """
        wanted = {"weight_coord", "radius", "weights"}
        if set(state_dict) - {"kernel_coord"} != wanted:
            raise ValueError(
                f"state_dict must hold exactly {', '.join(sorted(wanted))}, "
                f"got {args.show(sorted(state_dict))}"
            )
        g = self.geometry
        if len(set(g.kernel_size)) > 1 or g.kernel_size[0] < 2 or g.transposed or g.dim > 2:
            raise ValueError(
                f"layer must have one or two axes of one size of at least 2 and not be transposed, "
                f"as the official one, got {self!r}"
            )
        sets, m = self.radius.shape
        coordinates, radius, weights = (
            state_dict[name] for name in ("weight_coord", "radius", "weights")
        )
        if tuple(coordinates.shape) != (sets, m, g.dim):
            raise ValueError(
                f"weight_coord must have shape {(sets, m, g.dim)}, got {tuple(coordinates.shape)}"
            )
        for name, tensor, right in (
            ("radius", radius, self.radius),
            ("weights", weights, self.weights),
        ):
            if tensor.numel() != right.numel():
                raise ValueError(
                    f"{name} must have {right.numel()} entries, got shape {tuple(tensor.shape)}"
                )
        if g.dim == 2:  # the official grid is transposed, and turned upside down
            coordinates = torch.stack([-coordinates[..., 1], coordinates[..., 0]], -1)
        found = {
            "weights": weights.reshape(self.weights.shape),
            "position": coordinates.mT.flatten(1),
            "radius": radius.reshape(sets, m),
        }
        return found if self.bias is None else found | {"bias": torch.zeros_like(self.bias)}

    def constrain_(self) -> None:
        """Clamp radii to [0.001, 1], or to two entries where these are wider."""
        with torch.no_grad():
            self.radius.clamp_(NARROWEST, max(1.0, 2 * _step(self.geometry.kernel_size)))

    def reset_parameters(self) -> None:
        """Draw positions and radii as the official code, weights for the plain layer's variance."""
        size = self.geometry.kernel_size
        longest = max(size)
        with torch.no_grad():
            nn.init.trunc_normal_(self.position, std=SPREAD, a=-1.0, b=1.0)
            for place, s in zip(
                self.position.unflatten(1, (len(size), -1)).unbind(1), size, strict=True
            ):
                place.mul_((s - 1) / max(longest - 1, 1))
            self.radius.fill_(4.0 / longest)
            # the plain layer's kernel has mean square bound^2 / 3; here it is that of the weights
            # times the profiles' sum of squares, of this draw's where all channels share it
            profiles = _profiles(self.position.double(), self.radius.double(), size, self.average)
            energy = profiles.square().flatten(1).sum(1) / math.prod(size)
            bound = self.bound / energy.clamp(min=1e-12).sqrt()
            nn.init.uniform_(self.weights, -1.0, 1.0)
            self.weights.mul_(bound.view(-1, 1, 1).to(self.weights))
            self.reset_bias()

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, points={self.weights.shape[-1]}"
        text += ", average=True" if self.average else ""
        return text + ("" if self.shared else ", shared=False")


def _one_point_per_entry(conv: Any) -> dict[str, Any]:
    return {"points": math.prod(conv.kernel_size)}


class SMPConv1d(_SMPNd, nn.Conv1d): ...


class SMPConv2d(_SMPNd, nn.Conv2d): ...


class SMPConv3d(_SMPNd, nn.Conv3d): ...


class SMPConvTranspose1d(_SMPNd, nn.ConvTranspose1d): ...


class SMPConvTranspose2d(_SMPNd, nn.ConvTranspose2d): ...


class SMPConvTranspose3d(_SMPNd, nn.ConvTranspose3d): ...


def _reference(layer: Any, x: Tensor) -> Tensor:
    """Entry by entry, point by point."""
    size, m = layer.kernel_size, layer.radius.shape[1]
    longest = max(max(size) - 1, 1)
    kernel = layer.weights.new_zeros(layer.kernel_shape)
    for tap in itertools.product(*map(range, size)):
        total = torch.zeros_like(kernel[at(tap)])
        found = torch.zeros_like(layer.radius[:, :1])
        for k in range(m):
            distance = torch.zeros_like(layer.radius[:, :1])
            for axis, (t, s) in enumerate(zip(tap, size, strict=True)):
                u = (2 * t - (s - 1)) / longest
                away = u - layer.position[:, axis * m + k, None]
                distance = distance + torch.where(away < 0, -away, away)
            reach = layer.radius[:, k, None]
            reach = torch.where(reach < 1e-3, torch.full_like(reach, 1e-3), reach)
            near = distance < reach
            total = total + layer.weights[:, :, k] * torch.where(near, 1 - distance / reach, 0)
            found = found + near
        kernel[at(tap)] = total / found.clamp(min=1) if layer.average else total
    return naive_convolution(x, kernel, layer.bias, layer.geometry)


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """The plain convolution, the points' profiles and their product with the weights."""
    forward, backward = layer.geometry.flops(shape)
    size, (sets, m) = layer.kernel_size, layer.radius.shape
    outer = list(itertools.accumulate(size, operator.mul))
    entries, along = outer[-1], sum(size)
    product = 2 * math.prod(layer.kernel_shape) * m
    # distances along each axis and their sums; 1 - distance / reach, not below 0, nor the reach
    own = 2 * along + sum(outer[1:]) + 3 * entries + 1
    # quotient 5, difference 1; along each axis the sign, its product and the difference
    own_backward = 6 * entries + 3 * along
    # what was broadcast is summed: radii, positions, and both parts of each sum of distances
    own_backward += (entries > 1) * entries + sum(s for s in size if s > 1)
    for before, s, after in zip(outer, size[1:], outer[1:], strict=False):
        own_backward += ((before > 1) + (s > 1)) * after
    if layer.average:
        own, own_backward = own + entries, own_backward + entries
    return forward + product + sets * m * own, backward + 2 * product + sets * m * own_backward


def _samples(dim: int) -> tuple[Sample, ...]:
    base = {"in_channels": 4, "out_channels": 6, "padding": 1}
    return (
        Sample(
            arguments=base | {"kernel_size": (6, 3, 4)[:dim], "points": 5, "groups": 2},
            size=(7, 6, 5)[:dim],
        ),
        Sample(arguments=base | {"kernel_size": 3, "points": 30}, size=(5, 4, 3)[:dim]),
    )


def _error_inputs(dim: int) -> tuple[ErrorInput, ...]:
    base = {"in_channels": 4, "out_channels": 4, "kernel_size": 5}
    return (
        ErrorInput(arguments=base | {"points": 0}, match="points must be an int of at least 1"),
        ErrorInput(
            arguments=base | {"points": 2.0}, match="points must be an int", error=TypeError
        ),
        ErrorInput(arguments=base | {"average": 1}, match="average must be True", error=TypeError),
        ErrorInput(arguments=base | {"shared": None}, match="shared must be True", error=TypeError),
    )


@register
def card() -> Card:
    return Card(
        name="smpconv",
        classes={1: SMPConv1d, 2: SMPConv2d, 3: SMPConv3d},
        transposed={1: SMPConvTranspose1d, 2: SMPConvTranspose2d, 3: SMPConvTranspose3d},
        variants={
            "default": {},
            "average": {"average": True},
            "own_points": {"shared": False, "average": True},
        },
        equation="K(u) = sum_k w_k max(0, 1 - |u - p_k|_1 / r_k),  y(q) = b + sum_u K(u) x(q+u)",
        summary="Large kernel interpolated from a few points that move; all channels share them.",
        citation="S. Kim, E. Park: SMPConv: Self-moving Point Representations for Continuous "
        "Convolution. CVPR 2023",
        claim="ImageNet-1k top-1 82.5 % (SMPConv-T, 27 M parameters) and 83.8 % (B, 80 M); "
        "CIFAR-10 93.0 % with 490 k parameters and 33x33 kernels (tables of the released code). "
        "The first continuous convolution at the scale of ImageNet (abstract).",
        source="sangnekim/SMPConv",
        source_licence="MIT",
        rows=(39,),
        reference=_reference,
        flops=_flops,
        folds=True,
        preserves_function=True,
        preserves_note="Every plain convolution exactly, with a point per entry (the default of "
        "from_conv); with fewer points the largest entries stay (average: least squares).",
        default_extent=31,
        kernels=("depthwise",),
        samples=_samples,
        error_inputs=_error_inputs,
        adapt=_one_point_per_entry,
    )
