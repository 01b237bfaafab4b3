"""The matrix sees false claims of layers that change the grid by themselves or pass channels."""

from __future__ import annotations

from dataclasses import replace

import pytest

import omniconv as oc
from omniconv import testing
from omniconv.core.card import Card


def run(card: Card, name: str) -> None:
    for case in testing.cases(card):
        if case.property == name and case.dim == 2 and case.variant == "default":
            case.run()


@pytest.mark.parametrize("name", ["sub_pixel", "spd"])
@pytest.mark.parametrize("factor", [(1, 1), (2, 2), (3, 1), (1, 3)])
def test_false_rates_are_seen(name, factor):
    card = replace(oc.card(name), rates=lambda own, dim: (factor,) * dim)
    with pytest.raises((AssertionError, ValueError), match=r"shape|too small"):
        run(card, "output_size")


def test_a_shift_that_does_not_match_the_rates_is_seen():
    card = replace(oc.card("sub_pixel"), rates=lambda own, dim: ((2, 1),) * dim)
    with pytest.raises(AssertionError, match="the output shifted"):
        run(card, "equivariance")


def test_passing_channels_that_are_not_declared_are_seen():
    run(oc.card("pconv"), "initial_variance")
    card = replace(oc.card("pconv"), passing=lambda layer: ())
    with pytest.raises(AssertionError, match="the output variance is"):
        run(card, "initial_variance")
