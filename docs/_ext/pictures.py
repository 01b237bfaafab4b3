"""Pictures of an operator, made from its layers: their kernels, and an image that went through.

All draw with one seed. Strength is opacity in pictures of kernels, so that they serve light and
dark pages.
"""

from __future__ import annotations

import base64
import itertools
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.compare.report import png
from omniconv.compare.report.data import Kernels
from omniconv.compare.report.formats import significant
from omniconv.core.card import Card
from omniconv.tasks import skimage_files

SEED = 0
CHANNELS = 8
LINES, COLUMNS = 4, png.PER_LINE
ROLES = ("conv", "mixer", "resampler", "masked")
"""Roles of layers that take images."""

PHOTOGRAPH = "camera.png"
SIDE = 128
LEVELS = 64
HOLE = 8
CONTEXT = 32
"""Pixels on a side of what a layer sees of the photograph when its kernel is drawn, at least."""

EDGE = math.radians(30)
SAME = 1e-4


@dataclass(frozen=True)
class Picture:
    """A PNG file, what it shows, and what is said below it."""

    file: str
    png: bytes
    alt: str
    caption: str


def drawable(card: Card) -> bool:
    """Whether the operator has a layer that takes an image."""
    return card.kind == "layer" and card.role in ROLES and 2 in card.dims


def kernel(card: Card) -> Picture | None:
    """The kernels of a fresh layer, or the gradients of its output; None without an image."""
    if not drawable(card):
        return None
    layer = _fresh(card, CHANNELS)
    if isinstance(layer, nn.Conv2d):
        found, caption = _applied(card, layer)
    else:
        found, caption = _gradients(card, layer)
    shown = _kernels(found)
    bound = significant(png.largest(shown), 2)
    return Picture(
        file=f"{card.name}-kernel.png",
        png=_bytes(png.kernels(shown, len(shown.kernels))),
        alt=f"{len(shown.kernels)} kernels of {card.name} as coloured squares",
        caption=f"{caption} Blue is positive, orange negative; full colour is ±{bound}.",
    )


def through(card: Card) -> list[Picture]:
    """The photograph, and what layers make of it; empty without an image."""
    if not drawable(card):
        return []
    with torch.no_grad():
        return _masked(card) if card.role == "masked" else _filtered(card)


def about(card: Card) -> str:
    """What holds for all pictures of :func:`through`."""
    zero = "black" if card.role == "masked" else "mean"
    return (
        f"The photograph is {PHOTOGRAPH} of scikit-image (CC0), by means over cells of 4 x 4, its "
        f"{zero} taken as 0, repeated in every channel; a filter acts on each channel alike. Fresh "
        "layers are drawn with seed 0, and each picture of one has its own scale of grey."
    )


def _fresh(card: Card, channels: int) -> Any:
    """A layer with default arguments at the paper's extent."""
    channels = math.lcm(channels, card.channel_multiple({}))
    extent = card.default_extent
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        layer = card.layer(2)(
            channels, channels, extent, padding=(extent - 1) // 2, padding_mode="replicate"
        )
    return layer.eval()


def _applied(card: Card, layer: Any) -> tuple[Tensor, str]:
    """``weight`` of a layer that is one kernel."""
    size = " x ".join(map(str, layer.kernel_size))
    if layer.weight.shape[1] == 1:
        layer = _fresh(card, 2 * LINES * COLUMNS)
        passing = sorted(card.passing(layer))[:COLUMNS]
        others = [c for c in range(layer.out_channels) if c not in card.passing(layer)]
        found = layer.weight[[*passing, *others][: LINES * COLUMNS], 0]
        which = f"{len(found)} channels, one square each"
        which += f"; the first {len(passing)} pass" if passing else ""
    else:
        which = f"a line for each of {LINES} outputs, a column for each of {COLUMNS} inputs"
        found = layer.weight[:LINES, :COLUMNS].flatten(0, 1)
    channels = layer.in_channels
    return found.detach(), f"`weight` of a fresh layer, {channels} channels, {size}: {which}."


def _gradients(card: Card, layer: Any) -> tuple[Tensor, str]:
    """What one output of a layer sees: its gradient by the input around it."""
    down, up = card.rates({}, 2)[0]
    reach, before = card.default_extent * down, (card.default_extent - 1) // 2 * down
    count = LINES if card.mixes_channels else LINES * COLUMNS
    layer = layer if card.mixes_channels else _fresh(card, count)
    inputs = _places(_channels(layer), max(CONTEXT, 4 * reach), count).requires_grad_()
    masks = _masks(inputs) if card.role == "masked" else None

    outputs = layer(inputs) if masks is None else layer(inputs, masks)[0]
    middle = outputs.shape[-1] // 2
    start = middle * down // up - before
    window = slice(start, start + reach)

    def seen(output: Tensor) -> Tensor:
        return torch.autograd.grad(output.sum(), inputs, retain_graph=True)[0][..., window, window]

    found = seen(outputs[:, 0, middle, middle])
    sees = "What one output of a fresh layer sees: its gradient by the input around it"
    if not card.mixes_channels:
        return found[:, 0], f"{sees}, at {count} places of the photograph, within one channel."
    columns = f"a column for each of {COLUMNS} inputs."
    if masks is not None:
        rows = "a line each for no hole, one on the right, one below, and both above and below"
    elif torch.allclose(found, found[:1].expand_as(found), atol=1e-6):
        lines = [seen(outputs[:1, o, middle, middle])[0] for o in range(LINES)]
        found, rows = torch.stack(lines), f"a line for each of {LINES} outputs"
    else:
        rows = f"a line for each of {LINES} places of the photograph"
    return found[:, :COLUMNS].flatten(0, 1), f"{sees}; {rows}, {columns}"


def _masks(inputs: Tensor) -> Tensor:
    """A mask a line; holes end at the middle."""
    masks = torch.ones_like(inputs[:, :1])
    middle = inputs.shape[-1] // 2
    masks[1, :, :, middle + 1 :] = 0
    masks[2, :, middle + 1 :] = 0
    masks[3, :, middle + 1 :] = masks[3, :, :middle] = 0
    return masks


def _channels(layer: Any) -> int:
    return int(layer.geometry.in_channels if hasattr(layer, "geometry") else layer.in_channels)


def _filtered(card: Card) -> list[Picture]:
    """A known filter in torch's layer and in this one, and a fresh layer."""
    photograph = _photograph(512 // SIDE)[0]
    found = [_grey("photograph.png", photograph[0], "The photograph.")]
    if hasattr(card.layer(2), "from_conv"):
        plain, layer = _known(card, _edge(card.default_extent))
        x = photograph.expand(1, plain.in_channels, -1, -1)
        channel = _first(card, layer)
        before, after = plain(x)[0, channel], layer(x)[0, channel]
        gap = float((after - before).norm() / before.norm())
        size = " x ".join(map(str, plain.kernel_size))
        kept = (
            "the same output"
            if gap < SAME
            else f"the nearest it can be; off by {100 * gap:.0f} % in root mean square"
        )
        name = card.name
        found += [
            _grey(f"{name}-plain.png", before, f"A filter for edges, {size}, in `nn.Conv2d`."),
            _grey(f"{name}-known.png", after, f"Taken over by `from_conv`: {kept}.", before),
        ]
    layer = _fresh(card, CHANNELS)
    fresh = layer(photograph.expand(1, _channels(layer), -1, -1))[0, _first(card, layer)]
    grid = "" if fresh.shape[-1] == SIDE else f", {' x '.join(map(str, fresh.shape))} pixels"
    caption = f"A fresh layer, one of its channels{grid}."
    return [*found, _grey(f"{card.name}-fresh.png", fresh, caption)]


def _masked(card: Card) -> list[Picture]:
    """A photograph with holes, smoothed by torch's layer and by this one."""
    photograph = _photograph(512 // SIDE)[0]
    photograph -= photograph.min()
    plain, layer = _known(card, torch.full((card.default_extent,) * 2, card.default_extent**-2.0))
    mask = torch.ones(1, 1, SIDE, SIDE)
    for left in range(HOLE, SIDE, 4 * HOLE):
        mask[..., left + 2 * HOLE : left + 2 * HOLE + 2] = 0
        for top in range(HOLE, SIDE, 4 * HOLE):
            mask[..., top : top + HOLE, left : left + HOLE] = 0
    x = (photograph * mask).expand(1, plain.in_channels, -1, -1)
    outputs, valid = layer(x, mask)
    size = " x ".join(map(str, plain.kernel_size))
    name, whole = card.name, photograph[0]
    holes = f"The photograph with holes: squares of {HOLE} x {HOLE} and lines 2 wide, black."
    return [
        _grey(f"{name}-holes.png", x[0, 0], holes, whole),
        _grey(f"{name}-plain.png", plain(x)[0, 0], f"Means over {size}, by `nn.Conv2d`.", whole),
        _grey(
            f"{name}-known.png", outputs[0, 0], "The same filter by `from_conv`, with mask.", whole
        ),
        _grey(f"{name}-mask.png", valid[0, 0], "The new mask: white is valid.", mask),
    ]


def _known(card: Card, taps: Tensor) -> tuple[nn.Conv2d, Any]:
    """Torch's layer that filters each channel by ``taps``, and the operator made from it."""
    channels, extent = math.lcm(CHANNELS, card.channel_multiple({})), len(taps)
    groups = 1 if card.mixes_channels else channels
    plain = nn.Conv2d(
        channels,
        channels,
        extent,
        stride=card.rates({}, 2)[0][0],
        padding=(extent - 1) // 2,
        groups=groups,
        bias=False,
        padding_mode="replicate",
    )
    plain.weight.zero_()
    for channel in range(channels):
        plain.weight[channel, channel if groups == 1 else 0] = taps
    layer: Any = card.layer(2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return plain, layer.from_conv(plain).eval()


def _first(card: Card, layer: Any) -> int:
    """The first channel that is no copy of an input channel."""
    passing = set(card.passing(layer))
    return next(channel for channel in itertools.count() if channel not in passing)


def _edge(extent: int) -> Tensor:
    """A smoothed derivative, oblique, so that it is no product of filters along the axes."""
    line = torch.arange(extent) - (extent - 1) / 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    bell = torch.exp(-(x**2 + y**2) / (2 * min(extent / 5, 1.5) ** 2))
    taps = bell * (math.cos(EDGE) * x + math.sin(EDGE) * y)
    return taps / taps.abs().sum()


@cache
def _pixels() -> np.ndarray:
    """The photograph, grey (512, 512)."""
    album = skimage_files.read()
    paths = itertools.chain(album.train, album.validation, *album.tests.values())
    return album.decode(next(path for path in paths if path.name == PHOTOGRAPH))[:, :, 0]


def _photograph(cell: int) -> Tensor:
    """The photograph (1, 1, H, W), of mean 0 and deviation 1, by means over cells."""
    pixels = F.avg_pool2d(torch.from_numpy(_pixels().astype(np.float32))[None, None], cell)
    return (pixels - pixels.mean()) / pixels.std()


def _places(channels: int, side: int, count: int) -> Tensor:
    """``count`` cuttings (channels, side, side): the pixels of cells of 4 x 4 are channels."""
    cells = F.pixel_unshuffle(_photograph(1), 4)[0]
    cells = cells[torch.arange(channels) % len(cells)]
    room = cells.shape[-1] - side
    lines = count // COLUMNS or 1
    columns = count // lines
    starts = [
        (round(room * (2 * i + 1) / (2 * lines)), round(room * (2 * j + 1) / (2 * columns)))
        for i in range(lines)
        for j in range(columns)
    ]
    return torch.stack([cells[:, t : t + side, l : l + side] for t, l in starts])


def _kernels(found: Tensor) -> Kernels:
    grids = (tuple(map(tuple, grid)) for grid in found.tolist())
    return Kernels(layer="", type="", kernels=tuple(grids))


def _grey(file: str, values: Tensor, caption: str, scale: Tensor | None = None) -> Picture:
    """An image; all but a hundredth of ``scale`` at either end lies between black and white."""
    ends = (values if scale is None else scale).flatten().quantile(torch.tensor([0.01, 0.99]))
    low, high = ends.tolist()
    grey = ((values - low) / max(high - low, 1e-12)).clamp(0, 1) * 255
    pixels = png.image(grey.round().int().tolist(), LEVELS)
    return Picture(file, _bytes(pixels), caption.replace("`", ""), caption)


def _bytes(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])
