"""Operators with a defect in construction, state, surgery, claims or refusals."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

import omniconv as oc
from broken_operators import Layer, broken

WEIGHTED = oc.card("weighted")


@broken("signature", "from_conv")
class OtherOrder(Layer):
    """Two of torch's arguments change places."""


def _swapped(signature: inspect.Signature) -> inspect.Signature:
    first, *rest = signature.parameters.values()
    return signature.replace(parameters=[rest[0], first, *rest[1:]])


OtherOrder.__signature__ = _swapped(inspect.signature(Layer))


@broken("attributes")
class ListAttribute(Layer):
    """``dilation`` is a list where torch has a tuple."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.dilation = list(self.dilation)


@broken("seeds")
class Reseeds(Layer):
    """Construction sets torch's seed."""

    def reset_parameters(self) -> None:
        torch.manual_seed(0)
        super().reset_parameters()


@broken("seeds", "meta")
class OwnGenerator(Layer):
    """Parameters are drawn from elsewhere."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if not self.raw.is_meta:
            generator = torch.Generator()
            generator.seed()
            with torch.no_grad():
                self.raw.mul_(torch.randint(2, self.raw.shape, generator=generator) * 2 - 1)


@broken("initial_variance")
class DrawsTooLarge(Layer):
    """Fresh outputs have 1.3 times the deviation."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            self.raw.mul_(1.3)


@broken("state_dict")
class ForgetsBias(Layer):
    """Loading leaves the bias as it is."""

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        kept = None if self.bias is None else self.bias.detach().clone()
        super()._load_from_state_dict(state, prefix, *rest)
        if kept is not None:
            self.bias.data.copy_(kept)


@broken("ranks", "channels_last")
class RankFive(Layer):
    """A buffer of rank 5 in a layer over two axes."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.register_buffer(
            "grid", torch.zeros(1, 1, 1, 1, 1, dtype=self.raw.dtype, device=self.raw.device)
        )

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "grid"):
            self.grid.zero_()


@broken("plain_state")
class PlainAttribute(Layer):
    """A tensor is kept in an attribute that is neither parameter nor buffer."""

    def kernel(self) -> Tensor:
        self.last = torch.arange(3)
        return super().kernel()


@broken("copies")
class CannotBePickled(Layer):
    """A function without a name is kept."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.activation = lambda x: x


class _WithBuffer(Layer):
    """A buffer more, which ``reset_parameters`` does not fill."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.register_buffer("unit", torch.ones_like(self.raw[:1, 0, 0]))


@broken("dtype_moves")
class KeepsFloat64(_WithBuffer):
    """A buffer stays in float64."""

    def _apply(self, function: Any, recurse: bool = True) -> Any:
        super()._apply(function, recurse)
        self.unit = self.unit.double()
        return self

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "unit"):
            self.unit.fill_(1)


@broken("meta")
class AllocatesDense(Layer):
    """Construction makes a dense kernel and throws it away."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        torch.empty(self.kernel_shape)


@broken("meta")
class ForgetsBuffer(_WithBuffer):
    """``reset_parameters`` leaves a buffer as it finds it."""


@broken("fold")
class FoldDraws(Layer):
    """``fold`` draws a plain layer first."""

    def fold(self) -> nn.Module:
        nn.Linear(1, 1)
        return super().fold()


@broken("fold")
class FoldShares(Layer):
    """The folded layer's bias is the layer's own."""

    def fold(self) -> nn.Module:
        plain = super().fold()
        plain.bias = self.bias
        return plain


@broken("fold")
class FoldIsSubclass(Layer):
    """``fold`` does not give torch's own class."""

    def fold(self) -> nn.Module:
        plain = super().fold()
        plain.__class__ = type("Conv2d", (nn.Conv2d,), {})
        return plain


@broken("from_conv")
class LosesPadding(Layer):
    """A larger extent loses the padding that keeps the grid."""

    @classmethod
    def from_conv(cls, conv: nn.Module, extent: Any = None, **own: Any) -> Any:
        layer = super().from_conv(conv, extent, **own)
        if extent is not None:
            layer.padding = conv.padding
        return layer


@broken("flops", flops=lambda layer, shape: layer.geometry.flops(shape))
class ForgetsKernelCost(Layer):
    """The card counts the convolution only."""


@broken("equivariance", equivariance=("rotation",))
class UncheckedClaim(Layer):
    """The card claims what nothing checks."""


def _ramp(layer: Any, y: Tensor) -> Tensor:
    return y * (1 + torch.arange(y.shape[-1], dtype=y.dtype, device=y.device) / 64)


def _ramp_flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    forward, backward = WEIGHTED.flops(layer, shape)
    size = layer.geometry.output_size(shape[-2:])
    outputs = math.prod(shape[:-3]) * layer.out_channels * math.prod(size)
    return forward + outputs + 2 * size[-1], backward + outputs


@broken(
    "equivariance",
    folds=False,
    preserves_function=False,
    reference=lambda layer, x: _ramp(layer, WEIGHTED.reference(layer, x)),
    flops=_ramp_flops,
)
class DependsOnPosition(Layer):
    """Outputs grow from left to right; the reference says so too, the claim does not."""

    def forward(self, input: Tensor) -> Tensor:
        return _ramp(self, super().forward(input))


@broken("bad_arguments")
class TakesStrings(Layer):
    """An own argument is taken as a string."""

    def __init__(self, *arguments: Any, density: Any = 0.7, **keywords: Any) -> None:
        density = float(density) if isinstance(density, str) else density
        super().__init__(*arguments, density=density, **keywords)


@broken("bad_inputs")
class CastsInput(Layer):
    """Inputs of any type are cast without a word."""

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Tensor) and not torch.is_autocast_enabled("cpu"):
            input = input.to(self.raw.dtype)
        return super().forward(input)


@broken("bad_inputs")
class VagueRefusal(Layer):
    """A refusal does not name the argument."""

    def forward(self, input: Tensor) -> Tensor:
        try:
            return super().forward(input)
        except TypeError:
            raise TypeError("wrong type") from None
