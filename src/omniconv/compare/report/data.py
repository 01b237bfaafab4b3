"""results.json as typed values: what every section of the report draws from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COSTS = (
    "parameters",
    "flops_forward",
    "flops_backward",
    "step_ms",
    "latency_1_ms",
    "latency_n_ms",
    "peak_bytes",
)
"""Names of the measured costs, in the order of the files."""

SLUGS = {
    "baseline": "baseline",
    "gain": "gain",
    "loss": "loss",
    "no relevant difference": "equal",
    "undecided": "undecided",
    "too few seeds": "few",
    "failed": "failed",
    "screened out": "screened",
}
"""Verdict against the first row, to the name that selects its colour and its mark."""

STANDINGS = {
    "above": "gain",
    "below": "loss",
    "level": "equal",
    "undecided": "undecided",
    "too few seeds": "few",
    "outside": "outside",
}
"""Verdict against the frontier, to the name that selects its colour and its mark."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval (None where a single value has none)."""

    mean: float
    low: float | None
    high: float | None
    n: int | None = None
    p_holm: float | None = None
    seeds_to_decide: int | None = None

    @property
    def span(self) -> tuple[float, float]:
        """The interval, or the mean twice."""
        low = self.mean if self.low is None else self.low
        return low, self.mean if self.high is None else self.high


@dataclass(frozen=True)
class Trial:
    """One training run; `curve` holds (epoch or step, validation score).

    `ran` names the compiled kernels that ran, None where that was not recorded.
    """

    id: str
    seed: int | None
    status: str
    reason: str
    score: float | None
    validation: float | None
    seconds: float | None
    ran: tuple[str, ...] | None
    curve: tuple[tuple[float, float], ...]


Grid = tuple[tuple[float, ...], ...]
Pixel = int | tuple[int, int, int]


@dataclass(frozen=True)
class Kernels:
    """Learned kernels of one layer; empty where it has no single one."""

    layer: str
    type: str
    kernels: tuple[Grid, ...]


@dataclass(frozen=True)
class Field:
    """An effective receptive field: shares of the gradient, 0 to 1, over `height` x `width`."""

    map: Grid
    height: int | None
    width: int | None
    area: float | None


@dataclass(frozen=True)
class Attention:
    """One test image and where its network looked."""

    image: tuple[tuple[Pixel, ...], ...]
    map: Grid
    label: str
    predicted: str

    @property
    def wrong(self) -> bool:
        """Whether the prediction is not the label."""
        return self.label != self.predicted


@dataclass(frozen=True)
class Standing:
    """A row against the frontier of plain networks, at its own latency."""

    latency: float | None
    between: tuple[str, ...]
    score: float | None
    change: Estimate | None
    verdict: str

    @property
    def slug(self) -> str:
        """Name of the verdict's colour and mark."""
        return STANDINGS.get(self.verdict, "undecided")


@dataclass(frozen=True)
class Tried:
    """One learning rate that was tried."""

    lr: float | None
    score: float | None
    status: str


@dataclass(frozen=True)
class Searched:
    """One density that was tried."""

    density: tuple[float, ...]
    score: float | None
    status: str


@dataclass(frozen=True)
class Screened:
    """A row's exploratory run."""

    score: float | None
    kept: bool


@dataclass(frozen=True)
class Row:
    """One row of the comparison."""

    label: str
    plain: bool
    verdict: str
    score: Estimate | None
    difference: Estimate | None
    standing: Standing | None
    cost: Mapping[str, float | None]
    ratio: Mapping[str, float | None]
    cost_reason: str
    batch: int | None
    folded: bool
    lr: float | None
    tuning: tuple[Tried, ...] | None
    screened: Screened | None
    searched: tuple[Searched, ...]
    extras: Mapping[str, float | None]
    swap: tuple[Mapping[str, str], ...]
    trials: tuple[Trial, ...]
    kernels: tuple[Kernels, ...]
    field: Field | None
    attention: tuple[Attention, ...]

    @property
    def slug(self) -> str:
        """Name of the verdict's colour and mark."""
        return SLUGS.get(self.verdict, "undecided")

    @property
    def kept(self) -> bool:
        """Whether it was compared; a row that was screened out was not."""
        return self.verdict != "screened out"

    @property
    def name(self) -> str:
        """The label up to its arguments."""
        return self.label.split("(", 1)[0]

    @property
    def detail(self) -> str:
        """The arguments of the label."""
        return self.label[len(self.name) :].removeprefix("(").removesuffix(")")

    @property
    def ran(self) -> tuple[str, ...] | None:
        """The compiled kernels that ran in any of its trials; None where that is not known."""
        known = [trial.ran for trial in self.trials if trial.ran is not None]
        return tuple(sorted(set().union(*known))) if known else None

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

    @property
    def sense(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self.higher_is_better else -1

    @property
    def title(self) -> str:
        """The name as a heading begins; names such as PSNR stay as they are."""
        return self.name[:1].upper() + self.name[1:]


@dataclass(frozen=True)
class Comparison:
    """All of results.json; `rows` are those compared, `everything` includes those screened out."""

    version: str
    created: str
    command: str
    unit: str
    metric: Metric
    everything: tuple[Row, ...]
    plan: Mapping[str, Any]
    tuning: Mapping[str, Any] | None
    screen: Mapping[str, Any] | None
    machine: Mapping[str, Any]
    data: Mapping[str, Any]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows that were compared."""
        return tuple(row for row in self.everything if row.kept)

    @property
    def operators(self) -> tuple[Row, ...]:
        """What is judged: the rows of no plain convolution; all but the first if there are none."""
        found = tuple(row for row in self.rows[1:] if not row.plain)
        return found or self.rows[1:]
