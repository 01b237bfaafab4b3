"""What `omniconv compare` spends on a trial besides importing and training.

    python benchmarks/trial_overhead.py [--trials 20] [--json]

Trials of the default data and network with a few images run one after the other through the driver,
store and worker processes; what a trial takes from its beginning to its end in the store, without
the seconds of its legs (training and validation), is compared with a fresh process that imports
the same modules. The difference is the overhead: reading the snapshot of the data, building the
network, the score on test, pictures, checkpoint, commit. The bound is 1 s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from omniconv.compare import plan_from_flags
from omniconv.compare.driver import drive
from omniconv.compare.plan import parse
from omniconv.compare.prepare import prepare
from omniconv.compare.schedule import Schedule
from omniconv.compare.store import Store
from omniconv.compare.worker import PINNED, allocator

BOUND = 1.0
IMPORTS = "import torch; from omniconv.compare import trial, worker"


def main() -> None:
    """Measure and print a line or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.trials)
    print(json.dumps(result, indent=1) if options.json else line(result))


def measure(trials: int) -> dict[str, Any]:
    """Seconds of every trial and every import, taken in turns."""
    shipped = plan_from_flags().to_json()
    small = {"rows": ["conv"], "frontier": None, "seeds": trials, "limit_train": 200}
    prepared = prepare(parse(shipped | small | {"budget": "1epoch"}))
    taken, imports, began = [], [], 0.0
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder)) as store:
        for event in drive(Schedule(prepared, store.trial), store, Path(folder)):
            if event.kind == "begin":  # no worker is alive yet
                imports.append(_import_seconds())
                began = time.perf_counter()
            elif event.kind == "end" and event.job is not None:
                took = time.perf_counter() - began
                trial = store.trial(event.job.id)
                assert trial is not None
                taken.append(took - sum(leg["seconds"] for leg in trial.curve))
            elif event.kind == "cost":
                break
    return {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "threads": prepared.plan.threads,
            "allocator": allocator(),
            "trials": trials,
        },
        "bound_s": BOUND,
        "trial_without_training_s": statistics.median(taken),
        "imports_s": statistics.median(imports),
        "overhead_s": statistics.median(a - b for a, b in zip(taken, imports, strict=True)),
    }


def _import_seconds() -> float:
    """A fresh process that imports what a trial does, from start to end."""
    began = time.perf_counter()
    environment = os.environ | {"GLIBC_TUNABLES": PINNED}
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, env=environment)
    return time.perf_counter() - began


def line(result: dict[str, Any]) -> str:
    """The medians."""
    mark = "!" if result["overhead_s"] > result["bound_s"] else ""
    machine = ", ".join(f"{k} {v}" for k, v in result["machine"].items())
    return (
        f"{machine}\na trial without training {result['trial_without_training_s']:.2f} s, "
        f"imports {result['imports_s']:.2f} s, overhead {result['overhead_s']:.2f} s{mark} "
        f"(bound {result['bound_s']:.0f} s)"
    )


if __name__ == "__main__":
    main()
