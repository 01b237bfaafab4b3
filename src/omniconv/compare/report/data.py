"""results.json as typed, cleaned values: everything the report draws passes through `read`.

Missing keys, `null`, NaN and infinities all become `None`; text loses the characters that no
page can show (control characters, lone surrogates, direction overrides).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COSTS = ("parameters", "flops_forward", "step_ms", "latency_1_ms", "latency_n_ms", "peak_bytes")
"""Names of the measured costs, in the order of the table."""

SLUGS = {
    "baseline": "baseline",
    "gain": "gain",
    "loss": "loss",
    "no relevant difference": "equal",
    "undecided": "undecided",
    "too few seeds": "few",
    "failed": "failed",
}
"""Verdict to the name that selects its colour and its mark."""

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval (None where a single value has none)."""

    mean: float
    low: float | None
    high: float | None
    n: int | None = None
    p_holm: float | None = None

    @property
    def span(self) -> tuple[float, float]:
        """The interval, or the mean twice."""
        low = self.mean if self.low is None else self.low
        return low, self.mean if self.high is None else self.high


@dataclass(frozen=True)
class Trial:
    """One training run; `curve` holds (epoch, validation score)."""

    id: str
    seed: int | None
    status: str
    reason: str
    score: float | None
    validation: float | None
    seconds: float | None
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Kernels:
    """Learned kernels of one layer as nested tuples of floats; empty where it has no single one."""

    layer: str
    type: str
    kernels: tuple[tuple[tuple[float, ...], ...], ...]


@dataclass(frozen=True)
class Row:
    """One row of the comparison."""

    label: str
    plain: bool
    verdict: str
    score: Estimate | None
    difference: Estimate | None
    cost: Mapping[str, float | None]
    ratio: Mapping[str, float | None]
    batch: int | None
    folded: bool
    lr: float | None
    pointwise: bool
    swap: tuple[Mapping[str, str], ...]
    trials: tuple[Trial, ...]
    kernels: tuple[Kernels, ...]

    @property
    def slug(self) -> str:
        """Name of the verdict's colour and mark."""
        return SLUGS.get(self.verdict, "undecided")

    @property
    def name(self) -> str:
        """The label up to its arguments."""
        return self.label.split("(", 1)[0]

    @property
    def detail(self) -> str:
        """The arguments of the label."""
        return self.label[len(self.name) :].removeprefix("(").removesuffix(")")

    @property
    def seconds(self) -> float | None:
        """Time of all its trials together."""
        known = [trial.seconds for trial in self.trials if trial.seconds is not None]
        return sum(known) if known else None


@dataclass(frozen=True)
class Metric:
    """What was scored; `points` is the unit of a difference."""

    name: str
    unit: str
    points: str
    higher_is_better: bool
    chance: float | None
    margin: float | None


@dataclass(frozen=True)
class Comparison:
    """All of results.json, cleaned."""

    version: str
    created: str
    command: str
    metric: Metric
    rows: tuple[Row, ...]
    plan: Mapping[str, Any]
    machine: Mapping[str, Any]
    data: Mapping[str, Any]


def number(value: Any) -> float | None:
    """`value` as a finite float, else None (booleans and text are not numbers)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def clean(value: Any) -> Any:
    """`value` with strings fit for a page, 2,000 characters at most, and no NaN or infinity."""
    if isinstance(value, str):
        short = value if len(value) <= _LONGEST else value[: _LONGEST - 2] + " …"
        return _UNPRINTABLE.sub("\ufffd", short)
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(results: Mapping[str, Any]) -> Comparison:
    """Read the dictionary that `omniconv compare` writes as results.json.

    Raises:
        ValueError: `results` is not of schema 1.
    """
    if not isinstance(results, Mapping) or results.get("schema") != 1:
        found = results.get("schema") if isinstance(results, Mapping) else type(results).__name__
        raise ValueError(f"results: schema is {found!r}; this report reads schema 1")
    page = clean(results)
    metric = page.get("metric") or {}
    unit = _text(metric.get("unit"))
    return Comparison(
        version=_text(page.get("omniconv")),
        created=_text(page.get("created")),
        command=_text(page.get("command")),
        metric=Metric(
            name=_text(metric.get("name")) or "score",
            unit=unit,
            points="points" if unit == "%" else unit,
            higher_is_better=metric.get("higher_is_better") is not False,
            chance=number(metric.get("chance")),
            margin=number(metric.get("margin")),
        ),
        rows=tuple(_row(row) for row in page.get("rows") or ()),
        plan=page.get("plan") or {},
        machine=page.get("machine") or {},
        data=page.get("data") or {},
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _integer(value: Any) -> int | None:
    found = number(value)
    return None if found is None else round(found)


def _estimate(value: Mapping[str, Any] | None) -> Estimate | None:
    mean = number((value or {}).get("mean"))
    if value is None or mean is None:
        return None
    low, high = value.get("interval") or (None, None)
    n, p_holm = _integer(value.get("n")), number(value.get("p_holm"))
    return Estimate(mean, number(low), number(high), n, p_holm)


def _row(row: Mapping[str, Any]) -> Row:
    cost = row.get("cost") or {}
    ratio = cost.get("ratio") or {}
    return Row(
        label=_text(row.get("label")),
        plain=row.get("operator") == "conv" and row.get("label") == "conv",
        verdict=_text(row.get("verdict")) or "failed",
        score=_estimate(row.get("score")),
        difference=_estimate(row.get("difference")),
        cost={name: number(cost.get(name)) for name in COSTS},
        ratio={name: number(ratio.get(name)) for name in COSTS},
        batch=_integer(cost.get("batch")),
        folded=cost.get("folded") is True,
        lr=number(row.get("lr")),
        pointwise=row.get("pointwise") is True,
        swap=tuple({k: _text(v) for k, v in layer.items()} for layer in row.get("swap") or ()),
        trials=tuple(_trial(trial) for trial in row.get("trials") or ()),
        kernels=tuple(_kernels(entry) for entry in row.get("kernels") or () if entry),
    )


def _trial(trial: Mapping[str, Any]) -> Trial:
    pairs = (
        (number(epoch.get("epoch")), number(epoch.get("validation_score")))
        for epoch in trial.get("epochs") or ()
    )
    return Trial(
        id=_text(trial.get("id")),
        seed=_integer(trial.get("seed")),
        status=_text(trial.get("status")),
        reason=_text(trial.get("reason")),
        score=number(trial.get("score")),
        validation=number(trial.get("validation_score")),
        seconds=number(trial.get("seconds")),
        curve=tuple((x, y) for x, y in pairs if x is not None and y is not None),
    )


def _kernels(entry: Mapping[str, Any]) -> Kernels:
    pictures: Sequence[Any] = entry.get("kernels") or ()
    return Kernels(
        layer=_text(entry.get("layer")),
        type=_text(entry.get("type")),
        kernels=tuple(
            tuple(tuple(number(value) or 0.0 for value in line) for line in kernel)
            for kernel in pictures
            if kernel and kernel[0]
        ),
    )
