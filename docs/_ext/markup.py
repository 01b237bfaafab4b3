"""Markdown from plain text: everything that a page takes from a card is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


class Markdown(str):
    """Finished markup, which :func:`text` leaves as it is."""


def text(value: object) -> Markdown:
    """``value`` as one line that Markdown shows as it is, wherever it stands."""
    if isinstance(value, Markdown):
        return value
    return _escaped(re.sub(r"[ \t-\r]+", " ", str(value)).strip(" "))


def prose(value: str) -> Markdown:
    """The same, but what stands between backticks is code."""
    parts = value.split("`")
    return Markdown("".join(f"`{p}`" if i % 2 else _escaped(p) for i, p in enumerate(parts)))


def _escaped(line: str) -> Markdown:
    return Markdown(re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", line))


def link(label: object, target: str) -> Markdown:
    """A link; Sphinx checks targets that are files."""
    return Markdown(f"[{text(label)}]({target})")


def image(alt: str, target: str) -> Markdown:
    """A picture with its text for those who do not see it."""
    return Markdown(f"![{text(alt)}]({target})")


def tag(label: object) -> Markdown:
    """A word in a pill."""
    return Markdown(f"[{text(label)}]{{.tag}}")


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> Markdown:
    """A table; an empty one is nothing."""
    lines = [[text(value) for value in row] for row in rows]
    if not lines:
        return Markdown()
    rule = [Markdown("---")] * len(header)
    lines = [[text(value) for value in header], rule, *lines]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")


def items(class_: str, entries: Iterable[str]) -> Markdown:
    """A list whose look a style sheet gives, entries of several paragraphs allowed."""
    shown = ("- " + entry.strip().replace("\n", "\n  ") for entry in entries)
    return Markdown(f":::{{container}} {class_}\n" + "\n".join(shown) + "\n:::\n")


def rst(body: str) -> Markdown:
    """reStructuredText, such as docstrings are written in, inside of Markdown."""
    return Markdown(f"`````{{eval-rst}}\n{body.strip()}\n`````\n") if body.strip() else Markdown()


def autodoc(directive: str, name: str, **options: str) -> Markdown:
    """The signature and docstring of a public name."""
    lines = [f".. {directive}:: {name}", *(f"   :{key}: {value}" for key, value in options.items())]
    return rst("\n".join(lines))


def section(title: str, *parts: str) -> Markdown:
    """A section; nothing where all its parts are empty."""
    body = "\n".join(part.rstrip() + "\n" for part in parts if part.strip())
    return Markdown(f"\n## {title}\n\n{body}" if body else "")
