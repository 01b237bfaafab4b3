"""Cards: what they accept, what they say as JSON."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from typing import Any

import pytest

import omniconv as oc
from omniconv import cli
from omniconv.core.card import KINDS, ROLES, Card

WEIGHTED = oc.card("weighted")
NAMES = [name for name in oc.list_operators() if ":" not in name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "layers"}, r"kind must be one of .*did you mean 'layer'"),
        ({"role": "convolution"}, r"role must be one of 'conv', 'mixer'"),
        ({"name": "two words"}, r"name must be an identifier, got 'two words'"),
        ({"name": "a:b"}, r"name must be an identifier"),
        ({"classes": {}}, r"classes must name at least one class"),
        ({"variants": {"other": {}}}, r"variants must contain 'default', got \['other'\]"),
    ],
)
def test_a_malformed_card_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(WEIGHTED, **changes)


def test_a_card_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        WEIGHTED.name = "other"


def test_classes_by_dimension():
    assert WEIGHTED.dims == (1, 2, 3)
    assert WEIGHTED.layer(2) is oc.nn.WeightedConv2d
    assert WEIGHTED.layer(3, transposed=True) is oc.nn.WeightedConvTranspose3d
    with pytest.raises(ValueError, match=r"dim must be one of \[1, 2, 3\] .*'weighted', got 4"):
        WEIGHTED.layer(4)
    with pytest.raises(ValueError, match=r"dim must be one of \[\] for the transposed form"):
        oc.card("involution").layer(2, transposed=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_plain_json_with_every_field(name: str):
    card = oc.card(name)
    data = json.loads(json.dumps(card.to_json()))
    assert {f.name for f in dataclasses.fields(Card)} <= set(data)
    assert data["dims"] == list(card.dims)
    assert data["classes"]["2"] == f"omniconv.nn.{card.classes[2].__name__}"
    assert getattr(oc.nn, data["classes"]["2"].rpartition(".")[2]) is card.classes[2]
    assert data["no_weight_decay"] == list(card.no_weight_decay)
    assert data["lr_factors"] == dict(card.lr_factors)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_a_reader_needs(name: str):
    card = oc.card(name)
    assert card.kind in KINDS
    assert card.role in ROLES
    assert card.summary.endswith(".")
    assert "\n" not in card.equation + card.summary + card.preserves_note + card.claim
    assert card.citation
    assert re.search(r"\((abstracts?\b|table of ).*\)\.$", card.claim), "what, and where it stands"
    assert card.rows == tuple(sorted(set(card.rows)))
    assert card.rows
    assert bool(card.source) == bool(card.source_licence)
    for variant in card.variants.values():
        assert set(variant) <= set(card.classes[2].own_arguments())
    for dim in card.dims:
        assert card.samples(dim)
        assert card.error_inputs(dim)
        assert all(len(sample.size) == dim for sample in card.samples(dim))


@pytest.mark.parametrize("name", NAMES)
def test_the_file_of_an_operator_says_what_its_page_needs(name: str):
    card = oc.card(name)
    text = inspect.getdoc(sys.modules[card.classes[2].__module__]) or ""
    assert ".. math::" in text
    starts = [paragraph.partition(":")[0] for paragraph in text.split("\n\n")]
    assert [s for s in starts if s in ("Shapes", "Cost", "Source")] == ["Shapes", "Cost", "Source"]
    official = "The official code " if card.source else "There is no official code."
    assert f"\n\n{official}" in text


def test_the_command_line_shows_what_the_paper_claims(capsys: pytest.CaptureFixture[str]):
    cli.show("dcls")
    assert oc.card("dcls").claim in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_every_dimension_is_the_same_operator(name: str):
    card = oc.card(name)
    layers = [*card.classes.values(), *card.transposed.values()]
    assert len({layer.__mro__[1] for layer in layers if layer in card.classes.values()}) == 1
    assert len({layer.own_arguments() for layer in layers}) == 1
    assert len({tuple(layer.no_weight_decay) for layer in layers}) == 1
