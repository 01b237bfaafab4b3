"""How near an image is to the clean one: peak signal-to-noise ratio and structural similarity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["WINDOW", "psnr", "quality", "ssim"]

WINDOW = 11
DEVIATION = 1.5
LEAST_ERROR = 1e-10


def psnr(output: Tensor, clean: Tensor) -> float:
    r"""Peak signal-to-noise ratio in dB of images of range 1.

    .. math:: -10 \log_{10} \mathrm{mean}\,(\mathrm{clip}(output, 0, 1) - clean)^2

    The mean goes over all pixels and channels, in float64; errors below 1e-10 count as 1e-10, so
    that equal images have 100 dB.

    Args:
        output: (C, H, W), any floating-point type.
        clean: As ``output``, values from 0 to 1.
    """
    error = (output.double().clamp(0, 1) - clean.double()).square().mean()
    return -10 * error.clamp(min=LEAST_ERROR).log10().item()


def ssim(output: Tensor, clean: Tensor) -> float:
    r"""Mean structural similarity of images of range 1.

    .. math::
        \frac{(2 \mu_x \mu_y + c_1)(2 \sigma_{xy} + c_2)}
        {(\mu_x^2 + \mu_y^2 + c_1)(\sigma_x^2 + \sigma_y^2 + c_2)},
        \qquad c_1 = 0.01^2,\ c_2 = 0.03^2

    Means, variances and covariance are weighted by a Gaussian window of 11 x 11 pixels and
    deviation 1.5; the mean goes over all windows that lie inside, and over channels. It is
    scikit-image's ``structural_similarity`` with ``data_range=1, gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, channel_axis=0``.

    Source: Z. Wang et al., "Image quality assessment: from error visibility to structural
    similarity", 2004.

    Args:
        output: (C, H, W), any floating-point type, H and W at least 11; clipped to [0, 1].
        clean: As ``output``, values from 0 to 1.
    """
    x, y = output.double().clamp(0, 1), clean.double()
    steps = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    window = torch.exp(-(steps**2) / (2 * DEVIATION**2))
    window = window / window.sum()
    maps = torch.stack([x, y, x * x, y * y, x * y]).flatten(0, 1)[:, None]
    maps = F.conv2d(F.conv2d(maps, window[None, None, :, None]), window[None, None, None, :])
    mean_x, mean_y, square_x, square_y, product = maps.unflatten(0, (5, len(x)))
    means = mean_x * mean_y
    squares = mean_x**2 + mean_y**2
    similar = (2 * means + 0.01**2) * (2 * (product - means) + 0.03**2)
    total = (squares + 0.01**2) * (square_x + square_y - squares + 0.03**2)
    return (similar / total).mean().item()


def quality(output: Tensor, clean: Tensor) -> tuple[float, float]:
    """:func:`psnr` in dB and :func:`ssim` of one image (C, H, W)."""
    return psnr(output, clean), ssim(output, clean)
