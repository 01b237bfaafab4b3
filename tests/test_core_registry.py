"""The registry: operators by name, ours without importing them, others by entry point."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import omniconv as oc
from omniconv import _index
from omniconv.core import registry
from omniconv.core.card import ROLES

ROOT = Path(__file__).parents[1]

PLUGIN = '''
"""A plain convolution under another name, with a factor on its output."""

import torch
from torch import nn

import omniconv as oc
from omniconv.core.card import Card
from omniconv.core.layer import new_parameter
from omniconv.operators.static_kernel import StaticKernel
from omniconv.math.naive import naive_convolution


class _ScaledNd(StaticKernel):
    def setup(self, factory, *, factor=1.0):
        self.factor = oc.core.args.real("factor", factor)
        self.raw = new_parameter(*self.kernel_shape, **factory)

    def kernel(self):
        return self.raw * self.factor

    def load_kernel_(self, weight):
        with torch.no_grad():
            self.raw.copy_(weight / self.factor)

    def reset_parameters(self):
        nn.init.uniform_(self.raw, -self.bound, self.bound)
        self.reset_bias()


class ScaledConv1d(_ScaledNd, nn.Conv1d): ...


class ScaledConv2d(_ScaledNd, nn.Conv2d): ...


def reference(layer, x):
    return naive_convolution(x, layer.raw * layer.factor, layer.bias, layer.geometry)


def flops(layer, shape):
    forward, backward = layer.geometry.flops(shape)
    return forward + layer.raw.numel(), backward + layer.raw.numel()


CARD = Card(
    name="NAME",
    classes={1: ScaledConv1d, 2: ScaledConv2d},
    equation="y = f conv(x, w) + b",
    summary="A plain convolution with a factor.",
    citation="none",
    reference=reference,
    flops=flops,
    folds=True,
    preserves_function=True,
)
'''
REGISTERED = (
    PLUGIN
    + """

@oc.register
def card():
    return CARD
"""
)
UNREGISTERED = PLUGIN + "card = CARD"


def _install(folder: Path, package: str, points: dict[str, str], modules: dict[str, str]) -> None:
    """What an installer leaves of a distribution: its modules and its metadata."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    head = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
    (info / "METADATA").write_text(head, encoding="utf-8")
    listed = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[omniconv.operators]\n{listed}", encoding="utf-8")


def _python(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | path,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_operator_of_another_package_is_created_listed_and_tested(tmp_path: Path):
    _install(tmp_path, "my-ops", {"scaled": "my_ops:card"}, {"my_ops": REGISTERED})
    code = """
import json, sys
import omniconv as oc, omniconv.testing
listed = oc.list_operators("*scaled")
lazy = "my_ops" not in sys.modules
layer = oc.create("my-ops:scaled", 2, 4, 3, padding=1, factor=2.0)
tested = [case for case in omniconv.testing.cases("my-ops:scaled", tier=1) if not case.skip]
for case in tested:
    case.run()
try:
    oc.create("my-ops:scale", 1, 1, 1)
except ValueError as error:
    suggested = str(error)
print(json.dumps({
    "listed": listed,
    "lazy": lazy,
    "layer": repr(layer),
    "dims": [oc.list_operators("*:scaled", dim=dim) for dim in (1, 2, 3)],
    "plain": "NAME" in oc.list_operators(),
    "card": oc.card("my-ops:scaled").name,
    "tested": len({case.property for case in tested}),
    "case": str(tested[0]),
    "suggested": suggested,
}))
"""
    run = _python(tmp_path, code)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert said["listed"] == ["my-ops:scaled"]
    assert said["lazy"]
    assert said["layer"].startswith("ScaledConv2d(2, 4, kernel_size=(3, 3)")
    assert said["dims"] == [["my-ops:scaled"], ["my-ops:scaled"], []]
    assert not said["plain"]
    assert said["card"] == "NAME"
    assert said["tested"] > 25
    assert said["case"].startswith("my-ops:scaled-default-1d-")
    assert "did you mean 'my-ops:scaled'?" in said["suggested"]


def test_a_plug_in_never_takes_the_place_of_an_operator(tmp_path: Path):
    text = UNREGISTERED.replace("NAME", "weighted")
    _install(tmp_path, "copy-cat", {"weighted": "cat:card"}, {"cat": text})
    code = """
import omniconv as oc
print(oc.card("copy-cat:weighted").classes[2].__name__, oc.card("weighted").classes[2].__name__)
print(oc.list_operators("*weighted"))
"""
    run = _python(tmp_path, code)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "ScaledConv2d WeightedConv2d",
        "['weighted', 'copy-cat:weighted']",
    ]


@pytest.mark.parametrize(
    ("points", "module", "message"),
    [
        ({"x": "broken:card"}, "card = 3", "entry point 'bad:x' must point to a Card, got 3"),
        (
            {"x": "broken:card"},
            "raise RuntimeError('no scipy')",
            "ImportError: operator 'bad:x' cannot be loaded from 'broken:card': no scipy",
        ),
        (
            {"x": "broken:missing"},
            "",
            "ImportError: operator 'bad:x' cannot be loaded from 'broken:missing': module 'broken' "
            "has no attribute 'missing'",
        ),
    ],
)
def test_a_broken_plug_in_is_named_and_harms_no_other(
    tmp_path: Path, points: dict[str, str], module: str, message: str
):
    _install(tmp_path, "bad", points, {"broken": module})
    code = """
import omniconv as oc
assert "bad:x" in oc.list_operators()
oc.create("weighted", 1, 1, 1)
oc.card("bad:x")
"""
    run = _python(tmp_path, code)
    assert run.returncode == 1
    assert message in run.stderr.splitlines()[-1]


def test_names_are_found_without_importing_operators():
    code = """
import sys, json, omniconv as oc
names = oc.list_operators()
print(json.dumps([names, [m for m in sys.modules if m.startswith("omniconv.operators.")]]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, imported = json.loads(run.stdout)
    assert set(_index.OPERATORS) <= set(names)
    assert imported == []


def test_operators_are_filtered_by_pattern_role_dimension_and_fold():
    names = set(_index.OPERATORS)
    assert names <= set(oc.list_operators())
    assert oc.list_operators("weigh*") == ["weighted"]
    assert oc.list_operators("no such") == []
    assert {"partial"} <= set(oc.list_operators(role="masked")) & names
    assert "partial" not in oc.list_operators(role="conv")
    assert set(oc.list_operators(dim=2)) & names == names
    assert oc.list_operators(dim=7) == []
    assert set(oc.list_operators(folds=True)) & set(oc.list_operators(folds=False)) == set()
    assert "involution" in oc.list_operators("i*", folds=False, role="mixer", dim=3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: oc.card("weigthed"), ValueError, "name must be one of .*did you mean 'weighted'"),
        (lambda: oc.card(3), TypeError, "name must be an operator's name, got 3"),
        (lambda: oc.create("nothing", 1, 1, 1), ValueError, "name must be one of .*got 'nothing'"),
        (lambda: oc.create("weighted", 1, 1, 1, dim=4), ValueError, r"dim must be one of \[1, 2"),
        (lambda: oc.create("weighted", 1, 1, 1, dim="2"), TypeError, "dim must be an int"),
        (lambda: oc.create("weighted", 1, 1, 1, dim=True), TypeError, "dim must be an int"),
        (lambda: oc.create("weighted", 1, 1, 1, transposed=1), TypeError, "transposed must be"),
        (lambda: oc.list_operators(3), TypeError, "pattern must be a str, got 3"),
        (lambda: oc.list_operators(role="convs"), ValueError, "role must be one of .*'conv'"),
        (lambda: oc.list_operators(dim=0), ValueError, "dim must be an int of at least 1"),
        (lambda: oc.list_operators(folds=1), TypeError, "folds must be True or False"),
        (lambda: oc.register(lambda: 3), TypeError, "register needs a function that returns a Ca"),
    ],
)
def test_bad_arguments_are_named(call: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call()


def test_a_name_is_given_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "_cards", dict(registry._cards))
    weighted = oc.card("weighted")

    class MyConv2d(nn.Conv2d): ...

    mine = dataclasses.replace(weighted, classes={2: MyConv2d}, transposed={})
    with pytest.raises(ValueError, match="name must be new, but an operator 'weighted' exists"):
        oc.register(lambda: mine)

    def make() -> Any:
        return dataclasses.replace(mine, name="mine")

    card = oc.register(make)
    assert oc.card("mine") is card
    assert "mine" in oc.list_operators()
    oc.register(make)  # reloading a module registers the same operator again

    class OtherConv2d(nn.Conv2d): ...

    OtherConv2d.__module__ = "elsewhere"
    with pytest.raises(ValueError, match="'mine' exists already"):
        oc.register(lambda: dataclasses.replace(card, classes={2: OtherConv2d}))


def test_the_lazy_faces_show_and_find_every_name():
    for table, face in ((_index.NN, oc.nn), (_index.FUNCTIONAL, oc.functional)):
        assert set(table) <= set(dir(face))
        for name in table:
            assert getattr(face, name).__module__ == table[name]
        with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
            _ = face.Nothing
    assert set(_index.NN) <= set(dir(oc))
    assert oc.WeightedConv2d is oc.nn.WeightedConv2d
    with pytest.raises(AttributeError, match="module 'omniconv' has no attribute 'Nothing'"):
        _ = oc.Nothing


def test_roles_of_all_operators_are_known():
    assert {oc.card(name).role for name in _index.OPERATORS} <= set(ROLES)


def test_the_generated_index_and_stubs_are_up_to_date():
    run = subprocess.run(
        [sys.executable, ROOT / "tools" / "generate_index.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
