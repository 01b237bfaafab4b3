"""Involution against its unfold form and a plain depthwise convolution of the same extent.

    python benchmarks/involution.py [--threads 2] [--repeats 10] [--json]

Forward pass (evaluation mode) and training step of a whole layer, generator included. The three
forms take turns in one process with a pinned allocator; medians. Nothing is printed before the
unfold form has given the same output and gradients.
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

SHAPES = (
    {"batch": 8, "channels": 64, "size": 56, "kernel_size": 7},
    {"batch": 128, "channels": 16, "size": 28, "kernel_size": 3},
    {"batch": 128, "channels": 64, "size": 7, "kernel_size": 3},
)
FORMS = ("involution", "unfold", "depthwise")


def main() -> None:
    """Measure in a fresh process and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if os.environ.get("GLIBC_TUNABLES") != PINNED:  # read by the C library at start only
        environment = os.environ | {"GLIBC_TUNABLES": PINNED}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    result = measure(options.threads, options.repeats)
    print(json.dumps(result, indent=1) if options.json else table(result))


def measure(threads: int, repeats: int) -> dict[str, Any]:
    """Timings of all shapes and forms, and the machine."""
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
    """One shape: check that both forms of involution agree, then time all three."""
    import torch
    from torch import nn

    from omniconv import nn as ours
    from omniconv.analysis import time_latencies, time_steps

    class Unfold(ours.Involution2d):
        """The same layer with every window copied out, as the released code has it."""

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            kernels = self.kernels(input)
            groups, size = kernels.shape[1], input.shape[2:]
            columns = nn.functional.unfold(input, self.kernel_size, 1, self.padding, 1)
            columns = columns.view(len(input), groups, -1, kernels[0, 0, ..., 0, 0].numel(), *size)
            return (columns * kernels.flatten(2, 3).unsqueeze(2)).sum(3).flatten(1, 2)

    channels, extent = shape["channels"], shape["kernel_size"]
    common: dict[str, Any] = {"padding": extent // 2, "bias": False}
    layer = ours.Involution2d(channels, channels, extent, group_channels=16, **common)
    unfold = Unfold(channels, channels, extent, group_channels=16, **common)
    unfold.load_state_dict(layer.state_dict())
    depthwise = nn.Conv2d(channels, channels, extent, groups=channels, **common)
    x = torch.randn(shape["batch"], channels, shape["size"], shape["size"], requires_grad=True)
    right, y = unfold(x), layer(x)
    torch.testing.assert_close(y, right, rtol=1e-4, atol=1e-4)
    for got, wanted in zip(
        torch.autograd.grad(y.square().mean(), [x, layer.span]),
        torch.autograd.grad(right.square().mean(), [x, unfold.span]),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-6)
    models = [layer, unfold, depthwise]
    timings = {
        "forward": time_latencies(models, x.detach(), repeats=repeats),
        "step": time_steps(models, x, repeats=repeats),
    }
    return shape | {
        kind: {form: asdict(t) for form, t in zip(FORMS, found, strict=True)}
        for kind, found in timings.items()
    }


def table(result: dict[str, Any]) -> str:
    """Medians in milliseconds, and how many times the depthwise convolution's each is."""
    from omniconv.core.table import text_table

    rows = [["batch x channels x size, kernel", "", *FORMS, "faults"]]
    for entry in result["rows"]:
        label = (
            f"{entry['batch']} x {entry['channels']} x {entry['size']}^2, {entry['kernel_size']}"
        )
        for kind in ("forward", "step"):
            times = entry[kind]
            base = times["depthwise"]["ms"]
            cells = [f"{times[f]['ms']:.2f} ms ({times[f]['ms'] / base:.1f}x)" for f in FORMS]
            rows.append([label, kind, *cells, str(times["involution"]["faults"])])
    machine = ", ".join(f"{k} {v}" for k, v in result["machine"].items())
    return "\n".join([machine, *text_table(rows, left=2)])


if __name__ == "__main__":
    main()
