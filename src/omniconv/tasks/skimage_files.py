"""Thirteen photographs in the wheel of scikit-image (0.22 to 0.26): 6 train, 2 validation, 5 test.

They are read by path, their SHA-256 checked; the package is not imported. Colour becomes grey with
``skimage.color.rgb2gray``'s weights, rounded to 8 bits.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from omniconv.tasks import files, folder
from omniconv.tasks.images import Album

__all__ = ["read"]

SHA256 = {
    "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    "ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
    "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    "cell.png": "8d23a7fb81f7cc877cd09f330357fc7f595651306e84e17252f6e0a1b3f61515",
    "coins.png": "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
    "camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
    "retina.jpg": "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
}
"""Train, validation, test, in this order."""

COUNTS = (6, 2, 5)
LICENCE = (
    "CC0 (brick, camera, cell, chelsea, coffee, grass, gravel, retina), public domain (astronaut, "
    "hubble_deep_field, rocket), no known copyright restrictions (coins, ihc)"
)
LUMINANCE = (2125, 7154, 721)
CROP = {"retina.jpg": 256}
"""Side of the centre that is used; black surrounds the rest."""


def read() -> Album:
    """The photographs and their split.

    Raises:
        ImportError: scikit-image is not installed.
        ValueError: A file is missing or another than that of scikit-image 0.26.
    """
    package = find_spec("skimage")
    if package is None or not package.submodule_search_locations:
        raise ImportError(f"data 'skimage' needs the package scikit-image: {files.REMEDY}")
    paths = [Path(package.submodule_search_locations[0]) / "data" / name for name in SHA256]
    train, validation, _ = np.cumsum(COUNTS)
    return Album(
        name="scikit-image photographs (13)",
        source="13 image files of scikit-image, grey",
        licence=LICENCE,
        train=paths[:train],
        validation=paths[train:validation],
        tests={"test": paths[validation:]},
        decode=_decode,
    )


def _decode(path: Path) -> np.ndarray:
    """Grey pixels (H, W, 1), of the right file."""
    wanted = f"the file of scikit-image 0.26 (SHA-256 {SHA256[path.name][:12]}...)"
    found = hashlib.sha256(files.read_bytes(path, wanted)).hexdigest()
    if found != SHA256[path.name]:
        raise ValueError(
            f"{files.show(path)} must be {wanted}, got {found[:12]}...: {files.REMEDY}"
        )
    image = folder.decode(path)
    if image.shape[2] == 3:
        # integers: the same on every machine
        weighted = image.astype(np.int64) @ np.array(LUMINANCE)
        image = ((weighted + 5000) // 10000).astype(np.uint8)[:, :, None]
    if path.name in CROP:
        side = CROP[path.name]
        top, left = ((extent - side) // 2 for extent in image.shape[:2])
        image = image[top : top + side, left : left + side]
    return image
