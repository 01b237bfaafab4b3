"""The plan: everything that decides the numbers of a comparison, in one canonical form.

A plan comes from YAML, from flags, or from the ``plan`` of a results.json; keys that are left out
are those of the shipped plan. It says what is to be trained; :mod:`omniconv.compare.prepare` finds
out whether that is possible.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from omniconv.compare import budget, grammar, plan_file, rows
from omniconv.compare.budget import Budget
from omniconv.compare.grammar import parse_operator
from omniconv.compare.refused import refusing
from omniconv.compare.rows import Row, check_keys
from omniconv.compare.worker import LONGEST
from omniconv.core import args
from omniconv.kernels.backend import BACKENDS, get_backend
from omniconv.tasks.task import TASKS, find

__all__ = [
    "Frontier",
    "Optimizer",
    "Plan",
    "Screen",
    "Tuning",
    "from_flags",
    "parse",
    "parse_operator",
    "shipped_rates",
]

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("cosine", "constant")
DTYPES = ("float32", "float64")
MOST_SEEDS = 1000
MOST_MOMENTUM = 0.9999
MOST_THREADS = 1024


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How every network is trained.

    Attributes:
        name: ``sgd`` or ``adam``.
        lr: The learning rate that tuning starts from.
        momentum: Decay of the mean gradient.
        weight_decay: Of all parameters that do not refuse it.
        schedule: ``cosine`` or ``constant``.
    """

    name: str
    lr: float
    momentum: float
    weight_decay: float
    schedule: str


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The same short runs for every row whose learning rate is not given; the best on validation.

    Attributes:
        factors: Of the optimiser's learning rate, one run each.
        budget: Length of a run.
        seed: Of these runs; no seed of the plan.
    """

    factors: tuple[float, ...]
    budget: Budget
    seed: int


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Plain networks that are added to the rows: what else the same time would buy.

    Attributes:
        widths: Factors on the width of the backbone.
        extents: Whether a plain row is added for every kernel extent that occurs.
        depthwise: Whether depthwise + pointwise is added where a row leaves channels apart.
    """

    widths: tuple[float, ...]
    extents: bool
    depthwise: bool


@dataclass(frozen=True, kw_only=True)
class Screen:
    """One exploratory run of every operator, of which the best go on.

    Attributes:
        keep: Number of operators that go on; with no more than these there is no screen.
        seed: Of these runs; no seed of the plan.
    """

    keep: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison. Two texts that mean the same give equal plans, with equal hashes.

    Attributes:
        task: What is learned: ``classify`` or ``denoise``.
        data: As the task names it: ``mnist5k``, ``cifar10:DIR``, ...
        backbone: ``resnet8``, ``resnet14``, ...
        width: Channels of its first stage.
        where: Shell pattern of the paths of the layers that are replaced; ``body`` for those that
            the backbone calls its body.
        rows: What is compared; the first one is the plain convolution.
        frontier: See :class:`Frontier`.
        seeds: One trial per row and seed.
        budget: Length of a trial.
        batch_size: Samples in a step.
        optimizer: See :class:`Optimizer`.
        tuning: See :class:`Tuning`; None: every row takes the optimiser's learning rate.
        screen: See :class:`Screen`; None for none.
        limit_train: Number of train samples that are used; None for all.
        dtype: Of parameters and activations.
        threads: Of every trial.
        backend: ``auto``, compiled kernels wherever there are any, or ``torch``, none; left out,
            that of the process.
        time_limit: Seconds after which a trial is given up.
        margin: Smallest difference that matters; None for the metric's own.
    """

    task: str
    data: str
    backbone: str
    width: int
    where: str
    rows: tuple[Row, ...]
    frontier: Frontier
    seeds: tuple[int, ...]
    budget: Budget
    batch_size: int
    optimizer: Optimizer
    tuning: Tuning | None
    screen: Screen | None
    limit_train: int | None
    dtype: str
    threads: int
    backend: str
    time_limit: float
    margin: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain data that :func:`parse` reads back."""
        tuning = self.tuning and asdict(self.tuning) | {
            "factors": list(self.tuning.factors),
            "budget": str(self.tuning.budget),
        }
        return asdict(self) | {
            "rows": [row.to_json() for row in self.rows],
            "frontier": asdict(self.frontier) | {"widths": list(self.frontier.widths)},
            "seeds": list(self.seeds),
            "budget": str(self.budget),
            "tuning": tuning,
        }

    def point(self, row: Row, budget: Budget | None = None) -> dict[str, Any]:
        """What the numbers of a row depend on, the seed and the data's content aside."""
        kept = ("task", "backbone", "width", "where", "batch_size", "dtype", "threads", "backend")
        shared = {name: getattr(self, name) for name in kept}
        optimizer = asdict(self.optimizer)
        del optimizer["lr"]
        shared |= {"optimizer": optimizer, "budget": str(budget or self.budget)}
        return shared | {"row": row.to_json()}


KEYS = tuple(field.name for field in fields(Plan))


def from_flags(
    *,
    plan: str | Path | None = None,
    task: str | None = None,
    operators: str | None = None,
    frontier: bool | None = None,
    screen: int | None = None,
    seeds: int | str | None = None,
    budget: str | None = None,
    data: str | None = None,
    backbone: str | None = None,
    width: int | None = None,
    threads: int | None = None,
    backend: str | None = None,
) -> Plan:
    """The plan that the command line describes: a plan file, or the shipped one, then flags.

    Args:
        plan: YAML file.
        task: As :attr:`Plan.task`.
        operators: ``"conv, dcls(kernel_size=5, taps=9)"``; replaces all rows.
        frontier: False adds no plain rows.
        screen: Number of operators that a screen keeps.
        seeds: A number of seeds, or seeds as ``"0,3,5"``.
        budget: ``"2epochs"``, ``"1000steps"``.
        data: As :attr:`Plan.data`.
        backbone: As :attr:`Plan.backbone`.
        width: As :attr:`Plan.width`.
        threads: As :attr:`Plan.threads`.
        backend: As :attr:`Plan.backend`.

    Raises:
        Refused: A value is malformed; one sentence names it.
    """
    values = {} if plan is None else plan_file.read(plan)
    given = {
        "task": task,
        "budget": budget,
        "data": data,
        "backbone": backbone,
        "width": width,
        "threads": threads,
        "backend": backend,
    }
    values |= {name: value for name, value in given.items() if value is not None}
    with refusing():
        if operators is not None:
            values["rows"] = grammar.split(operators)
        if seeds is not None:
            values["seeds"] = _seeds_flag(seeds)
        if frontier is False:
            values["frontier"] = None
        if screen is not None:
            values["screen"] = {"keep": screen}
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
        task = args.choice("task", values.get("task", TASKS[0]), TASKS)
        base, unit = plan_file.shipped(task), find(task).UNIT
        given = {**base, **values}
        limit, margin, tuning, screen = (
            given[name] for name in ("limit_train", "margin", "tuning", "screen")
        )
        plan = Plan(
            task=task,
            data=_text("data", given["data"]),
            backbone=_text("backbone", given["backbone"]),
            width=args.positive_int("width", given["width"]),
            where=_text("where", given["where"]),
            rows=rows.parse(given["rows"], base["rows"] if _alike(given, base) else ()),
            frontier=_frontier(given["frontier"], base["frontier"]),
            seeds=_seeds(given["seeds"]),
            budget=budget.parse("budget", given["budget"], unit),
            batch_size=args.positive_int("batch_size", given["batch_size"]),
            optimizer=_optimizer(given["optimizer"], base["optimizer"]),
            tuning=None if tuning is None else _tuning(tuning, base["tuning"], unit),
            screen=None if screen is None else _screen(screen),
            limit_train=None if limit is None else args.positive_int("limit_train", limit),
            dtype=args.choice("dtype", given["dtype"], DTYPES),
            threads=args.integer("threads", given["threads"], 1, MOST_THREADS),
            backend=args.choice("backend", given.get("backend", get_backend()), BACKENDS),
            time_limit=args.real("time_limit", given["time_limit"], 0.0, LONGEST, exclusive=True),
            margin=None if margin is None else args.real("margin", margin, 0.0),
        )
        for name, stage in (("tuning", plan.tuning), ("screen", plan.screen)):
            if stage is not None and stage.seed in plan.seeds:
                raise ValueError(
                    f"{name} seed must be none of the seeds of the comparison, got {stage.seed}"
                )
        return plan


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"{name} must be text, got {args.show(value)} ({type(value).__name__})")
    return value


def _seeds(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        return tuple(range(args.integer("seeds", value, 1, MOST_SEEDS)))
    if not 1 <= len(value) <= MOST_SEEDS:
        raise ValueError(f"seeds must be 1 to {MOST_SEEDS} different ones, got {len(value)}")
    seeds = tuple(_seed(f"seeds[{i}]", v) for i, v in enumerate(value))
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different ones, got {args.show(list(seeds))}")
    return seeds


def _seed(name: str, value: Any) -> int:
    return args.integer(name, value, 0, 2**31 - 1)


def _part(name: str, value: Any, kind: type, base: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping of the plan, completed by the shipped one's."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, got {args.show(value)}")
    check_keys(name, value, tuple(field.name for field in fields(kind)))
    return {**base, **value}


def _optimizer(value: Any, base: Mapping[str, Any]) -> Optimizer:
    given = _part("optimizer", value, Optimizer, base)
    return Optimizer(
        name=args.choice("optimizer name", given["name"], OPTIMIZERS),
        lr=args.real("optimizer lr", given["lr"], 0.0, exclusive=True),
        momentum=args.real("momentum", given["momentum"], 0.0, MOST_MOMENTUM),
        weight_decay=args.real("weight_decay", given["weight_decay"], 0.0),
        schedule=args.choice("schedule", given["schedule"], SCHEDULES),
    )


def _tuning(value: Any, base: Mapping[str, Any], unit: str) -> Tuning:
    given = _part("tuning", value, Tuning, base)
    factors = given["factors"]
    if not isinstance(factors, (list, tuple)) or not factors:
        raise TypeError(f"tuning factors must be a list of numbers, got {args.show(factors)}")
    return Tuning(
        factors=tuple(
            args.real(f"tuning factors[{i}]", f, 0.0, exclusive=True) for i, f in enumerate(factors)
        ),
        budget=budget.parse("tuning budget", given["budget"], unit),
        seed=_seed("tuning seed", given["seed"]),
    )


def _frontier(value: Any, base: Mapping[str, Any]) -> Frontier:
    if value is None:
        return Frontier(widths=(), extents=False, depthwise=False)
    given = _part("frontier", value, Frontier, base)
    widths = given["widths"]
    if not isinstance(widths, (list, tuple)):
        raise TypeError(f"frontier widths must be a list of numbers, got {args.show(widths)}")
    return Frontier(
        widths=tuple(
            args.real(f"frontier widths[{i}]", w, *rows.WIDTHS) for i, w in enumerate(widths)
        ),
        extents=args.boolean("frontier extents", given["extents"]),
        depthwise=args.boolean("frontier depthwise", given["depthwise"]),
    )


def _screen(value: Any) -> Screen:
    given = _part("screen", value, Screen, {"keep": 4, "seed": 2000})
    return Screen(
        keep=args.positive_int("screen keep", given["keep"]),
        seed=_seed("screen seed", given["seed"]),
    )


def shipped_rates(plan: Plan) -> dict[str, float | None]:
    """Label -> learning rate of the shipped plan's rows, where its networks are like these."""
    base = plan_file.shipped(plan.task)
    found = rows.parse(base["rows"]) if _alike(plan.to_json(), base) else ()
    return {row.label: row.lr for row in found}


def _alike(given: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Whether the shipped plan's learning rates were tuned for networks like these."""
    return all(
        given[name] == base[name] for name in ("data", "backbone", "width", "where", "batch_size")
    )
