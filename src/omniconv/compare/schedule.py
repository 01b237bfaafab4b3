"""What a comparison trains, in order: tuning, search, screen, then every row with every seed.

What comes later depends on how the earlier ended: learning rates and densities are the best ones on
validation, and a screen lets the best operators go on. So the schedule is a generator: it yields a
:class:`Job` and reads how it ended from the store when it is asked for the next. Run over a store
that holds the ends, it yields the same jobs again; that is how a comparison is resumed, and how its
results are put together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from omniconv.compare.budget import Budget
from omniconv.compare.identity import identify
from omniconv.compare.prepare import Prepared
from omniconv.compare.rows import Row
from omniconv.compare.store import Trial

__all__ = ["Job", "Progress", "Schedule"]


@dataclass(frozen=True)
class Job:
    """One trial.

    Attributes:
        stage: ``tune``, ``search``, ``screen`` or ``train``.
        row: Index of the row.
        seed: Seed of the trial.
        point: What its numbers depend on (:meth:`omniconv.compare.plan.Plan.point`).
        test: Whether the network is scored on test at the end; only ``train`` sees that split.
        id: Id of the trial in the store.
        weight: Its length, in trials of the full budget.
        note: What is tried, for people.
    """

    stage: str
    row: int
    seed: int
    point: dict[str, Any]
    test: bool
    id: str
    weight: float
    note: str = ""


@dataclass
class Progress:
    """What is known about a row.

    Attributes:
        row: The row, with its learning rate and density as soon as they are found.
        tuning: One mapping per tried learning rate; None where it was given.
        search: One mapping per tried density; None where none is searched.
        screened: What the screen said; None without a screen.
        trials: Seed -> id of the trials of the full budget, as far as they were scheduled.
    """

    row: Row
    tuning: list[dict[str, Any]] | None = None
    search: list[dict[str, Any]] | None = None
    screened: dict[str, Any] | None = None
    trials: dict[int, str] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        """Whether the row goes on behind the screen."""
        return self.screened is None or self.screened["kept"]


class Schedule:
    """The jobs of a plan.

    Args:
        prepared: The plan.
        lookup: Id -> the trial as the store knows it, or None.
    """

    def __init__(self, prepared: Prepared, lookup: Callable[[str], Trial | None]) -> None:
        self.prepared = prepared
        self.plan = plan = prepared.plan
        self.lookup = lookup
        self.rows = [Progress(row) for row in plan.rows]
        operators = [index for index, row in enumerate(plan.rows) if not row.plain]
        keeps = plan.screen is not None and len(operators) > plan.screen.keep
        self.screened = operators if keeps else []

    def left(self, done: Sequence[Job]) -> Iterator[tuple[int, float]]:
        """(row, weight) of all jobs that are still to come behind ``done``; an upper bound."""
        counts: dict[tuple[str, int], int] = {}
        for job in done:
            counts[job.stage, job.row] = counts.get((job.stage, job.row), 0) + 1
        for index, row in enumerate(self.plan.rows):
            for stage, number, weight in self._stages(index, row):
                for _ in range(number - counts.get((stage, index), 0)):
                    yield index, weight

    def _stages(self, index: int, row: Row) -> Iterator[tuple[str, int, float]]:
        tuning = self.plan.tuning
        if tuning is not None:
            short = self._weight(tuning.budget)
            if row.lr is None:
                yield "tune", len(tuning.factors), short
            if row.search is not None:
                yield "search", row.search, short
        if index in self.screened:
            yield "screen", 1, 1.0
        if self.rows[index].kept:
            yield "train", len(self.plan.seeds), 1.0

    def _weight(self, budget: Budget) -> float:
        return budget.amount / self.plan.budget.amount

    def jobs(self) -> Iterator[Job]:
        """Every trial; before the next one is asked for, this one has ended in the store."""
        for index in range(len(self.rows)):
            yield from self._tune(index)
            yield from self._search(index)
        yield from self._screen()
        for seed in self.plan.seeds:
            for index, progress in enumerate(self.rows):
                if progress.kept:
                    job = self._job("train", index, progress.row, seed)
                    progress.trials[seed] = job.id
                    yield job

    def _job(
        self,
        stage: str,
        index: int,
        row: Row,
        seed: int,
        budget: Budget | None = None,
        note: str = "",
    ) -> Job:
        point, test = self.plan.point(row, budget), stage == "train"
        id = identify(
            "trial",
            point | {"seed": seed, "test": test},
            [row.operator],
            self.prepared.data["hash"],
            self.prepared.environment,
        )
        weight = 1.0 if budget is None else self._weight(budget)
        return Job(stage, index, seed, point, test, id, weight, note)

    def _validation(self, job: Job) -> tuple[float | None, dict[str, Any]]:
        """The score on validation of a trial that has ended, and what the report says of it.

        A diverged network counts as chance; None where there is no score.
        """
        trial = self.lookup(job.id)
        status = "failed" if trial is None else trial.status
        score = None
        if status == "diverged":
            score = self.prepared.metric.chance
        elif status == "done" and trial is not None:
            score = trial.curve[-1]["validation_score"]
        seconds = sum(leg["seconds"] for leg in trial.curve) if trial is not None else None
        return score, {"validation_score": score, "status": status, "seconds": seconds}

    def _better(self, score: float, best: float) -> bool:
        return score > best if self.prepared.metric.higher_is_better else score < best

    def _tune(self, index: int) -> Iterator[Job]:
        """The best learning rate; of equal ones that nearest to the plan's."""
        progress, tuning, base = self.rows[index], self.plan.tuning, self.plan.optimizer.lr
        if progress.row.lr is not None:
            return
        if tuning is None:
            progress.row = replace(progress.row, lr=base)
            return
        progress.tuning = []
        best: tuple[float, float] | None = None
        nearest = min(tuning.factors, key=lambda f: max(f, 1 / f))
        for factor in sorted(tuning.factors, key=lambda f: max(f, 1 / f)):
            lr = float(f"{base * factor:.4g}")
            row = replace(progress.row, lr=lr, search=None)
            note = f"learning rate {lr:g}"
            job = self._job("tune", index, row, tuning.seed, tuning.budget, note)
            yield job
            score, said = self._validation(job)
            progress.tuning.append({"lr": lr, **said})
            if score is not None and (best is None or self._better(score, best[0])):
                best = score, lr
        progress.tuning.sort(key=lambda entry: entry["lr"])
        chosen = float(f"{base * nearest:.4g}") if best is None else best[1]
        progress.row = replace(progress.row, lr=chosen)

    def _search(self, index: int) -> Iterator[Job]:
        """The best density, by DIRECT-L over short trainings."""
        progress, tuning = self.rows[index], self.plan.tuning
        evaluations = progress.row.search
        if evaluations is None:
            return
        from omniconv.search.density import optimize_density, suggested_bounds

        budget = self.plan.budget if tuning is None else tuning.budget
        seed = self.plan.seeds[0] if tuning is None else tuning.seed
        progress.search = []
        asked: set[str] = set()
        given = dict(progress.row.arguments)
        ((extent, *_),) = self.prepared.extents[index]
        bounds = suggested_bounds(extent)

        def searched(density: Sequence[float]) -> Row:
            arguments = given | {"density": tuple(float(f"{v:.6g}") for v in density)}
            pairs = tuple(sorted(arguments.items()))
            return replace(progress.row, arguments=pairs, search=None)

        def objective(density: Sequence[float]) -> float:
            row = searched(density)
            note = "density " + ", ".join(f"{v:.3g}" for v in density)
            job = self._job("search", index, row, seed, budget, note)
            if job.id not in asked:
                raise _Wanted(job)
            score, said = self._validation(job)
            if all(entry["id"] != job.id for entry in entries):
                values = list(dict(row.arguments)["density"])
                entries.append({"id": job.id, "density": values, **said})
            if score is None:
                score = self.prepared.metric.chance
            return -score if self.prepared.metric.higher_is_better else score

        while True:
            entries: list[dict[str, Any]] = []
            try:
                found = optimize_density(objective, bounds, evaluations=evaluations)
                break
            except _Wanted as wanted:
                yield wanted.job
                asked.add(wanted.job.id)
        progress.search = [{k: v for k, v in e.items() if k != "id"} for e in entries]
        progress.row = searched(found.density)

    def _screen(self) -> Iterator[Job]:
        """One run of every operator; the best ones on validation go on."""
        screen = self.plan.screen
        if screen is None or not self.screened:
            return
        scores: list[tuple[float, int]] = []
        for index in self.screened:
            progress = self.rows[index]
            job = self._job("screen", index, progress.row, screen.seed)
            yield job
            score, _ = self._validation(job)
            progress.screened = {"validation_score": score, "kept": False}
            if score is not None:
                scores.append((score, index))
        better = self.prepared.metric.higher_is_better
        scores.sort(key=lambda entry: -entry[0] if better else entry[0])
        for _, index in scores[: screen.keep]:
            entry = self.rows[index].screened
            assert entry is not None
            entry["kept"] = True


class _Wanted(BaseException):
    """A trial that has not run yet; no ``Exception``, which the search takes for a bad density."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.note)
        self.job = job
