"""The network of a row: the backbone with the row's convolution in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from omniconv import models
from omniconv.compare.rows import DEPTHWISE, PLAIN
from omniconv.core import args
from omniconv.surgery.accelerate import accelerate_
from omniconv.surgery.swap import MixerPointwise, swap_
from omniconv.surgery.where import name as named
from omniconv.tasks.task import TaskData

__all__ = ["BODY", "Network", "build"]

BODY = "body"
"""``where`` of the layers that a backbone calls its body."""

PLAIN_ARGUMENTS = ("kernel_size",)
VALUES = re.compile(
    r"(?:normal|uniform|kaiming_normal|kaiming_uniform|trunc_normal|constant|fill|zero|ones|clamp|"
    r"add|sub|mul|div|copy)_"
)
"""Names of functions of torch and ``nn.init`` that change a tensor's values and nothing else."""


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

    @property
    def extents(self) -> set[tuple[int, ...]]:
        """Kernel sizes of the selected layers, as they are now."""
        modules = [self.model.get_submodule(path) for path in self.paths]
        layers: list[Any] = [m.mixer if isinstance(m, MixerPointwise) else m for m in modules]
        return {tuple(layer.kernel_size) for layer in layers}


def build(point: Mapping[str, Any], data: TaskData, device: str = "cpu") -> Network:
    """The freshly drawn network of a point (see :meth:`omniconv.compare.plan.Plan.point`).

    Raises:
        ValueError: Unknown backbone or operator, or an argument it cannot take.
        TypeError: Unknown argument, or one of another type.
    """
    with _Valueless() if device == "meta" else nullcontext():
        return _build(point, data, device)


class _Valueless(TorchFunctionMode):
    """Sets no values where there is no memory: torch would import its compiler for that."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if VALUES.fullmatch(getattr(func, "__name__", "")):
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def _build(point: Mapping[str, Any], data: TaskData, device: str) -> Network:
    row = point["row"]
    with torch.device(device):
        model = models.build(
            point["backbone"],
            in_channels=data.channels,
            classes=len(data.classes) or None,
            width=max(1, round(point["width"] * row["width"])),
        )
    patterns: Any = model.body if point["where"] == BODY else point["where"]
    where = named(*([patterns] if isinstance(patterns, str) else patterns))
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and where(path, module)
    ]
    layers: list[dict[str, str]] = []
    operator, arguments = row["operator"], row["arguments"]
    if operator in (PLAIN, DEPTHWISE):
        _check_plain(operator, arguments)
        if arguments or operator == DEPTHWISE:
            factory = _Plain(arguments.get("kernel_size"), depthwise=operator == DEPTHWISE)
            report = swap_(model, factory, where)
            layers = [asdict(layer) for layer in report.layers]
            for layer in layers:
                layer["weights"] = layer["weights"] and "new"
    else:
        report = swap_(model, operator, where, from_weights=False, **arguments)
        layers = [asdict(layer) for layer in report.layers]
    model.to(getattr(torch, point["dtype"]))
    if point["backend"] != "torch":
        accelerate_(model)
    return Network(model, paths, layers)


def _check_plain(operator: str, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name not in PLAIN_ARGUMENTS:
            allowed = (*PLAIN_ARGUMENTS, "width", "lr")
            hint = args.did_you_mean(name, allowed)
            raise TypeError(
                f"arguments of {operator!r} must be among {', '.join(allowed)}, got {name!r}{hint}"
            )
        args.ntuple(name, value, 2, 1)


class _Plain:
    """A factory of torch's own layers on the same output grid.

    A new kernel is normal with the old one's mean square times fan-in, so that it starts as the
    backbone's own layers do.

    Args:
        kernel_size: Another kernel size; None for the layer's own.
        depthwise: Make depthwise and pointwise of a dense layer.
    """

    def __init__(self, kernel_size: Any = None, *, depthwise: bool = False) -> None:
        self.kernel_size: Any = (
            None if kernel_size is None else args.ntuple("kernel_size", kernel_size, 2, 1)
        )
        self.depthwise = depthwise

    def __call__(self, conv: Any) -> nn.Module:
        size = conv.kernel_size if self.kernel_size is None else self.kernel_size
        padding = _padding(conv, size)
        split = self.depthwise and not conv.groups == conv.in_channels == conv.out_channels
        new = nn.Conv2d(
            conv.in_channels,
            conv.in_channels if split else conv.out_channels,
            size,
            stride=conv.stride,
            padding=padding,
            dilation=conv.dilation,
            groups=conv.in_channels if split else conv.groups,
            bias=conv.bias is not None and not split,
            padding_mode=conv.padding_mode,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        parts = [new]
        if split:
            parts.append(
                nn.Conv2d(
                    conv.in_channels,
                    conv.out_channels,
                    1,
                    groups=conv.groups,
                    bias=conv.bias is not None,
                    device=conv.weight.device,
                    dtype=conv.weight.dtype,
                )
            )
        if not conv.weight.is_meta:
            energy = conv.weight.detach().square().mean() * conv.weight[0].numel()
            for part in parts:
                deviation = float((energy / part.weight[0].numel()).sqrt())
                nn.init.normal_(part.weight, 0.0, deviation)
        return MixerPointwise(*parts) if split else new


def _padding(conv: Any, size: tuple[int, ...]) -> Any:
    """Padding that keeps the output grid with kernels of another size."""
    steps = [new - old for new, old in zip(size, conv.kernel_size, strict=True)]
    if any(step % 2 for step in steps):
        raise ValueError(
            f"kernel_size must differ from {tuple(conv.kernel_size)} by even numbers, got {size}"
        )
    if conv.padding == "same":
        return "same"
    before = (0, 0) if conv.padding == "valid" else conv.padding
    grown = zip(before, steps, conv.dilation, strict=True)
    padding = tuple(p + step // 2 * d for p, step, d in grown)
    if min(padding) < 0:
        raise ValueError(
            f"kernel_size must be at least {tuple(conv.kernel_size)} where the padding is "
            f"{conv.padding}, got {size}"
        )
    return padding
