"""Random calls of the kernels, built with the address and the undefined-behaviour sanitizer."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_draws import KERNELS
from omniconv.kernels import build

CALLS = 150
FLAGS = (
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
    *("-O1", "-g1"),
    # one form of every function, and of those the one with the most vector code
    *(['-DOMNICONV_ARCH="x86-64-v3"'] if platform.machine() == "x86_64" else []),
)
CALLER = """
import sys
from pathlib import Path
kernel, path, calls = sys.argv[1:]
from omniconv.kernels import backend, build
build.library = lambda name: Path(path)
assert backend.load(kernel).path == path, backend.load(kernel).reason
from kernel_draws import draw
for number in range(int(calls)):
    draw(kernel, number).check()
print("clean")
"""

pytestmark = pytest.mark.skipif(
    not (os.environ.get("CI") or os.environ.get("OMNICONV_TIER") == "3"),
    reason="a build of some 20 seconds for each kernel: with CI set, and in make test-full",
)


def runtime() -> str:
    """The compiler's address sanitizer, which has to be in the process before all else."""
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs g++ on Linux")
    asked = [compiler, "-print-file-name=libasan.so"]
    path = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(path):
        pytest.skip("g++ has no address sanitizer here")
    return path


def run(kernel: str, library: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "LD_PRELOAD": runtime(),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "2",
    }
    command = [sys.executable, "-c", CALLER, kernel, str(library), str(CALLS)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_access_is_out_of_bounds_and_nothing_is_undefined(kernel: str, tmp_path: Path):
    runtime()
    library = tmp_path / f"{kernel}.so"
    build.compile_to(library, kernel, ["g++"], *FLAGS)
    done = run(kernel, library)
    assert done.stdout.split() == ["clean"], done.stderr[-3000:]
    assert "runtime error" not in done.stderr
