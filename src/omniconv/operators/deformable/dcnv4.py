r"""DCNv4: weighted sums of values at places that the input gives; the weights are unbounded.

.. math::
    y(p) = W_o \Big(\sum_q m(g(c), q, p)\, \tilde v\big(c,\, p_0 + s\,(p_q + \Delta(g(c), q, p))
    \big)\Big)_c + b, \qquad v = W_v x + b_v

    (\Delta, m) = W h(p) + b', \qquad h(p) = x(p_0) \quad\text{or}\quad h = d * x + b_d

with :math:`p_0`, :math:`p_q` and :math:`\tilde v` as in DCNv3. h is the pixel under the window's
centre tap, (K - 1) // 2 on each axis, 0 outside of the (padded) input, or with ``dw_kernel_size`` a
depthwise convolution on the layer's own grid.

Shapes: as ``nn.ConvNd``; W_v (C, C), W_o (O, C); g(c) = c * groups // C. ``point`` holds W, rows
ordered (group, tap, axis), the offsets in input pixels, then (group, tap), the weights.

Cost: two 1-wide convolutions, groups prod(kernel_size) (dim + 1) outputs of the generator, and
2^dim multiply-adds per tap and channel.

Source: Y. Xiong, Z. Li, Y. Chen, F. Wang, X. Zhu, J. Luo, W. Wang, T. Lu, H. Li, Y. Qiao, L. Lu,
J. Zhou, J. Dai, "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision
Applications", CVPR 2024. Its formula has s = 1.

The official code has C = O, multiples of 16 channels per group, kernels and everything else alike
on both axes, stride 1, and dilation 1 in d. It takes (B, pixels, C), pads the generator's rows to a
multiple of 8, orders taps column by column and axes (x, y) (``from_official`` permutes), and starts
with m = 0, so that its first output is b (here 1 / taps, as in DCNv3). Its ``without_pointwise`` is
:func:`deform_aggregate`; its ``center_feature_scale`` is not here. Half precision, also under
autocast, is computed in float32 and rounded once: places need it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from omniconv.core.card import Card
from omniconv.core.geometry import ConvArguments
from omniconv.core.registry import register
from omniconv.kernels.convolve import convolve
from omniconv.math.naive import at, naive_convolution, naive_pad
from omniconv.math.shift import shifted
from omniconv.operators.deformable.dcnv3 import _DCNv3Nd
from omniconv.operators.deformed import (
    adapt,
    aggregate_flops,
    error_inputs,
    naive_aggregate,
    naive_linear,
    samples,
)

__all__ = ["DCNv4Conv1d", "DCNv4Conv2d", "DCNv4Conv3d"]


class _DCNv4Nd(_DCNv3Nd):
    """DCNv4 over N axes (see the module's equation).

    Arguments are torch's, in torch's order; ``groups`` is the number of groups of channels that
    share places and weights (the paper: 16 channels each), ``bias`` is W_o's. Then, keyword-only:

    Args:
        offset_scale: s, the factor on regular places and offsets.
        remove_center: Leave the tap (kernel_size - 1) // 2 out, unless it is the only one.
        dw_kernel_size: Extent of d, one for all axes, ``kernel_size`` or larger by an even number;
            None for none.
    """

    no_weight_decay = ()

    def _generator(self, extent: int | None) -> ConvArguments | None:
        return None if extent is None else super()._generator(extent)

    def _add_norm(self, factory: dict[str, Any]) -> None:
        pass

    def _reset_norm(self) -> None:
        pass

    def _constant(self, weights: Tensor) -> Tensor:
        return torch.cat((weights.new_zeros(self.rows[0]), weights.flatten()))

    def _features(self, x: Tensor) -> Tensor:
        if self.generator is None:
            return _under_centres(x, self.geometry)
        weight, bias = self.depthwise.to(x.dtype), self.depthwise_bias.to(x.dtype)
        return convolve(x, weight, bias, self.generator)

    def _weights(self, raw: Tensor) -> Tensor:
        return raw

    @staticmethod
    def representable(vectors: Tensor) -> Tensor:
        """The weights (groups, taps) along these directions, of absolute sum 1."""
        return vectors / vectors.abs().sum(1, True)

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The official layer's parameters under this layer's names, for ``load_state_dict``.

        They fit a layer over two axes with in_channels = out_channels, a square kernel and the
        official ``group``, ``pad``, ``offset_scale``, ``remove_center`` and ``dw_kernel_size``;
        ``output_bias`` is ``bias``.

        Raises:
            ValueError: Names or shapes do not fit this layer.
        """
        parts = ["offset_mask", "value_proj", "output_proj"]
        parts += [] if self.generator is None else ["offset_mask_dw"]
        names = {f"{part}.{end}" for part in parts for end in ("weight", "bias")}
        self._check_official(
            state_dict, names - (set() if self.geometry.bias else {"output_proj.bias"})
        )
        groups = self.geometry.groups
        rows = [
            state_dict[f"offset_mask.{end}"][: sum(self.rows)].unflatten(0, (groups, -1))
            for end in ("weight", "bias")
        ]
        found = {}
        if self.generator is not None:
            found["depthwise"] = state_dict["offset_mask_dw.weight"]
            found["depthwise_bias"] = state_dict["offset_mask_dw.bias"]
        value = (state_dict["value_proj.weight"], state_dict["value_proj.bias"])
        output = (state_dict["output_proj.weight"], state_dict.get("output_proj.bias"))
        return found | self._shared_official(rows, value, output)


def _under_centres(x: Tensor, g: ConvArguments) -> Tensor:
    """The values under every window's centre tap, (B, C, *S')."""
    size = g.output_size(x.shape[2:])
    if g.padding_mode == "zeros":
        # pad and crop to what the centre taps see
        margins = []
        for n, out, k, d, s, (before, _) in zip(
            x.shape[2:], size, g.kernel_size, g.dilation, g.stride, g.pads, strict=True
        ):
            first = d * ((k - 1) // 2) - before
            margins.append((-first, first + (out - 1) * s + 1 - n))
        if any(m for pair in margins for m in pair):
            x = F.pad(x, [m for pair in reversed(margins) for m in pair])
        centre = (0,) * g.dim
    else:
        x = g.pad(x)
        centre = tuple((k - 1) // 2 for k in g.kernel_size)
    return shifted(x, centre, size, g.stride, g.dilation)


class DCNv4Conv1d(_DCNv4Nd):
    dim = 1


class DCNv4Conv2d(_DCNv4Nd):
    dim = 2


class DCNv4Conv3d(_DCNv4Nd):
    dim = 3


def _reference(layer: Any, x: Tensor) -> Tensor:
    """Step by step from the definitions."""
    g = layer.geometry
    if x.dim() == g.dim + 1:
        return _reference(layer, x.unsqueeze(0)).squeeze(0)
    if layer.generator is None:
        padded, size = naive_pad(x, g), g.output_size(x.shape[2:])
        lines = [
            [d * ((k - 1) // 2) + s * p for p in range(out)]
            for d, k, s, out in zip(g.dilation, g.kernel_size, g.stride, size, strict=True)
        ]
        h = torch.stack([padded[at(place)] for place in itertools.product(*lines)], -1)
        h = h.unflatten(-1, size)
    else:
        h = naive_convolution(x, layer.depthwise, layer.depthwise_bias, layer.generator)
    raw = naive_linear(h, layer.point, layer.point_bias)
    return naive_aggregate(layer, x, raw, lambda m: m)


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """DCNv3's without layer norm, GELU, softmax and, by default, depthwise convolution."""
    g = layer.geometry
    shape = shape if len(shape) == g.dim + 2 else (1, *shape)
    forward, backward = aggregate_flops(layer, shape)
    if layer.generator is None:
        return forward, backward + g.pad_flops(shape)
    there, back = layer.generator.flops(shape)
    return forward + there, backward + back


@register
def card() -> Card:
    return Card(
        name="dcnv4",
        classes={1: DCNv4Conv1d, 2: DCNv4Conv2d, 3: DCNv4Conv3d},
        variants={
            "default": {},
            "scaled, no centre": {"offset_scale": 0.75, "remove_center": True},
        },
        equation="y(p) = W_o sum_q m(g(c),q,p) v(c, p_0 + s (p_q + D(g(c),q,p))) + b",
        summary="Weighted sums of projected values at places that the input gives; no softmax.",
        citation="Y. Xiong, Z. Li, Y. Chen, F. Wang, X. Zhu, J. Luo, W. Wang, T. Lu, H. Li, "
        "Y. Qiao, L. Lu, J. Zhou, J. Dai: Efficient Deformable ConvNets: Rethinking Dynamic and "
        "Sparse Operator for Vision Applications. CVPR 2024",
        claim="More than three times DCNv3's forward speed; FlashInternImage, InternImage with it, "
        "is up to 80 % faster and more accurate (abstract).",
        source="OpenGVLab/DCNv4",
        source_licence="MIT",
        rows=(137,),
        reference=_reference,
        flops=_flops,
        input_dependent=True,
        preserves_note="Nearest: within a group of input channels one weight per tap times a "
        "matrix; every depthwise convolution, exactly, with as many groups as channels, and every "
        "1-wide one.",
        equivariance=(),  # places may lie outside of the image
        default_extent=3,
        kernels=("deform",),
        samples=samples,
        error_inputs=error_inputs,
        adapt=adapt,
    )
