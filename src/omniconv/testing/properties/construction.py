"""Construction: torch's constructor and attributes, and a draw that trains like the plain layer."""

from __future__ import annotations

import inspect
import math

import torch

from omniconv.core.card import Sample
from omniconv.testing.registry import asserts
from omniconv.testing.subject import Subject, tensors
from omniconv.testing.tolerances import require

ATTRIBUTES = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
    "transposed",
    "output_padding",
)
DRAWS = 12
LARGEST = {1: 31, 2: 7, 3: 3}
"""Number of axes -> largest kernel extent of the statistical check."""


@asserts(1)
def signature(subject: Subject, sample: Sample) -> None:
    """The constructor is ``nn.ConvNd``'s: names, order, defaults; own arguments keyword-only."""
    ours = list(inspect.signature(subject.layer).parameters.values())
    torch_like = list(inspect.signature(subject.plain).parameters.values())
    for mine, right in zip(ours, torch_like, strict=False):
        require(
            (mine.name, mine.default, mine.kind) == (right.name, right.default, right.kind),
            f"argument {mine} must be torch's {right}",
        )
    require(len(ours) >= len(torch_like), f"arguments {torch_like[len(ours) :]} are missing")
    for own in ours[len(torch_like) :]:
        require(
            own.kind is own.KEYWORD_ONLY and own.default is not own.empty,
            f"own argument {own.name} must be keyword-only and have a default",
        )


@asserts(1, on=())
def attributes(subject: Subject, sample: Sample) -> None:
    """A layer has torch's public attributes with torch's values."""
    layer, plain = subject.build(sample), subject.build_plain(sample, device="meta")
    for name in ATTRIBUTES:
        if name == "groups" and not subject.card.mixes_channels:
            continue
        mine, right = getattr(layer, name), getattr(plain, name)
        require(mine == right, f"{name} is {mine!r}, torch's layer has {right!r}")
    # the positions of a finer grid have biases of their own
    finer = math.prod(up for _, up in subject.rates(sample))
    mine, right = (None if m.bias is None else tuple(m.bias.shape) for m in (layer, plain))
    right = None if right is None else (right[0] * finer,)
    require(mine == right, f"bias has shape {mine}, torch's layer has {right}")


@asserts(1)
def seeds(subject: Subject, sample: Sample) -> None:
    """Construction draws from torch's random state as it finds it and never reseeds it."""
    states, drawn = [], []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        drawn.append(subject.build(sample).state_dict())
        states.append(torch.get_rng_state())
    require(not torch.equal(states[0], states[1]), "construction sets torch's random seed")
    require(torch.equal(states[0], states[2]), "construction draws from elsewhere than torch")
    for name, first in drawn[0].items():
        require(torch.equal(first, drawn[2][name]), f"{name} is not reproducible by torch's seed")
    layer = subject.build(sample)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    layer.reset_parameters()
    same = [name for name, p in layer.named_parameters() if torch.equal(p, before[name])]
    require(
        len(same) < len(before), f"reset_parameters() draws nothing anew: {', '.join(same)} stay"
    )


def _not_default(subject: Subject) -> str:
    return "" if subject.variant == "default" else "promised at default arguments only"


@asserts(1, skip=_not_default)
def initial_variance(subject: Subject, sample: Sample) -> None:
    """At default arguments computed outputs have the plain layer's variance, to 15 %."""
    multiple = subject.card.channel_multiple(subject.own)
    channels = 16 // multiple * multiple or multiple
    extent = min(subject.card.default_extent, LARGEST[subject.dim])
    arguments = {
        "in_channels": channels,
        "out_channels": channels if subject.card.role == "mixer" else 2 * channels,
        "kernel_size": extent,
    }
    cells = extent + (31, 5, 2)[subject.dim - 1]
    size = tuple(cells * down for down, _ in subject.card.rates(subject.own, subject.dim))
    wide = Sample(arguments=arguments, size=size)
    passing = set(subject.card.passing(subject.build(wide)))
    computed = [c for c in range(arguments["out_channels"]) if c not in passing]
    found = {"layer": 0.0, "plain": 0.0}
    for _ in range(DRAWS):
        x = subject.draw(wide, batch=4)[0]
        with torch.no_grad():
            outputs = tensors(subject.build(wide)(x))[0][:, computed]
            found["layer"] += float(outputs.var()) / DRAWS
            found["plain"] += float(subject.build_plain(wide)(x).var()) / DRAWS
    ratio = found["layer"] / found["plain"]
    require(0.85 <= ratio <= 1.15, f"the output variance is {ratio:.3f} times the plain layer's")
