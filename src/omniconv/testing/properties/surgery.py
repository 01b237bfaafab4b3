"""Surgery: from a trained plain convolution to the operator and back."""

from __future__ import annotations

from typing import Any

import torch

from omniconv.core.card import Sample
from omniconv.testing.registry import asserts
from omniconv.testing.subject import Subject, evaluate, tensors
from omniconv.testing.tolerances import require, require_equal, require_near


def _no_fold(subject: Subject) -> str:
    return "" if subject.card.folds else "the card says folds=False"


@asserts(1, on=(), skip=_no_fold)
def fold(subject: Subject, sample: Sample) -> None:
    """``fold()`` is exactly torch's layer with the same output, and leaves its source alone."""
    layer = subject.trained(sample).eval()
    layer.requires_grad_(False)
    inputs = subject.draw(sample)
    expected = tensors(layer(*inputs))[0]
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    random = torch.get_rng_state()
    plain = layer.fold()
    require(torch.equal(torch.get_rng_state(), random), "fold() must not draw random numbers")
    require(type(plain) is subject.plain, f"fold() gives {type(plain).__name__}")
    fresh = subject.build_plain(sample, groups=layer.geometry.groups)
    require(repr(plain) == repr(fresh), f"fold() gives {plain}, not {fresh}")
    require(list(plain.state_dict()) == list(fresh.state_dict()), "its keys are not torch's")
    require(not plain.training, "fold() must keep the mode")
    require(not any(p.requires_grad for p in plain.parameters()), "fold() must keep requires_grad")
    length = subject.length(layer, *inputs)
    require_near("the folded layer's output", plain(inputs[0]), expected, length=length)
    with torch.no_grad():
        for p in plain.parameters():
            p.zero_()
    for name, kept in before.items():
        require_equal(f"{name} after its folded layer changed", layer.state_dict()[name], kept)
    kept_dtype = {
        p.dtype for p in subject.trained(sample, dtype=torch.bfloat16).fold().parameters()
    }
    require(kept_dtype == {torch.bfloat16}, f"fold() changes bfloat16 to {kept_dtype}")


def _no_from_conv(subject: Subject) -> str:
    return "" if hasattr(subject.layer, "from_conv") else "the layer has no from_conv"


@asserts(1, on=(), skip=_no_from_conv)
def from_conv(subject: Subject, sample: Sample) -> None:
    """``from_conv`` keeps grid, mode and dtype, and the output where the card says so."""
    conv: Any = subject.build_plain(sample).eval()
    before = {name: t.clone() for name, t in conv.state_dict().items()}
    inputs = subject.draw(sample)
    expected = evaluate(lambda x, *_: conv(x), conv, inputs).outputs[0]
    own = subject.own_arguments(sample)
    kept = subject.card.preserves_function and not own
    grown = tuple(k + 2 for k in conv.kernel_size)
    source: Any = subject.layer
    for extent in (None, grown) if _can_grow(subject, sample) else (None,):
        layer = source.from_conv(conv, extent=extent, **own)
        right = conv.kernel_size if extent is None else grown
        require(layer.kernel_size == right, f"kernel_size is {layer.kernel_size}, not {right}")
        require(not layer.training, "from_conv must keep the mode")
        output = tensors(layer(*_full(subject, inputs)))[0]
        case = "" if extent is None else f" with extent={extent}"
        require(output.shape == expected.shape, f"the output grid changes{case}")
        require(output.dtype == expected.dtype, f"the dtype changes{case}")
        require(bool(output.isfinite().all()), f"the output is not finite{case}")
        if kept:
            length = subject.length(layer, *inputs)
            require_near(f"the output{case}", output, expected, length=length)
    for name, value in before.items():
        require_equal(f"the source's {name}", conv.state_dict()[name], value)


def _can_grow(subject: Subject, sample: Sample) -> bool:
    """Reflected and wrapped borders limit the padding; own arguments may fit one extent only."""
    free = sample.arguments.get("padding_mode", "zeros") in ("zeros", "replicate")
    return free and subject.own_arguments(sample) == dict(subject.own)


def _full(subject: Subject, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The inputs with a mask that lets everything through."""
    return (inputs[0], *(torch.ones_like(t) for t in inputs[1:]))
