"""The rows of a plan: an operator with its arguments, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omniconv.compare import grammar, plan_file
from omniconv.core import args

__all__ = ["PLAIN", "Row", "check_keys", "parse"]

PLAIN = "conv"
"""The name of torch's own layer; it is no operator of the registry."""

ROW_ARGUMENTS = ("width", "lr", "pointwise")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the comparison.

    Attributes:
        operator: Its name, or ``conv`` for torch's plain layer.
        arguments: The operator's own arguments, as sorted pairs.
        width: Factor on the width of the backbone.
        lr: Base learning rate.
        pointwise: Whether a 1x1 convolution follows, as it does where an operator leaves channels
            apart; None until the plan is prepared.
        label: What people call the row.
    """

    operator: str
    arguments: tuple[tuple[str, Any], ...] = ()
    width: float = 1.0
    lr: float
    pointwise: bool | None = None
    label: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data; the label follows from the rest."""
        return {
            "operator": self.operator,
            "arguments": {key: _lists(value) for key, value in self.arguments},
            "width": self.width,
            "lr": self.lr,
            "pointwise": self.pointwise,
        }


def _lists(value: Any) -> Any:
    return [_lists(entry) for entry in value] if isinstance(value, tuple) else value


def parse(value: Any) -> tuple[Row, ...]:
    """The rows of a plan: texts such as ``dcls(taps=9, lr=0.1)``, or mappings as in ``to_json``.

    The plain layer is put first, and added where it is missing. A row without ``lr`` takes the
    tuned one of the shipped plan: of the same row, else of the same operator, else of ``conv``.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or not value:
        raise TypeError(f"rows must be a list of at least one row, got {args.show(value)}")
    items = [_item(f"rows[{i}]", entry) for i, entry in enumerate(value)]
    rows = [_row(item) for item in items]
    plain = [row for row in rows if row.label == PLAIN] or [_row(_item("rows", PLAIN))]
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


def _row(item: Mapping[str, Any]) -> Row:
    operator = item["operator"]
    pointwise = item.get("pointwise")
    if pointwise is not None:
        args.boolean(f"pointwise of {operator!r}", pointwise)
    row = Row(
        operator=operator,
        arguments=tuple(sorted(item["arguments"].items())),
        width=args.real(f"width of {operator!r}", item.get("width", 1.0), 0.01, 100.0),
        lr=0.0,
        pointwise=pointwise,
    )
    lr = item.get("lr")
    lr = _tuned_lr(row) if lr is None else lr
    lr = args.real(f"lr of {operator!r}", lr, 0.0, exclusive=True)
    return replace(row, lr=lr, label=_label(row))


def _label(row: Row, *, lr: bool = False) -> str:
    shown = dict(row.arguments)
    if row.width != 1:
        shown["width"] = row.width
    if lr:
        shown["lr"] = row.lr
    return grammar.write(row.operator, shown)


def _tuned_lr(row: Row) -> Any:
    """The learning rate of the shipped plan's nearest row."""
    known = [_item("rows", entry) for entry in plan_file.shipped()["rows"]]
    same = [item for item in known if item["operator"] == row.operator]
    exact = [
        item
        for item in same
        if tuple(sorted(item["arguments"].items())) == row.arguments
        and item.get("width", 1.0) == row.width
    ]
    return (exact or same or known)[0]["lr"]
