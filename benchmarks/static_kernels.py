"""Static-kernel layers: a training step against the plain convolution of the same extent.

    python benchmarks/static_kernels.py [--threads 2] [--repeats 40] [--json]

The bound is 1.05 times the plain layer's step for weighted and 1.15 for the others; the factor is
the cost of building the kernel and of its gradient. All layers of a shape take turns in one process
with a pinned allocator; medians. Nothing is printed before each layer's output has been compared
with torch's convolution by the folded kernel, at equal gradients for the input.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from typing import Any

from omniconv.compare.worker import PINNED, allocator

SHAPES = tuple(
    {"batch": batch, "channels": channels, "size": size, "kernel_size": extent, "groups": groups}
    for batch, channels, size, extent, groups in (
        (8, 64, 56, 3, 1),
        (8, 64, 56, 5, 1),
        (8, 64, 56, 7, 1),
        (128, 16, 28, 3, 1),
        (128, 16, 28, 5, 1),
        (128, 32, 14, 5, 1),
        (128, 64, 7, 3, 1),
        (8, 96, 56, 7, 96),
    )
)
LAYERS: dict[str, tuple[str, dict[str, Any], float]] = {
    "weighted": ("weighted", {}, 1.05),
    "weighted, trained": ("weighted", {"trainable_density": True}, 1.05),
    "dcls": ("dcls", {}, 1.15),
    "dcls, gauss": ("dcls", {"interpolation": "gauss"}, 1.15),
    "dcls, triangle": ("dcls", {"interpolation": "triangle"}, 1.15),
    "phc": ("phc", {}, 1.15),
    "phc, quaternion": ("phc", {"algebra": "quaternion"}, 1.15),
}
"""Label -> operator, its own arguments, bound on the step's time in plain steps."""


def main() -> None:
    """Measure in a fresh process and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if os.environ.get("GLIBC_TUNABLES") != PINNED:  # read by the C library at start only
        environment = os.environ | {"GLIBC_TUNABLES": PINNED}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    result = measure(options.threads, options.repeats)
    print(json.dumps(result, indent=1) if options.json else table(result))


def measure(threads: int, repeats: int) -> dict[str, Any]:
    """Timings of all shapes and layers, and the machine."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": threads,
            "torch": torch.__version__,
            "allocator": allocator(),
            "dtype": "float32",
            "repeats": repeats,
        },
        "rows": [row(shape, repeats) for shape in SHAPES],
    }


def row(shape: dict[str, int], repeats: int) -> dict[str, Any]:
    """One shape: check every layer against its folded form, then time all of them."""
    import torch
    from torch import nn

    import omniconv as oc
    from omniconv.analysis import time_steps

    channels, extent, groups = shape["channels"], shape["kernel_size"], shape["groups"]
    common = {"padding": extent // 2, "groups": groups}
    layers: dict[str, nn.Module] = {"plain": nn.Conv2d(channels, channels, extent, **common)}
    for label, (operator, own, _) in LAYERS.items():
        if operator != "phc" or groups == 1:
            layers[label] = oc.create(operator, channels, channels, extent, **common, **own)
    x = torch.randn(shape["batch"], channels, shape["size"], shape["size"], requires_grad=True)
    for label, layer in layers.items():
        if label != "plain":
            plain = layer.fold()
            y, right = layer(x), plain(x)
            torch.testing.assert_close(y, right, rtol=1e-4, atol=1e-4)
            seed = torch.randn_like(y)
            got, wanted = (torch.autograd.grad(out, x, seed)[0] for out in (y, right))
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    timings = time_steps(list(layers.values()), x, repeats=repeats)
    base = timings[0].ms
    return shape | {
        "layers": {
            label: asdict(timing) | {"ratio": timing.ms / base}
            for label, timing in zip(layers, timings, strict=True)
        }
    }


def table(result: dict[str, Any]) -> str:
    """The plain step in milliseconds and every layer's as a multiple; ``!`` is above its bound."""
    from omniconv.core.table import text_table

    lines = [["batch x channels x size, kernel", "plain ms", *LAYERS, "faults"]]
    for entry in result["rows"]:
        label = (
            f"{entry['batch']} x {entry['channels']} x {entry['size']}^2, {entry['kernel_size']}"
            + (", depthwise" if entry["groups"] > 1 else "")
        )
        cells = []
        for name, (_, _, bound) in LAYERS.items():
            found = entry["layers"].get(name)
            high = found and found["ratio"] > bound
            cells.append(f"{found['ratio']:.3f}{'!' if high else ' '}" if found else "- ")
        plain = entry["layers"]["plain"]
        lines.append([label, f"{plain['ms']:.2f}", *cells, str(plain["faults"])])
    machine = ", ".join(f"{k} {v}" for k, v in result["machine"].items())
    return "\n".join([machine, *text_table(lines)])


if __name__ == "__main__":
    main()
