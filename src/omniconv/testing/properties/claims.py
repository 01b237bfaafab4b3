"""Claims: what the card says about symmetry and cost is what the layer does."""

from __future__ import annotations

from collections.abc import Callable

from omniconv.analysis import count_flops
from omniconv.core.card import Sample
from omniconv.testing.registry import asserts
from omniconv.testing.subject import Subject, tensors
from omniconv.testing.tolerances import require, require_near


@asserts(1, on=("basic", "groups", "same", "circular", "unbatched", "everything", "own"))
def flops(subject: Subject, sample: Sample) -> None:
    """The card's FLOP formulas, forward and backward, equal what is counted."""
    layer = subject.trained(sample)
    x = subject.draw(sample)[0].requires_grad_()
    for training in subject.modes:
        counted = count_flops(layer.train(training), x, backward=True)
        require(not counted.unknown, f"count_flops has no rule for {', '.join(counted.unknown)}")
        claimed = subject.card.flops(layer, tuple(x.shape))
        found = (counted.forward, counted.backward)
        require(claimed == found, f"the card says {claimed} FLOPs, counted are {found}:\n{counted}")


def _no_claim(subject: Subject) -> str:
    return "" if subject.card.equivariance else "the card claims no equivariance"


@asserts(1, on=("basic", "stride", "dilation", "groups", "everything"), skip=_no_claim)
def equivariance(subject: Subject, sample: Sample) -> None:
    """Each transformation that the card claims commutes with the layer."""
    for claim in subject.card.equivariance:
        require(claim in CHECKS, f"the card claims {claim!r}, for which there is no check")
        CHECKS[claim](subject, sample)


def _translation(subject: Subject, sample: Sample) -> None:
    """A shift by one stride shifts the output by one, away from the borders.

    Without padding, outputs next to a border may still look a stride further than the kernel
    (involution), and those of a transposed layer within the kernel's reach miss some inputs.
    """
    bare = {"output_padding": 0} if subject.transposed else {"padding_mode": "zeros"}
    layer = subject.trained(sample, padding=0, **bare)
    g = layer.geometry
    rates = subject.rates(sample)
    size = tuple(
        n + (5 * s + d * (k - 1)) * down
        for n, s, d, k, (down, _) in zip(
            sample.size, g.stride, g.dilation, g.kernel_size, rates, strict=True
        )
    )
    inputs = subject.draw(sample, size=size, batch=sample.batch or 1)
    for axis in range(subject.dim):
        down, up = rates[axis]
        step, shift = (1, g.stride[axis]) if g.transposed else (g.stride[axis] * down, up)
        at = 2 + axis
        length = size[axis] - step
        first = tensors(layer(*(t.narrow(at, 0, length) for t in inputs)))[0]
        second = tensors(layer(*(t.narrow(at, step, length) for t in inputs)))[0]
        edge = g.dilation[axis] * (g.kernel_size[axis] - 1) if g.transposed else up
        count = first.shape[at] - shift - 2 * edge
        require(count > 0, f"the sample leaves no interior on axis {axis}")
        moved = second.narrow(at, edge, count)
        right = first.narrow(at, edge + shift, count)
        terms = subject.length(layer, *inputs)
        require_near(f"the output shifted along axis {axis}", moved, right, length=terms)


CHECKS: dict[str, Callable[[Subject, Sample], None]] = {"translation": _translation}
