"""What surgery did, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from omniconv.core import args
from omniconv.core.table import text_table
from omniconv.surgery.accelerated import plain_type

__all__ = ["AccelerateReport", "AccelerateRow", "SwapReport", "SwapRow", "describe"]


def describe(module: Any) -> str:
    """A layer in a word: class (torch's where it is accelerated), channels, kernel, stride."""
    name = plain_type(module).__name__
    if not hasattr(module, "kernel_size"):
        return name
    size = "x".join(map(str, module.kernel_size))
    text = f"{name} {module.in_channels}->{module.out_channels} {size}"
    if any(s != 1 for s in module.stride):
        text += f" /{module.stride[0]}" if len(set(module.stride)) == 1 else f" /{module.stride}"
    return text


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


@dataclass(frozen=True)
class AccelerateRow:
    """One layer's fate: ``status`` is accelerated or skipped."""

    path: str
    layer: str
    status: str
    reason: str = ""


@dataclass(frozen=True)
class AccelerateReport:
    """What :func:`accelerate_` did; prints as a table.

    Attributes:
        layers: One row per layer.
        backend: The back end in use: with ``"torch"`` the kernels are turned off.
        model: The model.
    """

    layers: tuple[AccelerateRow, ...]
    backend: str = "auto"
    model: nn.Module | None = field(default=None, compare=False, repr=False)

    @property
    def accelerated(self) -> tuple[AccelerateRow, ...]:
        """The rows of the layers that were accelerated."""
        return tuple(row for row in self.layers if row.status == "accelerated")

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the model."""
        return {"backend": self.backend, "layers": [asdict(row) for row in self.layers]}

    def __str__(self) -> str:
        results = [f"{r.status}: {r.reason}" if r.reason else r.status for r in self.layers]
        rows = [(r.path, r.layer, result) for r, result in zip(self.layers, results, strict=True)]
        lines = text_table([("path", "layer", "result"), *rows], left=3) if rows else []
        done = len(self.accelerated)
        lines.append(f"{done} accelerated, {len(self.layers) - done} skipped")
        if self.backend == "torch":
            lines.append("the back end is torch: nothing is faster until it is auto")
        return "\n".join(lines)
