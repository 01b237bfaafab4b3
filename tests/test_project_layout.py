"""The house keeps its shape: rooms, sizes, versions, and what an import costs."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

import omniconv

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "omniconv"
# A room imports only from its own level and from the levels below it.
LEVELS = (
    ("__main__",),
    ("cli",),
    ("doctor",),
    ("compare", "bench"),
    ("testing",),
    ("tasks", "models"),
    ("surgery", "analysis", "search"),
    ("blocks",),
    ("operators",),
    ("init", "regularize", "constraints"),
    ("kernels",),
    ("math",),
    ("core",),
)
DEPTH = {room: depth for depth, level in enumerate(LEVELS) for room in level}
APART = {"tasks", "models"}
# Modules at package level: generated tables and lazy names, below every room, and the literature.
FACES = {"__init__", "_index", "functional", "nn"}
PACKAGE = FACES | {"literature"}
REGISTRIES = ("pypi" + ".org", "files.python" + "hosted", "npm" + "js", "deb.debian" + ".org")


@cache
def _tracked() -> tuple[Path, ...]:
    """The files of the repository, or of the folder where it is no git checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\0")
    paths = [ROOT / name for name in listed if name] or list(SOURCE.rglob("*"))
    return tuple(path for path in paths if path.is_file())


def _room(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def _imported_rooms(path: Path) -> set[str]:
    """The rooms of omniconv that a file imports from, wherever in it the import stands."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            package = list(path.relative_to(SOURCE.parent).parts[: -node.level or None])
            base = [*(package if node.level else []), *filter(None, [node.module])]
            modules += [".".join([*base, alias.name]) for alias in node.names]
    parts = [module.split(".") for module in modules]
    return {part[1] for part in parts if part[0] == "omniconv" and len(part) > 1}


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_imports_run_downward_only(path: Path):
    room = _room(path)
    assert room in DEPTH or room in PACKAGE, f"{room} is no room of the house"
    for other in _imported_rooms(path) - {room}:
        if room in FACES:
            assert other in FACES | {"core"}, f"a face imports {other}"
        elif room == "literature":
            assert other == "core", f"literature imports {other}"
        elif other in DEPTH:
            below = DEPTH[other] >= DEPTH[room] and not {room, other} <= APART
            assert below, f"{room} imports {other}, which is not below it"
        else:
            allowed = {"_index"} if room == "core" else PACKAGE | {"__version__"}
            assert other in allowed, f"{room} imports {other} from the package, not its room"


def test_no_file_of_code_has_more_than_500_lines():
    lengths = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n")
        for path in _tracked()
        if path.suffix == ".py" and path.name != "_index.py"
    }
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def test_no_file_names_the_host_of_a_package_registry():
    text = {
        str(path.relative_to(ROOT)): path.read_bytes().decode("utf-8", "replace").lower()
        for path in _tracked()
    }
    found = {(name, host) for name, body in text.items() for host in REGISTRIES if host in body}
    assert found == set()


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _names(requirements: list[str]) -> set[str]:
    """Names as package indexes compare them, without extras and versions."""
    found = {re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in requirements}
    return {re.sub(r"[-_.]+", "-", name).lower() for name in found}


def test_the_library_needs_torch_and_numpy_only():
    assert _names(_project()["dependencies"]) == {"torch", "numpy"}


def test_every_requirement_is_pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", pin) for pin in pins)
    project = _project()
    asked = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    assert _names(asked) - {"omniconv"} | {"hatchling", "editables"} <= _names(pins)


def test_the_version_is_the_same_everywhere():
    project = _project()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    top = re.search(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)
    assert top is not None
    assert {project["version"], citation["version"], top[1]} == {omniconv.__version__}


def test_import_omniconv_is_lazy_and_needs_torch_and_numpy_only():
    code = (
        "import json, sys; import torch, numpy; before = set(sys.modules); import omniconv; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = json.loads(run.stdout)
    ours = {name for name in new if name.startswith("omniconv")}
    assert ours <= {"omniconv"} | {f"omniconv.{face}" for face in FACES}
    foreign = {name.partition(".")[0] for name in new} - {"omniconv"} - sys.stdlib_module_names
    assert foreign == set()
