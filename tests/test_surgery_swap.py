"""swap_: what is replaced, what is skipped and why, and that nothing is ever half-changed."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import omniconv as oc
from omniconv.models import build
from omniconv.surgery.swap import MixerPointwise


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return build("resnet8", width=8).eval()


def test_swap_keeps_the_function_where_the_operator_can():
    model, x = resnet(), images()
    before = model(x)
    report = oc.swap_(model, "weighted", where=oc.where.spatial)
    assert len(report.swapped) == 7
    assert {row.weights for row in report.layers} == {"kept"}
    assert report.model is model
    assert isinstance(model.layer1[0].conv1, oc.WeightedConv2d)
    torch.testing.assert_close(model(x), before)


def test_swap_enlarges_kernels_on_the_same_grid():
    model, x = resnet(), images()
    before = model(x)
    oc.swap_(model, "weighted", where=oc.where.spatial, kernel_size=5)
    assert model.layer2[0].conv1.kernel_size == (5, 5)
    assert model.layer2[0].conv1.padding == (2, 2)
    torch.testing.assert_close(model(x), before)


def test_swap_new_weights_differ_and_train():
    model, x = resnet(), images()
    before = model(x)
    report = oc.swap_(model, "weighted", from_weights=False)
    assert {row.weights for row in report.swapped} == {"new"}
    assert not torch.allclose(model(x), before)
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_second_call_changes_nothing():
    model = resnet()
    oc.swap_(model, "weighted", where=oc.where.spatial)
    layers = dict(model.named_modules())
    again = oc.swap_(model, "weighted", where=oc.where.spatial)
    assert not again.swapped
    assert {row.reason for row in again.layers} == {"already WeightedConv2d"}
    assert dict(model.named_modules()) == layers


def test_where_selects_and_combines():
    model = resnet()
    where = oc.where.spatial & ~oc.where.name("layer1.*", "conv1")
    report = oc.swap_(model, "weighted", where=where)
    assert {row.path.split(".")[0] for row in report.layers} == {"layer2", "layer3"}
    assert repr(where) == "where.spatial & ~where.name('layer1.*', 'conv1')"


def test_a_bare_layer_is_replaced_in_the_report():
    conv = nn.Conv1d(4, 4, 3)
    report = oc.swap_(conv, "weighted")
    assert type(report.model) is oc.WeightedConv1d
    x = torch.randn(2, 4, 9)
    torch.testing.assert_close(report.model(x), conv(x))


def test_transposed_layers_take_the_transposed_form():
    model = nn.Sequential(nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1, output_padding=1))
    x = torch.randn(1, 4, 5, 5)
    before = model(x)
    oc.swap_(model, "weighted")
    assert type(model[0]) is oc.WeightedConvTranspose2d
    torch.testing.assert_close(model(x), before)


def test_tied_layers_stay_tied():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    report = oc.swap_(model, "weighted")
    assert model[0] is model[2]
    assert [row.path for row in report.swapped] == ["0, 2"]


def test_tied_parameters_are_skipped():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model[1].weight = model[0].weight
    report = oc.swap_(model, "weighted")
    assert [row.reason for row in report.layers] == [
        "shares a parameter with '1'",
        "shares a parameter with '0'",
    ]


def test_subclasses_and_hooks_are_skipped_with_the_reason():
    class OwnConv(nn.Conv2d):
        pass

    model = nn.Sequential(OwnConv(4, 4, 3), nn.Conv2d(4, 4, 3))
    model[1].register_forward_hook(lambda *a: None)
    reasons = [row.reason for row in oc.swap_(model, "weighted").layers]
    assert reasons[0].startswith("OwnConv is not torch's plain layer")
    assert reasons[1] == "hooks on the layer would be lost"


def test_an_extent_that_cannot_stay_on_the_grid_is_skipped():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 2))
    report = oc.swap_(model, "weighted", kernel_size=5)
    assert [row.status for row in report.layers] == ["swapped", "skipped"]
    assert "larger by an even number" in report.layers[1].reason


def test_a_mixer_brings_a_pointwise_convolution_for_a_dense_layer():
    model = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1))
    report = oc.swap_(model, "involution")
    assert type(model[0]) is MixerPointwise
    assert model[0](torch.randn(2, 8, 9, 9)).shape == (2, 12, 5, 5)
    assert report.layers[0].after == "Involution2d 8->8 3x3 /2 + 1x1"
    assert not oc.swap_(model, "involution").layers  # also its 1x1 is left alone


def test_a_mixer_replaces_a_depthwise_layer_alone():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8))
    oc.swap_(model, "involution", from_weights=False)
    assert type(model[0]) is oc.Involution2d


def test_what_an_operator_cannot_take_is_skipped_with_its_reason():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    report = oc.swap_(model, "phc", n=4)
    assert [row.status for row in report.layers] == ["skipped", "swapped"]
    assert "in_channels" in report.layers[0].reason


def test_a_factory_is_free():
    model, x = resnet(), images()

    def factory(conv: nn.Module) -> nn.Module | None:
        return nn.Sequential(nn.Identity(), copy.deepcopy(conv)) if conv.stride == (1, 1) else None

    before = model(x)
    report = oc.swap_(model, factory)
    assert {row.weights for row in report.swapped} == {"kept"}
    torch.testing.assert_close(model(x), before)
    assert not oc.swap_(model, factory).swapped


def test_a_factory_that_changes_the_output_shape_is_refused():
    model = nn.Sequential(nn.Conv2d(4, 4, 3))
    report = oc.swap_(model, lambda conv: nn.Conv2d(4, 4, 5))
    assert "the output would change from shape" in report.layers[0].reason
    assert model[0].kernel_size == (3, 3)


def test_the_optimizer_follows():
    model = resnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    model(images()).sum().backward()
    optimizer.step()
    oc.swap_(model, "weighted", optimizer=optimizer, trainable_density=True)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert len(held) == len(list(model.parameters()))
    assert {id(p) for p in optimizer.state} <= {id(p) for p in held}
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay[id(model.conv1.density)] == 0.0
    assert decay[id(model.conv1.raw)] == 1e-3
    optimizer.zero_grad()
    model(images()).sum().backward()
    before = model.conv1.raw.clone()
    optimizer.step()
    assert not torch.equal(before, model.conv1.raw)


def test_a_report_replays_on_a_fresh_model():
    model, x = resnet(), images()
    report = oc.swap_(model, "weighted", where=oc.where.name("layer*"), density=[0.5])
    data = json.loads(json.dumps(report.to_json()))
    fresh = build("resnet8", width=8).eval()
    oc.swap_(fresh, oc.SwapReport.from_json(data))
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(x), model(x))


def test_a_report_of_another_model_is_refused_and_nothing_changes():
    report = oc.swap_(resnet(), "weighted")
    other = build("resnet8", width=4)
    with pytest.raises(ValueError, match=r"model must hold Conv2d 3->8 3x3 at 'conv1'"):
        oc.swap_(other, report)
    assert not any(isinstance(m, oc.WeightedConv2d) for m in other.modules())


def test_the_report_is_a_table():
    text = str(oc.swap_(resnet(), "weighted", where=oc.where.name("layer1*")))
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "before", "after", "result"]
    assert "WeightedConv2d 8->8 3x3" in text
    assert lines[-1] == "2 swapped, 0 skipped"


def test_modes_devices_and_gradients_are_kept():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, dtype=torch.float64)).eval()
    model.requires_grad_(False)
    oc.swap_(model, "weighted")
    assert model[0].raw.dtype == torch.float64
    assert not model[0].training
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (("wieghted",), ValueError, r"did you mean 'weighted'"),
        (("partial",), ValueError, r"has role 'masked'"),
        ((3,), TypeError, r"name_or_factory must be"),
        (("weighted", "layer1"), TypeError, r"where must be a predicate"),
    ],
)
def test_bad_arguments(arguments, error, match):
    model = resnet()
    layers = dict(model.named_modules())
    with pytest.raises(error, match=match):
        oc.swap_(model, *arguments)
    assert dict(model.named_modules()) == layers


def test_unknown_operator_arguments_are_refused_before_anything_happens():
    model = resnet()
    with pytest.raises(TypeError, match=r"'densty' \(did you mean 'density'\?\)"):
        oc.swap_(model, "weighted", densty=0.5)
    assert type(model.conv1) is nn.Conv2d


def test_an_error_while_planning_changes_nothing():
    model = resnet()
    calls = []

    def factory(conv: nn.Module) -> nn.Module:
        calls.append(conv)
        if len(calls) == 3:
            raise RuntimeError("boom")
        return copy.deepcopy(conv)

    layers = dict(model.named_modules())
    with pytest.raises(RuntimeError, match="boom"):
        oc.swap_(model, factory)
    assert dict(model.named_modules()) == layers


def test_wrapped_models_are_refused_by_name():
    model = resnet()
    with pytest.raises(TypeError, match="it is compiled"):
        oc.swap_(torch.compile(model), "weighted")
    with pytest.raises(TypeError, match="it is wrapped in DataParallel"):
        oc.swap_(nn.Sequential(nn.DataParallel(model)), "weighted")
    with pytest.raises(TypeError, match=r"model must be an nn\.Module"):
        oc.swap_([model], "weighted")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_models_are_refused():
    scripted = torch.jit.trace(nn.Conv2d(3, 3, 3), torch.randn(1, 3, 8, 8))
    with pytest.raises(TypeError, match="it is scripted"):
        oc.swap_(scripted, "weighted")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantised_models_are_refused():
    from torch.ao.nn.quantized import Conv2d

    with pytest.raises(TypeError, match=r"it is quantised \(Conv2d at '0'\)"):
        oc.swap_(nn.Sequential(Conv2d(3, 3, 3)), "weighted")
