"""The plan: everything that decides the numbers of a comparison, in one canonical form.

A plan comes from YAML, from flags, or from the ``plan`` of a results.json; keys that are left out
are those of the shipped plan. It says what is to be trained; :mod:`omniconv.compare.prepare` finds
out whether that is possible.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from omniconv.compare import grammar, plan_file, rows
from omniconv.compare.grammar import parse_operator
from omniconv.compare.refused import refusing
from omniconv.compare.rows import Row, check_keys
from omniconv.core import args

__all__ = ["Optimizer", "Plan", "from_flags", "parse", "parse_operator"]

TASKS = ("classify",)
OPTIMIZERS = ("sgd",)
SCHEDULES = ("cosine", "constant")
DTYPES = ("float32", "float64")
MOST_SEEDS = 1000
MOST_THREADS = 1024


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How every network is trained, but for the row's learning rate."""

    name: str
    momentum: float
    weight_decay: float
    schedule: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison. Two texts that mean the same give equal plans, with equal hashes.

    Attributes:
        task: What is learned: ``classify``.
        data: ``mnist5k``, ``cifar10:DIR``, ``idx:DIR`` or ``folder:DIR``.
        backbone: ``resnet8``, ``resnet14``, ...
        width: Channels of its first stage.
        where: Shell pattern of the paths of the layers that are replaced.
        rows: What is compared; the first one is the plain convolution.
        seeds: One trial per row and seed.
        epochs: Passes over the train split.
        batch_size: Samples in a step.
        optimizer: See :class:`Optimizer`.
        limit_train: Number of train samples that are used; None for all.
        dtype: Of parameters and activations.
        threads: Of every trial.
        margin: Smallest difference that matters; None for the metric's own.
    """

    task: str
    data: str
    backbone: str
    width: int
    where: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    epochs: int
    batch_size: int
    optimizer: Optimizer
    limit_train: int | None
    dtype: str
    threads: int
    margin: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain data that :func:`parse` reads back."""
        return asdict(self) | {
            "rows": [row.to_json() for row in self.rows],
            "seeds": list(self.seeds),
        }

    def points(self) -> list[dict[str, Any]]:
        """What the numbers of each row depend on, the seed and the data's content aside."""
        kept = ("task", "backbone", "width", "where", "epochs", "batch_size", "dtype", "threads")
        shared = {name: getattr(self, name) for name in kept}
        shared["optimizer"] = asdict(self.optimizer)
        return [shared | {"row": row.to_json()} for row in self.rows]

    def trials(self) -> Iterator[tuple[int, int]]:
        """Every (row index, seed), all rows of a seed before the next one."""
        return ((index, seed) for seed in self.seeds for index in range(len(self.rows)))


KEYS = tuple(field.name for field in fields(Plan))


def from_flags(
    *,
    plan: str | Path | None = None,
    operators: str | None = None,
    seeds: int | str | None = None,
    budget: str | None = None,
    data: str | None = None,
    backbone: str | None = None,
    width: int | None = None,
    threads: int | None = None,
) -> Plan:
    """The plan that the command line describes: a plan file, or the shipped one, then flags.

    Args:
        plan: YAML file.
        operators: ``"conv, dcls(kernel_size=5, taps=9)"``; replaces all rows.
        seeds: A number of seeds, or seeds as ``"0,3,5"``.
        budget: ``"2epochs"``.
        data: As :attr:`Plan.data`.
        backbone: As :attr:`Plan.backbone`.
        width: As :attr:`Plan.width`.
        threads: As :attr:`Plan.threads`.

    Raises:
        Refused: A value is malformed; one sentence names it.
    """
    values = {} if plan is None else plan_file.read(plan)
    given = {"data": data, "backbone": backbone, "width": width, "threads": threads}
    values |= {name: value for name, value in given.items() if value is not None}
    with refusing():
        if operators is not None:
            values["rows"] = grammar.split(operators)
        if seeds is not None:
            values["seeds"] = _seeds_flag(seeds)
        if budget is not None:
            values["epochs"] = _budget(budget)
    return parse(values)


def _seeds_flag(seeds: int | str) -> int | list[int]:
    if isinstance(seeds, int):
        return seeds
    if not re.fullmatch(r"\s*\d{1,10}\s*(,\s*\d{1,10}\s*)*", str(seeds), re.ASCII):
        raise ValueError(
            f"seeds must be a number of seeds or a list such as 0,3,5, got {args.show(seeds)}"
        )
    numbers = [int(part) for part in seeds.split(",")]
    return numbers if "," in seeds else numbers[0]


def _budget(budget: str) -> int:
    match = re.fullmatch(r"\s*0*([1-9]\d{0,8})\s*epochs?\s*", str(budget), re.ASCII)
    if match is None:
        raise ValueError(f"budget must be epochs such as 2epochs, got {args.show(budget)}")
    return int(match[1])


def parse(values: Mapping[str, Any]) -> Plan:
    """The canonical plan of a mapping with the keys of :class:`Plan`.

    ``rows`` is read by :func:`omniconv.compare.rows.parse`; ``seeds`` is a number N, for 0 to
    N-1, or a list.

    Raises:
        Refused: A key is unknown or a value malformed; one sentence names it.
    """
    with refusing():
        if not isinstance(values, Mapping):
            raise TypeError(f"plan must be a mapping of keys to values, got {args.show(values)}")
        check_keys("plan", values, KEYS)
        given = {**plan_file.shipped(), **values}
        limit, margin = given["limit_train"], given["margin"]
        return Plan(
            task=args.choice("task", given["task"], TASKS),
            data=_text("data", given["data"]),
            backbone=_text("backbone", given["backbone"]),
            width=args.positive_int("width", given["width"]),
            where=_text("where", given["where"]),
            rows=rows.parse(given["rows"]),
            seeds=_seeds(given["seeds"]),
            epochs=args.positive_int("epochs", given["epochs"]),
            batch_size=args.positive_int("batch_size", given["batch_size"]),
            optimizer=_optimizer(given["optimizer"]),
            limit_train=None if limit is None else args.positive_int("limit_train", limit),
            dtype=args.choice("dtype", given["dtype"], DTYPES),
            threads=args.integer("threads", given["threads"], 1, MOST_THREADS),
            margin=None if margin is None else args.real("margin", margin, 0.0),
        )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"{name} must be text, got {args.show(value)} ({type(value).__name__})")
    return value


def _seeds(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        return tuple(range(args.integer("seeds", value, 1, MOST_SEEDS)))
    if not 1 <= len(value) <= MOST_SEEDS:
        raise ValueError(f"seeds must be 1 to {MOST_SEEDS} different ones, got {len(value)}")
    seeds = tuple(args.integer(f"seeds[{i}]", v, 0, 2**31 - 1) for i, v in enumerate(value))
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different ones, got {args.show(list(seeds))}")
    return seeds


def _optimizer(value: Any) -> Optimizer:
    if not isinstance(value, Mapping):
        raise TypeError(f"optimizer must be a mapping, got {args.show(value)}")
    names = tuple(field.name for field in fields(Optimizer))
    check_keys("optimizer", value, names)
    given = {**plan_file.shipped()["optimizer"], **value}
    return Optimizer(
        name=args.choice("optimizer name", given["name"], OPTIMIZERS),
        momentum=args.real("momentum", given["momentum"], 0.0, 1.0),
        weight_decay=args.real("weight_decay", given["weight_decay"], 0.0),
        schedule=args.choice("schedule", given["schedule"], SCHEDULES),
    )
