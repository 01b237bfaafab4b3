"""What ``oc.accelerate_`` gives whole networks, against what depthwise layers for nothing would.

    python benchmarks/accelerate.py [NAME ...] [--threads 1] [--repeats 5] [--batch N] [--json]

A training step (forward and backward, float32) of every network in three forms: as it is,
accelerated, and with an Identity in place of every depthwise layer, each in both memory layouts, of
which the faster counts. ``reached`` is the share of the Identity's saving that the accelerated
network has. All take turns in one process with a pinned allocator; medians.

Networks: ``convnext`` (ConvNeXt-T, 224x224: 7x7), ``convmixer`` (ConvMixer-256/8, 32x32: 9x9),
``reparam13`` and ``reparam31`` (a stage of RepLKNet's blocks as they are trained, 128 channels at
28x28 and 64 at 56x56: 13x13 or 31x31 and a parallel 5x5, each with batch norm). No time is printed
before outputs and gradients of the plain and the accelerated network have been compared.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from omniconv.compare.worker import PINNED, allocator

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMS = ("plain", "accelerated", "identity")
LAYOUTS = ("contiguous", "channels_last")


def main() -> None:
    """Measure in a fresh process and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks; default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, help="images in a step; default: each network's own")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(NETWORKS)):
        parser.error(f"NAME must be one of {', '.join(NETWORKS)}, got {', '.join(unknown)}")
    if os.environ.get("GLIBC_TUNABLES") != PINNED:  # read by the C library at start only
        environment = os.environ | {"GLIBC_TUNABLES": PINNED}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    names = options.names or list(NETWORKS)
    result = measure(names, options.threads, options.repeats, options.batch)
    print(json.dumps(result, indent=1) if options.json else table(result))


def measure(names: list[str], threads: int, repeats: int, batch: int | None) -> dict[str, Any]:
    """The steps of all networks, and the machine."""
    import torch

    torch.set_num_threads(threads)
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
        "networks": {name: network(name, repeats, batch) for name in names},
    }


def network(name: str, repeats: int, batch: int | None) -> dict[str, Any]:
    """One network: its steps in milliseconds, and what they mean."""
    import torch

    import omniconv as oc
    from omniconv.analysis import count_parameters, time_steps

    build, shape, usual = NETWORKS[name]
    torch.manual_seed(0)
    plain = build()
    forms = {form: copy.deepcopy(plain) for form in FORMS}
    done = len(oc.accelerate_(forms["accelerated"]).accelerated)
    without_(forms["identity"])
    x = torch.randn(batch or usual, *shape)
    check(forms["plain"], forms["accelerated"], x[:2])
    models = [in_layout(model, layout) for model in forms.values() for layout in LAYOUTS]
    times = iter(time_steps(models, x, repeats=repeats))
    steps = {form: {layout: next(times).ms for layout in LAYOUTS} for form in FORMS}
    best = {form: min(found.values()) for form, found in steps.items()}
    saved, free = best["plain"] - best["accelerated"], best["plain"] - best["identity"]
    return {
        "input": list(x.shape),
        "parameters": count_parameters(plain),
        "depthwise_layers": done,
        "step_ms": steps,
        "best_ms": best,
        "faster": best["plain"] / best["accelerated"],
        "at_most": best["plain"] / best["identity"],
        "reached": saved / free,
    }


def without_(model: nn.Module) -> None:
    """Put an Identity in place of every depthwise layer."""
    from torch import nn

    import omniconv as oc

    for path, module in list(model.named_modules()):
        if oc.where.depthwise(path, module):
            model.set_submodule(path, nn.Identity())


def check(plain: nn.Module, fast: nn.Module, x: Tensor) -> None:
    """Outputs and gradients of both are the same to rounding."""
    import torch

    found = []
    for model in (plain, fast):
        model.train().zero_grad()
        y = model(x)
        y.square().mean().backward()
        found.append([y.detach(), *(p.grad for p in model.parameters())])
        model.zero_grad()
    for one, other in zip(*found, strict=True):
        scale = float(one.abs().max().clamp_min(1e-12))
        torch.testing.assert_close(other / scale, one / scale, rtol=0, atol=2e-3)


def in_layout(model: nn.Module, layout: str) -> nn.Module:
    """A copy that computes in this layout, whatever that of its input."""
    import torch
    from torch import nn

    class InLayout(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            last = layout == "channels_last"
            self.format = torch.channels_last if last else torch.contiguous_format
            self.model = copy.deepcopy(model).to(memory_format=self.format)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x.contiguous(memory_format=self.format))

    return InLayout()


def convnext() -> nn.Module:
    """ConvNeXt-T of Liu et al. (CVPR 2022) without stochastic depth."""
    import torch
    from torch import nn

    class Norm(nn.LayerNorm):
        """Over the channels of (B, C, H, W)."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
            self.mix = nn.Sequential(
                nn.LayerNorm(width, eps=1e-6),
                nn.Linear(width, 4 * width),
                nn.GELU(),
                nn.Linear(4 * width, width),
            )
            self.scale = nn.Parameter(torch.full((width,), 0.1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.mix(self.depthwise(x).permute(0, 2, 3, 1)) * self.scale
            return x + y.permute(0, 3, 1, 2)

    widths, depths = (96, 192, 384, 768), (3, 3, 9, 3)
    parts: list[nn.Module] = [nn.Conv2d(3, 96, 4, stride=4), Norm(96, eps=1e-6)]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if stage:
            parts += [
                Norm(widths[stage - 1], eps=1e-6),
                nn.Conv2d(widths[stage - 1], width, 2, stride=2),
            ]
        parts += [Block(width) for _ in range(depth)]
    head = [nn.AdaptiveAvgPool2d(1), Norm(768, eps=1e-6), nn.Flatten(), nn.Linear(768, 1000)]
    return nn.Sequential(*parts, *head)


def convmixer() -> nn.Module:
    """ConvMixer-256/8 of Trockman and Kolter (2022) for CIFAR-10: patches of 1, kernels of 9."""
    from torch import nn

    class Residual(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x)

    parts: list[nn.Module] = [nn.Conv2d(3, 256, 1), nn.GELU(), nn.BatchNorm2d(256)]
    for _ in range(8):
        depthwise = nn.Conv2d(256, 256, 9, groups=256, padding="same")
        parts += [Residual(depthwise, nn.GELU(), nn.BatchNorm2d(256))]
        parts += [nn.Conv2d(256, 256, 1), nn.GELU(), nn.BatchNorm2d(256)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


def reparameterised(width: int, size: int, depth: int) -> nn.Module:
    """Blocks of RepLKNet (Ding et al., CVPR 2022) as they are trained, each with its ConvFFN."""
    from torch import nn

    def normed(*arguments: int, **keywords: int) -> nn.Module:
        conv = nn.Conv2d(*arguments, **keywords, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large = normed(width, width, size, padding=size // 2, groups=width)
            self.small = normed(width, width, 5, padding=2, groups=width)

        def forward(self, x: Tensor) -> Tensor:
            return self.large(x) + self.small(x)

    class Residual(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x)

    parts: list[nn.Module] = []
    for _ in range(depth):
        mix = [normed(width, width, 1), nn.ReLU(), Large(), nn.ReLU(), normed(width, width, 1)]
        feed = [normed(width, 4 * width, 1), nn.GELU(), normed(4 * width, width, 1)]
        parts += [
            Residual(nn.BatchNorm2d(width), *mix),
            Residual(nn.BatchNorm2d(width), *feed),
        ]
    return nn.Sequential(*parts)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], int]] = {
    "convnext": (convnext, (3, 224, 224), 2),
    "convmixer": (convmixer, (3, 32, 32), 8),
    "reparam13": (lambda: reparameterised(128, 13, 4), (128, 28, 28), 8),
    "reparam31": (lambda: reparameterised(64, 31, 2), (64, 56, 56), 2),
}
"""Name -> how it is built, the shape of an image, and how many are in a step."""


def table(result: dict[str, Any]) -> str:
    """A line per network: milliseconds of a step, and what was gained of what there is to gain."""
    from omniconv.core.table import text_table

    lines = [["network", "input", *FORMS, "faster", "at most", "reached"]]
    for name, found in result["networks"].items():
        times = [f"{found['best_ms'][form]:.1f} ms" for form in FORMS]
        ratios = [f"{found['faster']:.2f}x", f"{found['at_most']:.2f}x", f"{found['reached']:.0%}"]
        lines.append([name, "x".join(map(str, found["input"])), *times, *ratios])
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    return "\n".join([machine, *text_table(lines, 2)])


if __name__ == "__main__":
    main()
