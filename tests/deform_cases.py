"""Deformable convolutions to try, and the same by loops over Python's numbers."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from omniconv.core.geometry import output_size


@dataclass(frozen=True)
class Case:
    """One convolution; ``padding`` has 2D ints; ``outputs`` 0 stands for no weight."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    channels: int = 4
    outputs: int = 6
    groups: int = 1
    offset_groups: int = 1
    masked: bool = True
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    batch: int = 2

    @property
    def window(self) -> tuple[list[int], list[int], list[int], list[int], int, int]:
        """The operator's arguments after the tensors."""
        ones, zeros = (1,) * len(self.size), (0, 0) * len(self.size)
        return (
            list(self.kernel),
            list(self.stride or ones),
            list(self.padding or zeros),
            list(self.dilation or ones),
            self.groups,
            self.offset_groups,
        )

    @property
    def out(self) -> list[int]:
        return output_size(self.size, *self.window[:4])

    def draw(
        self, dtype: torch.dtype = torch.float64, spread: float = 1.5
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """x, offset, mask, weight, bias; offsets of the first image are whole or halves."""
        generator = torch.Generator().manual_seed(sum(self.size) + self.channels)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        places = self.offset_groups * math.prod(self.kernel)
        offset = spread * normal(self.batch, places * len(self.size), *self.out)
        offset[:1] = (2 * offset[:1]).round() / 2
        inner = self.channels // self.groups
        tensors = (
            normal(self.batch, self.channels, *self.size),
            offset,
            normal(self.batch, places, *self.out) if self.masked else None,
            normal(self.outputs, inner, *self.kernel) if self.outputs else None,
            normal(self.outputs) if self.outputs else None,
        )
        x, offset, mask, weight, bias = (None if t is None else t.to(dtype) for t in tensors)
        return x, offset, mask, weight, bias


CASES = (
    Case((70,), (3,), 16, 32, padding=(1, 1)),
    Case((101,), (4,), 5, 7, masked=False, stride=(2,), dilation=(3,), padding=(4, 0)),
    Case((7, 9), (3, 3), 64, 64, padding=(1, 1, 1, 1)),
    Case((9, 7), (3, 2), 20, 70, 2, 5, stride=(1, 2), padding=(1, 0, 2, 1), dilation=(2, 1)),
    Case((8, 9), (2, 3), 12, 9, 3, 2, batch=3),
    Case((9, 8), (3, 3), 40, 0, 1, 2, padding=(1, 1, 1, 1)),
    Case((9, 8), (3, 3), 64, 0, 1, 4, masked=False, padding=(1, 1, 1, 1)),
    Case((7, 8), (3, 3), 130, 17, padding=(2, 2, 2, 2), batch=1),
    Case((6, 6), (3, 3), 32, 32, 32, 2, padding=(1, 1, 1, 1)),
    Case((6, 7), (3, 1), 6, 12, 6, 3, masked=False),
    Case((6, 7), (1, 3), 1, 5),
    Case((5, 4), (2, 2), 21, 0, 1, 21),
    Case((1, 1), (1, 1), 3, 2),
    Case((5, 6, 4), (2, 3, 2), 20, 18, 2, 4, padding=(1, 0, 1, 1, 0, 1)),
    Case((4, 5, 6), (3, 2, 2), 17, 0, masked=False, stride=(1, 2, 1), dilation=(1, 1, 2)),
    Case((5, 4, 4), (3, 3, 3), 24, 24, 24, 3, padding=(1, 1, 1, 1, 1, 1)),
)
KINDS = {
    "v1": Case((6, 5), (2, 3), 4, 6, 2, 2, masked=False, padding=(1, 0, 1, 1)),
    "v2": Case((6, 5), (2, 3), 4, 6, padding=(1, 0, 1, 1)),
    "sum": Case((6, 5), (2, 3), 6, 0, 1, 2, padding=(1, 0, 1, 1)),
    "depthwise": Case((6, 5), (2, 3), 6, 6, 6, 2, padding=(1, 0, 1, 1)),
}
LOOPED = (
    Case((19,), (4,), 5, 7, masked=False, stride=(2,), padding=(4, 0), dilation=(3,)),
    Case((7, 5), (3, 2), 3, 4, stride=(1, 2), padding=(1, 0, 2, 1), dilation=(2, 1)),
    Case((3, 4, 3), (2, 3, 2), 4, 6, 2, 2, padding=(1, 0, 1, 1, 0, 1), batch=1),
)


def by_loops(x, offset, mask, weight, bias, kernel, stride, padding, dilation, groups, shares):
    """Output by output, tap by tap, corner by corner, from the module's equation."""
    dim, taps = len(kernel), list(itertools.product(*map(range, kernel)))
    out = output_size(x.shape[2:], kernel, stride, padding, dilation)
    batch, channels = x.shape[:2]
    samples = x.new_zeros(batch, channels, len(taps), *out)
    for b, c, (q, tap), p in itertools.product(
        range(batch), range(channels), enumerate(taps), itertools.product(*map(range, out))
    ):
        group = c * shares // channels
        place = [
            p[a] * stride[a]
            - padding[2 * a]
            + tap[a] * dilation[a]
            + offset[(b, (group * len(taps) + q) * dim + a, *p)].item()
            for a in range(dim)
        ]
        low = [math.floor(u) for u in place]
        for corner in itertools.product((0, 1), repeat=dim):
            at = [n + up for n, up in zip(low, corner, strict=True)]
            if all(0 <= n < s for n, s in zip(at, x.shape[2:], strict=True)):
                share = math.prod(1 - abs(u - n) for u, n in zip(place, at, strict=True))
                samples[(b, c, q, *p)] += share * x[(b, c, *at)]
        if mask is not None:
            samples[(b, c, q, *p)] *= mask[(b, group * len(taps) + q, *p)]
    if weight is None:
        return samples.sum(2)
    y = x.new_zeros(batch, len(weight), *out)
    inner, outer = channels // groups, len(weight) // groups
    for o in range(len(weight)):
        columns = samples[:, o // outer * inner :][:, :inner].flatten(1, 2)
        y[:, o] = bias[o] + (columns.movedim(1, -1) * weight[o].flatten()).sum(-1)
    return y
