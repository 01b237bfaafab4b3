"""The matrix: operator x form x property, generated from cards."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from omniconv.core import args
from omniconv.core.card import Card
from omniconv.core.registry import card as find_card
from omniconv.testing import properties as _  # noqa: F401  (defines PROPERTIES)
from omniconv.testing.registry import PROPERTIES
from omniconv.testing.subject import Subject

__all__ = ["GROUPS", "ROLES", "Case", "cases", "matrix"]

GROUPS = (
    "numbers",
    "precision",
    "layouts",
    "calls",
    "construction",
    "state",
    "surgery",
    "claims",
    "refusals",
    "masks",
    "compilers",
)
"""The modules of properties, in the order of tables."""

ROLES = ("conv", "masked", "mixer", "resampler")
"""Roles that the matrix knows how to call."""


@dataclass(frozen=True)
class Case:
    """One cell of the matrix.

    Attributes:
        operator: The operator's name.
        variant: One of the card's variants.
        dim: Number of spatial axes.
        transposed: Whether it is the transposed form.
        property: What is asserted.
        tier: 1 always and everywhere; 2 always, in one form; 3 on demand.
    """

    operator: str
    variant: str
    dim: int
    transposed: bool
    property: str
    tier: int
    card: Card = field(repr=False, compare=False)

    def __str__(self) -> str:
        form = f"{self.dim}d{'-transposed' if self.transposed else ''}"
        return f"{self.operator}-{self.variant}-{form}-{self.property}"

    @builtins.property
    def subject(self) -> Subject:
        """The form of the operator."""
        return Subject(self.card, self.variant, self.dim, self.transposed)

    @builtins.property
    def skip(self) -> str:
        """Why the property does not apply, by the card's own flags; empty where it does."""
        return PROPERTIES[self.property].skip(self.subject)

    @builtins.property
    def missing(self) -> str:
        """Which optional packages it lacks on this machine; empty where none."""
        return PROPERTIES[self.property].missing()

    def run(self) -> None:
        """Raise, with the configuration in a note, where the property does not hold."""
        PROPERTIES[self.property].run(self.subject)


def cases(operator: str | Card, tier: int = 2) -> Iterator[Case]:
    """The matrix of one operator.

    Tier 1 has every form: variant, number of axes, transposed or not. Tier 2 adds the slower
    properties in one form. Tier 3 has these, and the slowest, with default arguments over every
    number of axes, and in that one form for every other variant.

    Args:
        operator: Its name or its card.
        tier: 1, 2 or 3.

    Raises:
        ValueError: There is no such operator, or the matrix does not know its role.
    """
    known = operator if isinstance(operator, Card) else find_card(operator)
    tier = args.integer("tier", tier, 1, 3)
    args.choice("role", known.role, ROLES)
    name = operator if isinstance(operator, str) else known.name
    first = 2 if 2 in known.dims else known.dims[0]
    for variant in known.variants:
        for transposed, table in ((False, known.classes), (True, known.transposed)):
            for dim in sorted(table):
                # the tier from which on the slower properties run in this form
                plain, typical = variant == "default", (dim, transposed) == (first, False)
                slower = 2 if plain and typical else 3 if plain or typical else 4
                for found in PROPERTIES.values():
                    if found.roles and known.role not in found.roles:
                        continue
                    if found.tier <= tier and (found.tier == 1 or slower <= tier):
                        yield Case(name, variant, dim, transposed, found.name, found.tier, known)


def matrix(operator: str | Card, tier: int = 2) -> Callable[[Any], None]:
    """A pytest test, parametrised over the matrix of one operator: the one line for your own.

        test_my_operator = omniconv.testing.matrix("my_package:my_operator")

    Args:
        operator: Its name (``package:name`` for a plug-in) or its card.
        tier: 1, 2 or 3 (see :func:`cases`).
    """
    import pytest

    @pytest.mark.parametrize("case", list(cases(operator, tier)), ids=str)
    def test(case: Case) -> None:
        reason = case.skip or case.missing
        if reason:
            pytest.skip(reason)
        case.run()

    return test
