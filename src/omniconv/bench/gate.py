"""Correctness first: a case whose forms are not all right prints no speed."""

from __future__ import annotations

from typing import Any

import torch

from omniconv.bench.case import Pass
from omniconv.core.compat import DispatchMode, tensors_in
from omniconv.testing.tolerances import require, require_near

__all__ = ["Wrong", "check", "operators_of"]


class Wrong(Exception):
    """A form gives other numbers than the reference; the message names it and says how far."""


def check(work: Pass, forms: dict[str, Any], dtype: torch.dtype) -> None:
    """Compare every form's results with the reference's, within the table of tolerances.

    Raises:
        Wrong: One differs, in a value, a shape or the number of results.
    """
    expected = tensors_in(work.reference())
    for name, call in forms.items():
        found = tensors_in(call())
        what = f"{work.name}, {name}"
        try:
            require(
                len(found) == len(expected),
                f"{what} gives {len(found)} tensors, expected {len(expected)}",
            )
            for index, (actual, right) in enumerate(zip(found, expected, strict=True)):
                require(
                    actual.dtype == dtype, f"{what} is {actual.dtype} where {dtype} is asked for"
                )
                label = f"{what} [{index}]" if len(expected) > 1 else what
                require_near(label, actual, right, length=work.length)
        except AssertionError as error:
            raise Wrong(str(error)) from error


class _Operators(DispatchMode):
    """Notes the names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def operators_of(call: Any) -> list[str]:
    """The operators of omniconv that a call reaches; none where torch computes."""
    with _Operators() as seen:
        call()
    return sorted(n.removeprefix("omniconv::") for n in seen.names if n.startswith("omniconv::"))
