"""Operators with one defect each, and the properties of the matrix that each must fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import omniconv as oc
from omniconv.core.card import Card

GOOD = [oc.card(name) for name in ("weighted", "partial", "involution")]
Layer, Masked, Normalised = (card.classes[2] for card in GOOD)


@dataclasses.dataclass(frozen=True)
class Broken:
    """A card with a defect, and exactly the properties that must fail."""

    card: Card
    fails: frozenset[str]


BROKEN: dict[str, Broken] = {}


def _counted(layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """What a layer costs, whatever its defect adds: its formula is not what is broken."""
    x = torch.ones(shape, dtype=torch.float64, requires_grad=True)
    found = oc.analysis.count_flops(layer, x, backward=True)
    return found.forward, found.backward


def broken(*fails: str, **changes: Any) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Decorator: a layer whose docstring names its defect, and what must fail."""

    def add(layer: type[nn.Module]) -> type[nn.Module]:
        good = next(card for card in GOOD if issubclass(layer, card.classes[2]))
        own = {"classes": {2: layer}, "transposed": {}, "variants": {"default": {}}}
        if "flops" not in fails:
            own["flops"] = _counted
        card = dataclasses.replace(good, name=layer.__name__, **(own | changes))
        BROKEN[layer.__name__] = Broken(card, frozenset(fails))
        return layer

    return add
