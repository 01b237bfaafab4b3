"""What the site takes from the code at build time: cards, docstrings, the literature table."""

from __future__ import annotations

import inspect
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


def _autodoc(directive: str, name: str, option: str = "") -> str:
    return f"```{{eval-rst}}\n.. {directive}:: {name}\n   {option}\n```\n"


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
    layers = [*card.classes.values(), *card.transposed.values()]
    first, *others = (layer.__name__ for layer in layers)
    methods = [m for m in ("forward", "kernel", "from_conv", "fold") if hasattr(layers[0], m)]
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
            _autodoc("automodule", home, ":no-index:"),
            _autodoc("autoclass", f"omniconv.nn.{first}", f":members: {', '.join(methods)}"),
            also if others else "",
            *(_autodoc("autofunction", f"omniconv.functional.{name}") for name in functions),
        ]
    )


def _operators() -> str:
    cards = [omniconv.card(name) for name in omniconv.list_operators()]
    intro = "# Operators\n\nThis page is written from the operators' cards.\n"
    return "\n".join([intro, *map(_operator, cards)])


def _literature() -> str:
    titles = {"works": "Works", "partial": "Works in part", "absent": "Absent"}
    columns = {
        "works": (("", "name", "publication", "here"), lambda s: [", ".join(s.names)]),
        "partial": (
            ("", "name", "publication", "here", "left"),
            lambda s: [", ".join(s.names), s.left],
        ),
        "absent": (("", "name", "publication", "why"), lambda s: [s.left]),
    }
    text = (
        f"# Literature\n\n{len(literature.systems())} published systems and what of them is here; "
        "`omniconv literature` prints the same. Tests show what works, also in part.\n"
    )
    for status, number in literature.counts().items():
        head, rest = columns[status]
        rows = [
            (s.id, s.name, s.title, *rest(s)) for s in literature.systems() if s.status == status
        ]
        text += f"\n## {titles[status]} ({number})\n\n{_table(head, rows)}"
    return text


def _write(app: Sphinx) -> None:
    folder = Path(app.srcdir, "generated")
    folder.mkdir(exist_ok=True)
    for name, text in {"operators": _operators(), "literature": _literature()}.items():
        page = folder / f"{name}.md"
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def _inherit(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A class without a docstring shows that of its base, which holds for every dimension."""
    if what == "class" and not any(lines):
        lines[:] = (inspect.getdoc(obj) or "").splitlines()


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the pages before Sphinx looks for documents, complete docstrings before it parses."""
    app.connect("builder-inited", _write)
    app.connect("autodoc-process-docstring", _inherit, priority=400)
    return {"parallel_read_safe": True}
