"""The search for a density: finds known optima, keeps its budget, can be replayed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from omniconv.core.registry import create
from omniconv.operators.weighted_density.weighted import weighted_kernel

pytest.importorskip("scipy.optimize", reason="DIRECT-L is scipy's")

from omniconv.search.density import optimize_density, suggested_bounds

Density = tuple[Any, ...]
BOX = [(0.05, 1.0), (0.5, 1.5)]


def bowl(*optimum: float) -> Callable[[Density], float]:
    """Squared distance to the optimum."""
    return lambda density: sum((a - b) ** 2 for a, b in zip(density, optimum, strict=True))


def distance_of_kernels(size: int, optimum: Density) -> Callable[[Density], float]:
    """How far the kernel of a density is from the optimum's: 0 there only, not separable."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)

    def kernel(density: Density) -> torch.Tensor:
        return weighted_kernel(raw, [torch.tensor(density, dtype=torch.float64)] * 2)

    goal = kernel(optimum)
    return lambda density: (kernel(density) - goal).square().mean().item()


def inside(bounds: Any, random: np.random.Generator) -> Density:
    return tuple(random.uniform(low, high) for low, high in bounds)


@pytest.mark.parametrize("size", [3, 5, 7])
def test_it_beats_random_search_at_equal_budget(size: int) -> None:
    bounds, budget = suggested_bounds(size), 40
    ours, wins = [], 0
    for seed in range(8):
        random = np.random.default_rng(seed)
        optimum = inside(bounds, random)
        objective = distance_of_kernels(size, optimum)
        found = optimize_density(objective, bounds, evaluations=budget)
        assert found.value == objective(found.density)
        blind = min(objective(inside(bounds, random)) for _ in range(budget))
        ours.append(math.log(found.value / blind))
        wins += found.value < blind
    assert wins >= 6
    # the geometric mean of what is left
    assert math.exp(np.mean(ours)) < 0.5


@pytest.mark.parametrize("size", [3, 5, 7])
def test_it_comes_as_near_as_wanted(size: int) -> None:
    bounds = suggested_bounds(size)
    optimum = inside(bounds, np.random.default_rng(1))
    found = optimize_density(distance_of_kernels(size, optimum), bounds, evaluations=600)
    assert found.density == pytest.approx(optimum, abs=0.01)


def test_the_locally_biased_form_is_used() -> None:
    """scipy's own run over the same box asks for the same points; the original one for others."""
    direct = pytest.importorskip("scipy.optimize").direct
    asked: dict[bool, list[Density]] = {True: [], False: []}
    for biased, points in asked.items():

        def note(point: Any, points: list[Density] = points) -> float:
            points.append(tuple(point))
            return bowl(0.3, 0.9)(points[-1])

        direct(note, BOX, locally_biased=biased, maxfun=60)
    found = optimize_density(bowl(0.3, 0.9), BOX, evaluations=60)
    points = [entry.density for entry in found.history]
    assert points == asked[True][:60]
    assert points != asked[False][:60]


@pytest.mark.parametrize("budget", [1, 2, 3, 17, 100, 400])
@pytest.mark.parametrize("box", [[(0.5, 1.5)], BOX, [(0.0, 1.0)] * 6])
def test_the_budget_is_kept_exactly(budget: int, box: list[tuple[float, float]]) -> None:
    asked: list[Density] = []

    def objective(density: Density) -> float:
        asked.append(density)
        return bowl(*[0.7] * len(box))(density)

    found = optimize_density(objective, box, evaluations=budget)
    assert len(asked) == len(set(asked)) == budget
    assert [entry.density for entry in found.history] == asked
    assert asked[0] == pytest.approx([(low + high) / 2 for low, high in box])
    assert all(low <= a <= high for d in asked for a, (low, high) in zip(d, box, strict=True))
    assert found.value == min(entry.value for entry in found.history) == objective(found.density)


def test_even_a_flat_objective_takes_the_whole_budget() -> None:
    found = optimize_density(lambda density: 0.0, BOX, evaluations=300)
    assert len(found.history) == 300
    assert found.density == found.history[0].density


def test_a_box_that_cannot_be_divided_further_ends_the_search() -> None:
    low, high = 1.0, 1.0 + 4e-16
    found = optimize_density(lambda density: density[0], [(low, high)], evaluations=50)
    assert 1 <= len(found.history) <= 3


def test_two_runs_are_equal_and_a_larger_budget_goes_on() -> None:
    one, two = (optimize_density(bowl(0.3, 0.9), BOX, evaluations=30) for _ in range(2))
    assert one == two
    more = optimize_density(bowl(0.3, 0.9), BOX, evaluations=50)
    assert more.history[:30] == one.history


def test_an_interrupted_search_goes_on_from_stored_values() -> None:
    stored: dict[Density, float] = {}
    fresh = 0

    def objective(density: Density) -> float:
        nonlocal fresh
        if density not in stored:
            if len(stored) == 11 and not fresh:
                raise KeyboardInterrupt
            fresh += len(stored) >= 11
            stored[density] = bowl(0.3, 0.9)(density)
        return stored[density]

    with pytest.raises(KeyboardInterrupt):
        optimize_density(objective, BOX, evaluations=30)
    assert len(stored) == 11
    fresh = 1
    found = optimize_density(objective, BOX, evaluations=30)
    assert fresh == 1 + 19
    assert found == optimize_density(bowl(0.3, 0.9), BOX, evaluations=30)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (math.nan, "the value is nan"),
        (math.inf, "the value is inf"),
        (-math.inf, "the value is -inf"),
        (RuntimeError("out\nof memory"), "RuntimeError: out of memory"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
)
def test_failed_evaluations_are_the_worst_and_told(failure: Any, reason: str) -> None:
    def objective(density: Density) -> float:
        if density[0] > 0.4:  # the middle of the box, and most of it
            if isinstance(failure, Exception):
                raise failure
            return failure
        return 1e6 + bowl(0.3, 0.9)(density)

    found = optimize_density(objective, BOX, evaluations=80)
    assert len(found.history) == 80
    assert found.density == pytest.approx((0.3, 0.9), abs=0.02)
    failed = [entry for entry in found.history if entry.density[0] > 0.4]
    assert 3 <= len(failed) < 40
    assert all(math.isnan(entry.value) and entry.reason == reason for entry in failed)
    assert all(not entry.reason for entry in found.history if entry.density[0] <= 0.4)


def test_a_search_without_any_value_is_refused() -> None:
    message = (
        r"^objective must return a finite number at least once in 4 calls, "
        r"first failure: the value is nan$"
    )
    with pytest.raises(ValueError, match=message):
        optimize_density(lambda density: math.nan, BOX, evaluations=4)


def test_values_may_be_tensors() -> None:
    found = optimize_density(lambda d: torch.tensor(bowl(0.7)(d)), [(0.5, 1.5)], evaluations=9)
    assert isinstance(found.value, float)


def test_the_density_has_the_form_of_the_bounds_and_fits_the_layer() -> None:
    shared = optimize_density(bowl(0.3, 0.9), suggested_bounds(5), evaluations=5).density
    assert len(shared) == 2
    layer = create("weighted", 2, 2, 5, density=shared)
    assert layer.initial_density == (shared, shared)

    def apart(density: Density) -> float:
        (a,), (b, c) = density
        return bowl(0.8, 0.3, 0.9)((a, b, c))

    bounds = [suggested_bounds(3), suggested_bounds(5)]
    found = optimize_density(apart, bounds, evaluations=200)
    assert found.density[0] == pytest.approx([0.8], abs=0.03)
    assert found.density[1] == pytest.approx([0.3, 0.9], abs=0.03)
    assert create("weighted", 2, 2, (3, 5), density=found.density).initial_density == found.density


def test_suggested_bounds_are_the_paper_s() -> None:
    assert suggested_bounds(3) == ((0.5, 1.5),)
    assert suggested_bounds(5) == ((0.05, 1), (0.5, 1.5))
    assert suggested_bounds(7) == ((0.05, 0.5), (0.15, 1), (0.25, 1.5))
    with pytest.raises(ValueError, match=r"^kernel_size must be one of 3, 5, 7 .*, got 4$"):
        suggested_bounds(4)
    with pytest.raises(TypeError, match="kernel_size must be an int, got"):
        suggested_bounds(3.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        (0.5, TypeError, "bounds must be a sequence of"),
        ("ab", TypeError, "bounds must be a sequence of"),
        ((0.5, 1.5), TypeError, "bounds must be a sequence of"),
        ([(0.5, 1.5), [(0.5, 1.5)]], TypeError, "bounds must be a sequence of"),
        ([], ValueError, "without a pair"),
        ([[]], ValueError, r"bounds\[0\] must be a pair \(low, high\), got \[\]"),
        ([(0.5, 1.5, 2.5)], ValueError, r"bounds\[0\] must be a pair \(low, high\)"),
        ([(0.5, 1.5), (1.0, 1.0)], ValueError, r"bounds\[1\] must be .* low < high, got 1.0, 1.0"),
        ([(1.5, 0.5)], ValueError, r"bounds\[0\] must be"),
        ([(0.5, math.inf)], ValueError, r"bounds\[0\] must be a finite number"),
        ([(0.5, "1")], TypeError, r"bounds\[0\] must be a finite number"),
    ],
)
def test_bad_bounds_are_refused(bounds: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        optimize_density(bowl(1.0), bounds)


def test_other_bad_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="objective must be a function, got 3"):
        optimize_density(3, BOX)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="evaluations must be an int of at least 1, got 0"):
        optimize_density(bowl(1.0), BOX, evaluations=0)
