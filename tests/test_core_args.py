"""Argument parsers: one canonical form, or one sentence that names the argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from omniconv.core import args

GOOD: list[tuple[Callable[[], Any], Any]] = [
    (lambda: args.integer("n", 3), 3),
    (lambda: args.integer("n", np.int64(3)), 3),
    (lambda: args.integer("n", torch.tensor(3)), 3),
    (lambda: args.integer("n", -3), -3),
    (lambda: args.integer("n", 2, 2, 2), 2),
    (lambda: args.positive_int("n", 1), 1),
    (lambda: args.real("x", 1), 1.0),
    (lambda: args.real("x", np.float32(0.5)), 0.5),
    (lambda: args.real("x", torch.tensor(0.5)), 0.5),
    (lambda: args.real("x", 0, 0, 1), 0.0),
    (lambda: args.boolean("b", False), False),
    (lambda: args.choice("c", "a", ("a", "b")), "a"),
    (lambda: args.ntuple("k", 3, 2, 1), (3, 3)),
    (lambda: args.ntuple("k", (3,), 2, 1), (3, 3)),
    (lambda: args.ntuple("k", [3, 5], 2, 1), (3, 5)),
    (lambda: args.ntuple("k", torch.Size([3, 5]), 2, 1), (3, 5)),
    (lambda: args.ntuple("k", 0, 1, 0), (0,)),
    (lambda: args.divisor("g", 3, channels=6), 3),
]

BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: args.integer("n", True), TypeError, "n must be an int, got True (bool)"),
    (lambda: args.integer("n", 2.0), TypeError, "n must be an int, got 2.0 (float)"),
    (lambda: args.integer("n", "2", 1), TypeError, "n must be an int of at least 1, got '2' (str)"),
    (lambda: args.integer("n", None), TypeError, "n must be an int, got None (NoneType)"),
    (lambda: args.integer("n", 0, 1), ValueError, "n must be an int of at least 1, got 0"),
    (lambda: args.integer("n", 9, maximum=8), ValueError, "n must be an int of at most 8, got 9"),
    (
        lambda: args.integer("n", 9, 1, 8),
        ValueError,
        "n must be an int of at least 1 and at most 8, got 9",
    ),
    (lambda: args.positive_int("n", -1), ValueError, "n must be an int of at least 1, got -1"),
    (
        lambda: args.integer("n", torch.tensor([1, 2])),
        TypeError,
        "n must be an int, got tensor([1, 2]) (Tensor)",
    ),
    (lambda: args.real("x", "1"), TypeError, "x must be a finite number, got '1' (str)"),
    (lambda: args.real("x", True), TypeError, "x must be a finite number, got True (bool)"),
    (lambda: args.real("x", None), TypeError, "x must be a finite number, got None (NoneType)"),
    (lambda: args.real("x", 1j), TypeError, "x must be a finite number, got 1j (complex)"),
    (lambda: args.real("x", math.nan), ValueError, "x must be a finite number, got nan"),
    (lambda: args.real("x", math.inf), ValueError, "x must be a finite number, got inf"),
    (lambda: args.real("x", 10**400), TypeError, "x must be a finite number, got 1000"),
    (lambda: args.real("x", 2, 0, 1), ValueError, "x must be a finite number in [0, 1], got 2"),
    (
        lambda: args.real("x", 1, 0, 1, exclusive=True),
        ValueError,
        "x must be a finite number in (0, 1), got 1",
    ),
    (
        lambda: args.real("x", torch.ones(2)),
        TypeError,
        "x must be a finite number, got tensor([1., 1.])",
    ),
    (lambda: args.boolean("b", 1), TypeError, "b must be True or False, got 1 (int)"),
    (lambda: args.boolean("b", None), TypeError, "b must be True or False, got None (NoneType)"),
    (
        lambda: args.choice("c", "zero", ("zeros", "reflect")),
        ValueError,
        "c must be one of 'zeros', 'reflect', got 'zero' (did you mean 'zeros'?)",
    ),
    (
        lambda: args.choice("c", "xyz", ("zeros", "reflect")),
        ValueError,
        "c must be one of 'zeros', 'reflect', got 'xyz'",
    ),
    (lambda: args.choice("c", 1, ("a",)), TypeError, "c must be one of 'a', got 1 (int)"),
    (
        lambda: args.ntuple("k", (1, 2, 3), 2, 1),
        ValueError,
        "k must be an int or 2 ints (one per axis), got (1, 2, 3)",
    ),
    (
        lambda: args.ntuple("k", (), 2, 1),
        ValueError,
        "k must be an int or 2 ints (one per axis), got ()",
    ),
    (lambda: args.ntuple("k", 0, 2, 1), ValueError, "k must be an int of at least 1, got 0"),
    (
        lambda: args.ntuple("k", (3, 0), 2, 1),
        ValueError,
        "k[1] must be an int of at least 1, got 0",
    ),
    (
        lambda: args.ntuple("k", (3, 2.5), 2, 1),
        TypeError,
        "k[1] must be an int of at least 1, got 2.5 (float)",
    ),
    (
        lambda: args.ntuple("k", "33", 2, 1),
        TypeError,
        "k must be an int or 2 ints of at least 1, got '33' (str)",
    ),
    (
        lambda: args.ntuple("k", 2.5, 2, 1),
        TypeError,
        "k must be an int or 2 ints of at least 1, got 2.5 (float)",
    ),
    (lambda: args.divisor("g", 4, channels=6), ValueError, "g must divide channels=6, got 4"),
    (lambda: args.divisor("g", 0, channels=6), ValueError, "g must be an int of at least 1, got 0"),
]


@pytest.mark.parametrize(("parse", "value"), GOOD)
def test_a_good_argument_gets_its_canonical_form(parse: Callable[[], Any], value: Any):
    found = parse()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("parse", "error", "message"), BAD, ids=[str(bad[2]) for bad in BAD])
def test_a_bad_argument_is_named_with_its_value_and_what_is_allowed(
    parse: Callable[[], Any], error: type[Exception], message: str
):
    with pytest.raises(error) as raised:
        parse()
    assert str(raised.value).startswith(message)
    assert type(raised.value) is error
    assert raised.value.__cause__ is None


def test_values_are_shown_on_one_short_line():
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert args.show(torch.zeros(2, 2)) == "tensor([[0., 0.], [0., 0.]])"
    assert len(args.show("x" * 1000)) == 80
    assert args.show("x" * 1000).endswith("...")
    assert args.show("x" * 78) == repr("x" * 78)
    assert args.show("x" * 79) == repr("x" * 79)[:77] + "..."
    assert args.show(Broken()) == "<Broken>"


def test_a_name_close_to_an_allowed_one_is_suggested():
    assert args.did_you_mean("reflct", ["reflect", "zeros"]) == " (did you mean 'reflect'?)"
    assert args.did_you_mean("q", ["reflect", "zeros"]) == ""
    assert args.did_you_mean(3, ["reflect"]) == ""
