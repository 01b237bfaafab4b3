"""The kernels on a GPU: device times of all passes, fractions of their bounds, and torch's times.

    python benchmarks/gpu_kernels.py [KERNEL ...] [--suite default] [--dtypes float32,bfloat16]
        [--layouts nchw,channels_last] [--turns 15] [--json]

Cases, correctness gate and ceilings are those of ``omniconv bench --device cuda``, whose times hold
a call's whole way and so, where a kernel takes some microseconds, Python's. Here calls are recorded
in a CUDA graph, ours and torch's alike, and events around its replays take the device's time only;
a form that cannot be recorded is queued instead, and says so. Forms take turns; medians. The second
cache is warm, as it is for the copies that the bound is made of. In float32 the bound is that of
the fastest work that torch does by default, convolutions in TF32 included.

Targets: 60 % of the bound in every pass, and for depthwise 31 x 31 a step in a twentieth of the
time of torch's faster layer. Without a GPU there is nothing to measure, which is said.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from omniconv.bench.case import LAYOUTS, SUITES, Ask, Call, Case, Pass
from omniconv.bench.ceilings import Ceilings, measure_ceilings
from omniconv.bench.gate import Wrong, check, operators_of
from omniconv.kernels import backend

KERNELS = ("depthwise", "position_varying", "deform")
OURS = "omniconv"
TURN = 0.005
"""Seconds that a turn takes at least."""

RECORDED = 4
"""Calls in a graph: what a replay costs is shared by them."""

MOST_CALLS = 4096
REACHED = 0.6
STEP = 20.0


def main() -> int:
    """Measure and print a table or JSON; 1 if a form was not right or could not run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=", ".join(KERNELS))
    parser.add_argument("--suite", choices=SUITES, default="default")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.kernels) - set(KERNELS):
        parser.error(f"KERNEL must be one of {', '.join(KERNELS)}, got {', '.join(unknown)}")
    if unknown := set(options.dtypes.split(",")) - {"float32", "bfloat16", "float16"}:
        parser.error(f"--dtypes must be float32, bfloat16 or float16, got {', '.join(unknown)}")
    if unknown := set(options.layouts.split(",")) - set(LAYOUTS):
        parser.error(f"--layouts must be {' or '.join(LAYOUTS)}, got {', '.join(unknown)}")
    if options.turns < 1:
        parser.error(f"--turns must be at least 1, got {options.turns}")
    if not torch.cuda.is_available():
        reason = "torch finds no CUDA device"
        print(json.dumps({"machine": None, "reason": reason}) if options.json else reason)
        return 0
    backend.set_backend("auto")
    result = measure(options)
    print(json.dumps(result, indent=1) if options.json else table(result))
    return int(any("reason" in row for row in result["rows"]))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The machine, its ceilings, a row per pass, and which targets are met."""
    import triton

    device = torch.cuda.get_device_properties(0)
    result: dict[str, Any] = {
        "machine": {
            "gpu": device.name,
            "capability": [device.major, device.minor],
            "processors": device.multi_processor_count,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": triton.__version__,
            "tf32": {
                "convolution": torch.backends.cudnn.allow_tf32,
                "matrix product": torch.backends.cuda.matmul.allow_tf32,
            },
        },
        "suite": options.suite,
        "turns": options.turns,
        "ceilings": {},
        "rows": [],
    }
    for name in options.dtypes.split(","):
        dtype = getattr(torch, name)
        ceilings = measure_ceilings(dtype, "cuda")
        result["ceilings"][name] = ceilings.to_json()
        for kernel in options.kernels or KERNELS:
            cases = import_module(f"omniconv.bench.{kernel}").cases
            for layout in options.layouts.split(","):
                ask = Ask(options.suite, dtype, layout, "cuda")
                for case in cases(ask):
                    about = {"kernel": kernel, "case": case.name, "layout": layout, "dtype": name}
                    for row in rows(case, ask, ceilings, options.turns):
                        result["rows"].append(about | row)
                    gc.collect()
                    torch.cuda.empty_cache()
    result["targets"] = targets(result["rows"])
    return result


def rows(case: Case, ask: Ask, ceilings: Ceilings, turns: int) -> list[dict[str, Any]]:
    """A row per pass, or one that says why there is none.

    All of it happens on one stream: a gradient runs on the stream of its forward call, and only
    what runs on the stream that is recorded can be recorded.
    """
    stream = torch.cuda.Stream()
    try:
        with torch.cuda.stream(stream):
            passes = case.passes()
            for each in passes:
                check(each, {OURS: each.ours, **each.torch}, ask.dtype)
            return [timed(each, ceilings, turns, stream) for each in passes]
    except Wrong as error:
        return [{"reason": f"not right: {error}"}]
    except Exception as error:  # the other cases still have figures
        return [{"reason": " ".join(f"{type(error).__name__}: {error}".split())}]


def timed(each: Pass, ceilings: Ceilings, turns: int, stream: torch.cuda.Stream) -> dict[str, Any]:
    """The figures of a pass."""
    forms = {OURS: each.ours, **each.torch, **each.yardsticks}
    recorded = {name: record(call, stream) for name, call in forms.items()}
    counts = {name: calls_in_a_turn(run) for name, (run, _) in recorded.items()}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(turns):
        for name, (run, held) in recorded.items():
            times[name].append(seconds(run, counts[name]) / held)
    medians = {name: 1000 * statistics.median(t) for name, t in times.items()}
    rivals = {name: medians[name] for name in each.torch}
    layers = {name: t for name, t in rivals.items() if name in LAYOUTS}
    bound, limit = ceilings.bound(each.flops, each.bytes)
    ours = medians[OURS]
    return {
        "pass": each.name,
        "ms": ours,
        "bound_ms": 1000 * bound,
        "limit": limit,
        "reached": 1000 * bound / ours,
        "operators": operators_of(each.ours),
        "best_torch": min(rivals, key=lambda name: rivals[name], default=None),
        "times_torch": min(rivals.values()) / ours if rivals else None,
        "times_layer": min(layers.values()) / ours if layers else None,
        "forms_ms": medians,
        "queued": [name for name, (_, held) in recorded.items() if held == 1],
    }


def record(call: Call, stream: torch.cuda.Stream) -> tuple[Callable[[], Any], int]:
    """What runs a form, and how many calls of it that are: a graph's replay, or the call itself."""
    for _ in range(3):  # what is made once must not be made while recording
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(RECORDED):
                call()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError:
        torch.cuda.synchronize()
        call()
        return call, 1
    return graph.replay, RECORDED


def calls_in_a_turn(run: Callable[[], Any]) -> int:
    """So many that a turn takes ``TURN``."""
    once = min(seconds(run, 1) for _ in range(3))
    return min(max(round(TURN / max(once, 1e-7)), 1), MOST_CALLS)


def seconds(run: Callable[[], Any], calls: int) -> float:
    """Of one call, between two events on the device."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / calls


def targets(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Which passes miss 60 % of their bound, and the steps of depthwise 31 x 31."""
    measured = [row for row in found if "reason" not in row]
    below = [row for row in measured if row["reached"] < REACHED]
    steps = [
        row
        for row in measured
        if row["kernel"] == "depthwise" and row["pass"] == "step" and "31 x 31" in row["case"]
    ]
    return {
        "reached": {
            "target": REACHED,
            "passes": len(measured),
            "below": [[row[k] for k in (*NAMES, "reached")] for row in below],
        },
        "depthwise 31 x 31 step": {
            "target": STEP,
            "found": [[row["layout"], row["dtype"], row["times_layer"]] for row in steps],
            "met": all((row["times_layer"] or 0) >= STEP for row in steps) if steps else None,
        },
    }


NAMES = ("kernel", "case", "layout", "dtype", "pass")


def table(result: dict[str, Any]) -> str:
    """The figures as lines."""
    machine = result["machine"]
    lines = [f"{machine['gpu']}, torch {machine['torch']}, Triton {machine['triton']}"]
    for row in result["rows"]:
        place = f"{row['kernel']}  {row['case']}  {row['layout']}  {row['dtype']}"
        if "reason" in row:
            lines.append(f"{place}: FAILED, {row['reason']}")
            continue
        line = f"{place}  {row['pass']}: {row['ms']:.4f} ms, {row['reached']:.0%} of the bound"
        if row["times_torch"] is not None:
            line += f" ({row['limit']}), {row['times_torch']:.1f}x torch ({row['best_torch']})"
        queued = f"; queued: {', '.join(row['queued'])}" if row["queued"] else ""
        lines.append(line + queued)
    reached, step = result["targets"]["reached"], result["targets"]["depthwise 31 x 31 step"]
    met = reached["passes"] - len(reached["below"])
    lines.append(f"{met} of {reached['passes']} passes reach {REACHED:.0%} of their bound")
    for layout, dtype, times in step["found"]:
        shown = "no layer of torch ran" if times is None else f"{times:.1f}x torch's layer"
        lines.append(f"depthwise 31 x 31, step, {layout}, {dtype}: {shown} (target {STEP:.0f}x)")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
