"""Masks: layers of role masked, ``(x, mask=None) -> (y, mask)``."""

from __future__ import annotations

from typing import Any

import torch

from omniconv.core.card import Sample
from omniconv.testing.registry import asserts
from omniconv.testing.subject import Subject
from omniconv.testing.tolerances import require, require_equal, require_near

ON = ("basic", "stride", "everything")
ROLES = ("masked",)


@asserts(1, on=(*ON, "same", "unbatched"), roles=ROLES)
def full_mask(subject: Subject, sample: Sample) -> None:
    """A full mask is no mask: the plain convolution; other variants may differ at the borders."""
    edges = {} if subject.variant == "default" else {"padding": 0, "padding_mode": "zeros"}
    plain = subject.build_plain(sample, **edges)
    kind: Any = subject.layer
    layer = kind.from_conv(plain, **subject.own_arguments(sample))
    x, mask = subject.draw(sample, size=tuple(4 * n for n in sample.size))
    full, new = layer(x, torch.ones_like(mask))
    bare, implied = layer(x)
    require_near("the output", full, plain(x), length=subject.length(layer, x))
    require_equal("the output without mask", bare, full)
    require_equal("the mask without mask", implied, new)
    require(bool((new == 1).all()), "a full mask must stay full")


@asserts(1, on=ON, roles=ROLES)
def empty_mask(subject: Subject, sample: Sample) -> None:
    """Under an empty mask output, mask and gradients are 0 and finite."""
    layer = subject.trained(sample)
    x, mask = subject.draw(sample)
    x.requires_grad_()
    y, new = layer(x, torch.zeros_like(mask))
    require(not y.any(), "the output under an empty mask must be 0")
    require(not new.any(), "an empty mask must stay empty")
    wanted = [x, *layer.parameters()]
    for gradient in torch.autograd.grad(y.sum(), wanted, allow_unused=True):
        require(gradient is None or not gradient.any(), "a gradient under an empty mask must be 0")


@asserts(1, on=ON, roles=ROLES)
def mask_channels(subject: Subject, sample: Sample) -> None:
    """A mask with one channel means the same mask for every channel, and hidden values are free."""
    layer = subject.trained(sample)
    x, mask = subject.draw(sample)
    y, new = layer(x, mask)
    wide, new_wide = layer(x, mask.expand(-1, x.shape[1], *mask.shape[2:]))
    length = subject.length(layer, x)
    require_near("the output under the widened mask", wide, y, length=length)
    require(
        bool((new_wide.amax(1) == new.amax(1)).all()),
        "the widened mask must be updated as the one with one channel",
    )
    hidden = torch.where(mask.bool(), x, torch.randn_like(x))
    require_near("the output", layer(hidden, mask)[0], y, length=length)
