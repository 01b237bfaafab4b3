"""Formulas as MathML, by docutils: pages need no script and no network to show them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.utils.math import latex2mathml

if TYPE_CHECKING:
    from sphinx.application import Sphinx

SPELLINGS = {r"\\[bB]ig(?![a-zA-Z])": r"\\Bigl", r"\\dots(?![a-zA-Z])": r"\\ldots"}
"""Commands that docutils does not know -> those it does."""


def mathml(tex: str, block: bool) -> str:
    """The formula ``tex`` as a ``<math>`` element.

    Raises:
        docutils.utils.math.MathError: It cannot be read.
    """
    for pattern, known in SPELLINGS.items():
        tex = re.sub(pattern, known, tex)
    return str(latex2mathml.tex2mathml(tex, as_block=block))


def parts(tex: str) -> list[str]:
    """The formulas of a line, which wide spaces separate; narrow pages break lines there."""
    found = re.split(r"\\qquad(?![a-zA-Z])", tex)
    pairs = (("{", "}"), (r"\begin", r"\end"), (r"\left", r"\right"))
    whole = all(part.count(a) == part.count(b) for part in found for a, b in pairs)
    return found if whole else [tex]


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext(), False))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    formulas = "".join(mathml(part, True) for part in parts(node.astext()))
    translator.body.append(f'<div class="formula" tabindex="0">{formulas}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Offer the renderer, to be chosen by ``html_math_renderer = "mathml"``."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
