"""Layer normalisation over the channels of each pixel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LayerNorm2d"]


class LayerNorm2d(nn.LayerNorm):
    r"""Each pixel's channels to mean 0 and variance 1, then an affine map per channel.

    .. math:: y_c = \gamma_c (x_c - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta_c

    with :math:`\mu, \sigma^2` over the channels of one pixel; ``(B, C, H, W) -> (B, C, H, W)``.

    Args:
        channels: C.
        eps: Added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """The normalised ``x``."""
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)
