"""The only file that touches private names of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DispatchMode = TorchDispatchMode
"""Context manager that sees every operator a program calls, below autograd."""

ConvNd = _ConvNd
"""The common base class of torch's six convolution layers."""

ConvTransposeNd = _ConvTransposeNd
"""The common base class of torch's three transposed convolution layers."""


F = TypeVar("F", bound=Callable[..., Any])


def constant_result(function: F) -> F:
    """``torch.compiler.assume_constant_result``, which imports torch's compiler to set a mark."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def set_reversed_padding(module: Any, pads: tuple[tuple[int, int], ...]) -> None:
    """Set what ``nn.ConvNd.forward`` hands to ``F.pad`` for a padding mode other than zeros."""
    module._reversed_padding_repeated_twice = [p for pair in reversed(pads) for p in pair]


def reversed_padding(module: Any) -> list[int]:
    """What ``nn.ConvNd.forward`` hands to ``F.pad`` for a padding mode other than zeros."""
    return list(module._reversed_padding_repeated_twice)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every tensor inside nested tuples, lists, dicts and registered containers, in order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """``value`` with every tensor inside it replaced by ``function(tensor)``."""
    return tree_map_only(torch.Tensor, function, value)


def version(tensor: torch.Tensor) -> int:
    """How often the tensor has been written to in place, views included."""
    return int(tensor._version)


def has_hooks(module: nn.Module) -> bool:
    """Whether any forward or backward hook is registered on the module."""
    return any(
        getattr(module, name)
        for name in (
            "_forward_hooks",
            "_forward_pre_hooks",
            "_backward_hooks",
            "_backward_pre_hooks",
        )
    )


def children(module: nn.Module) -> dict[str, nn.Module | None]:
    """All child names of a module, a tied child under each of its names."""
    return module._modules


def is_watched() -> bool:
    """Whether a mode sees every operator: a counter of FLOPs, a fake or recording one."""
    return torch._C._len_torch_dispatch_stack() > 0


def is_transforming() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is at work."""
    inside = torch._C._functorch.peek_interpreter_stack() is not None
    return inside or forward_ad._current_level >= 0
