"""What all tests share."""

from __future__ import annotations

from functools import cache

import pytest
import torch

pytest_plugins = ["pytester"]

_kept: list[torch.library.Library] = []


@cache
def _obstacle() -> str:
    """Why timm's and torchvision's models cannot be imported; empty where they can.

    torchvision's own wheel beside a CPU build of torch cannot load its compiled operators, and
    fails to import because the schemas of two of them are missing. No classifier uses these.
    """
    try:
        try:
            import torchvision
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _kept.append(library)  # a library's schemas go when it does
            import torchvision  # noqa: F401
        import timm  # noqa: F401
    except Exception as error:
        return f"timm and torchvision do not import here: {type(error).__name__}: {error}"
    return ""


@pytest.fixture(scope="session")
def published() -> None:
    """timm and torchvision are imported, or the test is skipped with the reason."""
    if _obstacle():
        pytest.skip(_obstacle())
