"""A page per family of operators: how to choose, written by hand, and a table of what there is."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from evidence import UNMEASURED, Evidence
from markup import Markdown, link, section, table, text

import omniconv
from omniconv import _index
from omniconv.core.card import Card

TITLES = {"kolmogorov_arnold": "Kolmogorov-Arnold", "super_resolution": "Super-resolution"}
PLACE = "{{operators}}"
"""What a text has where its table belongs; without it the table comes last."""
OPERATOR = "../operators/{}.md"
RATIOS = (
    "Step and latency are multiples of those of the plain convolution of kernel 3 with the same "
    "channels; latency is that of the folded layer."
)


def families() -> dict[str, list[Card]]:
    """Family -> its operators' cards, both in the order of the alphabet."""
    found: dict[str, list[Card]] = {}
    for name, module in sorted(_index.OPERATORS.items()):
        found.setdefault(module.split(".")[-2], []).append(omniconv.card(name))
    return dict(sorted(found.items()))


def family_of(card: Card) -> str:
    """The family of an operator of omniconv."""
    return _index.OPERATORS[card.name].split(".")[-2]


def title(family: str) -> str:
    """A family's name as a heading."""
    return TITLES.get(family, family.replace("_", " ").capitalize())


def says(family: str) -> str:
    """What a family's package says about itself, in a sentence."""
    return " ".join((import_module(f"omniconv.operators.{family}").__doc__ or "").split())


def page(family: str, cards: list[Card], evidence: Evidence, docs: Path) -> str:
    """The page ``generated/families/<family>.md``.

    It is the text ``families/<family>.md``, links seen from there, around the table of operators.
    Where there is no text yet, the page is the table under the family's own sentence.
    """
    written = docs / "families" / f"{family}.md"
    if written.exists():
        body = written.read_text(encoding="utf-8").replace("](../", "](../../")
    else:
        body = f"# {title(family)}\n\n{text(says(family))}\n"
    there = f"{_operators(cards, evidence)}\n{text(RATIOS)}\n\n{_claims(cards)}"
    if PLACE in body:
        body = body.replace(PLACE, there)
    else:
        body = f"{body.rstrip()}\n{section('Operators', there)}"
    return f"{body.rstrip()}\n\n{_contents(f'../operators/{card.name}' for card in cards)}"


def overview(groups: dict[str, list[Card]], evidence: Evidence) -> str:
    """The page ``generated/operators/index.md``: every operator in one table."""
    cards = [card for group in groups.values() for card in group]
    intro = f"# Operators\n\nWritten from the operators' cards. {text(RATIOS)}\n"
    contents = _contents(f"../families/{family}" for family in groups)
    return f"{intro}\n{_operators(cards, evidence, '{}.md')}\n{contents}"


def _operators(cards: list[Card], evidence: Evidence, page: str = OPERATOR) -> Markdown:
    rows = []
    for card in cards:
        ratios = evidence.ratios(card.name)
        rows.append(
            (
                link(card.name, page.format(card.name)),
                card.summary,
                card.role,
                "yes" if card.folds else "no",
                ",\u00a0".join(map(str, card.dims)),
                *(ratios.get(cost, UNMEASURED) for cost in ("training step", "latency, folded")),
            )
        )
    head = ("", "what it is", "role", "folds", "axes", "step", "latency")
    return table(head, rows)


def _claims(cards: list[Card]) -> str:
    lines = [
        f"- {link(c.name, OPERATOR.format(c.name))}: {text(c.claim)}" for c in cards if c.claim
    ]
    return "\n".join(["What the papers report, not checked here:", "", *lines]) if lines else ""


def _contents(pages: Iterable[str]) -> str:
    listed = "\n".join(pages)
    return f"```{{toctree}}\n:maxdepth: 1\n:hidden:\n\n{listed}\n```\n"
