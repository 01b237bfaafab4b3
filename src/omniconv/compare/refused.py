"""The one error of a comparison that cannot start."""

from __future__ import annotations

from types import TracebackType

__all__ = ["Refused", "one_line", "refusing"]


LONGEST = 1000
"""Characters of a sentence about a plan; lists of what is allowed can be long."""


class Refused(ValueError):
    """A comparison that cannot start; its message is one clear sentence."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """The error's message without line breaks; its type where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


class refusing:
    """Turn the errors of parsers and readers into :class:`Refused`.

    ``with refusing("row dcls: "): ...`` puts the prefix before the sentence.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        known = isinstance(error, (ValueError, TypeError, ImportError, RuntimeError))
        if error is not None and known and not isinstance(error, Refused):
            raise Refused(self.prefix + one_line(error, LONGEST)) from error
