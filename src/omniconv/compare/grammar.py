"""The ``--operators`` text: ``conv, dcls(kernel_size=5, taps=9), package:name``.

Names and literal keyword arguments; nothing in it is ever evaluated.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

from omniconv.core import args

__all__ = ["canonical", "parse_operator", "split", "write"]

Value = Any
"""None, bool, int, float, str, or a tuple of these."""

_ITEM = re.compile(r"\s*([A-Za-z_][\w.-]*(?::[A-Za-z_]\w*)?)\s*(?:\((.*)\))?\s*", re.DOTALL)
_LONGEST = 10_000
_DEEPEST = 4
_WANTED = "a name, or name(argument=value, ...)"


def split(text: str) -> list[str]:
    """The items of a list: the text cut at the commas outside brackets and quotes.

    Raises:
        ValueError: It is too long.
        TypeError: It is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"operators must be text, got {args.show(text)} ({type(text).__name__})")
    if len(text) > _LONGEST:
        raise ValueError(f"operators must have at most {_LONGEST} characters, got {len(text)}")
    items, start, depth, quote = [], 0, 0, ""
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and not depth:
            items.append(text[start:at])
            start = at + 1
    return [*items, text[start:]]


def parse_operator(text: str) -> tuple[str, dict[str, Value]]:
    """One name with its arguments, the values canonical (see :func:`canonical`).

    Raises:
        ValueError: The text is not ``name`` or ``name(argument=literal, ...)``.
    """
    if not text.strip():
        raise ValueError(f"operators must list {_WANTED}, got an empty item")
    match = _ITEM.fullmatch(text)
    if match is None or len(text) > _LONGEST:
        raise ValueError(f"operators must list {_WANTED}, got {args.show(text.strip())}")
    name, inside = match[1], match[2]
    wrong = f"operators must list {_WANTED}, got {args.show(text.strip())}"
    source = f"f({inside or ''})"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd literals, such as "\\d"
            call = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(wrong) from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError(wrong)
    if call.args:
        given = args.show(ast.get_source_segment(source, call.args[0]))
        raise ValueError(f"arguments of {name!r} must be written argument=value, got {given}")
    found: dict[str, Value] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError(f"arguments of {name!r} must be written argument=value, got '**'")
        if keyword.arg in found:
            raise ValueError(f"{keyword.arg} of {name!r} must be given once, got it twice")
        try:
            value = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, RecursionError, MemoryError):
            raise ValueError(
                f"{keyword.arg} of {name!r} must be a plain value (a number, text in quotes, "
                f"True, False, None or a list of these), got "
                f"{args.show(ast.get_source_segment(source, keyword.value))}"
            ) from None
        found[keyword.arg] = canonical(f"{keyword.arg} of {name!r}", value)
    return name, found


def canonical(name: str, value: Any, depth: int = _DEEPEST) -> Value:
    """``value`` with lists as tuples; anything but plain finite values is refused."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, (list, tuple)) and depth:
        return tuple(canonical(name, entry, depth - 1) for entry in value)
    raise ValueError(
        f"{name} must be a plain value (a finite number, text, True, False, None or a list of "
        f"these), got {args.show(value)}"
    )


def write(name: str, arguments: Mapping[str, Value]) -> str:
    """The text that :func:`parse_operator` reads back."""
    inside = ", ".join(f"{key}={_literal(value)}" for key, value in arguments.items())
    return f"{name}({inside})" if inside else name


def _literal(value: Value) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return repr(value)
