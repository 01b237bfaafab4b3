"""ONNX files with ONNX's own DeformConv (opset 19) for deformable convolutions over two axes.

Exported otherwise, a deformable convolution becomes gathers and products, which every runtime has.
A runtime that has DeformConv computes it in one node::

    program = omniconv.kernels.deform.onnx.export(model, (x,), dynamic_shapes=({0: batch},))
    program.save("model.onnx")

Sums without a weight (DCNv3, DCNv4), and those over one or three axes, stay gathers and products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["OPSET", "export", "keeps_node", "kept"]

OPSET = 20
"""The opset that is written unless another is asked for; DeformConv needs 19."""

_keeping = False


def export(model: nn.Module, args: tuple[Any, ...], **options: Any) -> Any:
    """``torch.onnx.export`` with a DeformConv node for every deformable convolution that fits.

    Args:
        model: Any module.
        args: Its example inputs.
        **options: As of ``torch.onnx.export``; ``dynamo`` is always True.

    Returns:
        torch's ``ONNXProgram``.
    """
    table = {torch.ops.omniconv.deform.default: _node} | options.pop("custom_translation_table", {})
    options = {"opset_version": OPSET, "verbose": False} | options
    with kept():
        return torch.onnx.export(
            model, args, dynamo=True, custom_translation_table=table, **options
        )


def keeps_node(dim: int, weight: object) -> bool:
    """Whether a program that is being exported is to hold this deformable convolution itself."""
    return _keeping and torch.compiler.is_exporting() and dim == 2 and weight is not None


@contextmanager
def kept() -> Iterator[None]:
    """While it is entered, exported programs hold ``omniconv::deform`` where a node fits."""
    global _keeping
    before, _keeping = _keeping, True
    try:
        yield
    finally:
        _keeping = before


def _node(
    x: Any,
    offset: Any,
    mask: Any,
    weight: Any,
    bias: Any,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    offset_groups: int,
) -> Any:
    from onnxscript import opset19

    return opset19.DeformConv(
        x,
        weight,
        offset,
        bias,
        mask,
        kernel_shape=list(kernel_size),
        strides=list(stride),
        pads=[*padding[::2], *padding[1::2]],
        dilations=list(dilation),
        group=groups,
        offset_group=offset_groups,
    )
