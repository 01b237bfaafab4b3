"""The registry: operators by name, found without importing them.

omniconv's own operators are listed in the generated ``_index`` and imported when first asked for.
Other packages offer theirs through the entry-point group ``omniconv.operators``, whose values
point to a :class:`Card`; they are named ``package:name``.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from torch import nn

from omniconv import _index
from omniconv.core import args
from omniconv.core.card import ROLES, Card

__all__ = ["card", "create", "list_operators", "register"]

GROUP = "omniconv.operators"
_cards: dict[str, Card] = {}


def register(make: Callable[[], Card]) -> Card:
    """Decorator of a function that returns a :class:`Card`: register it under its name.

    Raises:
        ValueError: Another operator already has this name.
    """
    made = make()
    if not isinstance(made, Card):
        raise TypeError(f"register needs a function that returns a Card, got {args.show(made)}")
    home = _index.OPERATORS.get(made.name)
    taken = _cards.get(made.name)
    foreign = home is not None and home != make.__module__
    if foreign or (taken is not None and _home(taken) != _home(made)):
        raise ValueError(f"name must be new, but an operator {made.name!r} exists already")
    _cards[made.name] = made
    return made


def _home(known: Card) -> str:
    return next(iter(known.classes.values())).__module__


@cache
def _plugins() -> dict[str, EntryPoint]:
    found = {}
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist is not None else point.module.split(".")[0]
        found[f"{package}:{point.name}"] = point
    return found


def _names() -> list[str]:
    plugins = _plugins().keys()
    return sorted((_index.OPERATORS.keys() | _cards.keys()) - plugins) + sorted(plugins)


def card(name: str) -> Card:
    """The card of the operator ``name`` (``package:name`` for a plug-in).

    Raises:
        ValueError: There is no such operator; the message suggests the nearest name.
        ImportError: The plug-in of this name cannot be loaded.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be an operator's name, got {args.show(name)}")
    if name in _cards:
        return _cards[name]
    if name in _index.OPERATORS:
        import_module(_index.OPERATORS[name])
        return _cards[name]
    if name in _plugins():
        point = _plugins()[name]
        before = dict(_cards)
        try:
            loaded = point.load()
        except Exception as error:
            raise ImportError(
                f"operator {name!r} cannot be loaded from {point.value!r}: {error}"
            ) from error
        if not isinstance(loaded, Card):
            raise TypeError(f"entry point {name!r} must point to a Card, got {args.show(loaded)}")
        if loaded.name not in before:
            _cards.pop(loaded.name, None)  # a plug-in has its prefixed name only
        _cards[name] = loaded
        return loaded
    hint = args.did_you_mean(name, _names())
    raise ValueError(f"name must be one of {', '.join(_names())}, got {args.show(name)}{hint}")


def list_operators(
    pattern: str = "*",
    *,
    role: str | None = None,
    dim: int | None = None,
    folds: bool | None = None,
) -> list[str]:
    """Names of the operators that match ``pattern`` (shell wildcards) and every given property."""
    if not isinstance(pattern, str):
        raise TypeError(f"pattern must be a str, got {args.show(pattern)}")
    names = [name for name in _names() if fnmatch.fnmatchcase(name, pattern)]
    if role is not None:
        args.choice("role", role, ROLES)
        names = [name for name in names if card(name).role == role]
    if dim is not None:
        args.positive_int("dim", dim)
        names = [name for name in names if dim in card(name).dims]
    if folds is not None:
        args.boolean("folds", folds)
        names = [name for name in names if card(name).folds == folds]
    return names


def create(
    name: str, *arguments: Any, dim: int = 2, transposed: bool = False, **keywords: Any
) -> nn.Module:
    """Build the layer of operator ``name`` over ``dim`` axes.

    >>> create("weighted", 3, 8, kernel_size=3, padding=1)
    WeightedConv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), density=0.7)
    """
    layer = card(name).layer(args.positive_int("dim", dim), args.boolean("transposed", transposed))
    return layer(*arguments, **keywords)
