"""Two thousand bad constructions and calls: each ends in one error that names the argument.

Every registered operator and every public function takes part, by what its card, its signature and
its layers say: a new operator is covered without a line here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor

import omniconv as oc
from omniconv import _index
from omniconv.core.card import Sample
from omniconv.testing import Subject
from omniconv.testing.case import ROLES

DRAWS = 2000
OPERATORS = sorted(_index.OPERATORS)
FORMS = [
    Subject(card, variant, dim, transposed)
    for card in map(oc.card, OPERATORS)
    if card.role in ROLES
    for variant in card.variants
    for transposed, table in ((False, card.classes), (True, card.transposed))
    for dim in sorted(table)
]
NOTHING = object()
JUNK: tuple[Any, ...] = (NOTHING, b"3", 1j, {"a": 1}, torch.relu)
"""No argument of any operator takes one of these."""


@dataclass
class Bad:
    """A call that must be refused, the argument to blame, and what must stay as it is."""

    what: str
    call: Callable[[], Any]
    names: tuple[str, ...]
    state: Callable[[], dict[str, Tensor]] = dict


def _bad_values(name: str, dim: int, transposed: bool, arguments: dict[str, Any]) -> list[Any]:
    """What no convolution takes for one of torch's arguments."""
    wrong = [None, True, 2.5, "3", float("nan"), *JUNK]
    if name in ("in_channels", "out_channels"):
        return [0, -1, [4], *wrong]
    if name == "groups":
        return [0, -2, (1,), arguments["in_channels"] * 7 + 1, *wrong]
    if name in ("kernel_size", "stride", "dilation"):
        return [0, -1, (), (3,) * (dim + 1), (0,) * dim, (1.5,) * dim, [None] * dim, {3}, *wrong]
    if name == "padding":
        strings = ["same", "valid"] if transposed else ["sames", "", "SAME"]
        return [-1, (1,) * (dim + 1), (-1,) * dim, [0.5] * dim, {1}, *strings, *wrong]
    if name == "output_padding":
        return [-1, 99, (0,) * (dim + 1), (-1,) * dim, "same", *wrong]
    if name == "bias":
        return [None, 0, 1, "True", torch.tensor(True), *JUNK]
    if name == "padding_mode":
        return [
            None,
            0,
            "zero",
            "",
            "ZEROS",
            "constant",
            *(["reflect"] if transposed else []),
            *JUNK,
        ]
    if name == "device":
        return ["nowhere", "cuda:77", "", 2.5, *JUNK]
    if name == "dtype":
        return [torch.int64, torch.complex64, torch.bool, "float32", float, 32, *JUNK]
    return list(JUNK)  # own arguments


@st.composite
def constructions(draw: st.DrawFn) -> Bad:
    """A constructor with one bad, misspelt, surplus or missing argument."""
    form = draw(st.sampled_from(FORMS))
    sample = draw(st.sampled_from(list(form.samples.values())))
    arguments = {**form.own, **sample.arguments}
    parameters = list(inspect.signature(form.layer).parameters)
    name = draw(st.sampled_from(parameters))
    kind = draw(st.sampled_from(["value"] * 8 + ["misspelt", "missing", "card"]))
    names = (name,)
    if kind == "value":
        pool = _bad_values(name, form.dim, form.transposed, arguments)
        arguments[name] = draw(st.sampled_from(pool))
    elif kind == "misspelt":
        names = (f"{name}x",)
        arguments[names[0]] = arguments.get(name, 1)
    elif kind == "missing":
        name = draw(st.sampled_from(["in_channels", "out_channels", "kernel_size"]))
        names = (name,)
        del arguments[name]
    else:
        refused = draw(st.sampled_from(form.card.error_inputs(form.dim)))
        arguments = {**form.own, **refused.arguments}
        names = tuple(parameters)
    shown = ", ".join(f"{k}={v!r}" for k, v in arguments.items())
    return Bad(f"{form.layer.__name__}({shown})", lambda: form.layer(**arguments), names)


@functools.cache
def _layer(form: int, name: str) -> Any:
    with torch.random.fork_rng():
        return FORMS[form].trained(FORMS[form].samples[name])


def _bad_tensors(x: Tensor, dim: int) -> list[Any]:
    """What no layer takes for a tensor of this shape."""
    junk = [None, 3, "x", x.tolist(), x.numpy(), *JUNK]
    dtypes = [x.to(d) for d in (torch.int64, torch.bool, torch.complex64, torch.float32)]
    shapes = [x[0, 0], x[None, None], x[..., :0], torch.cat([x, x], -dim - 1), x[..., 0].flatten()]
    return [*junk, *dtypes, *shapes, x.to("meta")]


def _bad_masks(mask: Tensor, dim: int) -> list[Any]:
    junk = [3, "x", mask.tolist(), *JUNK]
    dtypes = [mask.to(d) for d in (torch.int64, torch.complex64)]
    shapes = [mask[..., :-1], mask[None], mask[0, 0], torch.cat([mask] * 9, -dim - 1)]
    return [*junk, *dtypes, *shapes, mask.to("meta")]


@st.composite
def calls(draw: st.DrawFn) -> Bad:
    """A layer with an input, or a mask, that it cannot take."""
    number = draw(st.integers(0, len(FORMS) - 1))
    form = FORMS[number]
    batched = {name: s for name, s in form.samples.items() if s.batch is not None}
    name = draw(st.sampled_from(list(batched)))
    layer = _layer(number, name)
    inputs: list[Any] = list(form.draw(batched[name]))
    place = draw(st.integers(0, len(inputs) - 1))
    bad = (_bad_masks if place else _bad_tensors)(inputs[place], form.dim)
    inputs[place] = draw(st.sampled_from(bad))
    what = f"{layer} called with {inputs[place]!r} for argument {place}"
    return Bad(what, lambda: layer(*inputs), ("mask",) if place else ("input",), layer.state_dict)


def _convolving(**own: Tensor) -> dict[str, Any]:
    """Arguments of a function that convolves by itself."""
    rest = {"bias": None, "stride": 1, "padding": 1, "dilation": 1, "groups": 2}
    return {"x": torch.randn(2, 4, 6, 5), **own, **rest, "padding_mode": "zeros"}


PROFILES = [torch.tensor([0.2, 0.6]), torch.tensor([0.7])]
APART: dict[str, Callable[[], dict[str, Any]]] = {
    "cond_conv": lambda: _convolving(routing=torch.rand(2, 3), experts=torch.randn(3, 6, 2, 3, 3)),
    "dcls_kernel": lambda: {
        "taps": torch.randn(3, 2, 4),
        "position": torch.randn(3, 2, 8),
        "size": (5, 3),
    },
    "deform_aggregate": lambda: {
        "x": torch.randn(2, 4, 6, 5),
        "offset": torch.randn(2, 16, 5, 4),
        "mask": torch.rand(2, 8, 5, 4),
        "kernel_size": 2,
    },
    "deform_conv": lambda: {
        **_convolving(weight=torch.randn(6, 2, 3, 3), offset=torch.randn(2, 18, 6, 5)),
        "mask": torch.rand(2, 9, 6, 5),
    },
    "gated_conv": lambda: _convolving(weight=torch.randn(12, 2, 3, 3)) | {"activation": "elu"},
    "icnr": lambda: {"weight": torch.randn(3, 2, 3, 3), "factor": 2},
    "involution": lambda: {
        "x": torch.randn(2, 6, 7, 8),
        "kernels": torch.randn(2, 3, 3, 3, 5, 6),
    },
    "weighted_kernel": lambda: {"raw": torch.randn(3, 2, 5, 3), "density": PROFILES},
}
"""Functions that their layers do not call."""

ANY_NUMBER = ("inception_kernel", "separable_kernel")
"""Functions that take a list of any length."""


def _good_arguments(function: str) -> dict[str, Any]:
    """Arguments of a public function: those its layer calls it with, or has under their names."""
    if function in APART:
        with torch.random.fork_rng():
            return APART[function]()
    home = import_module(_index.FUNCTIONAL[function])
    public = getattr(home, function)
    form = Subject(home.card)
    sample: Sample = form.samples["basic"]
    recorded: dict[str, Any] = {}

    def record(*arguments: Any, **keywords: Any) -> Any:
        bound = inspect.signature(public).bind(*arguments, **keywords)
        recorded.update(bound.arguments)
        return public(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        layer = form.trained(sample)
        inputs = form.draw(sample)
        patch.setattr(home, function, record)
        layer(*inputs)
        if not recorded and form.card.folds:
            layer.fold()
    if not recorded:
        known = {"x": inputs[0], "input": inputs[0], "mask": inputs[-1]}
        parameters = inspect.signature(public).parameters
        recorded = {n: known[n] if n in known else getattr(layer, n, None) for n in parameters}
    with torch.no_grad():
        public(**recorded)
    return recorded


GOOD = {name: _good_arguments(name) for name in sorted(_index.FUNCTIONAL)}


def _bad_argument(good: Any, optional: bool, any_number: bool) -> list[Any]:
    """What cannot stand where ``good`` stands; ``any_number``: a longer list can."""
    none = [] if optional else [None]
    if isinstance(good, Tensor):
        good = good.detach()
        rank = good.flatten() if good.dim() > 1 else good[None]
        return [3, "x", good.to(torch.int64), rank, good.tolist(), *none, *JUNK]
    if isinstance(good, bool):
        return [0, "x", None, *JUNK]
    if isinstance(good, int):
        return [-1, 2.5, "3", True, *none, *JUNK]
    if isinstance(good, str):
        return ["no such", 3, *none, *JUNK]
    if isinstance(good, (tuple, list)) and good and isinstance(good[0], Tensor):
        surplus = [] if any_number else [[*good, good[0]]]
        return [3, "x", [], [NOTHING] * len(good), *surplus, *none, *JUNK]
    if isinstance(good, (tuple, list)):
        return [2.5, "x", (-1,) * len(good), (1.5,) * len(good), *none, *JUNK]
    return list(JUNK)


@st.composite
def functions(draw: st.DrawFn) -> Bad:
    """A public function with one bad argument."""
    function = draw(st.sampled_from(sorted(GOOD)))
    public = getattr(oc.functional, function)
    arguments = dict(GOOD[function])
    parameters = inspect.signature(public).parameters
    name = draw(st.sampled_from(list(parameters)))
    parameter = parameters[name]
    good = arguments.get(name, parameter.default)
    optional = "None" in str(parameter.annotation)
    bad = _bad_argument(good, optional, function in ANY_NUMBER)
    arguments[name] = draw(st.sampled_from(bad))
    what = f"{function}({name}={arguments[name]!r})"
    return Bad(what, lambda: public(**arguments), (name,))


@settings(
    max_examples=DRAWS,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(bad=st.one_of(constructions(), calls(), functions()))
def test_bad_input_ends_in_one_sentence_that_names_the_argument(bad: Bad):
    random = torch.get_rng_state()
    before = {name: t.clone() for name, t in bad.state().items()}
    try:
        bad.call()
    except (TypeError, ValueError) as error:
        event(type(error).__name__)
        message = str(error)
        assert any(name in message for name in bad.names), f"{bad.what} says: {message}"
        assert "\n" not in message, f"{bad.what} says more than a sentence: {message}"
        assert len(message) < 400, f"{bad.what} says too much: {message}"
    else:
        raise AssertionError(f"{bad.what} is not refused")
    assert torch.equal(torch.get_rng_state(), random), f"{bad.what} draws numbers first"
    after = bad.state()
    assert all(torch.equal(t, after[name]) for name, t in before.items()), bad.what


def test_every_operator_and_function_takes_part():
    assert {form.card.name for form in FORMS} == set(OPERATORS)
    assert set(GOOD) == set(_index.FUNCTIONAL)
    for name, good in GOOD.items():
        parameters = inspect.signature(getattr(oc.functional, name)).parameters.values()
        assert {p.name for p in parameters if p.default is p.empty} <= set(good)
