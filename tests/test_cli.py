"""The command line as a user meets it: output, JSON alone on stdout, exit codes, one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

import omniconv as oc
from omniconv import literature
from omniconv.core.card import Card
from omniconv.kernels import build

FIVE = ["dcls", "involution", "partial", "phc", "weighted"]


def omniconv(*arguments: str, **keywords) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "omniconv", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        **keywords,
    )


def as_json(*arguments: str):
    run = omniconv(*arguments, "--json")
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_list_shows_every_operator_with_its_full_card():
    cards = as_json("list")
    assert [card["name"] for card in cards] == oc.list_operators()
    assert set(FIVE) <= {card["name"] for card in cards}
    fields = set(Card.__dataclass_fields__)
    assert all(fields <= set(card) for card in cards)
    weighted = next(card for card in cards if card["name"] == "weighted")
    assert weighted["classes"]["2"] == "omniconv.nn.WeightedConv2d"
    assert weighted["rows"] == [27, 28]


def test_list_filters():
    mixers = [name for name in oc.list_operators() if oc.card(name).role == "mixer"]
    assert [c["name"] for c in as_json("list", "--role", "mixer")] == mixers
    assert "involution" in mixers
    assert "dcls" not in mixers
    assert [c["name"] for c in as_json("list", "w*")] == ["weighted"]
    assert "partial" not in [c["name"] for c in as_json("list", "--folds")]


def test_show_prints_the_card():
    run = omniconv("show", "dcls")
    assert run.returncode == 0
    assert "DCLSConv2d" in run.stdout
    assert "own arguments" in run.stdout
    assert as_json("show", "dcls")["rows"] == [34]


def test_literature_has_all_systems():
    rows = as_json("literature")
    assert [row["id"] for row in rows] == list(range(1, 353))
    assert [row["id"] for row in as_json("literature", "involution")] == [96]
    run = omniconv("literature", "--status", "absent")
    tally = literature.counts()
    assert run.stdout.splitlines()[-1] == (
        f"{tally['absent']} systems: 0 works, 0 partial, {tally['absent']} absent"
    )


def test_doctor_finds_what_is_here():
    found = {finding["name"]: finding for finding in as_json("doctor")}
    assert found["torch"]["status"] == "ok"
    assert found["back end torch"]["found"] == f"{len(oc.list_operators())} operators ran"
    for package, module in (("rich", "rich"), ("onnxruntime", "onnxruntime")):
        assert (found[package]["status"] == "ok") == (find_spec(module) is not None)
    assert all(f["remedy"] for f in found.values() if f["status"] != "ok")
    kernels = [name for name in found if name.startswith("kernel ")]
    assert kernels == [f"kernel {name}" for name in build.KERNELS]
    assert {found[name]["purpose"] for name in kernels} == {"speed on the CPU"}
    assert (found["triton"]["status"] == "ok") == (find_spec("triton") is not None)
    assert found["triton"]["purpose"] == "speed on the GPU"


def test_doctor_tells_a_broken_package_from_a_missing_one(tmp_path):
    (tmp_path / "rich.py").write_text("raise RuntimeError('operator does not exist')")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from omniconv.doctor import _package\n"
        "print(_package('rich').status, _package('rich').found)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert run.stdout.startswith("broken")
    assert "RuntimeError: operator does not exist" in run.stdout


def test_profile_measures_a_swapped_backbone():
    plain = as_json("profile", "resnet8", "--steps", "1", "--size", "16")
    swapped = as_json("profile", "resnet8", "--steps", "1", "--size", "16", "--swap", "phc(n=2)")
    assert swapped["profile"]["parameters"] < 0.6 * plain["profile"]["parameters"]
    assert {row["status"] for row in swapped["swap"]["layers"]} == {"swapped"}
    assert (
        "PHConv2d"
        in omniconv(
            "profile", "resnet8", "--steps", "1", "--size", "16", "--swap", "phc(n=2)"
        ).stdout
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("show", "wieghted"), "did you mean 'weighted'?"),
        (("list", "--role", "convv"), "role must be one of"),
        (("list", "--dim", "0"), "dim must be an int of at least 1, got 0"),
        (("literature", "--status", "done"), "status must be one of"),
        (("profile", "resnet9"), "backbone must be"),
        (("profile", "resnet8", "--swap", "dcls(tapz=3)"), "'tapz' (did you mean 'taps'?)"),
        (("profile", "resnet8", "--swap", "dcls("), "dcls("),
        (("profile", "resnet8", "--batch", "0"), "batch must be an int of at least 1, got 0"),
        (("compare", "--operators", "dlcs"), "did you mean 'dcls'?"),
        (("nonsense",), "No such command 'nonsense'"),
        (("list", "--nonsense"), "No such option: --nonsense"),
    ],
)
def test_refusals_are_one_sentence_and_exit_code_2(arguments, sentence, tmp_path):
    run = omniconv(*arguments, cwd=tmp_path)
    assert run.returncode == 2
    assert run.stdout == ""
    assert len(run.stderr.strip().splitlines()) == 1
    assert run.stderr.startswith("omniconv: ")
    assert sentence in run.stderr
    assert not list(tmp_path.iterdir())


def test_help_and_version():
    assert omniconv("--version").stdout.strip() == oc.__version__
    for arguments in ((), ("--help",), ("-h",)):
        run = omniconv(*arguments)
        assert run.returncode == 0
        assert "compare" in run.stdout


def test_a_reader_that_stops_early_is_no_error():
    command = f"{sys.executable} -m omniconv literature | head -n 1"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert run.stderr == ""


def test_without_the_tools_packages_one_sentence_says_what_to_install():
    code = "import sys; sys.modules['typer'] = None; import omniconv.cli"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode != 0
    assert run.stderr.strip().splitlines() == [
        'omniconv: the command line needs its packages: pip install "omniconv[compare]"'
    ]
