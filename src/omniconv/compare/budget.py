"""How long a network is trained: ``2epochs`` or ``1000steps``, counted as its task does."""

from __future__ import annotations

import re
from dataclasses import dataclass

from omniconv.core import args

__all__ = ["Budget", "parse"]

MOST_LEGS = 10
"""Validations of a training that is counted in steps."""


@dataclass(frozen=True)
class Budget:
    """``amount`` of ``unit`` (epochs or steps)."""

    amount: int
    unit: str

    def __str__(self) -> str:
        return f"{self.amount}{self.unit if self.amount > 1 else self.unit[:-1]}"

    @property
    def legs(self) -> tuple[int, ...]:
        """Where the network is validated and kept: after every epoch, or every tenth of steps."""
        count = self.amount if self.unit == "epochs" else min(self.amount, MOST_LEGS)
        return tuple(self.amount * (i + 1) // count for i in range(count))


def parse(name: str, value: object, unit: str | None = None) -> Budget:
    """The budget of a text such as ``2epochs``; with ``unit``, refuses the other one."""
    wanted = f"{name} must be " + (
        "a text such as 1000steps" if unit == "steps" else "a text such as 2epochs"
    )
    if not isinstance(value, str):
        raise TypeError(f"{wanted}, got {args.show(value)} ({type(value).__name__})")
    match = re.fullmatch(r"\s*0*([1-9]\d{0,8})\s*(epoch|step)s?\s*", value, re.ASCII)
    if match is None or unit not in (None, match[2] + "s"):
        why = f": this task counts {unit}" if match else ""
        raise ValueError(f"{wanted}, got {args.show(value)}{why}")
    return Budget(int(match[1]), match[2] + "s")
