"""Compilers: torch.compile, torch.export and ONNX see the same layer."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from omniconv.core.card import Sample
from omniconv.testing.registry import asserts
from omniconv.testing.subject import Subject, evaluate, tensors
from omniconv.testing.tolerances import require, require_near


@asserts(2, on=("basic", "everything"))
def compile_aot(subject: Subject, sample: Sample) -> None:
    """``torch.compile(fullgraph=True)`` traces forward and backward, also for another batch."""
    _compiled(subject, sample, "aot_eager")


@asserts(3)
def compile_inductor(subject: Subject, sample: Sample) -> None:
    """Inductor's code gives the same outputs and gradients, also for another batch."""
    _compiled(subject, sample, "inductor")


def _compiled(subject: Subject, sample: Sample, backend: str) -> None:
    layer = subject.trained(sample, dtype=torch.float32)
    torch.compiler.reset()
    compiled: Any = torch.compile(copy.deepcopy(layer), backend=backend, fullgraph=True)
    for batch in (2, 5):
        inputs = subject.draw(sample, torch.float32, batch=batch)
        expected = evaluate(layer, layer, inputs)
        with _third_party():
            actual = evaluate(compiled, compiled._orig_mod, inputs)
        length = subject.length(layer, *inputs)
        actual.require_near(expected, length=length, case=f" (batch {batch})")


@asserts(2, on=("basic", "everything"))
def export(subject: Subject, sample: Sample) -> None:
    """``torch.export`` with a dynamic batch gives a program of torch's own operators only."""
    layer = subject.trained(sample, dtype=torch.float32).eval()
    program = _program(subject, sample, layer)
    foreign = {
        str(node.target)
        for node in program.graph.nodes
        if node.op == "call_function" and "omniconv" in str(node.target)
    }
    require(not foreign, f"the exported program needs omniconv to run: {sorted(foreign)}")
    for batch in (1, 5):
        inputs = subject.draw(sample, torch.float32, batch=batch)
        _agree(subject, layer, inputs, tensors(program.module()(*inputs)))


def _no_onnx(subject: Subject) -> str:
    return "" if subject.card.onnx else "the card says onnx=False"


@asserts(2, on=("basic", "everything"), skip=_no_onnx, needs=("onnx", "onnxscript", "onnxruntime"))
def onnx(subject: Subject, sample: Sample) -> None:
    """The ONNX file with a dynamic batch gives the same output in onnxruntime."""
    import onnxruntime

    layer = subject.trained(sample, dtype=torch.float32).eval()
    with _third_party():
        exported: Any = torch.onnx.export(
            _program(subject, sample, layer), dynamo=True, verbose=False, optimize=True
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        exported.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for batch in (1, 5):
        inputs = subject.draw(sample, torch.float32, batch=batch)
        names = [argument.name for argument in session.get_inputs()]
        feeds = dict(zip(names, (t.numpy() for t in inputs), strict=True))
        outputs = tuple(torch.from_numpy(array) for array in session.run(None, feeds))
        _agree(subject, layer, inputs, outputs)


def _program(subject: Subject, sample: Sample, layer: Any) -> Any:
    inputs = subject.draw(sample, torch.float32, batch=3)
    batch = torch.export.Dim("batch")
    with _third_party():
        return torch.export.export(
            layer, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=False
        )


def _agree(
    subject: Subject, layer: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]
) -> None:
    with torch.no_grad():
        expected = tensors(layer(*inputs))
    for i, (output, right) in enumerate(zip(outputs, expected, strict=True)):
        length = subject.length(layer, *inputs)
        require_near(f"output {i} (batch {inputs[0].shape[0]})", output, right, length=length)


@contextmanager
def _third_party() -> Iterator[None]:
    """Warnings of compilers about themselves are not the layer's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
