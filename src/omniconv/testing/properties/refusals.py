"""Refusals: bad input ends in one clear sentence, and nothing has changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from omniconv.core.card import ErrorInput, Sample
from omniconv.testing.registry import asserts
from omniconv.testing.subject import Subject
from omniconv.testing.tolerances import require

UNUSABLE = {"int64": torch.int64, "bool": torch.bool, "complex64": torch.complex64}


@asserts(1)
def bad_arguments(subject: Subject, sample: Sample) -> None:
    """Every bad constructor argument is refused by a message that names it."""
    base = dict(sample.arguments)
    for row in (*_common(subject, base), *subject.card.error_inputs(subject.dim)):
        shown = ", ".join(f"{k}={v!r}" for k, v in row.arguments.items())
        _refuses(shown, partial(subject.layer, **row.arguments), row.match, row.error)
    positional = (4, 4, 3, 1, 0, 1, 1, True, "zeros", None, None, "surplus")
    surplus = positional if not subject.transposed else (*positional, "surplus")
    _refuses("a surplus argument", lambda: subject.layer(*surplus), "positional", TypeError)


def _common(subject: Subject, base: dict[str, Any]) -> list[ErrorInput]:
    dim = subject.dim

    def row(match: str, error: type[Exception] = ValueError, **changed: Any) -> ErrorInput:
        arguments = {**subject.own, **base, **changed}
        return ErrorInput(arguments=arguments, match=match, error=error)

    rows = [
        row("in_channels must be an int of at least 1, got 0", in_channels=0),
        row("in_channels must be an int", TypeError, in_channels="4"),
        row("out_channels must be an int of at least 1", out_channels=-1),
        row("out_channels must be an int", TypeError, out_channels=4.0),
        row("groups must", groups=0),
        row("groups must divide in_channels", groups=base["in_channels"] + 1),
        row("groups must be an int", TypeError, groups=None),
        row("kernel_size must be an int of at least 1|kernel_size must", kernel_size=0),
        row("kernel_size must be an int", TypeError, kernel_size=2.5),
        row("kernel_size must be an int", TypeError, kernel_size=True),
        row(f"kernel_size must be an int or {dim} ints", kernel_size=(3,) * (dim + 1)),
        row("stride must be an int", stride=0),
        row("stride must be an int", TypeError, stride=None),
        row("dilation must be an int", dilation=0),
        row("padding must", padding=-1),
        row("bias must be True or False", TypeError, bias=1),
        row("dtype must be a floating-point torch.dtype", dtype=torch.int64),
        row("dtype must be a floating-point torch.dtype", TypeError, dtype="float32"),
        row("device must name a device", device="nowhere"),
        row("did you mean 'kernel_size'", TypeError, kernal_size=3),
        row("padding_mode must be one of .*did you mean 'zeros'", padding_mode="zeroes"),
        row("padding_mode must be one of", TypeError, padding_mode=None),
    ]
    if subject.transposed:
        rows += [
            row("output_padding must be smaller than stride or dilation", output_padding=1),
            row("padding_mode must be one of", padding_mode="reflect"),
            row("padding must", TypeError, padding="same"),
        ]
    else:
        rows += [
            row("padding must be one of .*did you mean 'same'", padding="sames"),
            row("padding='same' needs stride 1", padding="same", stride=2),
        ]
    return rows


@asserts(1, on=("basic", "reflect", "circular"))
def bad_inputs(subject: Subject, sample: Sample) -> None:
    """Every bad input is refused by a message that names it; the layer stays as it was."""
    layer = subject.build(sample)
    x, *others = subject.draw(sample)
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    attributes = {k: v for k, v in vars(layer).items() if not k.startswith("_")}

    def call(given: Any) -> Callable[[], Any]:
        return lambda: layer(given, *others)

    for name, bad in {"None": None, "a list": x.tolist(), "an array": x.numpy()}.items():
        _refuses(name, call(bad), "input must be a floating-point tensor", TypeError)
    for name, dtype in UNUSABLE.items():
        _refuses(name, call(x.to(dtype)), "input must be a floating-point tensor", TypeError)
    _refuses("float32", call(x.float()), "input must have the layer's dtype", TypeError)
    _refuses("another device", call(x.to("meta")), "input must be on the layer's device")
    _refuses("too few axes", call(x[0, 0]), "input must have .* axes")
    _refuses("too many axes", call(x[None]), "input must have .* axes")
    _refuses("too few channels", call(x[:, 1:]), "input must have in_channels=")
    _refuses("no pixels", call(x[..., :0]), "input ")
    if not subject.transposed:
        lean = subject.build(sample, padding=0, kernel_size=tuple(n + 1 for n in sample.size))
        _refuses("too small", lambda: lean(x, *others), "input .* is too small for kernel_size")
    if sample.arguments.get("padding_mode", "zeros") in ("reflect", "circular"):
        _refuses("too small to pad", call(x.narrow(2, 0, 1)), "input is too small for padding_mode")
    for name, kept in before.items():
        require(torch.equal(layer.state_dict()[name], kept), f"a refused call changes {name}")
    after = {k: v for k, v in vars(layer).items() if not k.startswith("_")}
    require(after == attributes, f"a refused call changes attributes: {after} != {attributes}")


def _refuses(
    what: str, call: Callable[[], Any], match: str, error: type[Exception] = ValueError
) -> None:
    random = torch.get_rng_state()
    try:
        call()
    except Exception as raised:
        message = str(raised)
        if type(raised) is not error or not re.search(match, message):
            raise AssertionError(
                f"{what} should raise {error.__name__} matching {match!r}, got "
                f"{type(raised).__name__}: {message}"
            ) from raised
        require("\n" not in message, f"{what} should give one sentence, got {message!r}")
    else:
        raise AssertionError(f"{what} should raise {error.__name__}, and does not")
    require(torch.equal(torch.get_rng_state(), random), f"{what} is refused after drawing numbers")
