"""A data set and plans so small that a comparison takes seconds, and operators that misbehave."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from omniconv.compare import Plan
from omniconv.compare.prepare import prepare
from omniconv.compare.schedule import Job, Schedule

CLASSES = 3

FAULTY = '''
"""Operators that pass every check of a plan and fail in training."""

import os
import signal

import torch
from torch import nn

from omniconv.core.card import Card
from omniconv.core.layer import new_parameter
from omniconv.operators.static_kernel import StaticKernel


class _Faulty(StaticKernel):
    def setup(self, factory):
        self.raw = new_parameter(*self.kernel_shape, **factory)

    def reset_parameters(self):
        nn.init.uniform_(self.raw, -self.bound, self.bound)
        self.reset_bias()

    def load_kernel_(self, weight):
        self.raw.data.copy_(weight)


class Raises2d(_Faulty, nn.Conv2d):
    def kernel(self):
        raise RuntimeError("broken\\non two <lines>")


class Dies2d(_Faulty, nn.Conv2d):
    def kernel(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Hangs2d(_Faulty, nn.Conv2d):
    def kernel(self):
        open("hanging", "w").close()
        while True:
            signal.pause()


class Hoards2d(_Faulty, nn.Conv2d):
    def kernel(self):
        hoard = []
        while True:
            hoard.append(torch.zeros(2**24))


def _card(name, layer):
    return Card(
        name=name,
        classes={2: layer},
        equation="",
        summary="",
        citation="",
        reference=lambda layer, x: x,
        flops=lambda layer, shape: (0, 0),
        folds=True,
    )


raises = _card("raises", Raises2d)
dies = _card("dies", Dies2d)
hangs = _card("hangs", Hangs2d)
hoards = _card("hoards", Hoards2d)
'''


def write_idx(
    directory: Path, train: int = 60, test: int = 30, size: int = 8, seed: int = 0
) -> str:
    """Noisy stripes in IDX files; returns the ``data`` of a plan."""
    directory.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for prefix, count in (("train", train), ("t10k", test)):
        labels = (np.arange(count) % CLASSES).astype(np.uint8)
        images = draw.integers(0, 100, (count, size, size)).astype(np.uint8)
        images[np.arange(count), :, labels * size // CLASSES] += 120
        header = struct.pack(">4I", 0x803, count, size, size)
        (directory / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">2I", 0x801, count)
        (directory / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return f"idx:{directory}"


def tiny(data: str, **changes: Any) -> dict[str, Any]:
    """The values of a tiny plan."""
    plan = {
        "data": data,
        "width": 4,
        "rows": ["conv", "weighted"],
        "seeds": 2,
        "frontier": None,
        "tuning": None,
        "budget": "2epochs",
        "batch_size": 16,
        "threads": 1,
    }
    return plan | changes


def install_faulty(site: Path) -> None:
    """Make a folder for PYTHONPATH that holds the plug-in ``faulty``."""
    info = site / "faulty-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "faulty.py").write_text(FAULTY, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    names = ("raises", "dies", "hangs", "hoards")
    entries = "\n".join(["[omniconv.operators]", *(f"{name} = faulty:{name}" for name in names)])
    (info / "entry_points.txt").write_text(entries, encoding="utf-8")


def change_data(folder: Path) -> None:
    """Other images in place of a plan's, of the same number and size."""
    write_idx(folder / "data", seed=1)


def truncate_snapshot(folder: Path) -> None:
    """Half of the copy that the driver made of the data is lost."""
    path = folder / "out" / "checkpoints" / "data.pt"
    os.truncate(path, path.stat().st_size // 2)


def erase_snapshot(folder: Path) -> None:
    """The copy is as long as before, and empty."""
    path = folder / "out" / "checkpoints" / "data.pt"
    path.write_bytes(bytes(path.stat().st_size))


def remove_snapshot(folder: Path) -> None:
    """The copy is gone."""
    (folder / "out" / "checkpoints" / "data.pt").unlink()


def scheduled(plan: Plan) -> Schedule:
    """The schedule of a plan of which nothing has run."""
    return Schedule(prepare(plan), lambda id: None)


def jobs(plan: Plan) -> dict[tuple[int, int], Job]:
    """(row index, seed) -> the trial."""
    return {(job.row, job.seed): job for job in scheduled(plan).jobs()}
