"""Know which module is running."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

__all__ = ["following"]


@contextmanager
def following(
    model: nn.Module,
    enter: Callable[[str, Any], None],
    leave: Callable[[str, Any, Any], None],
) -> Iterator[None]:
    """Call ``enter(path, inputs)`` and ``leave(path, inputs, outputs)`` around every module.

    ``inputs`` holds positional and keyword arguments. A module that stands in several places goes
    by its first path; one that raises is left with ``outputs=None``.
    """

    def before(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        enter(path, (args, kwargs))

    def after(path: str, module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        leave(path, (args, kwargs), outputs)

    hooks = []
    try:
        for path, module in model.named_modules():
            hooks.append(module.register_forward_pre_hook(partial(before, path), with_kwargs=True))
            hooks.append(
                module.register_forward_hook(
                    partial(after, path), with_kwargs=True, always_call=True
                )
            )
        yield
    finally:
        for hook in hooks:
            hook.remove()
