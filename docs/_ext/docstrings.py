"""The docstring of an operator's module, taken apart.

Its paragraphs are a headline; the definition, with the equation; "Shapes:", "Cost:" and "Source:"
(or "Sources:"); "The official code ..."; and, between these, whatever else belongs to the
definition.
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass

from omniconv.core.card import Card

LABELS = {"Shapes": "shapes", "Cost": "cost", "Source": "source", "Sources": "source"}
OFFICIAL = ("The official code ", "There is no official code.")


@dataclass(frozen=True)
class Sections:
    """The parts of a docstring, each in reStructuredText."""

    headline: str
    definition: str
    shapes: str
    details: str
    cost: str
    source: str
    official: str


def sections(card: Card) -> Sections:
    """The parts of the docstring of the module that defines the card's layers.

    Raises:
        ValueError: A part that every operator's page needs is missing.
    """
    home = sys.modules[next(iter(card.classes.values())).__module__]
    return parse(inspect.getdoc(home) or "", card.name, bool(card.source))


def parse(docstring: str, name: str, released: bool) -> Sections:
    """The parts of ``docstring``; ``released`` says whether the operator has official code.

    Raises:
        ValueError: A part that every operator's page needs is missing.
    """
    headline, *paragraphs = re.split(r"\n\n(?=\S)", docstring.strip())
    found: dict[str, str] = {}
    definition: list[str] = []
    details: list[str] = []
    for paragraph in paragraphs:
        label, _, rest = paragraph.partition(":")
        if paragraph.startswith(OFFICIAL):
            found["official"] = paragraph
        elif label in LABELS:
            found[LABELS[label]] = rest.strip()
        else:
            (details if "shapes" in found else definition).append(paragraph)
    wanted = {
        "an equation (.. math::) before its shapes": ".. math::" in "\n".join(definition),
        'a paragraph "Shapes: ..."': found.get("shapes"),
        'a paragraph "Cost: ..."': found.get("cost"),
        'a paragraph "Source: ..."': found.get("source"),
        'a paragraph "The official code ..."': found.get("official") or not released,
    }
    missing = [part for part, there in wanted.items() if not there]
    if missing:
        raise ValueError(
            f"the docstring of the module of operator {name!r} needs {', '.join(missing)}: "
            "its page is made from it"
        )
    official = found.get("official", "").removeprefix(OFFICIAL[1]).strip()
    return Sections(
        headline=" ".join(headline.split()),
        definition="\n\n".join(definition),
        shapes=found["shapes"],
        details="\n\n".join(details),
        cost=found["cost"],
        source=found["source"],
        official=official,
    )
