"""The examples do what they print: run as a user runs them, small, from another folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from documents import ROOT

EXAMPLES = ROOT / "examples"


def start(script: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def said(name: str, folder: Path, *arguments: str) -> list[str]:
    """What an example prints."""
    run = start(EXAMPLES / name, folder, *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.splitlines()


def table(lines: list[str]) -> dict[str, list[str]]:
    """The rows of the last table printed: first cell -> the others."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[lines.index("") + 1 :]]
    return {name: cells for name, *cells in rows[1:]}


def test_every_example_is_listed_and_tested():
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    listed = re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert scripts == set(listed) == {"swap_train_deploy.py", "own_operator.py", "denoise.py"}


def test_a_model_is_swapped_trained_folded_and_deployed(tmp_path: Path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the [onnx] extra")
    pytest.importorskip("mlxtend", reason="needs the [compare] extra")
    np = pytest.importorskip("numpy")
    small = ("--width", "8", "--kernel-size", "5", "--epochs", "2", "--train", "600")
    lines = said("swap_train_deploy.py", tmp_path, *small, "--onnx", "digits.onnx")
    assert "2 swapped, 0 skipped" in lines
    assert any(re.match(r"3 .*DCLSConv2d 8->16 5x5 .*weights new", line) for line in lines)
    rows = table(lines)
    assert list(rows) == ["as trained", "folded", "onnxruntime"]
    accuracies = {float(accuracy.removesuffix(" %")) for accuracy, *_ in rows.values()}
    assert len(accuracies) == 1
    assert 20 < accuracies.pop() <= 100
    assert all(float(ms) > 0 for _, ms, _ in rows.values())
    assert all(float(difference) < 1e-4 for *_, difference in rows.values())
    assert [path.name for path in tmp_path.iterdir()] == ["digits.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "digits.onnx")
    (images,) = session.get_inputs()
    for count in (1, 5):
        given = {images.name: np.zeros((count, 1, 28, 28), np.float32)}
        assert session.run(None, given)[0].shape == (count, 10)


def test_an_operator_in_one_file_is_judged_and_compared(tmp_path: Path):
    pytest.importorskip("typer", reason="needs the [compare] extra")
    small = ("--seeds", "1", "--train", "200", "--width", "4", "--out", "report")
    lines = said("own_operator.py", tmp_path, *small)
    held = re.fullmatch(r"The matrix: (\d+) properties hold, 0 do not apply", lines[0])
    assert held is not None
    assert int(held[1]) > 25
    change = re.fullmatch(r"A brighter image changes its output by (\S+)", lines[1])
    assert change is not None
    assert float(change[1]) < 1e-5
    found = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    names = ["conv", "my-operators:zero_mean"]
    assert [row["label"] for row in found["rows"]] == names
    for row, line in zip(found["rows"], lines[3:], strict=False):
        assert line.split()[:2] == [row["label"], f"{row['trials'][0]['score']:.1f}"]
    assert lines[-1] == f"Report: {Path('report', 'report.html')}"
    assert (tmp_path / "report" / "report.html").is_file()


def test_the_matrix_of_that_example_finds_a_wrong_formula(tmp_path: Path):
    script = Path(shutil.copy(EXAMPLES / "own_operator.py", tmp_path))
    formula = "return raw - raw.mean(list(range(2, raw.dim())), keepdim=True)"
    code = script.read_text(encoding="utf-8")
    assert formula in code
    script.write_text(code.replace(formula, "return raw - raw.mean()"), encoding="utf-8")
    run = start(script, tmp_path)
    assert run.returncode == 1
    assert "AssertionError" in run.stderr
    assert "ZeroMeanConv2d(" in run.stderr  # in which configuration


def test_two_convolutions_denoise_and_the_same_seed_gives_the_same_numbers(tmp_path: Path):
    pytest.importorskip("skimage", reason="needs the [compare] extra")
    small = ("--depth", "3", "--width", "8", "--steps", "150", "--batch", "4", "--lr", "0.01")
    runs = [said("denoise.py", tmp_path, *small) for _ in range(2)]
    first, second = (table(lines) for lines in runs)
    assert {name: cells[:3] for name, cells in first.items()} == {
        name: cells[:3] for name, cells in second.items()
    }
    noisy, *networks = first.values()
    assert list(first) == ["noisy images", "conv", "dcls"]
    assert 20 < float(noisy[0]) < 21  # -20 log10(25 / 255) = 20.17, and a little by clipping
    for score, gain, _, ms in networks:
        assert float(ms) > 0
        assert float(gain) > 0.5
        assert float(gain) == pytest.approx(float(score) - float(noisy[0]), abs=0.011)
    # the first and the last layer, batch norm, and 8 x 8 kernels of 3 x 3 or 5 x 5
    assert [cells[2] for cells in networks] == [f"{168 + 64 * taps:,}" for taps in (9, 25)]
