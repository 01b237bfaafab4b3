r"""Which pixels an output depends on, and how much (Luo et al. 2016, arXiv:1701.04128).

For images x and a map y of the network, with o the centre of y:

.. math:: E(p) = \frac{1}{B C} \sum_{b, c}
    \left| \frac{\partial \sum_k y_{b, k}(o)}{\partial x_{b, c}(p)} \right|,
    \qquad R(p) = E(p) / \max_q E(q)

One backward pass for all output channels k, as in the evaluations of Luo et al. and Ding et al.
2022 (arXiv:2203.06717); there negative derivatives are dropped, here their size counts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from omniconv.analysis.preserve import preserved
from omniconv.core import args

__all__ = ["area", "effective_receptive_field"]


def effective_receptive_field(function: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """The receptive field of the central output position, by gradients.

    The centre of an axis with n positions is n // 2. A module runs in evaluation mode, so that the
    images do not mix, and is left as it was: mode, buffers, gradients, random state.

    Args:
        function: A module or a function of x. A module with ``features``, as the classification
            models have, is judged by that map; all others by their output.
        x: Images ``(B, C, *S)``, real floating point, at least one.

    Returns:
        ``S``-shaped map in [0, 1] whose largest value is 1; zeros where nothing depends on x.

    Raises:
        TypeError: ``function`` is not callable, or ``x`` or the output is no tensor of floats.
        ValueError: The output is no map ``(B, K, *T)`` with as many axes as x.
    """
    if not callable(function):
        raise TypeError(f"function must be a module or a function, got {args.show(function)}")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a tensor of real floating point, got {kind}")
    if x.dim() < 3 or not x.numel():
        raise ValueError(f"x must be images (B, C, *S), at least one, got shape {tuple(x.shape)}")
    with ExitStack() as stack:
        if isinstance(function, nn.Module):
            stack.enter_context(preserved(function))
            function.eval()
            features = getattr(function, "features", None)
            function = features if callable(features) else function
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        leaf = x.clone().detach().requires_grad_()
        y = function(leaf)
        if not isinstance(y, Tensor) or not y.is_floating_point():
            raise TypeError(f"the output must be a tensor of floats, got {type(y).__name__}")
        if y.dim() != x.dim() or len(y) != len(x) or not y.numel():
            raise ValueError(
                f"the output must be a map (B, K, *T) for x of shape {tuple(x.shape)}, "
                f"got shape {tuple(y.shape)}"
            )
        centre = y
        for size in y.shape[2:]:
            centre = centre[:, :, size // 2]
        gradient = None
        if y.requires_grad:
            (gradient,) = torch.autograd.grad(centre.sum(), leaf, allow_unused=True)
    if gradient is None:
        return torch.zeros(x.shape[2:], dtype=x.dtype, device=x.device)
    field = gradient.abs().mean((0, 1))
    return field / field.max().clamp(min=torch.finfo(field.dtype).tiny)


def area(field: Tensor, share: float = 0.95) -> float:
    """The smallest part of the pixels that together hold ``share`` of the field's sum.

    Pixels are taken from the largest value down, wherever they lie, until their sum reaches
    ``share`` of all; the result is their number over the number of pixels, in (0, 1].

    Args:
        field: Values of at least 0, not all of them 0; any shape.
        share: In (0, 1].

    Raises:
        TypeError: ``field`` is no tensor of real numbers, or ``share`` no number.
        ValueError: ``share`` is out of range, or ``field`` is negative, zero or not finite.
    """
    if not isinstance(field, Tensor) or field.is_complex():
        raise TypeError(f"field must be a tensor of real numbers, got {args.show(field)}")
    share = args.real("share", share, 0, 1)
    if share == 0:
        raise ValueError("share must be above 0, got 0")
    values = field.detach().double().flatten()
    if not values.numel() or not values.isfinite().all() or values.min() < 0 or not values.any():
        raise ValueError("field must hold finite values of at least 0, one of them positive")
    held = values.sort(descending=True).values.cumsum(0)
    return (int((held < share * held[-1]).sum()) + 1) / values.numel()
