"""The constructor contract: every convolution is built as ``nn.ConvNd`` is.

A layer writes ``setup(self, factory, *, own=default, ...)``; its constructor is torch's signature,
order and defaults included, followed by those own arguments, keyword-only. The contract therefore
holds by construction, for transposed forms too.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from omniconv.core import args
from omniconv.core.geometry import ConvArguments

__all__ = ["ConvLayer", "Convolution", "new_parameter", "plain_class"]

_PLAIN: dict[tuple[int, bool], type[nn.Module]] = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}


def plain_class(dim: int, transposed: bool = False) -> type[nn.Module]:
    """torch's convolution over ``dim`` axes."""
    return _PLAIN[dim, transposed]


def new_parameter(*shape: int, device: Any, dtype: torch.dtype | None) -> nn.Parameter:
    """An uninitialised parameter; ``reset_parameters`` fills it."""
    return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))


def check_factory(device: Any, dtype: Any) -> dict[str, Any]:
    """The keyword arguments for new tensors, checked."""
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a floating-point torch.dtype, got {args.show(dtype)}")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point torch.dtype, got {args.show(dtype)}")
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"device must name a device of this machine, got {args.show(device)} ({reason})"
            ) from None
    return {"device": device, "dtype": dtype}


class Convolution(nn.Module):
    """What all convolutions share: construction, canonical arguments, bias, and its draw."""

    dim: ClassVar[int] = 0
    """Number of spatial axes."""

    is_transposed: ClassVar[bool] = False

    no_weight_decay: ClassVar[tuple[str, ...]] = ()
    """Names of own parameters that weight decay must not touch."""

    lr_factors: ClassVar[Mapping[str, float]] = {}
    """Learning-rate factors of own parameters (others: 1)."""

    geometry: ConvArguments
    bias: Tensor | None

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for (dim, transposed), plain in _PLAIN.items():
            if issubclass(cls, plain):
                cls.dim, cls.is_transposed = dim, transposed
        if cls.dim:
            torch_like = inspect.signature(plain_class(cls.dim, cls.is_transposed)).parameters
            own = list(inspect.signature(cls.setup).parameters.values())[2:]
            cls.__signature__ = inspect.Signature([*torch_like.values(), *own])  # type: ignore[attr-defined]

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        signature: inspect.Signature = inspect.signature(type(self))
        try:
            bound = signature.bind(*arguments, **keywords)
        except TypeError as error:
            unknown = [name for name in keywords if name not in signature.parameters]
            hint = args.did_you_mean(unknown[0], signature.parameters) if unknown else ""
            raise TypeError(f"{type(self).__name__}: {error}{hint}") from None
        bound.apply_defaults()
        values = dict(bound.arguments)
        factory = check_factory(values.pop("device"), values.pop("dtype"))
        own = {name: values.pop(name) for name in self.own_arguments()}
        geometry = ConvArguments.parse(self.dim, **values, transposed=self.is_transposed)
        # torch's own __init__ would allocate and draw a dense weight: only its attributes are set,
        # which a test compares with torch's, attribute by attribute
        nn.Module.__init__(self)
        geometry.attach(self)
        bias = new_parameter(geometry.out_channels, **factory) if geometry.bias else None
        self.register_parameter("bias", bias)
        self.setup(factory, **own)
        self.reset_parameters()

    @classmethod
    def own_arguments(cls) -> tuple[str, ...]:
        """Names of the layer's own constructor arguments (those that torch's layer lacks)."""
        parameters = inspect.signature(cls).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

    def setup(self, factory: dict[str, Any]) -> None:
        """Create the parameters with ``new_parameter(*shape, **factory)``; check own arguments.

        The subclass's keyword-only parameters are the layer's own constructor arguments.
        """
        raise NotImplementedError(f"{type(self).__name__} must define setup()")

    def reset_parameters(self) -> None:
        """Draw the parameters anew; the only initialiser, and it never reseeds."""
        raise NotImplementedError(f"{type(self).__name__} must define reset_parameters()")

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of a dense kernel: (O, I/groups, *kernel_size), transposed (I, O/groups, ...)."""
        g = self.geometry
        if g.transposed:
            return (g.in_channels, g.out_channels // g.groups, *g.kernel_size)
        return (g.out_channels, g.in_channels // g.groups, *g.kernel_size)

    @property
    def bound(self) -> float:
        """1/sqrt(fan_in): torch's plain layer draws its weight and bias uniform within it."""
        return 1.0 / math.sqrt(math.prod(self.kernel_shape[1:]))

    def reset_bias(self) -> None:
        """Draw the bias as ``nn.ConvNd`` does."""
        if self.bias is not None:
            nn.init.uniform_(self.bias, -self.bound, self.bound)


class ConvLayer(Convolution):
    """Base of convolutions that are not one kernel and then torch's convolution.

    A subclass per dimension sets ``dim``; arguments, ``geometry``, bias and repr come from here.
    """

    kernel_size: tuple[int, ...]

    def extra_repr(self) -> str:
        g = self.geometry
        text = f"{g.in_channels}, {g.out_channels}, kernel_size={g.kernel_size}, stride={g.stride}"
        if g.padding != (0,) * g.dim:
            text += f", padding={g.padding!r}"
        if g.dilation != (1,) * g.dim:
            text += f", dilation={g.dilation}"
        if g.groups != 1:
            text += f", groups={g.groups}"
        if not g.bias:
            text += ", bias=False"
        if g.padding_mode != "zeros":
            text += f", padding_mode={g.padding_mode}"
        return text


def transfer(cls: Any, conv: Any, extent: int | tuple[int, ...] | None, **own: Any) -> Any:
    """A new layer of class ``cls`` on the grid of a plain convolution, and the kernel's margins.

    Args:
        cls: A :class:`Convolution`.
        conv: The plain torch convolution that it replaces.
        extent: Spatial extent of the new kernel (default: the old one). The kernel stays centred:
            padding grows with it, so that the output grid stays.
        **own: The operator's own arguments.

    Returns:
        The layer, freshly drawn, in ``conv``'s mode, device, dtype and requires_grad, and the
        ``F.pad`` margins that bring the old kernel to the new extent.

    Raises:
        TypeError: ``conv`` is not the torch layer that ``cls`` replaces.
        ValueError: ``extent`` is smaller than the old kernel or differs by an odd number.
    """
    plain = plain_class(cls.dim, cls.is_transposed)
    if not isinstance(conv, plain):
        raise TypeError(f"conv must be an nn.{plain.__name__}, got {type(conv).__name__}")
    source: Any = conv
    old = tuple(source.kernel_size)
    new = old if extent is None else args.ntuple("extent", extent, len(old), 1)
    if any(n < k or (n - k) % 2 for n, k in zip(new, old, strict=True)):
        raise ValueError(
            f"extent must be the kernel's {old} or larger by an even number on each axis, "
            f"got {args.show(extent)}"
        )
    half = [(n - k) // 2 for n, k in zip(new, old, strict=True)]
    padding = source.padding
    if padding != "same" and any(half):
        before = (0,) * len(old) if padding == "valid" else padding
        padding = tuple(p + h * d for p, h, d in zip(before, half, source.dilation, strict=True))
    arguments = {
        "stride": source.stride,
        "padding": padding,
        "dilation": source.dilation,
        "groups": source.groups,
        "bias": source.bias is not None,
        "padding_mode": source.padding_mode,
        "device": source.weight.device,
        "dtype": source.weight.dtype,
    }
    if cls.is_transposed:
        arguments["output_padding"] = source.output_padding
    layer = cls(source.in_channels, source.out_channels, new, **(arguments | own))
    layer.requires_grad_(source.weight.requires_grad)
    return layer.train(source.training), [h for h in reversed(half) for _ in range(2)]
