"""DCLS: time and memory of building the kernel, forward and backward, with and without omniconv's
compiled code, against the released code.

    python benchmarks/dcls_construction.py [--threads 2] [--repeats 20] [--json]

17 x 17, 34 taps, 96 -> 96 channels unless said otherwise. The bound to keep is 15 ms and 60 MB on
two cores; memory is the most that tensors hold at once, parameters and their gradients included.
The three interpolations take turns in one process with a pinned allocator, each by the compiled
kernel ("omniconv") and by its torch reference ("torch"); medians. The released
code follows, one call of seconds each, where the package DCLS is installed. Nothing is printed
before each kernel has been compared with its formula, evaluated tap by tap, and the released one.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from omniconv.compare.worker import PINNED, allocator

if TYPE_CHECKING:
    from torch import Tensor

VERSIONS = {"bilinear": "v1", "gauss": "gauss", "triangle": "max"}


def main() -> None:
    """Measure in a fresh process and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--channels", type=int, default=96)
    parser.add_argument("--size", type=int, default=17)
    parser.add_argument("--taps", type=int, default=34)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if os.environ.get("GLIBC_TUNABLES") != PINNED:  # read by the C library at start only
        environment = os.environ | {"GLIBC_TUNABLES": PINNED}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    result = measure(options)
    print(json.dumps(result, indent=1) if options.json else table(result))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every form's figures, and the machine."""
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": options.threads,
            "torch": torch.__version__,
            "allocator": allocator(),
            "dtype": "float32",
            "repeats": options.repeats,
        },
        "shape": [options.channels, options.channels, options.size, options.size],
        "taps": options.taps,
        "rows": rows(options),
    }


def rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per interpolation, and one for its released form."""
    import torch
    from torch import nn

    import omniconv as oc
    from omniconv.analysis import peak_memory, time_steps
    from omniconv.kernels import backend

    class Ours(nn.Module):
        """The kernel of a layer as the output of a module without inputs."""

        backend = "auto"

        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer = layer

        def forward(self) -> Tensor:
            backend.set_backend(self.backend)
            return self.layer.kernel()

    class Reference(Ours):
        backend = "torch"

    class Released(Ours):
        def forward(self) -> Tensor:
            return self.layer.DCK(self.layer.weight, self.layer.P, self.layer.SIG)

    if reason := backend.load("dcls").reason:
        sys.exit(f"there is no compiled kernel to measure: {reason}")
    forms: dict[tuple[str, str], Ours] = {}
    for interpolation, version in VERSIONS.items():
        own = {"taps": options.taps, "interpolation": interpolation, "bias": False}
        layer = oc.DCLSConv2d(options.channels, options.channels, options.size, **own)
        theirs = released_layer(options, version)
        if theirs is not None:
            layer.load_state_dict(layer.from_official(theirs.state_dict()))
            forms[interpolation, "released"] = Released(theirs)
        forms[interpolation, "omniconv"] = Ours(layer)
        forms[interpolation, "torch"] = Reference(layer)
        with torch.no_grad():
            for name in ("omniconv", "torch"):
                kernel = forms[interpolation, name]()
                torch.testing.assert_close(kernel[:2], formula(layer, 2), rtol=1e-4, atol=1e-5)
            if theirs is not None:
                right = forms[interpolation, "released"]()
                torch.testing.assert_close(kernel, right, rtol=1e-4, atol=1e-5)
    ours = {key: form for key, form in forms.items() if key[1] != "released"}
    measured = time_steps(list(ours.values()), (), repeats=options.repeats)
    timings = dict(zip(ours, measured, strict=True))
    for key in forms.keys() - ours.keys():
        timings[key] = time_steps([forms[key]], (), repeats=1)[0]
    return [
        {"interpolation": interpolation, "form": form}
        | asdict(timings[interpolation, form])
        | {"peak_bytes": peak_memory(forms[interpolation, form], ())}
        for interpolation, form in sorted(forms)
    ]


def formula(layer: Any, rows: int) -> Tensor:
    """The kernel of the first output channels: one tap after the other, its whole footprint."""
    import torch

    size = layer.kernel_size[0]
    grid = torch.arange(size) - (size - 1) / 2
    places = layer.position[:rows].unflatten(-1, (2, -1)).unsqueeze(-1)
    distance = (grid - places).abs()  # (rows, I, 2, taps, size)
    if layer.width is None:
        profile = (1 - distance).clamp(min=0)
    else:
        sigma = layer.width[:rows].unflatten(-1, (2, -1)).unsqueeze(-1).abs()
        if layer.interpolation == "gauss":
            profile = torch.exp(-0.5 * (distance / (0.27 + sigma)) ** 2)
        else:
            profile = (1 + sigma - distance).clamp(min=0)
        profile = profile / profile.sum(-1, keepdim=True)
    kernel = torch.zeros(rows, *layer.kernel_shape[1:])
    for k in range(layer.taps.shape[-1]):
        vertical, horizontal = profile[:, :, 0, k, :, None], profile[:, :, 1, k, None, :]
        kernel += layer.taps[:rows, :, k, None, None] * vertical * horizontal
    return kernel


def released_layer(options: argparse.Namespace, version: str) -> Any | None:
    """The released layer, where its package is installed."""
    logging.disable(logging.WARNING)  # it warns of a CUDA kernel that is not installed
    try:
        from DCLS.construct.modules import Dcls2d
    except ImportError:
        return None
    channels, size = options.channels, options.size
    return Dcls2d(
        *(channels, channels, options.taps),
        dilated_kernel_size=size,
        bias=False,
        version=version,
    )


def table(result: dict[str, Any]) -> str:
    """Medians, quartiles and memory, and the released code's as multiples of ours."""
    from omniconv.core.table import text_table

    ours = {r["interpolation"]: r for r in result["rows"] if r["form"] == "omniconv"}
    lines = [["interpolation", "form", "ms", "quartiles", "MB", "faults", "time", "memory"]]
    for row in result["rows"]:
        base = ours[row["interpolation"]]
        lines.append(
            [
                row["interpolation"],
                row["form"],
                f"{row['ms']:.1f}",
                f"{row['low']:.1f}-{row['high']:.1f}",
                f"{row['peak_bytes'] / 1e6:.1f}",
                str(row["faults"]),
                f"{row['ms'] / base['ms']:.1f}x",
                f"{row['peak_bytes'] / base['peak_bytes']:.1f}x",
            ]
        )
    shape = " x ".join(map(str, result["shape"]))
    machine = ", ".join(f"{k} {v}" for k, v in result["machine"].items())
    return "\n".join([machine, f"kernel {shape}, {result['taps']} taps", *text_table(lines, 2)])


if __name__ == "__main__":
    main()
