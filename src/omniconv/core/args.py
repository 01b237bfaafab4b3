"""Argument parsers: every public argument is brought to one canonical form at the door.

Each parser takes the argument's name first, so that its error names the argument, the value it
got and what is allowed. A wrong type raises ``TypeError``, a wrong value ``ValueError``.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Collection, Iterable, Sequence
from typing import Any

__all__ = [
    "boolean",
    "choice",
    "did_you_mean",
    "divisor",
    "integer",
    "ntuple",
    "pads",
    "positive_int",
    "real",
    "show",
]


def show(value: object, limit: int = 80) -> str:
    """A short printable form of ``value`` for an error message."""
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def did_you_mean(value: object, allowed: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` where one of ``allowed`` is close to ``value``, else nothing."""
    close = difflib.get_close_matches(str(value), list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def integer(name: str, value: Any, minimum: int | None = None, maximum: int | None = None) -> int:
    """An int (no bool, no float), within ``minimum`` and ``maximum`` inclusive."""
    bounds = ""
    if minimum is not None:
        bounds += f" of at least {minimum}"
    if maximum is not None:
        bounds += f"{' and' if bounds else ' of'} at most {maximum}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be an int{bounds}, got {show(value)} ({type(value).__name__})"
        ) from None
    if (minimum is not None and number < minimum) or (maximum is not None and number > maximum):
        raise ValueError(f"{name} must be an int{bounds}, got {show(value)}")
    return number


def positive_int(name: str, value: Any) -> int:
    """An int of at least 1."""
    return integer(name, value, minimum=1)


def real(
    name: str,
    value: Any,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    *,
    exclusive: bool = False,
) -> float:
    """A finite real number within ``minimum`` and ``maximum`` (``exclusive`` drops both ends)."""
    if math.isinf(minimum) and math.isinf(maximum):
        wanted = "a finite number"
    else:
        ends = "()" if exclusive else "[]"
        wanted = f"a finite number in {ends[0]}{minimum:g}, {maximum:g}{ends[1]}"
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be {wanted}, got {show(value)} ({type(value).__name__})")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise TypeError(f"{name} must be {wanted}, got {show(value)}") from None
    inside = minimum < number < maximum if exclusive else minimum <= number <= maximum
    if not math.isfinite(number) or not inside:
        raise ValueError(f"{name} must be {wanted}, got {show(value)}")
    return number


def boolean(name: str, value: Any) -> bool:
    """A bool; 0, 1 and None are refused because they are usually a shifted argument."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {show(value)} ({type(value).__name__})")
    return value


def choice(name: str, value: Any, allowed: Collection[str]) -> str:
    """One of the strings ``allowed``."""
    listed = ", ".join(repr(a) for a in allowed)
    if not isinstance(value, str):
        raise TypeError(
            f"{name} must be one of {listed}, got {show(value)} ({type(value).__name__})"
        )
    if value not in allowed:
        hint = did_you_mean(value, allowed)
        raise ValueError(f"{name} must be one of {listed}, got {show(value)}{hint}")
    return value


def ntuple(name: str, value: Any, dim: int, minimum: int) -> tuple[int, ...]:
    """``dim`` ints of at least ``minimum``; one int stands for all axes."""
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        if len(value) == 1:
            value = tuple(value) * dim
        if len(value) != dim:
            raise ValueError(
                f"{name} must be an int or {dim} ints (one per axis), got {show(value)}"
            )
        return tuple(integer(f"{name}[{i}]", v, minimum) for i, v in enumerate(value))
    try:
        return (integer(name, value, minimum),) * dim
    except TypeError:
        raise TypeError(
            f"{name} must be an int or {dim} ints of at least {minimum}, "
            f"got {show(value)} ({type(value).__name__})"
        ) from None


def pads(name: str, value: Any, dim: int) -> tuple[int, ...]:
    """Zeros (before, after) of each axis in turn, from an int, ``dim`` ints or ``dim`` pairs."""
    pairs = value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else ()
    if not any(isinstance(pair, Sequence) for pair in pairs):
        return tuple(n for n in ntuple(name, value, dim, 0) for _ in range(2))
    if len(pairs) != dim or not all(isinstance(p, Sequence) and len(p) == 2 for p in pairs):
        raise ValueError(
            f"{name} must be an int, {dim} ints or {dim} pairs of ints (one per axis), "
            f"got {show(value)}"
        )
    return tuple(n for i, p in enumerate(pairs) for n in ntuple(f"{name}[{i}]", p, 2, 0))


def divisor(name: str, value: Any, **of: int) -> int:
    """An int of at least 1 that divides each of the named numbers ``of``."""
    number = positive_int(name, value)
    for other, total in of.items():
        if total % number:
            raise ValueError(f"{name} must divide {other}={total}, got {number}")
    return number
