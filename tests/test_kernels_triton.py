"""The kernels' Triton forms: interpreted, compiled for absent GPUs, and run where there is one.

Interpreter and compiler need Triton only. The interpreter multiplies no bfloat16 matrices, so that
cases in bfloat16 do without; those matrices are compiled, and run on a GPU.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from triton_cases import COMPILED, MODERATE, SMALL, TOLERANCES, Case, draw, errors, found, module

KERNELS = ("deform", "depthwise", "position_varying")
HERE = Path(__file__).parent
LAUNCHED = {
    "deform": {"_aggregate", "_by_data", "_by_weight", "_contract"},
    "depthwise": {"_band", "_band_weight", "_taps", "_taps_weight"},
    "position_varying": {"_apply", "_by_weight", "_norm", "_softmax_backward"},
}
SPILLED = 64
"""Bytes per thread that may lie outside of registers; matrices of another shape took over 1,000."""

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
gpu_only = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.mark.parametrize("kernel", KERNELS)
def test_interpreted_kernels_equal_their_reference(kernel):
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "triton_cases.py"), kernel]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tolerances = {str(dtype): tolerance for dtype, tolerance in TOLERANCES.items()}
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) >= sum(case.kernel == kernel for case in SMALL)
    for text, dtype, found_errors in lines:
        assert found_errors
        assert max(found_errors) <= tolerances[dtype], f"{text}: {found_errors}"


class Recorder:
    """Stands for ``gpu.launch``: keeps what would be compiled."""

    def __init__(self) -> None:
        self.sources = []

    def __call__(self, kernel, programs, *args, warps=4, stages=2, **constants):
        from omniconv.kernels import gpu

        assert programs > 0
        options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
        self.sources.append((kernel.__name__, gpu.source(kernel, args, constants), options))


def launches(monkeypatch, case: Case) -> list:
    from omniconv.kernels import gpu

    recorder = Recorder()
    monkeypatch.setattr(gpu, "launch", recorder)
    found(case, draw(case, "meta"))
    return recorder.sources


def spilled(cubin: bytes, path: Path) -> int:
    """Bytes of a thread's stack, as CUDA's own tool reads them from the code."""
    from triton import knobs

    path.write_bytes(cubin)
    command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", text)[1])


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_compiles_ahead_of_time(kernel, arch, monkeypatch, tmp_path):
    import triton
    from triton.backends.compiler import GPUTarget

    thorough = os.environ.get("OMNICONV_TIER") == "3"
    cases = [c for c in (*COMPILED, *(MODERATE if thorough else ())) if c.kernel == kernel]
    done = set()
    for case in cases:
        for name, source, options in launches(monkeypatch, case):
            if not thorough and (name, case.dtype) in done:
                continue
            done.add((name, case.dtype))
            target = GPUTarget("cuda", arch, 32)
            built = triton.compile(source, target=target, options=options)
            assert f"sm_{arch}" in built.asm["ptx"]
            assert built.asm["cubin"][:4] == b"\x7fELF"
            stack = spilled(built.asm["cubin"], tmp_path / "kernel.cubin")
            assert stack <= SPILLED, f"{name} of {case} for sm_{arch}: {stack} bytes"
    names = {name for name, _ in done}
    assert names == LAUNCHED[kernel]
    forms = vars(module(kernel)).items()
    assert names == {k for k, v in forms if isinstance(v, triton.JITFunction) and k[0] == "_"}


def test_offsets_take_64_bits_where_32_do_not_reach():
    import triton.language as tl

    from omniconv.kernels import gpu

    near = torch.empty(2**29, device="meta")
    far = torch.empty(3, 2**29, device="meta")
    assert gpu.index_of(near, near) == tl.int32
    assert gpu.index_of(near, far) == tl.int64
    assert gpu.index_of(far[:1].expand(3, -1)) == tl.int32  # strides count, not sizes


@gpu_only
@pytest.mark.parametrize("case", [*SMALL, *MODERATE], ids=lambda case: f"{case.kernel}-{case.taps}")
def test_gpu_equals_the_reference(case):
    largest = max(errors(case, draw(case, "cuda")))
    # sums of up to 10^4 terms
    assert largest <= TOLERANCES[case.dtype] * (10 if case in MODERATE else 1)


@gpu_only
@pytest.mark.parametrize("case", [c for c in MODERATE if c.dtype == torch.float32], ids=str)
def test_gpu_gives_the_same_bits_every_time(case):
    tensors = draw(case, "cuda")
    first = found(case, tensors)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, found(case, tensors), strict=True))


@gpu_only
@pytest.mark.parametrize("kernel", KERNELS)
def test_gpu_runs_the_kernel_behind_the_functional(kernel, monkeypatch):
    from importlib import import_module

    from omniconv.kernels import backend

    monkeypatch.setattr(backend, "_backend", "auto")
    monkeypatch.setattr(backend, "_used", set())
    functional = getattr(import_module(f"omniconv.kernels.{kernel}"), kernel)
    x = torch.randn(2, 8, 12, 12, device="cuda", requires_grad=True)
    inputs = {
        "depthwise": (x, torch.randn(16, 1, 3, 3, device="cuda", requires_grad=True)),
        "position_varying": (x, torch.randn(2, 2, 3, 3, 10, 10, device="cuda", requires_grad=True)),
        "deform": (
            x,
            torch.randn(2, 18, 10, 10, device="cuda", requires_grad=True),
            None,
            torch.randn(4, 8, 3, 3, device="cuda", requires_grad=True),
        ),
    }[kernel]
    leaves = [t for t in inputs if t is not None]

    def run(backend_name):
        backend.set_backend(backend_name)
        y = functional(*inputs)
        return [y, *torch.autograd.grad(y.square().sum(), leaves)]

    ours = run("auto")
    assert backend.used() == [kernel]
    for a, b in zip(ours, run("torch"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
