"""Architectures, and :func:`build`, which makes one from its name."""

from __future__ import annotations

import re

from torch import nn

from omniconv.core import args
from omniconv.models.resnet_cifar import MAX_DEPTH, ResNet, nearest_depth, resnet

__all__ = ["ResNet", "build", "resnet"]


def build(name: str, *, in_channels: int = 3, classes: int = 10, width: int = 16) -> nn.Module:
    """A new network by name: ``resnet<depth>`` with depth 6n + 2, for example ``resnet20``.

    Args:
        name: Name of the backbone.
        in_channels: Channels of the images.
        classes: Number of logits.
        width: Channels of the first stage.

    Returns:
        A network ``(B, in_channels, H, W) -> (B, classes)`` with fresh weights.

    Raises:
        ValueError: Unknown name or depth, or a number below 1.
        TypeError: ``name`` is not a string, or a number is not an int.
    """
    wanted = f"backbone must be 'resnet<depth>' with depth 6 n + 2 (8, 14, 20, ..., {MAX_DEPTH})"
    if not isinstance(name, str):
        raise TypeError(f"{wanted}, got {args.show(name)} ({type(name).__name__})")
    match = re.fullmatch(r"resnet([1-9][0-9]{0,8})", name)
    if match is None:
        digits = re.search(r"[1-9][0-9]{0,8}", name)
        guess = f"resnet{nearest_depth(int(digits[0]))}" if digits else "resnet20"
        raise ValueError(f"{wanted}, got {args.show(name)}{args.did_you_mean(name, [guess])}")
    depth = int(match[1])
    if depth != nearest_depth(depth):
        guess = f"resnet{nearest_depth(depth)}"
        raise ValueError(f"{wanted}, got {name!r} (did you mean {guess!r}?)")
    return resnet(depth, in_channels=in_channels, classes=classes, width=width)
