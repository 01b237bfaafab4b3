"""What the documentation shows works: its code runs, its commands exist, its links lead on."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from documents import PAGES, ROOT, blocks, commands

# CONTRIBUTING's code is a file of its own; test_project_contributing.py follows it.
RUN = [page for page in PAGES if page.name != "CONTRIBUTING.md" and any(blocks(page, "python"))]
OURS = sorted({c for page in PAGES for c in commands(page) if c.startswith("omniconv ")})
MAKE = sorted({c for page in PAGES for c in commands(page) if c.startswith("make ")})
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks(page, "python"):
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)


@pytest.mark.parametrize("command", OURS)
def test_a_command_and_its_options_exist(command: str):
    typer = pytest.importorskip("typer", reason="the command line needs the [compare] extra")
    from omniconv import cli

    group = typer.main.get_command(cli.app)
    name, *arguments = shlex.split(command, comments=True)[1:]
    group.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("command", MAKE)
def test_a_make_target_exists(command: str):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    words = shlex.split(command, comments=True)[1:]
    assert {word for word in words if "=" not in word} <= set(targets)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_to_files(page: Path):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("generated/"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
