"""Fold re-parameterised layers into plain torch convolutions."""

from __future__ import annotations

from torch import nn

from omniconv.core import compat
from omniconv.operators.static_kernel import StaticKernel
from omniconv.surgery.accelerate import unaccelerate_
from omniconv.surgery.modules import check_model, paths, replace

__all__ = ["fold_"]


def fold_(model: nn.Module) -> nn.Module:
    """Replace every static-kernel layer by the plain ``nn.ConvNd`` with the same output, in place.

    Fold after training and before you quantise, fuse, export or deploy: nothing of the operator
    is left but its kernel. Accelerated layers become torch's own again (accelerate after folding).
    Layers that are not one kernel stay as they are. Nothing is changed when an error is raised.

    Args:
        model: Any module; a layer used in several places stays shared.

    Returns:
        The model (a new layer where ``model`` itself is one that folds).

    Raises:
        TypeError: ``model`` is no plain module (compiled, parallel, scripted, quantised).
        ValueError: A layer carries hooks, which its replacement would lose.
    """
    check_model(model)
    changes: dict[nn.Module, nn.Module] = {}
    for module, where in paths(model).items():
        if not isinstance(module, StaticKernel):
            continue
        if compat.has_hooks(module):
            raise ValueError(
                f"model must have no hooks on {where[0]!r} before folding: remove them"
            )
        changes[module] = module.fold()
    return replace(unaccelerate_(model), changes)
