"""Layers that are one kernel and then torch's own convolution.

A static-kernel layer computes ``W = g(theta)`` of shape (O, I/groups, *kernel_size) from parameters
of its own and hands it to torch's convolution. Such a layer *is* an ``nn.ConvNd``: ``weight`` is a
read-only property that returns the kernel that is applied, so that every consumer of ``m.weight``
gets right numbers, and one that wants to own the parameter gets an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.core.geometry import check_input
from omniconv.core.layer import Convolution, plain_class, transfer
from omniconv.kernels.convolve import convolve_as

__all__ = ["StaticKernel"]


class StaticKernel(Convolution):
    """Mixin over ``nn.ConvNd`` and ``nn.ConvTransposeNd``: ``weight`` is computed.

    Put it before torch's class: ``class MyConv2d(_MyNd, nn.Conv2d)`` where ``_MyNd`` derives from
    this class and defines ``setup``, ``kernel``, ``load_kernel_`` and ``reset_parameters``.
    Own parameters are never called ``weight``; nothing dense is allocated or drawn.
    """

    def kernel(self) -> Tensor:
        """The dense kernel ``W = g(theta)``, shape :attr:`kernel_shape`."""
        raise NotImplementedError(f"{type(self).__name__} must define kernel()")

    def load_kernel_(self, weight: Tensor) -> None:
        """Set the parameters so that :meth:`kernel` equals ``weight``, or is nearest to it."""
        raise NotImplementedError(f"{type(self).__name__} must define load_kernel_()")

    if TYPE_CHECKING:
        weight: Tensor
    else:

        @property
        def weight(self) -> Tensor:
            """The kernel that is applied; read-only (see :meth:`load_kernel_`)."""
            return self.kernel()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As ``nn.Module``'s, but refuses ``weight``, which is computed."""
        if name == "weight":
            raise AttributeError(
                f"{type(self).__name__}.weight is computed and read-only: change its own "
                f"parameters, call load_kernel_(), or fold() it into a plain layer first"
            )
        nn.Module.register_parameter(self, name, param)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The convolution of ``input`` with :meth:`kernel`: torch's own, or the depthwise kernel's.

        ``output_size`` is that of ``nn.ConvTransposeNd``; the others refuse it.
        """
        check_input(self, input, next(self.parameters()))
        if output_size is not None:
            return super().forward(input, output_size)
        if self.is_transposed:
            return super().forward(input)
        return convolve_as(self, input, self.weight, self.bias)

    def fold(self) -> nn.Module:
        """The plain torch convolution with the same kernel, bias, mode, device and dtype."""
        g = self.geometry
        weight = self.kernel().detach().clone(memory_format=torch.contiguous_format)
        arguments: dict[str, Any] = {"output_padding": g.output_padding} if g.transposed else {}
        plain = plain_class(g.dim, g.transposed)(
            g.in_channels,
            g.out_channels,
            g.kernel_size,
            stride=g.stride,
            padding=g.padding,
            dilation=g.dilation,
            groups=g.groups,
            bias=g.bias,
            padding_mode=g.padding_mode,
            device="meta",
            **arguments,
        )
        parameters: list[nn.Parameter] = list(self.parameters())
        trained = any(p.requires_grad for p in parameters if p is not self.bias)
        plain.weight = nn.Parameter(weight, requires_grad=trained)
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach().clone(), self.bias.requires_grad)
        return plain.train(self.training)

    @classmethod
    def from_conv(
        cls, conv: nn.Module, extent: int | tuple[int, ...] | None = None, **own: Any
    ) -> Self:
        """This layer with a trained convolution's kernel: the same output, or the nearest.

        See :func:`omniconv.core.layer.transfer` for the arguments and errors.
        """
        layer, margins = transfer(cls, conv, extent, **own)
        source: Any = conv
        with torch.no_grad():
            layer.load_kernel_(F.pad(source.weight.detach(), margins))
            if source.bias is not None:
                layer.bias.copy_(source.bias)
        return layer
