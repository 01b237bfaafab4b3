r"""SPD-Conv: space to depth, then a convolution without stride; nothing is left out.

.. math::
    y(p) = b + \sum_u \sum_{i} w(u, i)\, x(s\,(p + u) + i), \qquad 0 \le i < s

The image is cut into cells of s pixels (an incomplete last cell is completed as it would be
padded), and torch's arguments describe the convolution over cells.

Shapes: x (B, C, \*S), y (B, O, \*S') with S' the convolution's output on ceil(S / s) cells; weight
(O, C/groups prod(s), \*kernel_size), where column c prod(s) + i belongs to pixel i of the cell, in
row-major order.

Cost: 2 prod(kernel_size) prod(s) C/groups per output: prod(s) times the strided convolution that
it replaces.

Where s divides S it equals a strided convolution with a larger kernel: kernel_size s wide (with
dilation, s (dilation (kernel_size - 1) + 1)), stride s, padding s padding; ``strided_kernel`` is
its kernel.

Source: R. Sunkara, T. Luo, "No More Strided Convolutions or Pooling: A New CNN Building Block for
Low-Resolution Images and Small Objects", ECML PKDD 2022.

The official code has s = 2, even sizes only, and counts the pixels of a cell column by column,
pixel slow and channel fast (``from_official`` reorders). Its ResNets put a full-resolution
convolution before, batch normalisation and ReLU between space to depth and the convolution, and
keep strided shortcuts; its YOLO is the paper's block.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.core import args
from omniconv.core.card import Card, ErrorInput, Sample
from omniconv.core.geometry import ConvArguments, check_floating, check_input
from omniconv.core.layer import ConvLayer, new_parameter, plain_class, transfer
from omniconv.core.registry import register
from omniconv.kernels.convolve import convolve
from omniconv.math.naive import at, naive_convolution, naive_pad

__all__ = ["SPDConv1d", "SPDConv2d", "SPDConv3d", "space_to_depth"]


def space_to_depth(x: Tensor, scale: int | tuple[int, ...]) -> Tensor:
    r"""Cells of pixels become channels; for two axes and one scale ``F.pixel_unshuffle``.

    .. math:: y[b, c \prod s + i, p] = x[b, c, s p + i]

    Args:
        x: (B, C, \*S), one to three spatial axes.
        scale: s, an int or one per axis, which divides S.

    Returns:
        (B, C prod(scale), \*(S / s)).

    Raises:
        TypeError: ``x`` is not a floating-point tensor, or ``scale`` no int.
        ValueError: Shapes do not fit.
    """
    check_floating("x", x)
    dim = x.dim() - 2
    if dim not in (1, 2, 3):
        raise ValueError(f"x must have 3 to 5 axes, got shape {tuple(x.shape)}")
    cell = args.ntuple("scale", scale, dim, 1)
    if any(n % s for n, s in zip(x.shape[2:], cell, strict=True)):
        raise ValueError(
            f"x must have spatial sizes that scale={cell} divides, got {tuple(x.shape[2:])}"
        )
    for axis, s in reversed(list(enumerate(cell, 2))):
        x = x.unflatten(axis, (x.shape[axis] // s, s))
    pixels, cells = range(3, 3 + 2 * dim, 2), range(2, 2 + 2 * dim, 2)
    return x.permute(0, 1, *pixels, *cells).flatten(1, 1 + dim)


class _SPDNd(ConvLayer):
    """SPD-Conv over N axes (see the module's equation).

    Arguments are torch's, in torch's order, those of the convolution over cells: stride 1 and
    ``padding = (kernel_size - 1) // 2`` in place of a convolution of stride ``scale``. Then,
    keyword-only:

    Args:
        scale: Pixels s of a cell along an axis, an int or one per axis.
    """

    def setup(self, factory: dict[str, Any], *, scale: int | tuple[int, ...] = 2) -> None:
        self.scale = args.ntuple("scale", scale, self.geometry.dim, 1)
        self.weight = new_parameter(*self.kernel_shape, **factory)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """(O, I/groups prod(scale), *kernel_size)."""
        rows, columns, *size = super().kernel_shape
        return (rows, columns * math.prod(self.scale), *size)

    def reset_parameters(self) -> None:
        """Draw weight and bias as ``nn.ConvNd`` does."""
        nn.init.uniform_(self.weight, -self.bound, self.bound)
        self.reset_bias()

    def strided_kernel(self) -> Tensor:
        r"""The kernel of the strided convolution that this layer is (see the module's text).

        (O, I/groups, \*(scale (dilation (kernel_size - 1) + 1))).
        """
        g = self.geometry
        reach = [d * (k - 1) + 1 for d, k in zip(g.dilation, g.kernel_size, strict=True)]
        wide = self.weight.new_zeros(*self.weight.shape[:2], *reach)
        wide[at(slice(None, None, d) for d in g.dilation)] = self.weight
        wide = wide.unflatten(1, (-1, *self.scale))  # (O, I/g, *pixel, *cell)
        wide = wide.permute(0, 1, *(a for n in range(g.dim) for a in (2 + g.dim + n, 2 + n)))
        for axis in range(2, 2 + g.dim):
            wide = wide.flatten(axis, axis + 1)
        return wide

    def forward(self, input: Tensor) -> Tensor:
        r"""SPD-Conv of ``input`` (B, C, \*S) or (C, \*S)."""
        check_input(self, input, self.weight)
        g = self.geometry
        if input.dim() == g.dim + 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        self._check_cells(input.shape[2:])
        inside, margins = _pads(g, self.scale, input.shape[2:])
        flat = [m for pair in reversed(margins) for m in pair]
        mode = "constant" if g.padding_mode == "zeros" else g.padding_mode
        x = F.pad(input, flat, mode=mode) if any(flat) else input
        return convolve(space_to_depth(x, self.scale), self.weight, self.bias, inside)

    def _check_cells(self, size: tuple[int, ...]) -> None:
        """Refuse sizes that are large enough in pixels but not in cells."""
        g = self.geometry
        _, margins = _pads(g, self.scale, size)
        for axis, (n, pair) in enumerate(zip(size, margins, strict=True)):
            limit = {"reflect": n - 1, "circular": n}.get(g.padding_mode)
            if limit is not None and max(pair) > limit:
                raise ValueError(
                    f"input is too small for padding_mode={g.padding_mode!r}: size {n} on axis "
                    f"{axis} allows padding up to {limit}, got padding {max(pair)} "
                    f"(scale={self.scale[axis]})"
                )
        if any(n < 1 for n in g.output_size(_cells(size, self.scale))):
            raise ValueError(
                f"input of spatial size {tuple(size)} is too small for kernel_size="
                f"{g.kernel_size}, dilation={g.dilation}, padding={g.padding!r} over cells of "
                f"scale={self.scale}"
            )

    @classmethod
    def from_conv(
        cls, conv: nn.Module, extent: int | tuple[int, ...] | None = None, **own: Any
    ) -> Self:
        """This layer in place of a trained strided convolution: the same output, at every size.

        ``scale`` is the stride, unless it is given; the rest of the stride stays. The taps that
        the strided convolution left out start as 0. See :func:`omniconv.core.layer.transfer` for
        the arguments and errors.

        Raises:
            ValueError: The output grid would change (``padding`` is not half the kernel's reach),
                or no cells of the new kernel hold all taps of the old one.
        """
        if not isinstance(conv, plain_class(cls.dim)):
            transfer(cls, conv, extent)  # says which type it must be
        source: Any = conv
        scale = args.ntuple("scale", own.pop("scale", source.stride), cls.dim, 1)
        if all(s == 1 for s in scale):
            fitted: dict[str, Any] = {}
        else:
            size = source.kernel_size
            size = size if extent is None else args.ntuple("extent", extent, cls.dim, 1)
            fitted = _fitted(source, size, scale)
        layer, margins = transfer(cls, conv, extent, **(own | fitted), scale=scale)
        with torch.no_grad():
            layer.weight.zero_()
            kernel = F.pad(source.weight.detach(), margins)
            g = layer.geometry
            cells = layer.weight.unflatten(1, (-1, *scale))
            for tap in itertools.product(*map(range, g.kernel_size)):
                place, pixel = [], []
                for axis, u in enumerate(tap):
                    if scale[axis] == 1:
                        place.append(u)
                        pixel.append(0)
                        continue
                    step = source.dilation[axis]
                    reach = step * (g.kernel_size[axis] - 1) // 2
                    cell, rest = divmod(u * step - reach, scale[axis])
                    place.append((cell + g.pads[axis][0]) // g.dilation[axis])
                    pixel.append(rest)
                cells[at((*pixel, *place))] = kernel[at(tap)]
            if source.bias is not None:
                layer.bias.copy_(source.bias)
        return layer

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The official convolution's parameters, for this layer's ``load_state_dict``.

        Args:
            state_dict: ``weight`` (O, 4 C, k, k), and ``bias`` where this layer has one, of the
                ``nn.Conv2d`` after the official ``space_to_depth``.

        Raises:
            ValueError: Names or shapes do not fit this layer, or it is not of the official form.
        """
        if self.dim != 2 or self.scale != (2, 2) or self.geometry.groups != 1:
            raise ValueError(
                f"layer must have two axes, scale=2 and groups=1, as the official one, got {self}"
            )
        if set(state_dict) != set(self.state_dict()):
            raise ValueError(
                f"state_dict must hold exactly {', '.join(self.state_dict())}, "
                f"got {args.show(sorted(state_dict))}"
            )
        weight = state_dict["weight"]
        if weight.shape != self.weight.shape:
            raise ValueError(
                f"weight must have shape {tuple(self.weight.shape)}, got {tuple(weight.shape)}"
            )
        ordered = weight.unflatten(1, (2, 2, -1)).permute(0, 3, 2, 1, 4, 5)  # column slow -> fast
        return {**state_dict, "weight": ordered.flatten(1, 3)}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale}"


def _cells(size: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-n // s) for n, s in zip(size, scale, strict=True))


def _pads(
    g: ConvArguments, scale: tuple[int, ...], size: tuple[int, ...]
) -> tuple[ConvArguments, list[tuple[int, int]]]:
    """The convolution over cells, and the pixels (before, after) that are padded before cutting.

    Cells of zeros are left to the convolution; other padding looks at single pixels.
    """
    rest = [-n % s for n, s in zip(size, scale, strict=True)]
    if g.padding_mode == "zeros":
        return g, [(0, r) for r in rest]
    inside = replace(g, padding=(0,) * g.dim, padding_mode="zeros")
    return inside, [(s * b, s * a + r) for s, (b, a), r in zip(scale, g.pads, rest, strict=True)]


def _fitted(conv: Any, size: tuple[int, ...], scale: tuple[int, ...]) -> dict[str, Any]:
    """Stride, padding and dilation over cells that keep a strided convolution's grid and taps."""
    stride, padding, dilation = [], [], []
    for axis, (k, s) in enumerate(zip(size, scale, strict=True)):
        t, d, old = conv.stride[axis], conv.dilation[axis], conv.kernel_size[axis]
        p = 0 if conv.padding == "valid" else conv.padding[axis]
        if t % s:
            raise ValueError(f"scale must divide the stride {t} on axis {axis}, got {s}")
        stride.append(t // s)
        if s == 1:
            padding.append(p + d * (k - old) // 2)
            dilation.append(d)
            continue
        if 2 * p != d * (old - 1):
            raise ValueError(
                f"padding must be half of dilation * (kernel_size - 1) = {d * (old - 1)} on the "
                f"strided axis {axis}, else the output grid would change, got {p}"
            )
        step = 1 if d <= s else d // s
        if (d > s and d % s) or step * (k - 1) % 2:
            raise ValueError(
                f"dilation must be at most the scale {s} or a multiple of it, and the kernel have "
                f"a centre, on the strided axis {axis}, got dilation {d} and kernel_size {k}"
            )
        dilation.append(step)
        padding.append(step * (k - 1) // 2)
    return {"stride": tuple(stride), "padding": tuple(padding), "dilation": tuple(dilation)}


class SPDConv1d(_SPDNd):
    dim = 1


class SPDConv2d(_SPDNd):
    dim = 2


class SPDConv3d(_SPDNd):
    dim = 3


def _reference(layer: Any, x: Tensor) -> Tensor:
    """The strided convolution with the larger kernel, written out entry by entry."""
    g, scale = layer.geometry, layer.scale
    if x.dim() == g.dim + 1:
        return _reference(layer, x.unsqueeze(0)).squeeze(0)
    size = tuple(
        s * (d * (k - 1) + 1) for s, d, k in zip(scale, g.dilation, g.kernel_size, strict=True)
    )
    columns = g.in_channels // g.groups
    kernel = x.new_zeros(g.out_channels, columns, *size)
    pixels = list(itertools.product(*map(range, scale)))
    for tap in itertools.product(*map(range, g.kernel_size)):
        for number, pixel in enumerate(pixels):
            place = [
                s * d * u + i for s, d, u, i in zip(scale, g.dilation, tap, pixel, strict=True)
            ]
            kernel[at(place)] = layer.weight[at(tap)][:, number :: len(pixels)]
    pads = [
        (s * before, s * after + -n % s)
        for s, (before, after), n in zip(scale, g.pads, x.shape[2:], strict=True)
    ]
    padded: Any = SimpleNamespace(pads=pads, padding_mode=g.padding_mode)
    steps = tuple(s * t for s, t in zip(scale, g.stride, strict=True))
    none = {"padding": (0,) * g.dim, "dilation": (1,) * g.dim, "padding_mode": "zeros"}
    strided = replace(g, kernel_size=size, stride=steps, **none)
    return naive_convolution(naive_pad(x, padded), kernel, layer.bias, strided)


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """The convolution over cells, and the gradient of padding by anything else than zeros."""
    g, dim = layer.geometry, layer.dim
    inside, margins = _pads(g, layer.scale, shape[-dim:])
    size = tuple(n + sum(pair) for n, pair in zip(shape[-dim:], margins, strict=True))
    batch = shape[0] if len(shape) == dim + 2 else 1
    deep = g.in_channels * math.prod(layer.scale)
    cells = _cells(size, layer.scale)
    forward, backward = replace(inside, in_channels=deep).flops((batch, deep, *cells))
    sides = sum(m > 0 for pair in margins for m in pair)
    if g.padding_mode != "zeros" and sides:
        passes = sides if g.padding_mode == "circular" else 1
        backward += passes * batch * g.in_channels * math.prod(size)
    return forward, backward


def _rates(own: Mapping[str, Any], dim: int) -> tuple[tuple[int, int], ...]:
    return tuple((s, 1) for s in args.ntuple("scale", own.get("scale", 2), dim, 1))


def _samples(dim: int) -> tuple[Sample, ...]:
    base = {"in_channels": 2, "out_channels": 3}
    return (
        Sample(
            arguments=base
            | {"scale": (2, 3, 1)[:dim], "stride": (2, 3, 1)[:dim], "kernel_size": 3, "padding": 1},
            size=(7, 8, 3)[:dim],
        ),
        Sample(
            arguments=base
            | {
                "scale": 3,
                "stride": 3,
                "kernel_size": 1,
                "padding": 0,
                "padding_mode": "circular",
            },
            size=(7, 5, 4)[:dim],
        ),
    )


def _error_inputs(dim: int) -> tuple[ErrorInput, ...]:
    base = {"in_channels": 4, "out_channels": 4, "kernel_size": 3}
    return (
        ErrorInput(arguments=base | {"scale": 0}, match="scale must be an int of at least 1"),
        ErrorInput(arguments=base | {"scale": 0.5}, match="scale must be an int", error=TypeError),
        ErrorInput(
            arguments=base | {"scale": (2,) * (dim + 1)}, match=f"scale must be an int or {dim}"
        ),
    )


def _adapt(conv: Any) -> Mapping[str, Any]:
    """The stride as cells; layers without stride are left alone."""
    if all(s == 1 for s in conv.stride):
        raise ValueError("stride must be above 1: SPD-Conv replaces strided convolutions")
    fitted = _fitted(conv, conv.kernel_size, conv.stride)
    if fitted["dilation"] != tuple(conv.dilation):
        raise ValueError(f"dilation must be 1 on strided axes, got {conv.dilation}")
    return {"scale": tuple(conv.stride), "stride": 1}


@register
def card() -> Card:
    return Card(
        name="spd",
        classes={1: SPDConv1d, 2: SPDConv2d, 3: SPDConv3d},
        equation="y(p) = b + sum_u sum_i w(u,i) x(s (p+u) + i),  0 <= i < s",
        summary="Space to depth, then a convolution without stride: no pixel is left out.",
        citation="R. Sunkara, T. Luo: No More Strided Convolutions or Pooling: A New CNN Building "
        "Block for Low-Resolution Images and Small Objects. ECML PKDD 2022",
        claim="YOLOv5 and ResNet with SPD-Conv in place of strided convolutions and pooling do "
        "better than the best models of the time, most where images are of low resolution or "
        "objects small (abstract, without figures).",
        source="LabSAINT/SPD-Conv",
        source_licence="MIT",
        rows=(42,),
        reference=_reference,
        flops=_flops,
        rates=_rates,
        preserves_function=True,
        preserves_note="Every plain convolution without stride, exactly; strided ones whose "
        "padding is half the kernel's reach, exactly and at every size.",
        default_extent=3,
        samples=_samples,
        error_inputs=_error_inputs,
        adapt=_adapt,
    )
