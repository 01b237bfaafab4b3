"""The Sphinx extension that writes ``generated/``: all that the site takes from the code.

Pages of operators and families, their pictures, the gallery and the literature come from cards,
docstrings and measurements at every build; nothing else is kept in that folder.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import families
import gallery
import literature
import operators
import pictures
import speed
from evidence import Evidence

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def pages(docs: Path) -> dict[str, str | bytes]:
    """Path in ``generated/`` -> content, of every page and picture."""
    evidence, groups = Evidence(docs), families.families()
    cards = [card for group in groups.values() for card in group]
    kernels = {card.name: pictures.kernel(card) for card in cards}
    found: dict[str, str | bytes] = {
        "gallery.md": gallery.gallery(groups, kernels),
        "literature.md": literature.page(),
        "operators/index.md": families.overview(groups, evidence),
        **speed.pages(docs),
    }
    for family, members in groups.items():
        found[f"families/{family}.md"] = families.page(family, members, evidence, docs)
    for card in cards:
        kernel, through = kernels[card.name], pictures.through(card)
        found[f"operators/{card.name}.md"] = operators.page(card, evidence, kernel, through)
        drawn = [*([kernel] if kernel else []), *through]
        found |= {f"pictures/{picture.file}": picture.png for picture in drawn}
    return found


def write(folder: Path, content: dict[str, str | bytes]) -> None:
    """Make ``folder`` hold exactly ``content``; files that are right are not touched."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.relative_to(folder).as_posix() not in content:
            path.unlink()
    for name, value in content.items():
        path, data = folder / name, value.encode() if isinstance(value, str) else value
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def _generate(app: Sphinx) -> None:
    docs = Path(app.srcdir)
    write(docs / "generated", pages(docs))


def _inherit(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A class without a docstring shows that of its base, which holds for every dimension."""
    if what == "class" and not any(lines):
        lines[:] = (inspect.getdoc(obj) or "").splitlines()


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the pages before Sphinx looks for documents, complete docstrings before it parses."""
    app.connect("builder-inited", _generate)
    app.connect("autodoc-process-docstring", _inherit, priority=400)
    return {"parallel_read_safe": True}
