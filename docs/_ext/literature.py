"""The page of the literature: every published system of the table, and what of it is here."""

from __future__ import annotations

from families import families
from markup import Markdown, link, table, text

from omniconv import literature
from omniconv.core.card import Card

TITLES = {"works": "Works", "partial": "Works in part", "absent": "Absent"}


def page() -> str:
    """The page ``generated/literature.md``."""
    cards = [card for group in families().values() for card in group]
    shown = (
        f"# Literature\n\n{len(literature.systems())} published systems and what of them is here; "
        "`omniconv literature` prints the same. Tests show what works, also in part.\n"
    )
    for status, count in literature.counts().items():
        head = ["", "name", "publication"]
        head += ["here"] if status != "absent" else []
        head += {"works": [], "partial": ["left"], "absent": ["why"]}[status]
        rows = []
        for system in literature.systems():
            if system.status == status:
                here = [_here(system, cards)] if status != "absent" else []
                left = [system.left] if status != "works" else []
                rows.append((system.id, system.name, system.title, *here, *left))
        shown += f"\n## {TITLES[status]} ({count})\n\n{table(head, rows)}"
    return shown


def _here(system: literature.System, cards: list[Card]) -> Markdown:
    """Public names, and the pages of the operators."""
    pages = [link(c.name, f"operators/{c.name}.md") for c in cards if system.id in c.rows]
    return Markdown(", ".join([*pages, *map(text, system.names)]))
