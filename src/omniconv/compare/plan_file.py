"""Plan files: YAML with numbers as people write them, and every key once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from omniconv.compare.refused import Refused
from omniconv.core import args

__all__ = ["read", "shipped"]

LARGEST = 1_000_000
EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


@cache
def shipped(task: str) -> Mapping[str, Any]:
    """The keys and values of the plan that comes with omniconv for a task."""
    text = (files("omniconv.compare") / "plans" / f"{task}.yaml").read_text("utf-8")
    return _mapping("the shipped plan", text)


def read(path: str | Path) -> dict[str, Any]:
    """The keys and values of a plan file.

    Raises:
        Refused: It is missing, unreadable, or no YAML mapping.
    """
    shown = repr(str(path))
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise Refused(f"plan {shown} must be a readable YAML file, got: {reason}") from None
    except ValueError as error:
        raise Refused(f"plan {shown} must be a YAML file, but no file can be named so") from error
    if len(data) > LARGEST:
        raise Refused(f"plan {shown} must have at most {LARGEST} bytes, got more")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(f"plan {shown} must be text in UTF-8, got other bytes") from None
    return _mapping(f"plan {shown}", text)


def _mapping(name: str, text: str) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise Refused('compare needs the package PyYAML: pip install "omniconv[compare]"') from None

    class Loader(yaml.SafeLoader):
        """PyYAML's safe loader; 1e-3 is a number, and a key given twice an error."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise Refused(f"{name} must give every key once, got {args.show(twice)} twice")
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))
    try:
        found = yaml.load(text, Loader)
    except Refused:
        raise
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        reason = getattr(error, "problem", None) or type(error).__name__
        raise Refused(f"{name} must be YAML, but it cannot be read: {reason}{where}") from None
    if not isinstance(found, dict):
        raise Refused(f"{name} must be a YAML mapping of keys to values, got {args.show(found)}")
    return found
