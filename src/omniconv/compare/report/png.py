"""Pictures of few colours as data-URI PNGs.

Strength is opacity wherever that will do, so that one picture serves light and dark pages.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

from .data import Grid, Kernels, Pixel

Colour = tuple[int, int, int, int]
_POSITIVE, _NEGATIVE = (0, 114, 178), (213, 94, 0)
_LEVELS = 15
_SIDE = 36
_GAP = 5
PER_LINE = 8
"""Kernels side by side in a picture."""

_SIGNED: tuple[Colour, ...] = (
    (0, 0, 0, 0),
    *((*_NEGATIVE, round(255 * level / _LEVELS)) for level in range(_LEVELS, 0, -1)),
    (128, 132, 128, 26),
    *((*_POSITIVE, round(255 * level / _LEVELS)) for level in range(1, _LEVELS + 1)),
)
_ZERO = _LEVELS + 1
_SHARE: tuple[Colour, ...] = tuple(
    (*_POSITIVE, round(255 * level / _LEVELS)) for level in range(_LEVELS + 1)
)
_HEAT: tuple[Colour, ...] = tuple(
    (200 + 55 * level // _LEVELS, 14 * level, 2 * level, round(225 * level / _LEVELS))
    for level in range(_LEVELS + 1)
)


def indexed(lines: Sequence[bytes], palette: Sequence[Colour]) -> str:
    """A PNG of palette entries, 4 bits a pixel where 16 colours are enough."""
    depth = 4 if len(palette) <= 16 else 8
    packed = lines if depth == 8 else [_halved(line) for line in lines]
    colours = bytes(channel for colour in palette for channel in colour[:3])
    opacity = bytes(colour[3] for colour in palette)
    extra = ((b"PLTE", colours), (b"tRNS", opacity))
    return _png(packed, len(lines[0]), depth, 3, extra)


def image(pixels: Sequence[Sequence[Pixel]], levels: int) -> str:
    """An image in grey or colour, `levels` values a channel."""
    colour = any(isinstance(pixel, tuple) for line in pixels for pixel in line)
    width = max(map(len, pixels))
    lines = []
    for line in pixels:
        entries = [_channels(pixel) if colour else (_grey(pixel),) for pixel in line]
        entries += [(0,) * (3 if colour else 1)] * (width - len(line))
        lines.append(bytes(_rounded(value, levels) for entry in entries for value in entry))
    return _png(lines, width, 8, 2 if colour else 0, ())


def kernels(entry: Kernels, shown: int) -> str:
    """The first `shown` kernels in lines of eight; blue is positive, orange negative.

    Full colour is the largest magnitude among all kernels of the layer.
    """
    bound = largest(entry)
    extent = max(max(len(kernel), *map(len, kernel)) for kernel in entry.kernels)
    size = -(-_SIDE // extent)
    cell = extent * size + _GAP
    columns, rows = min(shown, PER_LINE), -(-shown // PER_LINE)
    canvas = [bytearray(columns * cell - _GAP) for _ in range(rows * cell - _GAP)]
    for index, kernel in enumerate(entry.kernels[:shown]):
        top, left = index // PER_LINE * cell, index % PER_LINE * cell
        for y, line in enumerate(kernel):
            levels = (round(_LEVELS * value / bound) if bound else 0 for value in line)
            pixels = b"".join(bytes([_ZERO + level]) * size for level in levels)
            for offset in range(size):
                start = top + y * size + offset
                canvas[start][left : left + len(pixels)] = pixels
    return indexed([bytes(line) for line in canvas], _SIGNED)


def largest(entry: Kernels) -> float:
    """The largest magnitude of a layer's kernels: both ends of their colour scale."""
    values = (abs(v) for kernel in entry.kernels for line in kernel for v in line)
    return max(values, default=0.0)


def shares(grid: Grid) -> str:
    """Values between 0 and 1 in blue, by their square root: faint tails can be seen."""
    return indexed(_levels(grid, 0.5), _SHARE)


def heat(grid: Grid) -> str:
    """Values between 0 and 1 as a layer to put over an image: clear, red, yellow."""
    return indexed(_levels(grid, 1.0), _HEAT)


def _levels(grid: Grid, power: float) -> list[bytes]:
    width = max(map(len, grid))
    lines = []
    for line in grid:
        found = (round(_LEVELS * min(max(value, 0.0), 1.0) ** power) for value in line)
        lines.append(bytes(found).ljust(width, b"\0"))
    return lines


def _channels(pixel: Pixel) -> tuple[int, ...]:
    return pixel if isinstance(pixel, tuple) else (pixel, pixel, pixel)


def _grey(pixel: Pixel) -> int:
    return pixel if isinstance(pixel, int) else round(sum(pixel) / 3)


def _rounded(value: int, levels: int) -> int:
    return round(round(value / 255 * (levels - 1)) * 255 / (levels - 1))


def _halved(line: bytes) -> bytes:
    even = line if len(line) % 2 == 0 else line + b"\0"
    return bytes(a << 4 | b for a, b in zip(even[::2], even[1::2], strict=True))


def _png(
    lines: Sequence[bytes], width: int, depth: int, kind: int, extra: Sequence[tuple[bytes, bytes]]
) -> str:
    header = struct.pack(">IIBBBBB", width, len(lines), depth, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + line for line in lines), 9)
    chunks = ((b"IHDR", header), *extra, (b"IDAT", body), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in chunks)
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)
