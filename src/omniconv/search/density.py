r"""The density of a weighted convolution, searched by DIRECT-L over a box.

.. math::
    \min_{\alpha \in [l, u]} f(\alpha), \qquad
    f(\alpha) = \text{loss on validation of a network trained with the density } \alpha

The inner minimisation, over the weights, is a short training by gradient descent: the caller's
``objective``. DIRECT-L divides the box into ever smaller boxes and evaluates their centres, without
derivatives and without chance: the same values lead to the same points.

Source: S. Cammarasana, G. Patane, "Optimal Density Functions for Weighted Convolution in Learning
Models", 2025 (the bilevel problem) and "Optimal Weighted Convolution for Classification and
Denoising", 2025 (the boxes); J. M. Gablonsky, C. T. Kelley, "A Locally-Biased Form of the DIRECT
Algorithm", 2001. The minimiser is ``scipy.optimize.direct``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from omniconv.core import args

__all__ = ["DensityEvaluation", "DensityResult", "optimize_density", "suggested_bounds"]

BOUNDS = {
    3: ((0.5, 1.5),),
    5: ((0.05, 1.0), (0.5, 1.5)),
    7: ((0.05, 0.5), (0.15, 1.0), (0.25, 1.5)),
}
FAILED = 1e100
"""What DIRECT sees of an evaluation without a value: finite, and above every value."""


@dataclass(frozen=True)
class DensityEvaluation:
    """One call of the objective.

    Attributes:
        density: The profile, or one profile per axis, as :func:`optimize_density` says.
        value: What the objective returned; nan where it failed.
        reason: Why there is no finite value; empty where there is one.
    """

    density: tuple[Any, ...]
    value: float
    reason: str = ""


@dataclass(frozen=True)
class DensityResult:
    """The best density that was found.

    Attributes:
        density: Fit for the ``density`` of ``WeightedConv2d``.
        value: The objective there.
        history: Every evaluation, in order.
    """

    density: tuple[Any, ...]
    value: float
    history: tuple[DensityEvaluation, ...]


class _Spent(Exception):
    """All evaluations have been made."""


def suggested_bounds(kernel_size: int) -> tuple[tuple[float, float], ...]:
    """The authors' box for kernels of size 3, 5 or 7: (low, high) from the outside inwards.

    Raises:
        ValueError: Another size.
        TypeError: ``kernel_size`` is not an int.
    """
    size = args.integer("kernel_size", kernel_size)
    if size not in BOUNDS:
        raise ValueError(
            f"kernel_size must be one of {', '.join(map(str, BOUNDS))} for suggested bounds, "
            f"got {size}"
        )
    return BOUNDS[size]


def optimize_density(
    objective: Callable[[tuple[Any, ...]], float],
    bounds: Sequence[Any],
    *,
    evaluations: int = 20,
) -> DensityResult:
    """Minimise ``objective`` over densities within ``bounds``.

    ``objective`` is called exactly ``evaluations`` times (fewer only where the box cannot be
    divided further), first with the middle of the box, never twice with the same density. A call
    that raises an ``Exception`` or returns no finite number counts as worse than all others.

    Which densities are asked for depends on the bounds and the values alone. So an interrupted
    search goes on where it was if ``objective`` returns stored values for the densities it has
    seen, and a larger budget continues a smaller one.

    Args:
        objective: From a density to a number to be minimised, such as the validation loss after a
            short training with it.
        bounds: One pair (low, high) per value of the profile, from the outside inwards, the
            density being the same for all axes; or one such sequence per axis. See
            :func:`suggested_bounds`.
        evaluations: Number of calls.

    Returns:
        The best density, in the form of the bounds: (a_1, ..., a_r), or one such tuple per axis.

    Raises:
        ValueError: Malformed bounds, ``evaluations`` below 1, or no call gave a finite number.
        TypeError: An argument of another type.
        ImportError: scipy is not installed.
    """
    if not callable(objective):
        raise TypeError(f"objective must be a function, got {args.show(objective)}")
    box, lengths = _parse_bounds(bounds)
    budget = args.positive_int("evaluations", evaluations)
    try:
        from scipy.optimize import direct
    except ImportError:
        raise ImportError(
            'optimize_density needs the package scipy: pip install "omniconv[compare]"'
        ) from None
    found: dict[tuple[float, ...], DensityEvaluation] = {}

    def evaluate(point: Any) -> float:
        values = tuple(float(value) for value in point)
        if values not in found:
            if len(found) == budget:
                raise _Spent
            found[values] = _call(objective, _shape(values, lengths))
        return FAILED if found[values].reason else min(found[values].value, FAILED)

    with suppress(_Spent):
        # no tolerance ends it before the budget does; each of its iterations evaluates
        direct(
            evaluate,
            box,
            locally_biased=True,
            maxfun=budget + 1000,
            maxiter=budget + 1000,
            vol_tol=0.0,
            len_tol=0.0,
        )
    history = tuple(found.values())
    valid = [entry for entry in history if not entry.reason]
    if not valid:
        raise ValueError(
            f"objective must return a finite number at least once in {len(history)} calls, "
            f"first failure: {history[0].reason}"
        )
    best = min(valid, key=lambda entry: entry.value)
    return DensityResult(best.density, best.value, history)


def _call(
    objective: Callable[[tuple[Any, ...]], float], density: tuple[Any, ...]
) -> DensityEvaluation:
    """The evaluation of one density, failed or not."""
    try:
        value = float(objective(density))
    except Exception as error:
        text = " ".join(str(error).split())
        reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
        return DensityEvaluation(density, math.nan, reason)
    reason = "" if math.isfinite(value) else f"the value is {value}"
    return DensityEvaluation(density, value if not reason else math.nan, reason)


def _parse_bounds(bounds: Any) -> tuple[list[tuple[float, float]], tuple[int, ...] | None]:
    """All pairs in a row, and the number of each axis's; None where all axes share one profile."""
    wanted = (
        "bounds must be a sequence of (low, high) pairs, or one such sequence per axis, "
        f"got {args.show(bounds)}"
    )
    if not _is_sequence(bounds) or not all(_is_sequence(entry) for entry in bounds):
        raise TypeError(wanted)
    deep = [_is_sequence(item) for entry in bounds for item in entry]
    if any(deep):
        if not all(deep):
            raise TypeError(wanted)
        pairs = [pair for axis in bounds for pair in axis]
        lengths = tuple(len(axis) for axis in bounds)
    else:
        pairs, lengths = list(bounds), None
    if not pairs:
        raise ValueError(f"{wanted} without a pair")
    box = []
    for i, pair in enumerate(pairs):
        if len(pair) != 2:
            raise ValueError(f"bounds[{i}] must be a pair (low, high), got {args.show(pair)}")
        low, high = (args.real(f"bounds[{i}]", value) for value in pair)
        if not low < high:
            raise ValueError(f"bounds[{i}] must be (low, high) with low < high, got {low}, {high}")
        box.append((low, high))
    return box, lengths


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _shape(values: tuple[float, ...], lengths: tuple[int, ...] | None) -> tuple[Any, ...]:
    """The density of a point of the box."""
    if lengths is None:
        return values
    rest = iter(values)
    return tuple(tuple(next(rest) for _ in range(length)) for length in lengths)
