"""The convolution contract: ``nn.ConvNd``'s arguments in one canonical form.

Every operator that replaces a convolution parses its arguments here, so that all of them accept,
refuse and mean the same. The output size along an axis is
``floor((n + before + after - dilation * (kernel_size - 1) - 1) / stride) + 1``, and transposed
``(n - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + output_padding + 1``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from omniconv.core import args, compat

__all__ = ["PADDING_MODES", "ConvArguments", "check_floating", "check_input", "output_size"]

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class ConvArguments:
    """The arguments of a convolution layer over ``dim`` spatial axes, checked and canonical.

    Sizes are tuples with one int per axis; ``padding`` stays the string ``"same"`` or ``"valid"``
    where it was given as one (``pads`` resolves it).
    """

    dim: int
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    bias: bool
    padding_mode: str
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @classmethod
    def parse(
        cls,
        dim: int,
        in_channels: Any,
        out_channels: Any,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: Any = 1,
        bias: Any = True,
        padding_mode: Any = "zeros",
        *,
        transposed: bool = False,
        output_padding: Any = 0,
    ) -> ConvArguments:
        """Check every argument and bring it to canonical form."""
        in_channels = args.positive_int("in_channels", in_channels)
        out_channels = args.positive_int("out_channels", out_channels)
        groups = args.divisor("groups", groups, in_channels=in_channels, out_channels=out_channels)
        kernel_size = args.ntuple("kernel_size", kernel_size, dim, 1)
        stride = args.ntuple("stride", stride, dim, 1)
        dilation = args.ntuple("dilation", dilation, dim, 1)
        output_padding = args.ntuple("output_padding", output_padding, dim, 0)
        modes = ("zeros",) if transposed else PADDING_MODES
        padding_mode = args.choice("padding_mode", padding_mode, modes)
        if isinstance(padding, str) and not transposed:
            padding = args.choice("padding", padding, ("same", "valid"))
            if padding == "same" and any(s != 1 for s in stride):
                raise ValueError(f"padding='same' needs stride 1, got stride={args.show(stride)}")
        else:
            padding = args.ntuple("padding", padding, dim, 0)
        if transposed:
            for axis, (o, s, d) in enumerate(zip(output_padding, stride, dilation, strict=True)):
                if o >= max(s, d):
                    raise ValueError(
                        f"output_padding must be smaller than stride or dilation, got "
                        f"output_padding={o} with stride={s}, dilation={d} on axis {axis}"
                    )
        return cls(
            dim=dim,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=args.boolean("bias", bias),
            padding_mode=padding_mode,
            transposed=transposed,
            output_padding=output_padding,
        )

    @property
    def pads(self) -> tuple[tuple[int, int], ...]:
        """Padding (before, after) per axis; ``"same"`` puts the odd one after, as torch does."""
        if self.padding == "valid":
            return ((0, 0),) * self.dim
        if self.padding == "same":
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return tuple((t // 2, t - t // 2) for t in totals)
        return tuple((int(p), int(p)) for p in self.padding)

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial output size for a spatial input size (see the module's equations)."""
        if not self.transposed:
            flat = [p for pair in self.pads for p in pair]
            return output_size(size, self.kernel_size, self.stride, flat, self.dilation)
        out = []
        for i, n in enumerate(size):
            reach = self.dilation[i] * (self.kernel_size[i] - 1)
            grown = (n - 1) * self.stride[i] - sum(self.pads[i]) + reach
            out.append(grown + self.output_padding[i] + 1)
        return tuple(out)

    def flops(self, shape: Sequence[int]) -> tuple[int, int]:
        """FLOPs of torch's convolution on an input of this shape: (forward, backward).

        Two per tap, padding included; backward: the gradients of input and kernel cost the
        forward once each, the bias one addition per output element, besides :meth:`pad_flops`.
        """
        size = shape[-self.dim :]
        batch = shape[0] if len(shape) == self.dim + 2 else 1
        out = math.prod(self.output_size(size))
        taps = math.prod(self.kernel_size) * self.in_channels * self.out_channels // self.groups
        forward = 2 * batch * taps * (math.prod(size) if self.transposed else out)
        bias = batch * self.out_channels * out if self.bias else 0
        return forward, 2 * forward + bias + self.pad_flops(shape)

    def pad_flops(self, shape: Sequence[int]) -> int:
        """FLOPs of the gradient of :meth:`pad`: each padded element is added to its source.

        torch adds up a circular padding side by side, the whole gradient each time.
        """
        sides = sum(p > 0 for pair in self.pads for p in pair)
        if self.padding_mode == "zeros" or not sides:
            return 0
        size = [n + sum(pads) for n, pads in zip(shape[-self.dim :], self.pads, strict=True)]
        passes = sides if self.padding_mode == "circular" else 1
        return passes * math.prod(shape[: -self.dim]) * math.prod(size)

    def pad(self, x: Tensor) -> Tensor:
        """``x`` padded on its last ``dim`` axes as ``padding`` and ``padding_mode`` say."""
        flat = [p for pair in reversed(self.pads) for p in pair]
        if not any(flat):
            return x
        return F.pad(
            x, flat, mode="constant" if self.padding_mode == "zeros" else self.padding_mode
        )

    def attach(self, module: Any) -> None:
        """Give ``module`` ``nn.ConvNd``'s attributes (all but ``weight``, ``bias``) and itself.

        The canonical form is kept as ``module.geometry``.
        """
        module.geometry = self
        for name in self.__dataclass_fields__:
            if name not in ("dim", "bias"):
                setattr(module, name, getattr(self, name))
        if isinstance(module, compat.ConvNd):
            compat.set_reversed_padding(module, self.pads)


def output_size(
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """Sizes of a convolution's output; ``padding`` is (before, after) of each axis in turn."""
    pairs = zip(padding[::2], padding[1::2], strict=True)
    axes = zip(size, kernel_size, stride, pairs, dilation, strict=True)
    return tuple((n + sum(p) - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)


def check_floating(name: str, x: Any) -> None:
    """Refuse anything but a floating-point tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a floating-point tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got dtype {x.dtype}")


def check_input(layer: Any, x: Any, like: Tensor | None = None, name: str = "input") -> None:
    """Refuse an input that the convolution ``layer`` cannot take, before anything is computed.

    Args:
        layer: A module that :meth:`ConvArguments.attach` was called on.
        x: The input, ``(B, C, *size)`` or unbatched ``(C, *size)``.
        like: A parameter whose dtype and device the input must share (dtype is free under
            autocast).
        name: What the messages call ``x``.

    Raises:
        TypeError: ``x`` is not a floating-point tensor of the layer's dtype.
        ValueError: Its rank, channels, device or size do not fit the layer.
    """
    check_floating(name, x)
    geometry: ConvArguments = layer.geometry
    dim = geometry.dim
    shape = tuple(x.shape)
    if x.dim() not in (dim + 1, dim + 2):
        raise ValueError(
            f"{name} must have {dim + 2} axes (batch, channels, {dim} spatial) or {dim + 1} "
            f"(unbatched), got shape {shape}"
        )
    if x.shape[-dim - 1] != geometry.in_channels:
        raise ValueError(
            f"{name} must have in_channels={geometry.in_channels} channels, got "
            f"{x.shape[-dim - 1]} (shape {shape})"
        )
    if like is not None:
        if x.device != like.device:
            raise ValueError(f"{name} must be on the layer's device {like.device}, got {x.device}")
        if x.dtype != like.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"{name} must have the layer's dtype {like.dtype}, got {x.dtype}")
    size = x.shape[-dim:]
    for axis, (n, (before, after)) in enumerate(zip(size, geometry.pads, strict=True)):
        limit = {"reflect": n - 1, "circular": n}.get(geometry.padding_mode)
        if limit is not None and max(before, after) > limit:
            raise ValueError(
                f"{name} is too small for padding_mode={geometry.padding_mode!r}: size {n} on axis "
                f"{axis} allows padding up to {limit}, got padding {max(before, after)}"
            )
        if n < 1:
            raise ValueError(f"{name} must have spatial sizes of at least 1, got shape {shape}")
    if any(n < 1 for n in geometry.output_size(size)):
        raise ValueError(
            f"{name} of spatial size {tuple(size)} is too small for kernel_size="
            f"{geometry.kernel_size}, dilation={geometry.dilation}, padding={geometry.padding!r}"
        )
