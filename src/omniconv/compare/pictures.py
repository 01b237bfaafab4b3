"""What a trained network looks like inside, as plain data for the report.

Learned kernels, the effective receptive field, and where a classifier looks (Grad-CAM).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.analysis.grad_cam import grad_cam
from omniconv.analysis.receptive_field import area, effective_receptive_field
from omniconv.compare.network import Network
from omniconv.surgery.accelerated import plain_type
from omniconv.surgery.swap import MixerPointwise
from omniconv.tasks.task import Task, TaskData

__all__ = ["learned_kernels", "pictures"]

MOST_LAYERS = 3
MOST_KERNELS = 16
DIGITS = 5
FIELD_IMAGES = 16
LOOKED_AT = 4
FIELD_SIZE = 33
IMAGE_SIZE = 32


def pictures(network: Network, task: Task, data: TaskData) -> dict[str, Any]:
    """The pictures of a trained network; its mode and gradients stay."""
    inputs, targets = task.examples(data, FIELD_IMAGES)
    some = slice(None, None, FIELD_IMAGES // LOOKED_AT)
    like = next(network.model.parameters())
    return {
        "kernels": learned_kernels(network),
        "receptive_field": _receptive_field(network.model, inputs.to(like)),
        "attention": _attention(network.model, inputs[some].to(like), targets[some], data),
    }


def _receptive_field(model: nn.Module, inputs: Tensor) -> dict[str, Any]:
    field = effective_receptive_field(model, inputs)
    height, width = field.shape
    small = F.adaptive_max_pool2d(
        field[None, None], (min(height, FIELD_SIZE), min(width, FIELD_SIZE))
    )
    return {
        "map": [[round(v, 4) for v in line] for line in small[0, 0].tolist()],
        "height": height,
        "width": width,
        "area": area(field),
    }


def _attention(
    model: nn.Module, inputs: Tensor, targets: Tensor, data: TaskData
) -> list[dict[str, Any]]:
    """Grad-CAM of the class that the network gives; none where the task has no classes."""
    if not data.classes:
        return []
    was_training = model.training
    model.eval()
    with torch.no_grad():
        predicted = model(inputs).argmax(1)
    maps = grad_cam(model, inputs, predicted)
    model.train(was_training)
    return [
        {
            "image": _pixels(image),
            "map": [[round(v, 3) for v in line] for line in _shrunk(heat[None])[0].tolist()],
            "label": data.classes[int(label)],
            "predicted": data.classes[int(guess)],
        }
        for image, heat, label, guess in zip(inputs, maps, targets, predicted, strict=True)
    ]


def _shrunk(planes: Tensor) -> Tensor:
    """(C, H, W) with at most 32 pixels a side."""
    height, width = (min(s, IMAGE_SIZE) for s in planes.shape[1:])
    return F.adaptive_avg_pool2d(planes.float(), (height, width))


def _pixels(image: Tensor) -> list[Any]:
    """Grey (H, W) or colour (H, W, 3) values from 0 to 255, darkest to brightest."""
    planes = _shrunk(image)
    low, high = planes.min(), planes.max()
    planes = ((planes - low) / (high - low).clamp(min=1e-12) * 255).round().int()
    if len(planes) == 3:
        return planes.permute(1, 2, 0).tolist()
    return planes.float().mean(0).round().int().tolist()


def learned_kernels(network: Network) -> list[dict[str, Any]]:
    """The kernels of up to three selected layers, spread over the depth, for pictures.

    Of each layer the kernels from its first input channel to its first 16 outputs; None where a
    layer is not one kernel.
    """
    return [_kernels(path, network.model.get_submodule(path)) for path in _spread(network.paths)]


def _spread(paths: Sequence[str]) -> list[str]:
    count = min(MOST_LAYERS, len(paths))
    return [paths[i * (len(paths) - 1) // max(1, count - 1)] for i in range(count)]


def _kernels(path: str, module: nn.Module) -> dict[str, Any]:
    layer = module.mixer if isinstance(module, MixerPointwise) else module
    found = None
    if isinstance(layer, nn.Conv2d):
        weight = layer.weight.detach().float()[:MOST_KERNELS, 0]
        found = [[[_short(v) for v in line] for line in kernel] for kernel in weight.tolist()]
    return {"layer": path, "type": plain_type(layer).__name__, "kernels": found}


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
