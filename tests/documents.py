"""The fenced code blocks of the documentation, for the tests that run them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "docs/families", "docs/studies", "docs/tutorials", "examples")
PAGES = tuple(
    page
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(page for folder in FOLDERS for page in sorted((ROOT / folder).glob("*.md"))),
    )
    if page.is_file()
)
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_RUN = re.compile(
    r"^```python\n(?P<code>.*?)^```$(?:\n\n^```text\n(?P<shown>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


def name(page: Path) -> str:
    """Where the page is, for the names of tests."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """The page's blocks in one language, each with the number of its first line."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        if match[1] == language:
            yield text.count("\n", 0, match.start(2)) + 1, match[2]


def runs(page: Path) -> Iterator[tuple[int, str, str | None]]:
    """The page's Python: line, code and, where text stands right below, what it is to print."""
    text = page.read_text(encoding="utf-8")
    for match in _RUN.finditer(text):
        yield text.count("\n", 0, match.start("code")) + 1, match["code"], match["shown"]


def commands(page: Path) -> Iterator[str]:
    """What the page tells a reader to type in a terminal."""
    for _, block in blocks(page, "console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                yield line.removeprefix("$ ").partition("  #")[0].strip()
