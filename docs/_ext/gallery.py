"""The gallery on the front page: a card per operator."""

from __future__ import annotations

from families import title
from markup import Markdown, image, items, link, tag, text
from operators import tags
from pictures import Picture

from omniconv.core.card import Card


def gallery(groups: dict[str, list[Card]], kernels: dict[str, Picture | None]) -> str:
    """``generated/gallery.md``, which the front page includes; links are seen from there.

    It is a plain list, in which ``_static/gallery.js`` searches; the first link of an entry leads
    to the operator, the second to its family.
    """
    return items(
        "gallery",
        (_entry(card, family, kernels[card.name]) for family in groups for card in groups[family]),
    )


def _entry(card: Card, family: str, kernel: Picture | None) -> Markdown:
    shown = image(kernel.alt, f"generated/pictures/{kernel.file}") if kernel else ""
    name = link(card.name, f"generated/operators/{card.name}.md")
    home = link(title(family), f"generated/families/{family}.md")
    words = " ".join(map(tag, tags(card)))
    return Markdown(f"{shown}\n\n{name} {home}\n\n{text(card.summary)}\n\n{words}")
