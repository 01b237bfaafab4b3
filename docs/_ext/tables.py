"""Pages written from the code at build time: one section per card, and the literature table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import omniconv
from omniconv import _index, literature
from omniconv.core.card import Card


def _cell(text: object) -> str:
    """Text that Markdown shows as it is, inside a table."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>|$" else c for c in str(text))


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _autodoc(directive: str, name: str, *options: str) -> str:
    body = "\n".join(f"   {option}" for option in options)
    return f"```{{eval-rst}}\n.. {directive}:: omniconv.{name}\n{body}\n```\n"


def _facts(card: Card) -> Iterable[tuple[str, object]]:
    yield "called", card.role
    yield "spatial axes", ", ".join(map(str, card.dims))
    yield "variants", ", ".join(card.variants)
    yield "folds into torch's layer", "yes" if card.folds else "no"
    yield "mixes channels", "yes" if card.mixes_channels else "no"
    yield "kernel depends on the input", "yes" if card.input_dependent else "no"
    yield "from_conv", card.preserves_note
    yield "commutes with", ", ".join(card.equivariance)
    yield "default extent", card.default_extent
    yield "citation", card.citation
    yield "official code", f"{card.source} ({card.source_licence})" if card.source else "none"


def _operator(card: Card) -> str:
    first, *others = (c.__name__ for c in (*card.classes.values(), *card.transposed.values()))
    home = card.layer(card.dims[0]).__module__
    functions = [name for name, module in _index.FUNCTIONAL.items() if module == home]
    facts = [(key, value) for key, value in _facts(card) if value]
    also = f"The same over other axes: {', '.join(f'`{name}`' for name in others)}.\n"
    return "\n".join(
        [
            f"## {card.name}\n",
            f"{card.summary}\n",
            f"```text\n{card.equation}\n```\n",
            _table(("", ""), facts),
            _autodoc("autoclass", first, ":members: from_conv, fold", ":inherited-members:"),
            also if others else "",
            *(_autodoc("autofunction", f"functional.{name}") for name in functions),
        ]
    )


def _operators() -> str:
    cards = [omniconv.card(name) for name in omniconv.list_operators()]
    intro = "# Operators\n\nThis page is written from the operators' cards.\n"
    return "\n".join([intro, *map(_operator, cards)])


def _literature() -> str:
    counts = ", ".join(f"{number} {status}" for status, number in literature.counts().items())
    rows = [
        (s.id, s.name, s.title, s.status, ", ".join(s.names), s.left) for s in literature.systems()
    ]
    head = ("id", "name", "publication", "status", "here", "left, or why absent")
    return (
        f"# Literature\n\n{len(rows)} published systems: {counts}. `omniconv literature` prints the "
        f"same table. *works* and *partial* are claims that tests show.\n\n{_table(head, rows)}"
    )


def _write(app: Sphinx) -> None:
    folder = Path(app.srcdir, "generated")
    folder.mkdir(exist_ok=True)
    for name, text in {"operators": _operators(), "literature": _literature()}.items():
        page = folder / f"{name}.md"
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the pages before Sphinx looks for documents."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True}
