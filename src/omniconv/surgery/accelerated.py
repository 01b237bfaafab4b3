"""torch's depthwise layers on the library's kernel."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from omniconv.kernels.convolve import convolve_as

__all__ = ["Accelerated", "AcceleratedConv1d", "AcceleratedConv2d", "AcceleratedConv3d"]


class Accelerated(nn.Module):
    """Mixin over ``nn.ConvNd``: :func:`omniconv.kernels.convolve.convolution` computes it."""

    def forward(self: Any, input: Tensor) -> Tensor:
        """What torch's own layer computes."""
        return convolve_as(self, input, self.weight, self.bias)


class AcceleratedConv1d(Accelerated, nn.Conv1d):
    """A depthwise ``nn.Conv1d`` on the library's kernel; ``oc.accelerate_`` makes it."""


class AcceleratedConv2d(Accelerated, nn.Conv2d):
    """A depthwise ``nn.Conv2d`` on the library's kernel; ``oc.accelerate_`` makes it."""


class AcceleratedConv3d(Accelerated, nn.Conv3d):
    """A depthwise ``nn.Conv3d`` on the library's kernel; ``oc.accelerate_`` makes it."""


FAST: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: AcceleratedConv1d,
    nn.Conv2d: AcceleratedConv2d,
    nn.Conv3d: AcceleratedConv3d,
}
PLAIN = {fast: plain for plain, fast in FAST.items()}


def plain_type(module: nn.Module) -> type[nn.Module]:
    """The module's class; torch's own where it is an accelerated one."""
    return PLAIN.get(type(module), type(module))
