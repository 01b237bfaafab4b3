"""The steps of CONTRIBUTING.md, followed literally, give an operator that passes the matrix."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from documents import ROOT, blocks

GUIDE = ROOT / "CONTRIBUTING.md"


def _file() -> tuple[str, str]:
    """Where the guide says the operator's file goes, and its text."""
    home = re.search(r"<!-- file: (\S+) -->", GUIDE.read_text(encoding="utf-8"))
    assert home is not None
    ((_, code),) = blocks(GUIDE, "python")
    return home[1], code


def _python(folder: Path, *arguments: str) -> str:
    """Run Python with ``folder/src`` before everything that is installed."""
    path = {"PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def _passes(folder: Path, operator: str, tier: int, *options: str) -> int:
    """How many tests the one line of the guide makes and passes."""
    line = f"test_it = omniconv.testing.matrix({operator!r}, tier={tier})"
    (folder / "test_it.py").write_text(f"import omniconv.testing\n\n{line}\n", encoding="utf-8")
    said = _python(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py", *options)
    passed = re.search(r"(\d+) passed", said)
    assert passed is not None, said
    return int(passed[1])


def test_an_operator_in_one_file_becomes_part_of_omniconv(tmp_path: Path):
    leave = shutil.ignore_patterns("__pycache__")
    for part in ("src", "tools"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=leave)
    home, code = _file()
    path = tmp_path / "src" / "omniconv" / home
    path.parent.mkdir()
    (path.parent / "__init__.py").write_text('"""Kernels with a symmetry."""\n', encoding="utf-8")
    path.write_text(code, encoding="utf-8")
    _python(tmp_path, "tools/generate_index.py")
    name = path.stem
    said = _python(tmp_path, "-c", f"import omniconv; print(omniconv.create({name!r}, 2, 4, 3))")
    assert said.startswith("EvenConv2d(2, 4, kernel_size=(3, 3)")
    assert _passes(tmp_path, name, 1) > 60


def test_the_same_file_works_in_a_package_of_its_own(tmp_path: Path):
    ((_, text),) = blocks(ROOT / "docs" / "tutorials" / "writing-an-operator.md", "toml")
    project = tomllib.loads(text)["project"]
    (point,) = project["entry-points"]["omniconv.operators"].items()
    module, _, attribute = point[1].partition(":")
    assert attribute == "card"
    path = (tmp_path / "src" / Path(*module.split("."))).with_suffix(".py")
    path.parent.mkdir(parents=True)
    (path.parent / "__init__.py").touch()
    path.write_text(_file()[1], encoding="utf-8")
    # what an installer leaves of the project's metadata
    info = tmp_path / "src" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(head, encoding="utf-8")
    entry = f"[omniconv.operators]\n{point[0]} = {point[1]}\n"
    (info / "entry_points.txt").write_text(entry, encoding="utf-8")
    assert _passes(tmp_path, f"{project['name']}:{point[0]}", 1, "-k", "2d") > 20
