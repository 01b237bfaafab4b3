"""Which layers to change: predicates on a layer's path and module, joined by ``&``, ``|``, ``~``.

>>> from omniconv import where
>>> where.spatial & ~where.name("stem*")
where.spatial & ~where.name('stem*')
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from omniconv.core import args, compat

__all__ = ["Where", "dense", "depthwise", "everything", "name", "parse", "spatial", "transposed"]


@dataclass(frozen=True)
class Where:
    """A predicate ``(path, module) -> bool`` that prints as it was written."""

    test: Callable[[str, nn.Module], bool]
    text: str

    def __call__(self, path: str, module: nn.Module) -> bool:
        return bool(self.test(path, module))

    def __and__(self, other: Where) -> Where:
        return Where(lambda p, m: self(p, m) and other(p, m), f"{self.text} & {other.text}")

    def __or__(self, other: Where) -> Where:
        return Where(lambda p, m: self(p, m) or other(p, m), f"({self.text} | {other.text})")

    def __invert__(self) -> Where:
        text = f"({self.text})" if " & " in self.text else self.text
        return Where(lambda p, m: not self(p, m), f"~{text}")

    def __repr__(self) -> str:
        return self.text


def _convolution(module: nn.Module) -> compat.ConvNd | None:
    return module if isinstance(module, compat.ConvNd) else None


def _is_spatial(path: str, module: nn.Module) -> bool:
    conv = _convolution(module)
    return conv is not None and any(k > 1 for k in conv.kernel_size)


def _is_depthwise(path: str, module: nn.Module) -> bool:
    conv = _convolution(module)
    return conv is not None and conv.groups == conv.in_channels > 1


def _is_dense(path: str, module: nn.Module) -> bool:
    conv = _convolution(module)
    return conv is not None and conv.groups == 1


def _is_transposed(path: str, module: nn.Module) -> bool:
    return isinstance(module, compat.ConvTransposeNd)


everything = Where(lambda path, module: True, "where.everything")
"""Every convolution."""

spatial = Where(_is_spatial, "where.spatial")
"""Convolutions whose kernel is wider than 1 on some axis."""

depthwise = Where(_is_depthwise, "where.depthwise")
"""Convolutions with one group per input channel."""

dense = Where(_is_dense, "where.dense")
"""Convolutions with one group."""

transposed = Where(_is_transposed, "where.transposed")
"""Transposed convolutions."""


def name(*patterns: str) -> Where:
    """Layers whose path (as in ``named_modules``) matches a shell pattern: ``name("layer1.*")``."""
    if not patterns or not all(isinstance(p, str) for p in patterns):
        raise TypeError(f"patterns must be one or more str, got {args.show(patterns)}")
    shown = ", ".join(repr(p) for p in patterns)
    return Where(
        lambda path, module: any(fnmatch.fnmatchcase(path, p) for p in patterns),
        f"where.name({shown})",
    )


def parse(where: object) -> Where:
    """The canonical form of a ``where`` argument: a predicate, any callable, or None for all."""
    if where is None:
        return everything
    if isinstance(where, Where):
        return where
    if callable(where):
        return Where(where, getattr(where, "__name__", "where"))
    raise TypeError(
        f"where must be a predicate (path, module) -> bool such as oc.where.spatial, or None, "
        f"got {args.show(where)}"
    )
