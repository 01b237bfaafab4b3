"""Learned kernels as small pictures: data-URI PNGs, blue for positive, orange for negative.

The strength of a weight is the opacity of its pixel, so zero is the page's own colour and one
picture serves light and dark pages.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

Kernel = Sequence[Sequence[float]]
_PIXELS = 36
_POSITIVE, _NEGATIVE = (0, 114, 178), (213, 94, 0)


def largest(kernels: Sequence[Kernel]) -> float:
    """The largest magnitude in `kernels`: both ends of their common colour scale."""
    return max((abs(value) for kernel in kernels for line in kernel for value in line), default=0.0)


def data_uri(kernel: Kernel, bound: float) -> str:
    """`kernel` as a PNG of square weights, at least 36 pixels long, full colour at `bound`."""
    width = max(len(line) for line in kernel)
    size = -(-_PIXELS // max(width, len(kernel)))
    rows = bytearray()
    for line in kernel:
        pixels = bytearray()
        for value in [*line, *[0.0] * (width - len(line))]:
            share = min(abs(value) / bound, 1.0) if bound else 0.0
            colour = _POSITIVE if value >= 0 else _NEGATIVE
            pixels += bytes((*colour, round(255 * share))) * size
        rows += (b"\0" + pixels) * size
    header = struct.pack(">IIBBBBB", width * size, len(kernel) * size, 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(rows), 9)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in chunks)
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


def pictures(kernels: Sequence[Kernel], budget: int) -> list[str]:
    """Data URIs of the first kernels, together at most `budget` characters."""
    bound, found = largest(kernels), []
    for kernel in kernels:
        uri = data_uri(kernel, bound)
        budget -= len(uri)
        if budget < 0:
            break
        found.append(uri)
    return found
