"""A page per operator, made from its card, its module's docstring and what was measured."""

from __future__ import annotations

from collections.abc import Iterable

from docstrings import Sections, sections
from evidence import Evidence
from families import family_of, title
from markup import Markdown, autodoc, image, items, link, prose, rst, section, table, tag, text
from pictures import Picture, about

from omniconv import _index
from omniconv.core.card import Card

METHODS = ("forward", "kernel", "from_conv", "from_official", "fold")
CALLS = {
    "masked": "y, mask = layer(x, mask)",
    "conditional": "y = layer(x, condition)",
}
"""Role -> how a layer of it is called, where that is not ``y = layer(x)``."""


def page(card: Card, evidence: Evidence, kernel: Picture | None, through: list[Picture]) -> str:
    """The page ``generated/operators/<name>.md``.

    Raises:
        ValueError: The docstring of the operator's module lacks a part.
    """
    parts = sections(card)
    family = family_of(card)
    home = link(title(family), f"../families/{family}.md")
    return "\n".join(
        [
            f"# {text(card.name)}\n",
            f"{text(parts.headline)}\n",
            f"Family {home} {' '.join(map(tag, tags(card)))}\n",
            _kernel(kernel),
            section(
                "Definition",
                rst(parts.definition),
                rst(f"Shapes: {parts.shapes}"),
                rst(parts.details),
            ),
            section("On an image", _tiles(card, through)),
            section("How to call it", _example(card), _facts(card)),
            section("Cost", rst(f"By formula: {parts.cost}"), evidence.cost(card.name)),
            section(
                "Claimed and measured",
                f"**The paper.** {text(card.claim or 'Its figures are not on the card yet.')}",
                evidence.found(card.name),
            ),
            section("The official code", _official(card, parts)),
            section("Arguments", *_arguments(card)),
            section("Source", rst(parts.source), _citation(card)),
        ]
    )


def tags(card: Card) -> list[str]:
    """What a reader may look for, in a word or two each."""
    flags = {
        card.role: card.role != "conv",
        "folds": card.folds,
        "input-dependent": card.input_dependent,
        "keeps a trained layer": card.preserves_function,
        "compiled kernel": bool(card.kernels),
        "transposed": bool(card.transposed),
    }
    return [name for name, held in flags.items() if held]


def example(card: Card) -> str:
    """Code that makes a layer at the paper's extent and calls it."""
    dim = 2 if 2 in card.dims else card.dims[0]
    layer, extent = card.layer(dim).__name__, card.default_extent
    sizes = ", ".join(["32"] * dim)
    lines = [
        "import torch",
        "import omniconv as oc",
        "",
        f"layer = oc.nn.{layer}(16, 16, {extent}, padding={(extent - 1) // 2})",
        f"x = torch.randn(8, 16, {sizes})",
    ]
    if card.role == "masked":
        lines.append(f"mask = (torch.rand(8, 1, {sizes}) > 0.2).float()")
    return "\n".join([*lines, CALLS.get(card.role, "y = layer(x)")])


def _kernel(picture: Picture | None) -> str:
    if picture is None:
        return ""
    shown = image(picture.alt, f"../pictures/{picture.file}")
    return f":::{{container}} kernels\n{shown}\n\n{prose(picture.caption)}\n:::\n"


def _tiles(card: Card, pictures: list[Picture]) -> str:
    if not pictures:
        return ""
    shown = (f"{image(p.alt, f'../pictures/{p.file}')}\n\n{prose(p.caption)}" for p in pictures)
    return f"{items('tiles', shown)}\n{text(about(card))}\n"


def _example(card: Card) -> str:
    swap = (
        f'`oc.swap_(model, "{card.name}")` puts it into a model.'
        if card.role in ("conv", "mixer")
        else "It is written into a model's code; `oc.swap_` leaves it out."
    )
    return f"```python\n{example(card)}\n```\n\n{swap}\n"


def _facts(card: Card) -> Markdown:
    answers = {True: "yes", False: "no"}
    facts = {
        "role": card.role,
        "spatial axes": ", ".join(map(str, card.dims)),
        "variants": ", ".join(card.variants),
        "extent in the paper": card.default_extent,
        "folds into torch's layer": answers[card.folds],
        "mixes channels": answers[card.mixes_channels],
        "kernel depends on the input": answers[card.input_dependent],
        "uses batch statistics": answers[card.batch_statistics],
        "second derivatives": answers[card.double_backward],
        "commutes with": ", ".join(card.equivariance),
        "types": ", ".join(card.dtypes),
        "exports to ONNX": answers[card.onnx],
        "compiled kernels": ", ".join(card.kernels),
        "`from_conv` keeps": card.preserves_note,
    }
    return table(("", ""), [(prose(key), value) for key, value in facts.items() if value])


def _official(card: Card, parts: Sections) -> str:
    if not card.source:
        return "No released code is known.\n\n" + rst(parts.official)
    code = link(card.source, f"https://github.com/{card.source}")
    return f"{code}, licence {text(card.source_licence)}.\n\n{rst(parts.official)}"


def _arguments(card: Card) -> Iterable[str]:
    layers = [*card.classes.values(), *card.transposed.values()]
    dim = 2 if 2 in card.dims else card.dims[0]
    first = card.layer(dim)
    methods = [
        m for m in ("forward", "kernel", "from_conv", "from_official", "fold") if hasattr(first, m)
    ]
    yield autodoc("autoclass", f"omniconv.nn.{first.__name__}", members=", ".join(methods))
    others = ", ".join(f"`{layer.__name__}`" for layer in layers if layer is not first)
    if others:
        yield f"Other forms, with the same arguments: {others}."
    home = first.__module__
    for name, module in _index.FUNCTIONAL.items():
        if module == home:
            yield autodoc("autofunction", f"omniconv.functional.{name}")


def _citation(card: Card) -> str:
    licence = (
        f"Licence of the released code: {text(card.source_licence)}. Facts were taken from it, "
        "never text.\n"
        if card.source
        else ""
    )
    rows = ", ".join(map(str, card.rows))
    number = "Number" if len(card.rows) == 1 else "Numbers"
    return (
        f"To cite: {text(card.citation)}.\n\n{licence}\n"
        f"{number} {rows} in the [literature](../literature.md).\n"
    )
