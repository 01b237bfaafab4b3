"""A comparison takes every operator that can stand for a convolution, and says why one cannot."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import omniconv as oc
from compare_tiny import CLASSES, tiny, write_idx
from omniconv.compare import network, parse
from omniconv.compare.network import Network
from omniconv.compare.prepare import prepare

NAMES = [name for name in oc.list_operators() if ":" not in name]
NO_REPLACEMENT = {
    "partial": "has role 'masked': use it in the model's code",
    "sub_pixel": "has role 'resampler': use it in the model's code",
}
"""Operators that stand for no convolution, and what the refusal says."""


def _built(folder, name: str) -> Network:
    plan = tiny(write_idx(folder), backbone="resnet8", width=8, rows=["conv", name])
    prepared = prepare(parse(plan))
    return network.build(prepared.plan.point(prepared.plan.rows[1]), prepared.dataset)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(NO_REPLACEMENT)))
def test_every_operator_makes_a_network_that_learns(tmp_path, name):
    torch.manual_seed(0)
    built = _built(tmp_path, name)
    done = [layer["path"] for layer in built.swap if layer["status"] == "swapped"]
    swapped = [built.model.get_submodule(path) for path in done]
    assert swapped
    x, y = torch.randn(6, 1, 28, 28), torch.arange(6) % CLASSES
    optimizer = torch.optim.SGD(
        oc.param_groups(built.model, lr=0.05, weight_decay=0.0), momentum=0.9
    )
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(built.model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[6:]) < 0.95 * losses[0]
    for layer in swapped:
        assert any(p.grad is not None and p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize("name", NO_REPLACEMENT)
def test_what_is_no_replacement_is_refused_with_its_reason(tmp_path, name):
    with pytest.raises(ValueError, match=NO_REPLACEMENT[name]):
        _built(tmp_path, name)
