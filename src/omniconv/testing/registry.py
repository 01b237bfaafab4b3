"""Properties: what the matrix asserts of an operator, one function each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from omniconv.core.card import Sample
from omniconv.testing.subject import Subject, seeded

__all__ = ["PROPERTIES", "Property", "asserts"]

TORCH_SAME = "Using padding='same' with even kernel"
"""torch's own warning about its own convolution, once a process."""

Check = Callable[[Subject, Sample], None]
Reason = Callable[[Subject], str]


@dataclass(frozen=True)
class Property:
    """One column of the matrix.

    Attributes:
        name: Short name.
        group: What it belongs to, for tables.
        tier: 1 always and everywhere; 2 always, in one form of the operator; 3 on demand.
        claim: One sentence.
        check: Raises where the property does not hold for a form in a configuration.
        on: Names of the samples it runs on; empty for all.
        skip: Why it does not apply to a form of an operator, by the card's own flags; empty where
            it does.
        needs: Optional packages without which it cannot run.
        roles: Roles of layers that it is about; empty for all.
    """

    name: str
    group: str
    tier: int
    claim: str
    check: Check
    on: tuple[str, ...]
    skip: Reason
    needs: tuple[str, ...]
    roles: tuple[str, ...]

    def missing(self) -> str:
        """Why it cannot run on this machine; empty where it can."""
        absent = [name for name in self.needs if find_spec(name) is None]
        return f"needs {' and '.join(absent)}, not installed here" if absent else ""

    def run(self, subject: Subject) -> None:
        """Check a form of an operator; whatever is raised says in which configuration."""
        for name, sample in subject.named(*self.on).items():
            try:
                with seeded(), warnings.catch_warnings():
                    warnings.filterwarnings("ignore", TORCH_SAME)
                    self.check(subject, sample)
            except Exception as error:
                arguments = {**subject.own, **sample.arguments}
                shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
                error.add_note(
                    f"{subject.layer.__name__}({shown}) on batch {sample.batch}, size "
                    f"{sample.size} ({name}): {self.claim}"
                )
                raise


PROPERTIES: dict[str, Property] = {}


def _never(subject: Subject) -> str:
    return ""


def asserts(
    tier: int,
    *,
    on: tuple[str, ...] = ("basic",),
    skip: Reason = _never,
    needs: tuple[str, ...] = (),
    roles: tuple[str, ...] = (),
) -> Callable[[Check], Check]:
    """Decorator: make ``check(subject, sample)`` a property under the function's name.

    Its docstring's first line is the claim; its module names the group.
    """

    def add(check: Check) -> Check:
        name = check.__name__
        claim = (check.__doc__ or "").splitlines()[0]
        group = check.__module__.rpartition(".")[2]
        PROPERTIES[name] = Property(name, group, tier, claim, check, on, skip, needs, roles)
        return check

    return add
