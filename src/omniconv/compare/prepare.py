"""Before a comparison: read the data, and try every row's network. Nothing is written."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from omniconv.compare.network import Network, build
from omniconv.compare.plan import Plan
from omniconv.compare.refused import refusing
from omniconv.compare.rows import PLAIN, Row
from omniconv.core import args
from omniconv.core.registry import list_operators
from omniconv.tasks import classify
from omniconv.tasks.dataset import Dataset

__all__ = ["Prepared", "prepare"]

COPIES = 4
"""Of every parameter in training: itself, gradient, momentum, and one for a checkpoint."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A plan that can run.

    Attributes:
        plan: The plan, ``pointwise`` of every row known.
        dataset: Its data.
        metric: What it is scored by, with the plan's margin.
        swaps: Per row, what becomes of the selected layers.
    """

    plan: Plan
    dataset: Dataset
    metric: classify.Metric
    swaps: tuple[list[dict[str, str]], ...]


def prepare(plan: Plan, dataset: Dataset | None = None) -> Prepared:
    """Check ``plan`` against the data and the backbone's real layers.

    Args:
        plan: The plan.
        dataset: Data of one's own (``omniconv.tasks.classify.from_datasets``); default: the data
            that the plan names.

    Raises:
        Refused: The data cannot be read, an operator or argument is unknown or impossible, or a
            row would change no layer.
    """
    with refusing():
        if dataset is None:
            dataset = classify.load(plan.data, plan.limit_train)
    rows, swaps = [], []
    for row, point in zip(plan.rows, plan.points(), strict=True):
        with refusing(f"row {row.label}: "):
            _check_operator(row)
            network = build(point, dataset, device="meta")
            _check_memory(network)
            rows.append(replace(row, pointwise=_pointwise(row, plan.where, network)))
            swaps.append(network.swap)
    metric = classify.metric(dataset)
    if plan.margin is not None:
        metric = replace(metric, margin=plan.margin)
    return Prepared(replace(plan, rows=tuple(rows)), dataset, metric, tuple(swaps))


def _check_operator(row: Row) -> None:
    known = [PLAIN, *list_operators()]
    if row.operator not in known:
        hint = args.did_you_mean(row.operator, known)
        raise ValueError(
            f"operator must be one of {', '.join(known)}, got {args.show(row.operator)}{hint}"
        )


def _check_memory(network: Network) -> None:
    needed = COPIES * sum(p.numel() * p.element_size() for p in network.model.parameters())
    present = physical_memory()
    if present is not None and needed > present:
        raise ValueError(
            f"its network needs at least {needed / 1e9:,.0f} GB of memory to be trained, "
            f"this machine has {present / 1e9:,.0f} GB"
        )


def physical_memory() -> int | None:
    """Bytes of memory of this machine, where it tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _pointwise(row: Row, where: str, network: Network) -> bool:
    """Whether the row's layers are mixer and 1x1; refuses a row that changes nothing."""
    if not network.paths:
        raise ValueError(
            f"where={where!r} must select convolutions of the backbone, but it selects none"
        )
    swapped = [layer for layer in network.swap if layer["status"] == "swapped"]
    if network.swap and not swapped:
        raise ValueError(f"no layer can be replaced: {network.swap[0]['reason']}")
    found = any(layer["after"].endswith(" + 1x1") for layer in swapped)
    if row.pointwise is not None and row.pointwise != found:
        why = "leaves channels apart" if found else "mixes channels itself"
        raise ValueError(f"pointwise must be {found} (or left out): the operator {why} here")
    return found
