r"""Depthwise convolution by Fourier transforms, for stride 1 and dilation 1.

Periods of :math:`S + \max(lo, hi)` are enough: the zeros after x are also those before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["fourier", "fourier_input", "fourier_weight"]


def fourier(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int]) -> Tensor:
    """See :func:`omniconv.kernels.depthwise.depthwise`; m = 1."""
    size = [
        n + lo + hi - k + 1
        for n, k, lo, hi in zip(
            x.shape[2:], weight.shape[2:], padding[::2], padding[1::2], strict=True
        )
    ]
    period = _period(x, padding, weight.shape[2:])
    product = _spectrum(x, period, padding[::2]) * _spectrum(weight[:, 0], period).conj()
    found = _signal(product, period, size)
    if bias is not None:
        found = found + bias.view(-1, *[1] * len(size))
    return found.to(x.dtype)


def fourier_input(
    grad: Tensor, weight: Tensor, size: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """The gradient for x: a convolution of ``grad`` with the flipped kernels."""
    axes = list(range(2, weight.dim()))
    around = [k - 1 - p for k, p in zip(_twice(weight.shape[2:]), padding, strict=True)]
    return fourier(grad, weight.flip(axes), None, around)


def fourier_weight(
    grad: Tensor, x: Tensor, kernel_size: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """The gradient for the weight; the batch is summed before the way back."""
    period = _period(x, padding, kernel_size)
    spectra = _spectrum(x, period, padding[::2]), _spectrum(grad, period).conj()
    product = (spectra[0] * spectra[1]).sum(0)
    return _signal(product, period, kernel_size).unsqueeze(1).to(x.dtype)


def _twice(size: Sequence[int]) -> list[int]:
    return [n for n in size for _ in range(2)]


def _period(x: Tensor, padding: Sequence[int], kernel_size: Sequence[int]) -> list[int]:
    pads = zip(padding[::2], padding[1::2], strict=True)
    axes = zip(x.shape[2:], pads, kernel_size, strict=True)
    return [_smooth(max(n + max(pair), k)) for n, pair, k in axes]


def _smooth(n: int) -> int:
    """The next number without prime factors above 5."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1


def _spectrum(x: Tensor, period: Sequence[int], before: Sequence[int] | None = None) -> Tensor:
    if before is not None and any(before):
        x = F.pad(x, [side for lo in reversed(before) for side in (lo, 0)])
    wide = x if x.dtype == torch.float64 else x.float()
    return torch.fft.rfftn(wide, s=period, dim=list(range(x.dim() - len(period), x.dim())))


def _signal(spectrum: Tensor, period: Sequence[int], size: Sequence[int]) -> Tensor:
    first = spectrum.dim() - len(period)
    found = torch.fft.irfftn(spectrum, s=period, dim=list(range(first, spectrum.dim())))
    return found[(..., *[slice(n) for n in size])]
