r"""Dilated convolution with learnable spacings: few taps, whose positions are learned too.

.. math::
    K(u) = \sum_{k=1}^m w_k \prod_a \phi_a(u_a - p_{ka}), \qquad
    y(q) = b + \sum_u K(u)\, x(q + u)

for every pair of an output and an input channel. ``interpolation`` is the footprint of a tap:

- ``"bilinear"`` (multilinear): :math:`\phi(x) = (1 - |x|)_+`;
- ``"gauss"``: :math:`\phi \propto e^{-x^2 / 2\sigma^2}, \sigma = 0.27 + |s|`;
- ``"triangle"``: :math:`\phi \propto (\sigma - |x|)_+, \sigma = 1 + |s|`;

the last two with a learned width s per tap and axis, divided by the footprint's sum over the
kernel. (At x = 0, :math:`|s|` has derivative 1.)

Shapes: as ``nn.ConvNd``; taps (O, I/groups, m), positions and widths (O, I/groups, d m): the m
coordinates along the first axis, then those along the next. Positions count from the kernel's
centre, (S - 1) / 2 on an axis of size S: 0 is a grid point where S is odd and halfway between two
where it is even. They are clamped to the kernel's box, :math:`|p| \le (S - 1) / 2`.

Cost: the plain convolution of the same extent, plus :math:`2^d` additions per tap (bilinear) or
:math:`2 \prod_a S_a` (gauss, triangle) for the kernel.

Source: I. Khalfaoui-Hassani, T. Pellegrini, T. Masquelier, "Dilated convolution with learnable
spacings", ICLR 2023, and "Dilated Convolution with Learnable Spacings: beyond bilinear
interpolation", 2023. From the first: positions are drawn from a normal distribution of deviation
0.5, do not decay, learn five times as fast as weights, and return to the box after each step.

The official code centres kernels on S // 2, which is no symmetric box for even S; takes that centre
from the wrong axis where S differs per axis; lists the axes of P in another order in each version;
adds 1e-7 to the footprint's sum, and divides bilinear footprints by it too; does not clamp in the
forward pass; and starts triangles at s = 0 with derivative 0, so that their widths never move.
:meth:`from_official` converts its parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from statistics import NormalDist
from typing import Any, Self

import torch
from torch import Tensor, nn

from omniconv.core import args
from omniconv.core.card import Card, ErrorInput, Sample
from omniconv.core.geometry import check_floating
from omniconv.core.layer import new_parameter, plain_class
from omniconv.core.registry import register
from omniconv.kernels.dcls import INTERPOLATIONS, NARROWEST, dcls
from omniconv.kernels.dcls.flops import dcls_flops
from omniconv.math.naive import naive_convolution
from omniconv.operators.static_kernel import StaticKernel

__all__ = [
    "DCLSConv1d",
    "DCLSConv2d",
    "DCLSConv3d",
    "DCLSConvTranspose1d",
    "DCLSConvTranspose2d",
    "DCLSConvTranspose3d",
    "dcls_kernel",
]

INITIAL_WIDTH = {"gauss": 0.23, "triangle": 0.0}
SPREAD = 0.5
"""Deviation of the positions that ``reset_parameters`` draws."""


def dcls_kernel(
    taps: Tensor,
    position: Tensor,
    size: Sequence[int],
    interpolation: str = "bilinear",
    width: Tensor | None = None,
) -> Tensor:
    r"""The dense kernel of taps at real positions (see the module's equation).

    Positions are evaluated in float32 at least.

    Args:
        taps: Weights (O, I/groups, m).
        position: (O, I/groups, d m), from the kernel's centre.
        size: The kernel's d sizes.
        interpolation: ``"bilinear"``, ``"gauss"`` or ``"triangle"``.
        width: The widths s, shaped as ``position``; None for ``"bilinear"``.

    Returns:
        (O, I/groups, \*size), of ``taps``'s dtype.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: Shapes do not fit, or ``interpolation`` is unknown.
    """
    check_floating("taps", taps)
    check_floating("position", position)
    args.choice("interpolation", interpolation, INTERPOLATIONS)
    if taps.dim() != 3:
        raise ValueError(f"taps must have 3 axes (O, I/groups, m), got {tuple(taps.shape)}")
    if not isinstance(size, Sequence) or isinstance(size, str) or not size:
        raise TypeError(f"size must be a sequence of ints of at least 1, got {args.show(size)}")
    size = args.ntuple("size", size, len(size), 1)
    shape = (*taps.shape[:2], len(size) * taps.shape[2])
    if position.shape != shape:
        raise ValueError(f"position must have shape {shape}, got {tuple(position.shape)}")
    if interpolation == "bilinear":
        if width is not None:
            raise ValueError(f"width must be None for interpolation='bilinear', got {type(width)}")
    else:
        check_floating("width", width)
        if width is None or width.shape != shape:
            raise ValueError(f"width must have shape {shape}, got {args.show(width)}")
    return _kernel(taps, position, size, interpolation, width)


def _kernel(
    taps: Tensor,
    position: Tensor,
    size: tuple[int, ...],
    interpolation: str,
    width: Tensor | None,
) -> Tensor:
    """:func:`dcls_kernel` of arguments that fit, as a layer's own do."""
    wide = torch.float64 if taps.dtype == torch.float64 else torch.float32
    width = None if width is None else width.to(wide)
    return dcls(taps.to(wide), position.to(wide), width, size, interpolation).to(taps.dtype)


class _DCLSNd(StaticKernel):
    """Dilated convolution with learnable spacings over N axes (see the module's equation).

    Arguments are torch's, in torch's order, and then, keyword-only. ``kernel_size`` is the extent
    of the kernel, the box in which the taps move.

    Args:
        taps: Number of free taps per pair of channels. Default: as many as the kernel that is 3
            wide (or narrower, where ``kernel_size`` is) has entries.
        interpolation: Footprint of a tap: ``"bilinear"``, ``"gauss"`` or ``"triangle"``.
    """

    taps: Tensor
    position: Tensor
    width: Tensor | None
    no_weight_decay = ("position", "width")
    lr_factors = {"position": 5.0}  # noqa: RUF012

    def setup(
        self,
        factory: dict[str, Any],
        *,
        taps: int | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        if taps is None:
            taps = math.prod(min(s, 3) for s in self.geometry.kernel_size)
        count = args.positive_int("taps", taps)
        self.interpolation = args.choice("interpolation", interpolation, INTERPOLATIONS)
        pairs = self.kernel_shape[:2]
        self.taps = new_parameter(*pairs, count, **factory)
        self.position = new_parameter(*pairs, self.geometry.dim * count, **factory)
        width = None
        if interpolation != "bilinear":
            width = new_parameter(*pairs, self.geometry.dim * count, **factory)
        self.register_parameter("width", width)

    def kernel(self) -> Tensor:
        """The kernel that is applied: ``dcls_kernel(taps, position, kernel_size, ...)``."""
        size = self.geometry.kernel_size
        return _kernel(self.taps, self.position, size, self.interpolation, self.width)

    def load_kernel_(self, weight: Tensor) -> None:
        """Put the taps on the kernel's largest entries, one set per pair of channels.

        With at least as many taps as entries other than 0 the kernel is ``weight``; for gauss, and
        with fewer taps, it is nearest to it among kernels with these positions and the least width.
        """
        with torch.no_grad():
            entries = weight.flatten(2)
            count = min(self.taps.shape[-1], entries.shape[-1])
            index = entries.abs().topk(count, -1).indices
            places = torch.zeros(self.position.shape, dtype=torch.float64, device=weight.device)
            places = places.unflatten(-1, (self.geometry.dim, -1))
            rest = index
            for axis, s in reversed(list(enumerate(self.geometry.kernel_size))):
                places[:, :, axis, :count] = rest % s - (s - 1) / 2
                rest = rest // s
            self.position.copy_(places.flatten(2))
            if self.width is not None:
                self.width.zero_()
            values = entries.gather(-1, index)
            if self.interpolation == "gauss":
                values = _least_squares(entries, places[..., :count], self.geometry.kernel_size)
            self.taps.zero_()[..., :count] = values

    @classmethod
    def from_conv(
        cls, conv: nn.Module, extent: int | tuple[int, ...] | None = None, **own: Any
    ) -> Self:
        """As :meth:`StaticKernel.from_conv`; by default with a tap for each of its entries."""
        if isinstance(conv, plain_class(cls.dim, cls.is_transposed)):
            own = _one_tap_per_entry(conv) | own
        return super().from_conv(conv, extent, **own)

    def from_official(
        self, state_dict: Mapping[str, Tensor], version: str | None = None
    ) -> dict[str, Tensor]:
        """The official layer's parameters, for this layer's ``load_state_dict``.

        The kernel is the official one up to its 1e-7 in divisions. Positions outside the box are
        clamped to it: bilinear taps keep their kernel, gauss and triangle ones the nearest.

        Args:
            state_dict: ``weight``, ``P``, ``SIG`` (gauss, triangle) and ``bias`` (where this layer
                has one) of a Dcls1d, 2d or 3d layer of this layer's sizes.
            version: The official ``version``: ``"v1"`` or ``"v0"`` for bilinear, ``"gauss"`` for
                gauss, ``"max"`` for triangle; default the first of these.

        Raises:
            ValueError: Names, shapes or the version do not fit this layer.
        """
        allowed = {"bilinear": ("v1", "v0"), "gauss": ("gauss",), "triangle": ("max",)}
        versions = allowed[self.interpolation]
        version = args.choice("version", versions[0] if version is None else version, versions)
        size = self.geometry.kernel_size
        rows_of = (len(size), *self.taps.shape)
        shapes: dict[str, tuple[int, ...]] = {"weight": tuple(self.taps.shape), "P": rows_of}
        if self.width is not None:
            shapes["SIG"] = rows_of
        if self.bias is not None:
            shapes["bias"] = tuple(self.bias.shape)
        if set(state_dict) != set(shapes):
            raise ValueError(
                f"state_dict must hold exactly {', '.join(shapes)}, "
                f"got {args.show(sorted(state_dict))}"
            )
        for name, shape in shapes.items():
            if tuple(state_dict[name].shape) != shape:
                raise ValueError(
                    f"{name} must have shape {shape}, got {tuple(state_dict[name].shape)}"
                )
        # which row of P moves along each axis
        rows = [*range(len(size))] if version == "v0" else [*reversed(range(len(size)))]
        if version == "v0" and len(size) == 3:
            rows = [0, 2, 1]
        taps = state_dict["weight"].clone()
        position = []
        for row, s in zip(rows, size, strict=True):
            place = state_dict["P"][row] + (size[row] // 2 - (s - 1) / 2)
            outside = (place.abs() - (s - 1) / 2).clamp(min=0)
            if version == "v0":
                taps *= (1 - outside).clamp(min=0)
            elif version == "v1":
                taps *= outside < 1
            position.append(place.clamp(-(s - 1) / 2, (s - 1) / 2))
        found = {"taps": taps, "position": torch.cat(position, -1)}
        if self.width is not None:
            found["width"] = torch.cat([state_dict["SIG"][row] for row in rows], -1)
        if self.bias is not None:
            found["bias"] = state_dict["bias"]
        return found

    def constrain_(self) -> None:
        """Clamp the positions to the kernel's box."""
        with torch.no_grad():
            places = self.position.unflatten(-1, (self.geometry.dim, -1)).unbind(-2)
            for p, s in zip(places, self.geometry.kernel_size, strict=True):
                p.clamp_(-(s - 1) / 2, (s - 1) / 2)

    def reset_parameters(self) -> None:
        """Draw the positions as the paper does, the taps for the plain layer's output variance."""
        with torch.no_grad():
            nn.init.normal_(self.position, std=SPREAD)
            self.constrain_()
            if self.width is not None:
                nn.init.constant_(self.width, INITIAL_WIDTH[self.interpolation])
            # the plain layer's kernel has mean square bound^2 / 3
            size = self.geometry.kernel_size
            energy = math.prod(_energy(s, self.interpolation) for s in size)
            scale = math.sqrt(math.prod(size) / (self.taps.shape[-1] * energy))
            nn.init.uniform_(self.taps, -scale * self.bound, scale * self.bound)
            self.reset_bias()

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, taps={self.taps.shape[-1]}"
        other = self.interpolation != "bilinear"
        return text + (f", interpolation={self.interpolation!r}" if other else "")


@cache
def _energy(size: int, interpolation: str, draws: int = 101) -> float:
    """Mean square sum of a fresh tap's profile along an axis, over the draw of its position."""
    total = 0.0
    for i in range(draws):
        limit = (size - 1) / 2
        p = min(max(NormalDist(0, SPREAD).inv_cdf((i + 0.5) / draws), -limit), limit)
        distances = [u - limit - p for u in range(size)]
        if interpolation == "gauss":
            sigma = NARROWEST["gauss"] + INITIAL_WIDTH["gauss"]
            profile = [math.exp(-0.5 * (x / sigma) ** 2) for x in distances]
        else:  # a fresh triangle is the bilinear hat
            profile = [max(1 - abs(x), 0.0) for x in distances]
        total += sum(v * v for v in profile) / sum(profile) ** 2
    return total / draws


def _least_squares(entries: Tensor, places: Tensor, size: tuple[int, ...]) -> Tensor:
    """Weights (O, I, m) of gauss taps at ``places`` (O, I, d, m) for the kernel nearest to it."""
    rows = []
    for wanted, place in zip(entries.double(), places, strict=True):
        each = place.movedim(-1, 1).flatten(0, 1).unsqueeze(1)  # (I m, 1, d): one tap alone
        one, none = each.new_ones(len(each), 1, 1), torch.zeros_like(each)
        prints = dcls_kernel(one, each, size, "gauss", none).view(len(place), -1, wanted.shape[-1])
        normal, right = prints @ prints.mT, prints @ wanted.unsqueeze(-1)
        rows.append(torch.linalg.solve(normal, right).squeeze(-1))
    return torch.stack(rows)


def _one_tap_per_entry(conv: Any) -> dict[str, Any]:
    return {"taps": math.prod(conv.kernel_size)}


class DCLSConv1d(_DCLSNd, nn.Conv1d): ...


class DCLSConv2d(_DCLSNd, nn.Conv2d): ...


class DCLSConv3d(_DCLSNd, nn.Conv3d): ...


class DCLSConvTranspose1d(_DCLSNd, nn.ConvTranspose1d): ...


class DCLSConvTranspose2d(_DCLSNd, nn.ConvTranspose2d): ...


class DCLSConvTranspose3d(_DCLSNd, nn.ConvTranspose3d): ...


def _reference(layer: Any, x: Tensor) -> Tensor:
    """Tap by tap: its whole footprint over the kernel, divided by its sum."""
    size, m = layer.kernel_size, layer.taps.shape[-1]
    kernel = layer.taps.new_zeros(layer.kernel_shape)
    for k in range(m):
        footprint = layer.taps.new_ones(*layer.kernel_shape[:2], *[1] * len(size))
        for axis, s in enumerate(size):
            column = axis * m + k
            place = layer.position[:, :, column].clamp(-(s - 1) / 2, (s - 1) / 2) + (s - 1) / 2
            if s == 1:
                profile = [torch.ones_like(place)]
            elif layer.interpolation == "bilinear":
                cell = place.detach().floor().clamp(max=s - 2)
                profile = [
                    torch.where(cell == u, 1 - (place - cell), 0)
                    + torch.where(cell + 1 == u, place - cell, 0)
                    for u in range(s)
                ]
            else:
                width = layer.width[:, :, column]
                width = torch.where(width < 0, -width, width)
                if layer.interpolation == "gauss":
                    sigma = 0.27 + width
                    profile = [(-0.5 * ((u - place) / sigma) ** 2).exp() for u in range(s)]
                else:
                    profile = [(1 + width - (u - place).abs()).clamp(min=0) for u in range(s)]
                total = sum(profile)
                profile = [value / total for value in profile]
            shape = [1] * len(size)
            shape[axis] = s
            footprint = footprint * torch.stack(profile, -1).unflatten(-1, shape)
        kernel = kernel + layer.taps[:, :, k].view(*kernel.shape[:2], *[1] * len(size)) * footprint
    return naive_convolution(x, kernel, layer.bias, layer.geometry)


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """The plain convolution and the kernel's construction."""
    plain = layer.geometry.flops(shape)
    own = dcls_flops(layer.taps.shape, layer.kernel_size, layer.interpolation)
    return plain[0] + own[0], plain[1] + own[1]


def _samples(dim: int) -> tuple[Sample, ...]:
    uneven = tuple((6, 3, 4)[:dim])
    base = {"in_channels": 4, "out_channels": 6, "kernel_size": uneven, "padding": 2}
    return (
        Sample(arguments=base | {"taps": 2, "groups": 2}, size=(7, 6, 5)[:dim]),
        Sample(arguments=base | {"kernel_size": 3, "taps": 12}, size=(5, 4, 3)[:dim]),
    )


def _error_inputs(dim: int) -> tuple[ErrorInput, ...]:
    base = {"in_channels": 4, "out_channels": 4, "kernel_size": 5}
    return (
        ErrorInput(arguments=base | {"taps": 0}, match="taps must be an int of at least 1, got 0"),
        ErrorInput(arguments=base | {"taps": 2.0}, match="taps must be an int", error=TypeError),
        ErrorInput(
            arguments=base | {"interpolation": "gaus"}, match="interpolation must be one of.*gauss"
        ),
        ErrorInput(
            arguments=base | {"interpolation": 1},
            match="interpolation must be one of",
            error=TypeError,
        ),
    )


@register
def card() -> Card:
    return Card(
        name="dcls",
        classes={1: DCLSConv1d, 2: DCLSConv2d, 3: DCLSConv3d},
        transposed={1: DCLSConvTranspose1d, 2: DCLSConvTranspose2d, 3: DCLSConvTranspose3d},
        variants={
            "default": {},
            "gauss": {"interpolation": "gauss"},
            "triangle": {"interpolation": "triangle"},
        },
        equation="K(u) = sum_k w_k prod_a phi_a(u_a - p_ka),  y(q) = b + sum_u K(u) x(q+u)",
        summary="Few taps at learned real positions in a large kernel, spread by interpolation.",
        citation="I. Khalfaoui-Hassani, T. Pellegrini, T. Masquelier: Dilated convolution with "
        "learnable spacings. ICLR 2023",
        claim="ConvNeXt with DCLS in its depthwise layers, ImageNet-1k top-1 at equal parameters: "
        "82.5 % against 82.1 % (T), 83.7 % against 83.1 % (S), 84.1 % against 83.8 % (B) (table of "
        "the released models). ResNet-50 gains too, but loses throughput (abstract).",
        source="K-H-Ismail/Dilated-Convolution-with-Learnable-Spacings-PyTorch",
        source_licence="MIT (its licence file) or GPL-3.0 (its package metadata)",
        rows=(34,),
        reference=_reference,
        flops=_flops,
        folds=True,
        preserves_function=True,
        preserves_note="Every plain convolution exactly, with a tap per entry (the default of "
        "from_conv); with fewer taps the largest entries stay. Gauss: least squares.",
        default_extent=7,
        kernels=("dcls", "depthwise"),
        samples=_samples,
        error_inputs=_error_inputs,
        adapt=_one_tap_per_entry,
    )
