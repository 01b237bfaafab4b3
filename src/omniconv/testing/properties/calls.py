"""Calls: sizes, batches, no side effects, the same answer twice."""

from __future__ import annotations

import torch

from omniconv.core.card import Sample
from omniconv.core.compat import version
from omniconv.testing.registry import asserts
from omniconv.testing.subject import Subject, evaluate, tensors
from omniconv.testing.tolerances import require, require_equal, require_near


@asserts(1, on=())
def output_size(subject: Subject, sample: Sample) -> None:
    """The output has the shape that torch's layer with the same arguments gives on the cells."""
    layer = subject.trained(sample)
    inputs = subject.draw(sample)
    plain = subject.build_plain(sample, device="meta")
    rates = subject.rates(sample)
    head = inputs[0].shape[: -subject.dim]
    cells = [-(-n // down) for n, (down, _) in zip(sample.size, rates, strict=True)]
    shape = tuple(plain(torch.empty(*head, *cells, dtype=torch.float64, device="meta")).shape)
    grid = zip(shape[-subject.dim :], rates, strict=True)
    expected = (*shape[: -subject.dim], *(n * up for n, (_, up) in grid))
    actual = tuple(tensors(layer(*inputs))[0].shape)
    require(actual == expected, f"output shape is {actual}, expected {expected}")


@asserts(1, on=("basic", "stride", "circular"))
def batch(subject: Subject, sample: Sample) -> None:
    """Batches of 0 and of 33 work, forward and backward; samples do not influence each other."""
    layer = subject.trained(sample)
    empty = evaluate(layer, layer, subject.draw(sample, batch=0))
    for name, gradient in empty.gradients.items():
        require(not gradient.any(), f"an empty batch gave {name} a gradient")
    inputs = subject.draw(sample, batch=33)
    whole = evaluate(layer, layer, inputs)
    require(empty.outputs[0].shape == (0, *whole.outputs[0].shape[1:]), "batch 0 changes shapes")
    length = subject.length(layer, *inputs)
    for part in (slice(20), slice(20, 33)):
        given = tuple(t[part] for t in inputs)
        alone = evaluate(layer, layer, given, tuple(c[part] for c in whole.cotangents))
        for output, right in zip(alone.outputs, whole.outputs, strict=True):
            require_near("a part of the batch", output, right[part], length=length)
        right = whole.gradients["input"][part]
        require_near("its gradient", alone.gradients["input"], right, length=length)


@asserts(1, on=("basic", "everything", "circular", "own"))
def purity(subject: Subject, sample: Sample) -> None:
    """A call changes neither its inputs nor the layer's state nor the random state."""
    layer = subject.trained(sample)
    inputs = subject.draw(sample)
    versions = [version(t) for t in inputs]
    copies = [t.clone() for t in inputs]
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    random = torch.get_rng_state()
    with torch.no_grad():
        layer(*inputs)
    require(torch.equal(torch.get_rng_state(), random), "a call must not draw random numbers")
    for given, number, kept in zip(inputs, versions, copies, strict=True):
        require_equal("an input after the call", given, kept)
        require(version(given) == number, "a call must not write to its input, even to undo it")
    for name, kept in before.items():
        require_equal(f"{name} after the call", layer.state_dict()[name], kept)


@asserts(1, on=("basic", "everything"))
def determinism(subject: Subject, sample: Sample) -> None:
    """Two runs agree to the last bit, forward and backward."""
    layer = subject.trained(sample, dtype=torch.float32)
    inputs = subject.draw(sample, torch.float32)
    evaluate(layer, layer, inputs).require_equal(evaluate(layer, layer, inputs), " of a second run")


@asserts(1)
def train_eval(subject: Subject, sample: Sample) -> None:
    """Both modes have the same keys, and give the same numbers unless the card says otherwise."""
    layer = subject.trained(sample)
    inputs = subject.draw(sample)
    evaluated, keys = evaluate(layer.eval(), layer, inputs), list(layer.state_dict())
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    trained = evaluate(layer.train(), layer, inputs)
    require(list(layer.state_dict()) == keys, f"training mode changes the keys {keys}")
    changed = [n for n, t in layer.state_dict().items() if not torch.equal(t, before[n])]
    if subject.card.batch_statistics:
        require(bool(changed), "the card says batch_statistics=True, but no statistic moves")
        require(
            not torch.equal(trained.outputs[0], evaluated.outputs[0]),
            "the card says batch_statistics=True, but both modes give the same",
        )
    else:
        require(not changed, f"a call in training mode changes {', '.join(changed)}")
        trained.require_equal(evaluated, " in training mode")
