"""What the documentation shows works: its code runs, its commands exist, its links lead on."""

from __future__ import annotations

import contextlib
import doctest
import html
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest

from documents import PAGES, ROOT, blocks, commands, name, runs

# CONTRIBUTING's code is a file of its own; test_project_contributing.py follows it.
RUN = [page for page in PAGES if page.name != "CONTRIBUTING.md" and any(blocks(page, "python"))]
OURS = sorted({c for page in PAGES for c in commands(page) if c.startswith("omniconv ")})
MAKE = sorted({c for page in PAGES for c in commands(page) if c.startswith("make ")})
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
DOC = re.compile(r"\{doc\}`(?:[^`<]*<)?([^`<>]+)>?`")
STUDY = ROOT / "docs" / "studies" / "digits"
PUBLISHED = re.compile(r"^import (timm|torchvision)", re.MULTILINE)


@pytest.mark.parametrize("page", RUN, ids=name)
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    if any(PUBLISHED.search(code) for _, code, _ in runs(page)):
        request.getfixturevalue("published")
    shutil.copytree(STUDY, tmp_path / "omniconv-report")  # what pages read that explain a report
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for line, code, shown in runs(page):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)
        if shown is not None:
            same = doctest.OutputChecker().check_output(shown, printed.getvalue(), doctest.ELLIPSIS)
            assert same, f"line {line} prints\n{printed.getvalue()}"


def test_what_the_page_on_reports_quotes_stands_in_that_report():
    page = (ROOT / "docs" / "tutorials" / "reading-a-report.md").read_text(encoding="utf-8")
    report = (STUDY / "report.html").read_text(encoding="utf-8")
    visible = re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", report, flags=re.DOTALL)
    words = " ".join(html.unescape(visible).split())
    quoted = re.findall(r"^> (?:[○▼] )?(.*)$", page, re.MULTILINE)
    assert len(quoted) > 3
    assert [quote for quote in quoted if quote not in words] == []


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


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_to_files_lead_to_files(page: Path):
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(text):
        if "://" not in target and "generated/" not in target:
            assert (page.parent / target).exists(), f"{name(page)} links to {target}"
    for target in DOC.findall(text):
        if "generated/" not in target:
            path = page.parent / f"{target}.md"
            assert path.exists(), f"{name(page)} refers to {target}"
