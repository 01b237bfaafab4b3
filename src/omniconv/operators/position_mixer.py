"""Base of layers that weigh every position's window by a kernel of its own and mix no channels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from omniconv.core import args
from omniconv.core.layer import ConvLayer, plain_class, transfer
from omniconv.kernels.position_varying import position_varying
from omniconv.kernels.position_varying.flops import position_varying_flops

__all__ = ["PositionMixer", "aggregation_flops", "at_most"]


class PositionMixer(ConvLayer):
    """A layer over N axes that generates kernels and applies them by :meth:`aggregate`.

    A subclass calls :meth:`keep_channels` or :meth:`share` in ``setup``.
    """

    @property
    def bound(self) -> float:
        """1/sqrt(fan_in) of the depthwise convolution that the layer replaces."""
        return 1.0 / math.sqrt(math.prod(self.geometry.kernel_size))

    def keep_channels(self) -> int:
        """The number of channels, which must be the same on both sides."""
        g = self.geometry
        if g.out_channels != g.in_channels:
            raise ValueError(
                f"out_channels must equal in_channels={g.in_channels}, because "
                f"{type(self).__name__} does not mix channels, got {g.out_channels}"
            )
        return g.in_channels

    def regroup(self, groups: int) -> None:
        """Set the number of groups of channels that share a kernel."""
        self.geometry = replace(self.geometry, groups=groups)
        self.geometry.attach(self)

    def share(self, group_channels: int | None) -> int:
        """The number of channels; ``group_channels`` of them share a kernel, or as ``groups``."""
        channels = self.keep_channels()
        if group_channels is not None:
            each = args.divisor("group_channels", group_channels, in_channels=channels)
            groups = self.geometry.groups
            if groups not in (1, channels // each):
                raise ValueError(
                    f"group_channels must be {channels // groups} with groups={groups} and "
                    f"in_channels={channels}, got {each}; give one of the two"
                )
            self.regroup(channels // each)
        return channels

    def aggregate(self, x: Tensor, kernels: Tensor, *, softmax: bool = False) -> Tensor:
        r"""The kernels (B or 1, groups, \*kernel_size, \*S') applied to x (B, C, \*S).

        ``softmax=True``: they are logits, and each window's weights their softmax.
        """
        g = self.geometry
        padding: Any = g.pads
        if g.padding_mode != "zeros":
            x, padding = g.pad(x), 0
        return position_varying(
            x.to(kernels.dtype), kernels, g.stride, padding, g.dilation, softmax
        )

    def shift(self, y: Tensor) -> Tensor:
        """``y`` plus the bias."""
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, *[1] * self.dim)

    @classmethod
    def transfer_depthwise(
        cls, conv: nn.Module, extent: int | tuple[int, ...] | None, **own: Any
    ) -> tuple[Any, list[int]]:
        """:func:`omniconv.core.layer.transfer` of a depthwise convolution, and of no other."""
        source: Any = conv
        if isinstance(conv, plain_class(cls.dim)) and not (
            source.groups == source.in_channels == source.out_channels
        ):
            raise ValueError(
                f"conv must be depthwise (groups = in_channels = out_channels), because "
                f"{cls.__name__} does not mix channels, got groups={source.groups}, "
                f"in_channels={source.in_channels}, out_channels={source.out_channels}"
            )
        if own.get("group_channels") is not None:
            own = {"groups": 1} | own
        return transfer(cls, conv, extent, **own)


def at_most(limit: int) -> Callable[[Any], dict[str, int]]:
    """For a card's ``adapt``: the most channels per group up to ``limit`` that divide a layer's."""

    def adapt(conv: Any) -> dict[str, int]:
        channels = conv.in_channels
        each = max(n for n in range(1, limit + 1) if channels % n == 0)
        return {"groups": 1, "group_channels": each}

    return adapt


def aggregation_flops(
    layer: Any, shape: tuple[int, ...], *, shared: bool = False, softmax: bool = False
) -> tuple[int, int]:
    """FLOPs (forward, backward) of ``shift(aggregate(x, kernels))`` on an input of this shape.

    Args:
        layer: A :class:`PositionMixer`.
        shape: Shape of x.
        shared: The kernels are the same for the whole batch.
        softmax: They are logits.
    """
    g = layer.geometry
    batch = shape[0] if len(shape) == g.dim + 2 else 1
    size = g.output_size(shape[-g.dim :])
    # what a padding mode adds is counted as part of x, zeros are not
    pads = [p for pair in g.pads for p in pair]
    x = [n + before + after for n, (before, after) in zip(shape[-g.dim :], g.pads, strict=True)]
    zeros = g.padding_mode == "zeros"
    forward, backward = position_varying_flops(
        (batch, g.in_channels, *(shape[-g.dim :] if zeros else x)),
        (1 if shared else batch, g.groups, *g.kernel_size, *size),
        pads if zeros else (),
        softmax,
    )
    shifts = batch * g.in_channels * math.prod(size) if g.bias else 0
    return forward + shifts, backward + shifts + g.pad_flops(shape)
