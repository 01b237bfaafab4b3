"""The kernels' libraries: what they are compiled to, what they link, and that their forms agree."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from kernel_draws import KERNELS, draw
from omniconv.kernels import backend, build
from omniconv.testing.tolerances import require_near

HOT = {
    "dcls": ("build<float, 1>", "differentiate<float, 1>", "gather<float, 2>"),
    "deform": ("locate<float, 2>", "gather<float, 4>", "aggregate<float, 4>"),
    "depthwise": ("correlate<float, 14, true>", "correlate<float, 8, false>"),
    "position_varying": ("apply<float>", "apply<double>", "correlate<float>", "normalise<float>"),
}
LEAST = {"dcls": 50, "deform": 10, "depthwise": 80, "position_varying": 20}
"""Of wide registers in the widest form of each of these functions."""

CALLS = 60
VARIANT = """
import sys
from pathlib import Path
import torch
from omniconv.kernels import backend, build
kernel, path, calls, results = sys.argv[1:]
build.library = lambda name: Path(path)
assert backend.load(kernel).path == path, backend.load(kernel).reason
from kernel_draws import draw
torch.save([draw(kernel, number).results("auto") for number in map(int, calls.split())], results)
"""


@cache
def dumped(kernel: str, *options: str) -> str:
    """What objdump says of a kernel's library."""
    found = backend.load(kernel)
    if found.reason or shutil.which("objdump") is None:
        pytest.skip(found.reason or "needs objdump")
    command = ["objdump", *options, found.path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_every_kernel_is_here():
    assert tuple(HOT) == tuple(LEAST) == build.KERNELS
    assert {"dcls", *KERNELS} == set(build.KERNELS)


@pytest.mark.parametrize("kernel", build.KERNELS)
def test_hot_loops_are_compiled_for_wide_vectors(kernel: str):
    text = dumped(kernel, "-d", "--demangle", "--no-show-raw-insn")
    if "file format elf64-x86-64" not in text:
        pytest.skip("wide vectors are named for x86-64 only")
    bodies = dict(re.findall(r"^\w+ <([^\n]*)>:\n(.*?)\n\n", text, re.M | re.S))
    if not any("arch_x86_64_v4" in name for name in bodies):
        pytest.skip("built by a compiler that makes no clones")
    for function in HOT[kernel]:
        wide = [body.count("zmm") for name, body in bodies.items() if function in name]
        assert max(wide) >= LEAST[kernel], function
        assert min(wide) == 0, function


def test_the_longest_loops_keep_their_sums_in_registers():
    text = dumped("depthwise", "-d", "--demangle", "--no-show-raw-insn")
    bodies = re.findall(r"^\w+ <[^\n]*correlate<float, 14[^\n]*>:\n(.*?)\n\n", text, re.M | re.S)
    if not any("zmm" in body for body in bodies):
        pytest.skip("not compiled for wide vectors")
    widest = max(bodies, key=lambda body: body.count("zmm"))
    assert len(re.findall(r"vfmadd\w+ps .*zmm", widest)) >= 80
    assert len(re.findall(r"vmova\w+ %zmm\d+,\S*\(%r[sb]p\)", widest)) < 40


@pytest.mark.parametrize("kernel", build.KERNELS)
def test_the_library_links_no_openmp(kernel: str):
    text = dumped(kernel, "-p")
    assert "libtorch_cpu" in text
    assert "gomp" not in text


@pytest.mark.skipif(
    not (os.environ.get("CI") or os.environ.get("OMNICONV_TIER") == "3"),
    reason="two builds of some 5 seconds for each kernel: with CI set, and in make test-full",
)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the variants are x86-64's")
@pytest.mark.parametrize("kernel", KERNELS)
def test_variants_for_other_processors_agree(kernel: str, tmp_path: Path):
    """Each is compiled alone and runs in a process of its own."""
    drawn = [(number, draw(kernel, number)) for number in range(CALLS)]
    drawn = [(number, found) for number, found in drawn if not found.wrong]
    right = [found.results("auto") for _, found in drawn]
    for variant in ("x86-64", "x86-64-v3"):
        path = tmp_path / f"{variant}.so"
        build.compile_to(path, kernel, build.compiler(), f'-DOMNICONV_ARCH="{variant}"')
        numbers = " ".join(str(number) for number, _ in drawn)
        command = [sys.executable, "-c", VARIANT, kernel, path, numbers, tmp_path / "results"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run(command, env=environment, check=True, timeout=300)
        for (_, call), ours, widest in zip(
            drawn, torch.load(tmp_path / "results"), right, strict=True
        ):
            for found, expected in zip(ours, widest, strict=True):
                scale = max(float(expected.abs().amax()), 1.0) if expected.numel() else 1.0
                require_near(
                    f"{variant}: {call.text}", found, expected, length=call.length, scale=scale
                )
