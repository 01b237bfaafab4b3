"""What ``import omniconv`` costs over ``import torch``.

    python benchmarks/import_time.py [--repeats 15] [--json]

Every import runs in a fresh process; the programs take turns, so that a drifting machine hits all
of them alike; medians of what the import statements themselves took, torch's start included. The
bound is 0.2 s over torch, for the package and for the names of all its operators.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from typing import Any

from omniconv.core.table import text_table

BOUND = 0.2
PROGRAMS = {
    "torch": "import torch",
    "torch, omniconv": "import torch, omniconv",
    "and the list of operators": "import torch, omniconv; omniconv.list_operators()",
    "and one operator": "import torch, omniconv; omniconv.nn.WeightedConv2d",
    "and all operators": "import torch; from omniconv import nn; [getattr(nn, n) for n in dir(nn)]",
}
BOUNDED = ("torch, omniconv", "and the list of operators")


def main() -> None:
    """Measure and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.repeats)
    print(json.dumps(result, indent=1) if options.json else table(result))


def seconds(program: str) -> float:
    """How long the statements took in a fresh process."""
    code = f"from time import perf_counter as t; a = t(); {program}; print(t() - a)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(run.stdout)


def measure(repeats: int) -> dict[str, Any]:
    """Medians of all programs, and their medians over torch within the same turn."""
    for program in PROGRAMS.values():  # bring the files into memory
        seconds(program)
    turns = [{name: seconds(program) for name, program in PROGRAMS.items()} for _ in range(repeats)]
    return {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "repeats": repeats,
        },
        "bound_s": BOUND,
        "rows": [
            {
                "program": name,
                "seconds": statistics.median(turn[name] for turn in turns),
                "over_torch_s": statistics.median(turn[name] - turn["torch"] for turn in turns),
            }
            for name in PROGRAMS
        ],
    }


def table(result: dict[str, Any]) -> str:
    """Seconds, and seconds over torch; ``!`` is above the bound."""
    lines = [["import", "s", "over torch"]]
    for row in result["rows"]:
        over = row["over_torch_s"]
        high = row["program"] in BOUNDED and over > result["bound_s"]
        shown = "" if row["program"] == "torch" else f"{over:.3f}{'!' if high else ' '}"
        lines.append([row["program"], f"{row['seconds']:.3f}", shown])
    machine = ", ".join(f"{k} {v}" for k, v in result["machine"].items())
    return "\n".join([machine, *text_table(lines)])


if __name__ == "__main__":
    main()
