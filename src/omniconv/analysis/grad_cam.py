r"""Where a classifier looks (Selvaraju et al. 2017, arXiv:1610.02391), "Grad-CAM".

With A the map of K channels and n positions, and y_c the logit of class c:

.. math:: \alpha_k = \frac{1}{n} \sum_p \frac{\partial y_c}{\partial A_k(p)},
    \qquad L = \mathrm{relu}\Big(\sum_k \alpha_k A_k\Big)

L is interpolated bilinearly to the image and divided by its maximum. For a network whose head is
the mean over space and a linear layer this is the class activation map of Zhou et al. 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.analysis.preserve import preserved
from omniconv.core import args

__all__ = ["grad_cam"]


def grad_cam(
    model: nn.Module,
    images: Tensor,
    targets: Tensor | int | None = None,
    *,
    layer: str | None = None,
) -> Tensor:
    """Heat maps of the evidence for a class, one per image.

    The model runs once in evaluation mode and is left as it was: mode, buffers, gradients, random
    state.

    Args:
        model: A classifier, ``(B, C, H, W) -> (B, classes)``.
        images: ``(B, C, H, W)``, real floating point.
        targets: Class of each image ``(B,)``, or one for all; None for those that the model
            predicts.
        layer: Path of the module whose output is the map A; None for the model's ``features``,
            a method or a module that its forward pass calls.

    Returns:
        ``(B, H, W)`` in [0, 1]. Each map's largest value is 1, but for maps that are 0 because no
        position speaks for the class.

    Raises:
        TypeError: ``model`` is no module, ``images`` no tensor of floats, or ``targets`` no ints.
        ValueError: A class is out of range, the model has no ``features`` and ``layer`` is None,
            ``layer`` is unknown, or A is not a map ``(B, K, h, w)`` that the logits depend on.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a tensor of real floating point, got {kind}")
    if images.dim() != 4:
        raise ValueError(f"images must be (B, C, H, W), got shape {tuple(images.shape)}")
    with preserved(model), torch.inference_mode(False), torch.enable_grad():
        model.eval()
        with _recording(model, layer) as maps:
            logits = model(images.clone().detach().requires_grad_())
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the model must give logits (B, classes), got {found}")
        chosen = _classes(targets, logits)
        if not maps or not isinstance(maps[-1], Tensor) or maps[-1].dim() != 4:
            found = tuple(getattr(maps[-1], "shape", ())) if maps else "none"
            raise ValueError(f"the layer must give one map (B, K, h, w), got {found}")
        gradient = None
        if logits.requires_grad and maps[-1].requires_grad:
            score = logits.gather(1, chosen[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, maps[-1], allow_unused=True)
        if gradient is None:
            raise ValueError("the layer must give a map that the logits depend on")
    weights = gradient.mean((2, 3), keepdim=True)
    heat = (weights * maps[-1].detach()).sum(1, keepdim=True).relu()
    if len(images):
        heat = F.interpolate(heat, images.shape[2:], mode="bilinear", align_corners=False)
    else:
        heat = heat.new_empty(0, 1, *images.shape[2:])
    heat = heat[:, 0]
    top = heat.flatten(1).amax(1) if len(heat) else heat.new_ones(0)
    return heat / torch.where(top > 0, top, 1)[:, None, None]


@contextmanager
def _recording(model: nn.Module, layer: str | None) -> Iterator[list[Any]]:
    """The outputs of a layer, or of the model's ``features``, in the order of the calls."""
    outputs: list[Any] = []
    features = getattr(model, "features", None)
    if layer is not None or isinstance(features, nn.Module):
        hook = _module(model, layer, features).register_forward_hook(
            lambda module, inputs, output: outputs.append(output)
        )
        try:
            yield outputs
        finally:
            hook.remove()
        return
    if not callable(features):
        raise ValueError(f"layer must be given, as {type(model).__name__} has no features")
    own = vars(model).get("features")
    compute: Callable[..., Any] = features

    def recorded(*inputs: Any, **kwargs: Any) -> Any:
        outputs.append(compute(*inputs, **kwargs))
        return outputs[-1]

    object.__setattr__(model, "features", recorded)
    try:
        yield outputs
    finally:
        if own is None:
            object.__delattr__(model, "features")
        else:
            object.__setattr__(model, "features", own)


def _module(model: nn.Module, layer: str | None, features: Any) -> nn.Module:
    if layer is None:
        return features
    modules = dict(model.named_modules())
    if layer not in modules:
        hint = args.did_you_mean(layer, modules)
        raise ValueError(f"layer must be the path of a module, got {args.show(layer)}{hint}")
    return modules[layer]


def _classes(targets: Tensor | int | None, logits: Tensor) -> Tensor:
    """One class index per image."""
    count, classes = logits.shape
    if targets is None:
        return logits.argmax(1)
    if not isinstance(targets, Tensor):
        return logits.new_full((count,), args.integer("targets", targets, 0, classes - 1)).long()
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"targets must be ints, got {targets.dtype}")
    if targets.shape != (count,):
        raise ValueError(
            f"targets must have one class for each of {count} images, "
            f"got shape {tuple(targets.shape)}"
        )
    if count and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise ValueError(
            f"targets must be from 0 to {classes - 1}, "
            f"got {int(targets.min())} to {int(targets.max())}"
        )
    return targets.to(logits.device).long()
