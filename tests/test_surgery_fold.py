"""fold_: exactly torch's layers, the same numbers, nothing drawn."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import nn

import omniconv as oc
from omniconv.models import build


def train(model: nn.Module, steps: int = 3) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(oc.param_groups(model.train(), lr=0.05), momentum=0.9)
    optimizer.register_step_post_hook(lambda *_: oc.constrain_(model))
    for _ in range(steps):
        x = torch.randn(8, 3, 12, 12, generator=generator)
        target = torch.randint(0, 10, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
    return model.eval()


def swapped(operator: str) -> nn.Module:
    torch.manual_seed(0)
    model = build("resnet8", width=8)
    oc.swap_(model, operator, where=oc.where.name("layer*"), from_weights=False)
    return train(model)


@pytest.mark.parametrize("operator", oc.list_operators(role="conv", folds=True))
def test_a_trained_network_folds_to_plain_layers_with_the_same_output(operator):
    model = swapped(operator)
    x = torch.randn(4, 3, 12, 12)
    before = model(x)
    state = torch.get_rng_state()
    assert oc.fold_(model) is model
    assert torch.equal(torch.get_rng_state(), state)
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert kinds == {nn.Conv2d}
    torch.testing.assert_close(model(x), before)
    assert not model.training


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("operator", ["weighted", "dcls"])
def test_a_swapped_trained_folded_network_exports_to_onnx_with_equal_numbers(operator):
    onnxruntime = pytest.importorskip("onnxruntime", exc_type=ImportError)
    pytest.importorskip("onnxscript", exc_type=ImportError)
    model = oc.fold_(swapped(operator))
    x = torch.randn(2, 3, 12, 12)
    program = torch.onnx.export(
        model,
        (x,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        verbose=False,
    )
    buffer = io.BytesIO()
    program.save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue())
    name = session.get_inputs()[0].name
    for batch in (2, 5):
        x = torch.randn(batch, 3, 12, 12)
        (y,) = session.run(None, {name: x.numpy()})
        np.testing.assert_allclose(y, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_bare_layer_folds_and_tied_layers_stay_tied():
    layer = oc.WeightedConv2d(3, 4, 3)
    assert type(oc.fold_(layer)) is nn.Conv2d
    model = nn.Sequential(layer, nn.Conv2d(4, 3, 1), layer)
    oc.fold_(model)
    assert model[0] is model[2]


def test_layers_that_are_not_one_kernel_stay():
    model = nn.Sequential(oc.Involution2d(4, 4, 3), oc.WeightedConv2d(4, 4, 3))
    oc.fold_(model)
    assert type(model[0]) is oc.Involution2d
    assert type(model[1]) is nn.Conv2d


def test_hooks_are_not_lost_silently():
    model = nn.Sequential(oc.WeightedConv2d(3, 3, 3), oc.WeightedConv2d(3, 3, 3))
    model[1].register_forward_hook(lambda *a: None)
    with pytest.raises(ValueError, match=r"no hooks on '1'"):
        oc.fold_(model)
    assert type(model[0]) is oc.WeightedConv2d


def test_frozen_layers_fold_frozen():
    layer = oc.WeightedConv2d(3, 3, 3).requires_grad_(False)
    folded = oc.fold_(layer)
    assert not folded.weight.requires_grad
    assert not folded.bias.requires_grad
