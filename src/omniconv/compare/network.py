"""The network of a row: the backbone with the row's convolution in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from omniconv import models
from omniconv.compare.rows import PLAIN
from omniconv.core import args
from omniconv.surgery.swap import MixerPointwise, swap_
from omniconv.surgery.where import name as named
from omniconv.tasks.dataset import Dataset

__all__ = ["Network", "build", "learned_kernels"]

PLAIN_ARGUMENTS = ("kernel_size",)
MOST_LAYERS = 3
MOST_KERNELS = 16
DIGITS = 5


class Network:
    """A model, the paths of the convolutions that ``where`` selects, and what became of them.

    Attributes:
        model: The module.
        paths: Paths of the selected convolutions, swapped or not.
        swap: One mapping per layer that the operator was to replace, as ``SwapRow``; empty for
            the plain backbone.
    """

    def __init__(self, model: nn.Module, paths: list[str], swap: list[dict[str, str]]) -> None:
        self.model = model
        self.paths = paths
        self.swap = swap


def build(point: Mapping[str, Any], dataset: Dataset, device: str = "cpu") -> Network:
    """The freshly drawn network of a point (see :meth:`omniconv.compare.plan.Plan.points`).

    Raises:
        ValueError: Unknown backbone or operator, or an argument it cannot take.
        TypeError: Unknown argument, or one of another type.
    """
    row = point["row"]
    with torch.device(device):
        model = models.build(
            point["backbone"],
            in_channels=dataset.channels,
            classes=len(dataset.classes),
            width=max(1, round(point["width"] * row["width"])),
        )
    where = named(point["where"])
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and where(path, module)
    ]
    layers: list[dict[str, str]] = []
    if row["operator"] == PLAIN:
        _check_plain(row["arguments"])
        if row["arguments"]:
            report = swap_(model, _Resized(row["arguments"]["kernel_size"]), where)
            layers = [asdict(layer) for layer in report.layers]
            for layer in layers:
                layer["weights"] = layer["weights"] and "new"
    else:
        report = swap_(model, row["operator"], where, from_weights=False, **row["arguments"])
        layers = [asdict(layer) for layer in report.layers]
    model.to(getattr(torch, point["dtype"]))
    return Network(model, paths, layers)


def _check_plain(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name not in PLAIN_ARGUMENTS:
            allowed = (*PLAIN_ARGUMENTS, "width", "lr")
            hint = args.did_you_mean(name, allowed)
            raise TypeError(
                f"arguments of the plain layer must be among {', '.join(allowed)}, "
                f"got {name!r}{hint}"
            )
        args.ntuple(name, value, 2, 1)


class _Resized:
    """A factory of plain layers with another kernel size on the same output grid.

    The new kernel is normal with the old one's mean square times fan-in, so that it starts as the
    backbone's own layers do.
    """

    def __init__(self, kernel_size: Any) -> None:
        self.kernel_size: Any = args.ntuple("kernel_size", kernel_size, 2, 1)

    def __call__(self, conv: Any) -> nn.Module:
        steps = [new - old for new, old in zip(self.kernel_size, conv.kernel_size, strict=True)]
        if any(step % 2 for step in steps):
            raise ValueError(
                f"kernel_size must differ from {tuple(conv.kernel_size)} by even numbers, "
                f"got {self.kernel_size}"
            )
        padding = conv.padding
        if padding != "same":
            before = (0, 0) if padding == "valid" else padding
            grown = zip(before, steps, conv.dilation, strict=True)
            padding = tuple(p + step // 2 * d for p, step, d in grown)
        if padding != "same" and min(padding) < 0:
            raise ValueError(
                f"kernel_size must be at least {tuple(conv.kernel_size)} where the padding is "
                f"{conv.padding}, got {self.kernel_size}"
            )
        new = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            self.kernel_size,
            stride=conv.stride,
            padding=padding,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        if not new.weight.is_meta:
            energy = conv.weight.detach().square().mean() * conv.weight[0].numel()
            nn.init.normal_(new.weight, 0.0, float((energy / new.weight[0].numel()).sqrt()))
        return new


def learned_kernels(network: Network) -> list[dict[str, Any]]:
    """The kernels of up to three selected layers, spread over the depth, for pictures.

    Of each layer the kernels from its first input channel to its first 16 outputs; None where a
    layer is not one kernel.
    """
    return [_kernels(path, network.model.get_submodule(path)) for path in _spread(network.paths)]


def _spread(paths: Sequence[str]) -> list[str]:
    count = min(MOST_LAYERS, len(paths))
    return [paths[i * (len(paths) - 1) // max(1, count - 1)] for i in range(count)]


def _kernels(path: str, module: nn.Module) -> dict[str, Any]:
    layer = module.mixer if isinstance(module, MixerPointwise) else module
    found = None
    if isinstance(layer, nn.Conv2d):
        weight = layer.weight.detach().float()[:MOST_KERNELS, 0]
        found = [[[_short(v) for v in line] for line in kernel] for kernel in weight.tolist()]
    return {"layer": path, "type": type(layer).__name__, "kernels": found}


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
