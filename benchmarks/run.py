"""Run every benchmark of this folder and ``omniconv bench``, or those named, one after the other.

    python benchmarks/run.py [NAME ...] [--save FOLDER]

Each runs in a process of its own and prints its table; ``--save`` keeps its JSON as
``FOLDER/NAME.json`` instead, and the kernels' figures in their histories there. Close other
programs first: quote ratios, not milliseconds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
KERNELS = "kernels"
BENCH = (sys.executable, "-m", "omniconv", "bench")


def main() -> int:
    """Run them; the exit code is 1 if one failed."""
    names = sorted(p.stem for p in HERE.glob("*.py") if p.stem != Path(__file__).stem)
    names.append(KERNELS)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--save", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"NAME must be one of {', '.join(names)}, got {', '.join(sorted(unknown))}")
    failed = []
    for name in options.names or names:
        print(f"== {name}", flush=True)
        command = [sys.executable, str(HERE / f"{name}.py")]
        if name == KERNELS:
            keep = ["--save", str(options.save)] if options.save else []
            code = subprocess.run([*BENCH, *keep], check=False).returncode
        elif options.save is None:
            code = subprocess.run(command, check=False).returncode
        else:
            options.save.mkdir(parents=True, exist_ok=True)
            run = subprocess.run([*command, "--json"], check=False, capture_output=True, text=True)
            code = run.returncode
            if code:
                print(run.stderr, file=sys.stderr)
            else:
                (options.save / f"{name}.json").write_text(run.stdout)
        if code:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
