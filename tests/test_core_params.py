"""Optimiser groups and constraints that layers declare."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import omniconv as oc


def _by_parameter(model: nn.Module, groups: list[dict]) -> dict[str, tuple[float, float]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }


def test_declared_exceptions_are_kept():
    model = nn.Sequential(oc.create("dcls", 2, 3, 3), oc.create("weighted", 3, 3, 3))
    found = _by_parameter(model, oc.param_groups(model, lr=0.1, weight_decay=0.01))
    assert found == {
        "0.taps": (0.1, 0.01),
        "0.bias": (0.1, 0.01),
        "0.position": (0.5, 0.0),
        "1.raw": (0.1, 0.01),
        "1.bias": (0.1, 0.01),
    }


def test_every_trained_parameter_appears_once():
    shared = nn.Linear(2, 2)
    model = nn.ModuleList([shared, shared, nn.Linear(2, 2), oc.create("dcls", 2, 2, 3)])
    model[2].weight.requires_grad_(False)
    model[2].bias = shared.bias
    groups = oc.param_groups(model, lr=1)
    listed = [id(p) for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in model.parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    assert len(optimizer.param_groups) == 2


def test_an_ordinary_model_has_one_group():
    (group,) = oc.param_groups(nn.Linear(2, 2), lr=0.3, weight_decay=0.1)
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (0.3, 0.1, 2)
    assert oc.param_groups(nn.ReLU(), lr=0.3) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 3, "lr": 0.1}, TypeError, "model must be an nn.Module, got 3"),
        ({"lr": -0.1}, ValueError, r"lr must be a finite number in \[0, inf\], got -0.1"),
        ({"lr": "0.1"}, TypeError, r"lr must be a finite number in \[0, inf\], got '0.1'"),
        ({"lr": 1, "weight_decay": -1}, ValueError, "weight_decay must be a finite number"),
        ({"lr": 1, "weight_decay": None}, TypeError, "weight_decay must be a finite number"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        oc.param_groups(**({"model": nn.Linear(1, 1)} | arguments))


def test_constrain_projects_every_layer_that_declares_a_set():
    model = nn.Sequential(oc.create("dcls", 2, 2, 5), nn.Linear(1, 1))
    before = model[1].weight.detach().clone()
    with torch.no_grad():
        model[0].position.fill_(9.0)
    assert oc.constrain_(model) is model
    assert model[0].position.abs().max() == 2.0
    assert torch.equal(model[1].weight, before)


def test_constrain_works_after_each_step_as_documented():
    model = nn.Sequential(oc.create("dcls", 1, 1, 3))
    optimizer = torch.optim.SGD(oc.param_groups(model, lr=100.0))
    optimizer.register_step_post_hook(lambda *_: oc.constrain_(model))
    model(torch.randn(2, 1, 6, 6)).square().sum().backward()
    optimizer.step()
    assert model[0].position.abs().max() <= 1.0
