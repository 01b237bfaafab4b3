"""Backbones by name, and the task each is for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from omniconv.core import args
from omniconv.models import dncnn, nafnet, resnet_cifar, unified, vgg

__all__ = ["BACKBONES", "Backbone", "build", "task_of"]

DIGITS = "[1-9][0-9]{0,8}"


class Backbone(NamedTuple):
    """One row of ``BACKBONES``.

    Attributes:
        builder: Makes the network from ``depth`` or ``name``, ``in_channels``, ``width`` and, for
            classification, ``classes``.
        task: ``classify``: ``(B, in_channels, H, W) -> (B, classes)``; ``denoise``:
            ``(B, in_channels, H, W)`` to the same shape.
        depths: What the depth in the name may be, in words; empty where the name has none.
        nearest: The allowed depth nearest to a number; None where the name has none.
    """

    builder: Callable[..., nn.Module]
    task: str
    depths: str = ""
    nearest: Callable[[int], int] | None = None


BACKBONES: dict[str, Backbone] = {
    "resnet<depth>": Backbone(
        resnet_cifar.resnet,
        "classify",
        f"depth 6 n + 2 (8, 14, 20, ..., {resnet_cifar.MAX_DEPTH})",
        resnet_cifar.nearest_depth,
    ),
    "vgg<depth>": Backbone(
        vgg.vgg,
        "classify",
        f"depth {', '.join(map(str, vgg.LAYOUTS))}",
        lambda depth: min(vgg.LAYOUTS, key=lambda allowed: abs(allowed - depth)),
    ),
    **{name: Backbone(unified.unified, "classify") for name in unified.SIZES},
    "dncnn<depth>": Backbone(
        dncnn.dncnn,
        "denoise",
        f"depth from 3 to {dncnn.MAX_DEPTH}",
        lambda depth: min(max(depth, 3), dncnn.MAX_DEPTH),
    ),
    **{name: Backbone(nafnet.nafnet, "denoise") for name in nafnet.ARRANGEMENTS},
}
"""Pattern of the name, where ``<depth>`` stands for a number, -> builder and task."""

USUAL = {"resnet<depth>": 20, "vgg<depth>": 11, "dncnn<depth>": 17}


def build(
    name: str, *, in_channels: int = 3, classes: int | None = 10, width: int | None = None
) -> nn.Module:
    """A new network by name, for example ``resnet20``, ``vgg11``, ``dncnn17`` or ``unified``.

    Every network has ``task``, as :func:`task_of`, and ``body``: shell patterns of the paths of
    the convolutions that a comparison of operators replaces. Those for classification have
    ``features(x)``, the last map of their forward pass.

    Args:
        name: Name of the backbone; the patterns are the keys of ``BACKBONES``.
        in_channels: Channels of the images.
        classes: Number of logits; networks for denoising have none and ignore it.
        width: Channels of the first stage; None for the published number.

    Returns:
        A network with fresh weights: ``(B, in_channels, H, W) -> (B, classes)``, or for denoising
        ``(B, in_channels, H, W)`` to the same shape.

    Raises:
        ValueError: Unknown name or depth, or a number below 1.
        TypeError: ``name`` is not a string, or a number is not an int.
    """
    pattern, depth = _find(name)
    backbone = BACKBONES[pattern]
    given: dict[str, Any] = {"in_channels": in_channels}
    if backbone.task == "classify":
        given["classes"] = classes
    if width is not None:
        given["width"] = width
    return backbone.builder(name if depth is None else depth, **given)


def task_of(name: str) -> str:
    """The task a backbone is for: ``classify`` or ``denoise``.

    Raises:
        ValueError: Unknown name or depth.
        TypeError: ``name`` is not a string.
    """
    return BACKBONES[_find(name)[0]].task


def _find(name: str) -> tuple[str, int | None]:
    """The key of ``BACKBONES`` that ``name`` matches, and its depth."""
    wanted = f"backbone must be {_listed()}"
    if not isinstance(name, str):
        raise TypeError(f"{wanted}, got {args.show(name)} ({type(name).__name__})")
    if name in BACKBONES and "<" not in name:
        return name, None
    match = re.fullmatch(f"([a-z]+)({DIGITS})", name)
    pattern = f"{match[1]}<depth>" if match else ""
    if match and pattern in BACKBONES:
        depth, nearest = int(match[2]), _nearest(pattern, int(match[2]))
        if depth == nearest:
            return pattern, depth
        guess = pattern.replace("<depth>", str(nearest))
        raise ValueError(f"{wanted}, got {name!r} (did you mean {guess!r}?)")
    digits = re.search(DIGITS, name)
    guesses = [known for known in BACKBONES if "<" not in known]
    for family, usual in USUAL.items():
        depth = _nearest(family, int(digits[0])) if digits else usual
        guesses.append(family.replace("<depth>", str(depth)))
    raise ValueError(f"{wanted}, got {args.show(name)}{args.did_you_mean(name.lower(), guesses)}")


def _nearest(pattern: str, depth: int) -> int:
    nearest = BACKBONES[pattern].nearest
    return depth if nearest is None else nearest(depth)


def _listed() -> str:
    known = [
        f"{pattern!r} with {row.depths}" if row.depths else repr(pattern)
        for pattern, row in BACKBONES.items()
    ]
    return f"{', '.join(known[:-1])} or {known[-1]}"
