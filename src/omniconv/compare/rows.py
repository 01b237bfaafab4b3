"""The rows of a plan: an operator with its arguments, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omniconv.compare import grammar
from omniconv.core import args

__all__ = ["DEPTHWISE", "PLAIN", "WIDTHS", "Row", "check_keys", "make", "parse"]

PLAIN = "conv"
"""The name of torch's own layer; it is no operator of the registry."""

DEPTHWISE = "depthwise"
"""torch's own layer with a kernel per channel, and a 1x1 convolution behind it."""

ROW_ARGUMENTS = ("width", "lr", "pointwise", "search")
WIDTHS = (0.01, 100.0)
SEARCHED = ("weighted",)
"""Operators with something to search for: their density."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the comparison.

    Attributes:
        operator: Its name, or ``conv`` for torch's plain layer.
        arguments: The operator's own arguments, as sorted pairs.
        width: Factor on the width of the backbone.
        lr: Base learning rate; None where it is to be tuned.
        pointwise: Whether a 1x1 convolution follows, as it does where an operator leaves channels
            apart; None until the plan is prepared.
        search: Number of short trainings in which DIRECT-L looks for the best density; None
            where there is no search.
        label: What people call the row.
    """

    operator: str
    arguments: tuple[tuple[str, Any], ...] = ()
    width: float = 1.0
    lr: float | None = None
    pointwise: bool | None = None
    search: int | None = None
    label: str = ""

    @property
    def plain(self) -> bool:
        """Whether it is a network of torch's own layers: one of the frontier."""
        return self.operator in (PLAIN, DEPTHWISE)

    def to_json(self) -> dict[str, Any]:
        """Plain data; the label follows from the rest."""
        return {
            "operator": self.operator,
            "arguments": {key: _lists(value) for key, value in self.arguments},
            "width": self.width,
            "lr": self.lr,
            "pointwise": self.pointwise,
            "search": self.search,
        }


def _lists(value: Any) -> Any:
    return [_lists(entry) for entry in value] if isinstance(value, tuple) else value


def parse(value: Any, tuned: Sequence[Any] = ()) -> tuple[Row, ...]:
    """The rows of a plan: texts such as ``dcls(taps=9, lr=0.1)``, or mappings as in ``to_json``.

    The plain layer is put first, and added where it is missing. A row without ``lr`` takes that of
    the same row of ``tuned``, if it is there.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or not value:
        raise TypeError(f"rows must be a list of at least one row, got {args.show(value)}")
    items = [_item(f"rows[{i}]", entry) for i, entry in enumerate(value)]
    known = [_row(_item("rows", entry), ()) for entry in tuned]
    rows = [_row(item, known) for item in items]
    plain = [row for row in rows if row.label == PLAIN] or [_row(_item("rows", PLAIN), known)]
    rows = [plain[0], *(row for row in rows if row is not plain[0])]
    labels = [row.label for row in rows]
    rows = [
        replace(row, label=_label(row, lr=True)) if i and labels.count(row.label) > 1 else row
        for i, row in enumerate(rows)
    ]
    for i, row in enumerate(rows):
        if any(row.to_json() == other.to_json() for other in rows[:i]):
            raise ValueError(f"rows must differ, got {row.label} twice")
    return tuple(rows)


def check_keys(name: str, values: Mapping[Any, Any], allowed: Sequence[str]) -> None:
    """Refuse a key that is not ``allowed``."""
    for key in values:
        if key not in allowed:
            raise ValueError(
                f"{name} must have no keys but {', '.join(allowed)}, "
                f"got {args.show(key)}{args.did_you_mean(key, allowed)}"
            )


def _item(name: str, value: Any) -> dict[str, Any]:
    """One row as operator, arguments, and the row arguments that were given."""
    if isinstance(value, str):
        operator, arguments = grammar.parse_operator(value)
        own = {key: arguments.pop(key) for key in ROW_ARGUMENTS if key in arguments}
        return {"operator": operator, "arguments": arguments, **own}
    if not isinstance(value, Mapping) or not isinstance(value.get("operator"), str):
        raise TypeError(
            f"{name} must be text such as dcls(taps=9), or a mapping with operator and arguments, "
            f"got {args.show(value)}"
        )
    check_keys(name, value, ("operator", "arguments", *ROW_ARGUMENTS))
    operator, _ = grammar.parse_operator(value["operator"])
    given = value.get("arguments", {})
    if not isinstance(given, Mapping):
        raise TypeError(f"arguments of {operator!r} must be a mapping, got {args.show(given)}")
    arguments = {}
    for key, entry in given.items():
        if not isinstance(key, str) or not key.isidentifier():
            raise TypeError(f"arguments of {operator!r} must have names, got {args.show(key)}")
        arguments[key] = grammar.canonical(f"{key} of {operator!r}", entry)
    own = {key: value[key] for key in ROW_ARGUMENTS if key in value}
    return {"operator": operator, "arguments": arguments, **own}


def make(operator: str, arguments: Mapping[str, Any], width: float = 1.0) -> Row:
    """A row whose learning rate is to be tuned."""
    row = Row(operator=operator, arguments=tuple(sorted(arguments.items())), width=width)
    return replace(row, label=_label(row))


def _row(item: Mapping[str, Any], known: Sequence[Row]) -> Row:
    operator, arguments = item["operator"], item["arguments"]
    pointwise, search, lr = item.get("pointwise"), item.get("search"), item.get("lr")
    if pointwise is not None:
        args.boolean(f"pointwise of {operator!r}", pointwise)
    if search is not None:
        args.positive_int(f"search of {operator!r}", search)
        if operator not in SEARCHED or "density" in arguments:
            raise ValueError(
                f"search must be left out but for {', '.join(SEARCHED)} without density=, "
                f"got it for {grammar.write(operator, arguments)}"
            )
    row = Row(
        operator=operator,
        arguments=tuple(sorted(arguments.items())),
        width=args.real(f"width of {operator!r}", item.get("width", 1.0), *WIDTHS),
        pointwise=pointwise,
        search=search,
    )
    row = replace(row, label=_label(row))
    if lr is not None:
        lr = args.real(f"lr of {operator!r}", lr, 0.0, exclusive=True)
    elif search is None:
        lr = next((other.lr for other in known if other.label == row.label), None)
    return replace(row, lr=lr)


def _label(row: Row, *, lr: bool = False) -> str:
    shown = dict(row.arguments)
    if row.width != 1:
        shown["width"] = row.width
    if row.search is not None:
        shown["search"] = row.search
    if lr and row.lr is not None:
        shown["lr"] = row.lr
    return grammar.write(row.operator, shown)
