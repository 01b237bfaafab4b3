"""Before a comparison: read the data, and try every row's network. Nothing is written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from omniconv.compare import identity, plan
from omniconv.compare.network import Network, build
from omniconv.compare.plan import Plan
from omniconv.compare.refused import refusing
from omniconv.compare.rows import DEPTHWISE, PLAIN, Row, make
from omniconv.core import args
from omniconv.core.registry import list_operators
from omniconv.models import task_of
from omniconv.tasks.metric import Metric
from omniconv.tasks.task import TaskData, find

__all__ = ["Prepared", "prepare"]

COPIES = 4
"""Of every parameter in training: itself, gradient, momentum, and one for a checkpoint."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A plan that can run.

    Attributes:
        plan: The plan, with all its rows, ``pointwise`` of every row known.
        metric: What it is scored by, with the plan's margin.
        data: Facts about the data: name, source, licence, classes (their number), sizes, hash.
        swaps: Per row, what becomes of the selected layers.
        extents: Per row, the kernel sizes of the selected layers.
        environment: What every number depends on besides (see :mod:`omniconv.compare.identity`).
        dataset: The data themselves; None where the plan comes from a store.
    """

    plan: Plan
    metric: Metric
    data: Mapping[str, Any]
    swaps: tuple[list[dict[str, str]], ...]
    extents: tuple[set[tuple[int, ...]], ...]
    environment: Mapping[str, Any]
    dataset: TaskData | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data for the store; the samples stay outside."""
        return {
            "plan": self.plan.to_json(),
            "metric": asdict(self.metric),
            "data": dict(self.data),
            "swaps": list(self.swaps),
            "extents": [sorted(map(list, sizes)) for sizes in self.extents],
            "environment": dict(self.environment),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Prepared:
        """The inverse of :meth:`to_json`: enough for a report."""
        return cls(
            plan.parse(content["plan"]),
            Metric(**content["metric"]),
            content["data"],
            tuple(content["swaps"]),
            tuple({tuple(size) for size in sizes} for sizes in content["extents"]),
            content["environment"],
        )


def prepare(wanted: Plan, dataset: TaskData | None = None) -> Prepared:
    """Check a plan against the data and the backbone's real layers, and complete its rows.

    Args:
        wanted: The plan.
        dataset: Data of one's own (``omniconv.tasks.classify.from_datasets``); default: the data
            that the plan names.

    Raises:
        Refused: The data cannot be read, an operator or argument is unknown or impossible, or a
            row would change no layer.
    """
    with refusing():
        if (task := task_of(wanted.backbone)) != wanted.task:
            raise ValueError(
                f"backbone must be one for the task {wanted.task!r}, "
                f"got {wanted.backbone!r} (for {task!r})"
            )
        if dataset is None:
            dataset = find(wanted.task).load(wanted.data, wanted.limit_train)
    rows, networks = [], []
    for row in wanted.rows:
        with refusing(f"row {row.label}: "):
            checked, network = _try(wanted, row, dataset)
        rows.append(checked)
        networks.append(network)
    for row in list(_frontier(wanted, rows, networks)):
        try:
            checked, network = _try(wanted, row, dataset)
        except (ValueError, TypeError):  # such a plain network does not exist here
            continue
        rows.append(checked)
        networks.append(network)
    metric = find(wanted.task).metric(dataset)
    if wanted.margin is not None:
        metric = replace(metric, margin=wanted.margin)
    data = {
        "name": dataset.name,
        "source": dataset.source,
        "licence": dataset.licence,
        "classes": len(dataset.classes),
        "sizes": dataset.sizes,
        "hash": f"sha256:{dataset.hash}",
    }
    environment = identity.environment((row.operator for row in rows), wanted.backend)
    whole = replace(wanted, rows=tuple(rows))
    swaps = tuple(network.swap for network in networks)
    extents = tuple(network.extents for network in networks)
    return Prepared(whole, metric, data, swaps, extents, environment, dataset)


def _try(wanted: Plan, row: Row, dataset: TaskData) -> tuple[Row, Network]:
    """The row with ``pointwise``, and its network without memory."""
    _check_operator(row)
    network = build(wanted.point(row), dataset, device="meta")
    _check_memory(network)
    if row.search is not None and (
        len(network.extents) > 1 or len(set(next(iter(network.extents)))) > 1
    ):
        found = ", ".join(map(str, sorted(network.extents)))
        raise ValueError(f"search must find layers of one square kernel size, got {found}")
    return replace(row, pointwise=_pointwise(row, wanted.where, network)), network


def _frontier(wanted: Plan, rows: list[Row], networks: list[Network]) -> Iterator[Row]:
    """The plain rows that the plan's frontier adds."""
    frontier, rates = wanted.frontier, plan.shipped_rates(wanted)
    known = {row.label for row in rows}
    candidates = [make(PLAIN, {}, width) for width in frontier.widths]
    own = networks[0].extents
    for row, network in zip(rows, networks, strict=True):
        if row.plain:
            continue
        operator = DEPTHWISE if row.pointwise else PLAIN
        if frontier.depthwise if row.pointwise else frontier.extents:
            for size in sorted(network.extents - (own if operator == PLAIN else set())):
                arguments = {"kernel_size": size[0] if len(set(size)) == 1 else size}
                candidates.append(make(operator, arguments))
    for row in candidates:
        if row.label not in known and row.label != PLAIN:
            known.add(row.label)
            yield replace(row, lr=rates.get(row.label))


def _check_operator(row: Row) -> None:
    known = [PLAIN, DEPTHWISE, *list_operators()]
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
