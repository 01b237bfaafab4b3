"""What surgery did, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from omniconv.core import args
from omniconv.core.table import text_table

__all__ = ["SwapReport", "SwapRow"]


@dataclass(frozen=True)
class SwapRow:
    """One layer's fate: ``status`` is swapped or skipped, ``weights`` kept, nearest or new."""

    path: str
    before: str
    after: str
    status: str
    reason: str = ""
    weights: str = ""


@dataclass(frozen=True)
class SwapReport:
    """What :func:`swap_` did; prints as a table.

    ``to_json`` gives plain data; ``swap_(fresh_model, SwapReport.from_json(data))`` replays it on
    a fresh model, so that a checkpoint of the swapped one loads.
    """

    operator: str
    arguments: Mapping[str, Any]
    layers: tuple[SwapRow, ...]
    model: nn.Module | None = field(default=None, compare=False, repr=False)

    @property
    def swapped(self) -> tuple[SwapRow, ...]:
        """The rows of the layers that were swapped."""
        return tuple(row for row in self.layers if row.status == "swapped")

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the model."""
        return {
            "operator": self.operator,
            "arguments": dict(self.arguments),
            "layers": [asdict(row) for row in self.layers],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SwapReport:
        """The report that :meth:`to_json` wrote (without a model)."""
        try:
            rows = tuple(SwapRow(**row) for row in data["layers"])
            return cls(str(data["operator"]), dict(data["arguments"]), rows)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"data must be what to_json() wrote, got {args.show(data)}") from error

    def __str__(self) -> str:
        head = ("layer", "before", "after", "result")
        rows = [(r.path, r.before, r.after, _result(r)) for r in self.layers]
        lines = text_table([head, *rows], left=4)
        skipped = len(self.layers) - len(self.swapped)
        lines.append(f"{len(self.swapped)} swapped, {skipped} skipped")
        return "\n".join(lines)


def _result(row: SwapRow) -> str:
    if row.status == "skipped":
        return f"skipped: {row.reason}"
    return f"swapped, weights {row.weights}"
