"""What a layer of every operator costs relative to a plain 3x3 convolution.

    python benchmarks/operators.py [NAME ...] [--threads 2] [--repeats 20] [--json]

Every layer takes the same input and has the same channels, 64 to 64 at 8 x 64 x 56 x 56, with the
kernel extent of its card; the plain convolution has 3x3. Layers that change the grid (space to
depth, sub-pixel) take that input too and give a smaller or larger output. Masked layers get a mask
of which a fifth are holes. All take turns in one process with a pinned allocator; medians.

Parameters, FLOPs, step and peak bytes are the layer's as it is trained. Latency is of one image in
evaluation mode, twice: as deployed after ``fold_`` (``latency``), and as it is (``layer_latency``);
the second is lower where the kernel has many zeros or factors. Nothing is printed before each layer
has been compared with its card's naive reference, and its fold with itself.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import sys
from typing import TYPE_CHECKING, Any

from omniconv.compare.worker import PINNED, allocator

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH, CHANNELS, SIZE = 8, 64, 56
PLAIN = 3
"""Kernel extent of the convolution that all are relative to."""

ARGUMENTS: dict[str, dict[str, Any]] = {
    "involution": {"group_channels": 16},  # the paper's
    "smpconv": {"groups": CHANNELS},  # depthwise, as its paper has kernels of this extent
}
CALLS = ("conv", "mixer", "resampler", "masked")
"""Roles that are measured."""

TIMES = ("step_ms", "latency_ms", "layer_latency_ms")
COSTS = ("parameters", "flops_forward", *TIMES, "peak_bytes")
HEADS = ("parameters", "FLOPs", "step", "latency", "unfolded", "peak bytes", "faults")


def main() -> None:
    """Measure in a fresh process and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="operators; default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if os.environ.get("GLIBC_TUNABLES") != PINNED:  # read by the C library at start only
        environment = os.environ | {"GLIBC_TUNABLES": PINNED}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    result = measure(options.names, options.threads, options.repeats)
    print(json.dumps(result, indent=1) if options.json else table(result))


def measure(names: list[str], threads: int, repeats: int) -> dict[str, Any]:
    """Costs of the plain layer, ratios and times of the operators, and the machine."""
    import torch
    from torch import nn

    import omniconv as oc
    from omniconv.analysis import time_latencies, time_steps

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    names = names or [n for n in oc.list_operators(dim=2) if ":" not in n]
    x = torch.randn(BATCH, CHANNELS, SIZE, SIZE, requires_grad=True)
    common = {"in_channels": CHANNELS, "out_channels": CHANNELS}
    given = {"plain": {"kernel_size": PLAIN, "padding": PLAIN // 2}}
    layers: dict[str, nn.Module] = {"plain": nn.Conv2d(**common, **given["plain"])}
    for name in names:
        extent = oc.card(name).default_extent
        own = ARGUMENTS.get(name, {})
        given[name] = {"kernel_size": extent, "padding": extent // 2} | own
        layers[name] = checked(name, oc.create(name, **common, **given[name]))
    folded = {
        name: oc.fold_(copy.deepcopy(layer))
        for name, layer in layers.items()
        if name != "plain" and oc.card(name).folds
    }
    costs = {name: counts(layer, folded.get(name), x) for name, layer in layers.items()}
    steps = time_steps(list(layers.values()), x, repeats=repeats)
    forms = [*layers.values(), *folded.values()]
    calls = time_latencies(forms, x.detach()[:1], repeats=repeats)
    for name, step, call in zip(layers, steps, calls, strict=False):
        costs[name] |= {"step_ms": step.ms, "faults": step.faults}
        costs[name] |= {"latency_ms": call.ms, "layer_latency_ms": call.ms}
    for name, call in zip(folded, calls[len(layers) :], strict=True):
        costs[name]["latency_ms"] = call.ms
    plain = costs.pop("plain")
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
        "shape": f"{BATCH}x{CHANNELS}x{SIZE}x{SIZE}",
        "plain": {"arguments": given["plain"]} | plain,
        "operators": {
            name: {"arguments": given[name], "input": list(x.shape)} | relative(cost, plain)
            for name, cost in costs.items()
        },
    }


def checked(name: str, layer: nn.Module) -> nn.Module:
    """The layer, checked against its reference, as a module that takes features alone."""
    import torch
    from torch import nn

    import omniconv as oc

    class Masked(nn.Module):
        """A masked layer with a mask of its own."""

        def __init__(self, layer: nn.Module, mask: Tensor) -> None:
            super().__init__()
            self.layer = layer
            self.register_buffer("mask", mask)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, self.mask[..., : x.shape[-2], : x.shape[-1]])[0]

    card = oc.card(name)
    if card.role not in CALLS:
        sys.exit(f"{name}: layers of role {card.role!r} take other inputs than an image")
    exact = copy.deepcopy(layer).double().eval()
    inputs = [torch.randn(1, CHANNELS, 4, 4, dtype=torch.float64)]
    if card.role == "masked":
        inputs.append((torch.rand(1, 1, 4, 4) > 0.2).double())
        layer = Masked(layer, (torch.rand(1, 1, SIZE, SIZE) > 0.2).float())
    with torch.no_grad():
        torch.testing.assert_close(exact(*inputs), card.reference(exact, *inputs))
    return layer


def counts(layer: nn.Module, folded: nn.Module | None, x: Tensor) -> dict[str, Any]:
    """All that is not a time; the folded layer, where there is one, must have the same output."""
    import torch

    from omniconv.analysis import count_flops, count_parameters, peak_memory

    with torch.no_grad():
        y = layer.eval()(x)
        if folded is not None:
            torch.testing.assert_close(folded(x), y, rtol=1e-4, atol=1e-4)
        flops = count_flops(layer, x).forward
    return {
        "output": list(y.shape),
        "parameters": count_parameters(layer),
        "flops_forward": flops,
        "peak_bytes": peak_memory(layer, x),
    }


def relative(cost: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """Ratios to the plain layer under the costs' names without unit, and the times themselves."""
    ratios = {key.removesuffix("_ms"): cost[key] / plain[key] for key in COSTS}
    return {"output": cost["output"]} | ratios | {k: cost[k] for k in (*TIMES, "faults")}


def table(result: dict[str, Any]) -> str:
    """The plain layer's times, and every operator's costs as multiples of its."""
    from omniconv.core.table import text_table

    lines = [["operator", "arguments", *HEADS]]
    for name, found in result["operators"].items():
        own = ", ".join(f"{k}={v}" for k, v in found["arguments"].items() if k != "padding")
        ratios = (f"{found[key.removesuffix('_ms')]:.2f}" for key in COSTS)
        lines.append([name, own, *ratios, str(found["faults"])])
    machine = ", ".join(f"{k} {v}" for k, v in result["machine"].items())
    plain = result["plain"]
    head = (
        f"{result['shape']}; plain convolution of {PLAIN}x{PLAIN}: step {plain['step_ms']:.2f} ms, "
        f"latency {plain['latency_ms']:.2f} ms"
    )
    return "\n".join([machine, head, *text_table(lines, 2)])


if __name__ == "__main__":
    main()
