"""Layouts: how values lie in memory does not matter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from omniconv.core.card import Sample
from omniconv.testing.registry import asserts
from omniconv.testing.subject import Subject, evaluate
from omniconv.testing.tolerances import require_near

FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}


def _no_format(subject: Subject) -> str:
    known = subject.dim in FORMATS
    return "" if known else "torch has a channels-last format for 2 and 3 axes only"


@asserts(
    1,
    on=("basic", "even kernel", "groups", "depthwise", "everything", "one channel, batch 1", "own"),
    skip=_no_format,
)
def channels_last(subject: Subject, sample: Sample) -> None:
    """Channels-last inputs, and ``.to(memory_format=)`` of a model holding it, change nothing."""
    layer = subject.trained(sample, dtype=torch.float32)
    inputs = subject.draw(sample, torch.float32, batch=sample.batch or 1)
    expected = evaluate(layer, layer, inputs)
    length = subject.length(layer, *inputs)
    moved = tuple(map(_with_channels_last, inputs))
    evaluate(layer, layer, moved).require_near(expected, length=length, case=" (channels last)")
    model: Any = nn.ModuleList([copy.deepcopy(layer)])
    model.to(memory_format=FORMATS[subject.dim])
    for given, case in ((inputs, " (model moved)"), (moved, " (model and input moved)")):
        actual = evaluate(model[0], model[0], given)
        actual.require_near(expected, length=length, case=case)


@asserts(1, on=("basic", "everything", "circular", "own"))
def strided(subject: Subject, sample: Sample) -> None:
    """Strided, transposed and expanded inputs give what contiguous ones give."""
    layer = subject.trained(sample)
    inputs = subject.draw(sample, batch=sample.batch or 2)
    for name, change in LAYOUTS.items():
        moved = tuple(map(change, inputs))
        values = tuple(t.contiguous() for t in moved)
        expected = evaluate(layer, layer, values)
        actual = evaluate(layer, layer, moved)
        length = subject.length(layer, *inputs)
        actual.require_near(expected, length=length, case=f" ({name})")


@asserts(1, on=("basic", "groups", "circular", "same", "everything", "stride", "own"))
def unbatched(subject: Subject, sample: Sample) -> None:
    """An input without batch axis gives what the same input gives inside a batch."""
    layer = subject.trained(sample)
    inputs = subject.draw(sample, batch=2)
    batched = evaluate(layer, layer, inputs)
    length = subject.length(layer, *inputs)
    singles = [
        evaluate(
            layer,
            layer,
            tuple(t[i] for t in inputs),
            tuple(c[i] for c in batched.cotangents),
        )
        for i in range(2)
    ]
    for i, single in enumerate(singles):
        for output, whole in zip(single.outputs, batched.outputs, strict=True):
            require_near("the unbatched output", output, whole[i], length=length)
    for name, whole in batched.gradients.items():
        parts = [single.gradients[name] for single in singles]
        total = torch.stack(parts) if name == "input" else parts[0] + parts[1]
        require_near(f"the unbatched gradient of {name}", total, whole, length=length)


def _with_channels_last(x: Tensor) -> Tensor:
    """A copy whose channels vary fastest, with the strides to match even for one channel."""
    target = torch.empty(x.shape[0], *x.shape[2:], x.shape[1], dtype=x.dtype).movedim(-1, 1)
    return target.copy_(x)


def _every_second(x: Tensor) -> Tensor:
    """A view of every second entry along the last axis of a larger tensor, from its second one."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), float("nan"), dtype=x.dtype)
    return wide[..., 1::2].copy_(x)


def _reversed_axes(x: Tensor) -> Tensor:
    """The same values, stored with the axes in reverse order."""
    axes = tuple(reversed(range(x.dim())))
    return x.permute(axes).contiguous().permute(axes)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "every second entry": _every_second,
    "axes stored in reverse": _reversed_axes,
    "one sample expanded over the batch": lambda x: x[:1].expand_as(x),
    "one channel expanded over all": lambda x: x[:, :1].expand_as(x),
    "one value expanded over the last axis": lambda x: x[..., :1].expand_as(x),
}
