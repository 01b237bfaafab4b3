"""State: everything that a layer knows is a parameter or a buffer, and travels as such."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from omniconv.core.card import Sample
from omniconv.core.compat import DispatchMode, tensors_in
from omniconv.testing.registry import asserts
from omniconv.testing.subject import Subject, evaluate, tensors
from omniconv.testing.tolerances import require, require_equal

ON = ("basic", "everything", "own")
SMALL = 4096  # numbers that construction on the meta device may hold for a moment


@asserts(1, on=ON)
def state_dict(subject: Subject, sample: Sample) -> None:
    """A state dict loads strictly into a fresh layer, which then gives the same numbers."""
    layer = subject.build(sample)
    inputs = subject.draw(sample)
    expected = evaluate(layer, layer, inputs)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = subject.build(sample)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    evaluate(other, other, inputs).require_equal(expected, " after loading the state dict")


@asserts(1)
def keys(subject: Subject, sample: Sample) -> None:
    """The keys of a state dict depend on neither mode, device nor dtype, nor on having run."""
    layer = subject.build(sample)
    right = list(layer.state_dict())
    others = {
        "in evaluation mode": subject.build(sample).eval(),
        "in float32": subject.build(sample, dtype=torch.float32),
        "in float16": subject.build(sample).half(),
        "on the meta device": subject.build(sample, device="meta"),
    }
    with torch.no_grad():
        layer(*subject.draw(sample))
        layer.eval()(*subject.draw(sample))
    others["after a call"] = layer
    for case, other in others.items():
        found = list(other.state_dict())
        require(found == right, f"the keys are {right}, but {found} {case}")


@asserts(1, on=("basic", "own"))
def ranks(subject: Subject, sample: Sample) -> None:
    """Parameters and buffers have rank N+2, at most 3, or at least 6."""
    layer = subject.build(sample)
    for name, t in (*layer.named_parameters(), *layer.named_buffers()):
        require(
            t.dim() <= 3 or t.dim() >= 6 or t.dim() == subject.dim + 2,
            f"{name} has rank {t.dim()}: model.to(memory_format=) would refuse the whole model",
        )


@asserts(1, on=ON)
def plain_state(subject: Subject, sample: Sample) -> None:
    """No tensor is kept outside parameters and buffers, before or after a call."""
    layer = subject.build(sample)
    evaluate(layer, layer, subject.draw(sample))
    for path, module in layer.named_modules():
        kept = {
            name: value
            for name, value in vars(module).items()
            if name not in ("_parameters", "_buffers", "_modules")
        }
        for name, value in kept.items():
            require(not tensors_in(_plain(value)), f"{path}.{name} keeps a tensor".lstrip("."))


@asserts(1, on=ON)
def copies(subject: Subject, sample: Sample) -> None:
    """``copy.deepcopy`` and ``pickle`` give equal, independent layers, also after training."""
    layer = subject.build(sample)
    inputs = subject.draw(sample)
    tensors(layer(*inputs))[0].sum().backward()
    expected = evaluate(layer, layer, inputs)
    for how, other in (
        ("copied", copy.deepcopy(layer)),
        ("pickled", pickle.loads(pickle.dumps(layer))),
    ):
        evaluate(other, other, inputs).require_equal(expected, f" of the {how} layer")
        with torch.no_grad():
            for t in (*other.parameters(), *other.buffers()):
                t.add_(1)
        evaluate(layer, layer, inputs).require_equal(expected, f" after the {how} one changed")


@asserts(1, on=ON)
def dtype_moves(subject: Subject, sample: Sample) -> None:
    """``.to(dtype)`` moves everything: the layer computes in the new dtype, and back."""
    layer = subject.build(sample, dtype=torch.float32)
    inputs = subject.draw(sample, torch.float32)
    expected = evaluate(layer, layer, inputs)
    for name in subject.card.dtypes:
        dtype = getattr(torch, name)
        moved = copy.deepcopy(layer).to(dtype)
        for key, t in (*moved.named_parameters(), *moved.named_buffers()):
            require(not t.is_floating_point() or t.dtype == dtype, f"{key} stays {t.dtype}")
        given = tuple(t.to(dtype) if t.is_floating_point() else t for t in inputs)
        output = tensors(moved(*given))[0]
        require(output.dtype == dtype, f"moved to {name}, the layer gives {output.dtype}")
    back = copy.deepcopy(layer).double().float()
    evaluate(back, back, inputs).require_equal(expected, " after .double().float()")


@asserts(1)
def meta(subject: Subject, sample: Sample) -> None:
    """On the meta device nothing is allocated; ``to_empty``, ``reset_parameters`` complete it."""
    multiple = subject.card.channel_multiple(subject.own)
    large = dict.fromkeys(("in_channels", "out_channels"), 512 * multiple)
    with _Allocations() as allocations:
        subject.build(sample, device="meta", **large)
    require(
        allocations.numbers <= SMALL,
        f"construction on the meta device allocates {allocations.numbers} numbers elsewhere",
    )
    layer = subject.build(sample, device="meta")
    inputs = subject.draw(sample)
    output = tensors(layer(*(t.to("meta") for t in inputs)))[0]
    require(output.is_meta, "a layer on the meta device must compute there")
    torch.manual_seed(3)
    fresh = subject.build(sample)
    layer = layer.to_empty(device="cpu")
    with torch.no_grad():
        for t in (*layer.parameters(), *layer.buffers()):
            t.fill_(float("nan") if t.is_floating_point() else 0)
    torch.manual_seed(3)
    layer.reset_parameters()
    for name, right in fresh.state_dict().items():
        require_equal(
            f"{name} after to_empty() and reset_parameters()", layer.state_dict()[name], right
        )
    right = tensors(fresh(*inputs))[0]
    require(output.shape == right.shape, f"on the meta device the output is {tuple(output.shape)}")
    require_equal("the output of the completed layer", tensors(layer(*inputs))[0], right)


class _Allocations(DispatchMode):
    """Counts the numbers in new tensors outside the meta device."""

    numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.numbers += sum(t.numel() for t in tensors_in(result) if not t.is_meta)
        return result


def _plain(value: Any) -> Any:
    """``value`` with modules taken out, which are looked at for themselves."""
    if isinstance(value, nn.Module):
        return None
    if isinstance(value, Mapping):
        return [_plain(v) for v in value.values()]
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Tensor)):
        return [_plain(v) for v in value]
    return value
