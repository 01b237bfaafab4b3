"""Everything in torch that reads ``m.weight`` gets right numbers from a static-kernel layer, and
everything that wants to own it gets an error and changes nothing."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.mkldnn import to_mkldnn

import omniconv as oc
from omniconv.core.compat import ConvNd
from omniconv.operators.static_kernel import StaticKernel
from omniconv.testing import Subject

CARDS = [oc.card(name) for name in oc.list_operators() if ":" not in name]
STATIC = [card for card in CARDS if issubclass(card.classes[2], ConvNd)]
NAMES = [card.name for card in STATIC]
FORMS = [
    Subject(card, variant, dim, transposed)
    for card in STATIC
    for variant in card.variants
    for transposed, table in ((False, card.classes), (True, card.transposed))
    for dim in table
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _outputs(name: str) -> int:
    """Eight channels from four, where the operator makes more channels than it takes."""
    return 8 if oc.card(name).mixes_channels else 4


def _model(name: str) -> Any:
    """A layer, normalised and activated, in evaluation mode."""
    layer = oc.create(name, 4, _outputs(name), 3, padding=1)
    norm = nn.BatchNorm2d(_outputs(name))
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return nn.Sequential(layer, norm, nn.ReLU()).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 4, 7, 6)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """The model has the same state, attributes and hooks afterwards."""

    def facts() -> list[Any]:
        return [
            (path, {k: repr(v) for k, v in vars(module).items()})
            for path, module in model.named_modules()
        ]

    state = {name: t.clone() for name, t in model.state_dict().items()}
    before = facts()
    yield
    assert facts() == before
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_the_registry_has_static_kernels():
    assert {"weighted", "dcls", "phc"} <= set(NAMES)
    assert all(issubclass(card.classes[2], StaticKernel) for card in STATIC)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f.layer.__name__}-{f.variant}")
def test_every_attribute_of_torchs_layer_is_there_with_its_value(form: Subject):
    for name, sample in form.samples.items():
        layer = form.build(sample)
        # a mixer stands for a depthwise layer, and need not be one itself (PConv)
        own = {} if form.card.mixes_channels else {"groups": layer.geometry.groups}
        plain = form.build_plain(sample, **own)
        ours, wanted = vars(layer), vars(plain)
        assert set(wanted) <= set(ours), name
        for attribute, value in wanted.items():
            if attribute == "_parameters":
                assert set(value) - {"weight"} <= set(ours[attribute])
                assert (value["bias"] is None) == (ours[attribute]["bias"] is None)
            elif attribute == "_reversed_padding_repeated_twice":  # a list or a tuple in torch
                assert list(ours[attribute]) == list(value), name
            elif attribute != "_buffers":
                assert ours[attribute] == value, (name, attribute)
        assert "weight" not in layer.state_dict()
        assert layer.weight.shape == plain.weight.shape
        assert layer.weight.dtype == plain.weight.dtype


@pytest.mark.parametrize("name", NAMES)
def test_to_mkldnn_gives_the_same_numbers(name: str, x: Tensor):
    model = _model(name)
    expected = model(x)
    with _unchanged(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own conversion
        converted = to_mkldnn(copy.deepcopy(model))
    torch.testing.assert_close(converted(x.to_mkldnn()).to_dense(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_fusing_with_a_norm_is_refused_and_works_after_fold(name: str, x: Tensor):
    model = _model(name)
    expected = model(x)
    with _unchanged(model), pytest.raises(AttributeError, match=r"weight is computed .*fold\(\)"):
        fuse_conv_bn_eval(model[0], model[1])
    fused = fuse_conv_bn_eval(model[0].fold(), model[1])
    torch.testing.assert_close(model[2](fused(x)), expected)
    with _unchanged(model), pytest.raises((AssertionError, NotImplementedError)):
        torch.ao.quantization.fuse_modules(model, [["0", "1"]])


OWNERS: dict[str, Callable[[nn.Module], Any]] = {
    "prune.l1_unstructured": lambda m: prune.l1_unstructured(m, "weight", 0.3),
    "prune.random_unstructured": lambda m: prune.random_unstructured(m, "weight", 0.3),
    "prune.ln_structured": lambda m: prune.ln_structured(m, "weight", 0.3, n=2, dim=0),
    "prune.identity": lambda m: prune.identity(m, "weight"),
    "prune.custom_from_mask": lambda m: prune.custom_from_mask(
        m, "weight", torch.zeros(m.weight.shape)
    ),
    "prune.global_unstructured": lambda m: prune.global_unstructured(
        [(m, "weight")], pruning_method=prune.L1Unstructured, amount=0.3
    ),
    "spectral_norm": lambda m: nn.utils.spectral_norm(m),
    "parametrizations.spectral_norm": lambda m: parametrizations.spectral_norm(m),
    "weight_norm": lambda m: nn.utils.weight_norm(m),
    "parametrizations.weight_norm": lambda m: parametrizations.weight_norm(m),
    "parametrizations.orthogonal": lambda m: parametrizations.orthogonal(m),
    "register_parametrization": lambda m: parametrize.register_parametrization(
        m, "weight", nn.Identity()
    ),
    "register_parameter": lambda m: m.register_parameter("weight", nn.Parameter(torch.ones(1))),
    "register_buffer": lambda m: m.register_buffer("weight", torch.ones(1)),
    "assignment of a parameter": lambda m: setattr(m, "weight", nn.Parameter(torch.ones(1))),
    "assignment of a tensor": lambda m: setattr(m, "weight", torch.ones(1)),
    "deletion": lambda m: delattr(m, "weight"),
    "requires_grad_": lambda m: m.weight.requires_grad_(False),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("owner", OWNERS)
def test_what_wants_to_own_the_weight_is_refused(name: str, owner: str, x: Tensor):
    model = _model(name)
    expected = model(x)
    errors = (AttributeError, KeyError, TypeError, ValueError, RuntimeError)
    with _unchanged(model), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # weight_norm has a successor
        with pytest.raises(errors):
            OWNERS[owner](model[0])
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_own_parameters_can_be_pruned_and_parametrised(name: str, x: Tensor):
    model = _model(name)
    expected = model(x)
    own = next(n for n, p in model[0].named_parameters() if n != "bias")
    prune.identity(model[0], own)
    torch.testing.assert_close(model(x), expected)
    prune.remove(model[0], own)
    parametrize.register_parametrization(model[0], own, nn.Identity())
    torch.testing.assert_close(model(x), expected)
    parametrize.remove_parametrizations(model[0], own)
    assert torch.equal(model(x), expected)


WRITERS: dict[str, Callable[[nn.Module], Any]] = {
    "nn.init": lambda m: nn.init.kaiming_normal_(m.weight),
    "data": lambda m: m.weight.data.zero_(),
    "data assigned": lambda m: setattr(m.weight, "data", torch.zeros(m.weight.shape)),
    "memory format": lambda m: nn.utils.convert_conv2d_weight_memory_format(m, torch.channels_last),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("writer", WRITERS)
def test_what_writes_into_the_weight_writes_into_a_copy(name: str, writer: str, x: Tensor):
    model = _model(name)
    expected = model(x)
    with _unchanged(model):
        WRITERS[writer](model[0])
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_eager_quantisation_leaves_it_alone(name: str, x: Tensor):
    layer = oc.create(name, 4, _outputs(name), 3, padding=1).eval()
    expected = layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(layer, nn.Flatten(), nn.Linear(8 * 7 * 6, 3)), {nn.Conv2d, nn.Linear}
        )
        static = nn.Sequential(copy.deepcopy(layer))
        static.qconfig = torch.ao.quantization.get_default_qconfig("x86")
        prepared = torch.ao.quantization.prepare(static)
        prepared(x)
        converted = torch.ao.quantization.convert(prepared)
    assert torch.equal(dynamic[0](x), expected)
    assert type(dynamic[2]) is not nn.Linear
    assert torch.equal(converted(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_graph_quantisation_refuses_it_and_takes_the_folded_layer(name: str, x: Tensor):
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    model = _model(name)
    expected = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mapping = get_default_qconfig_mapping("x86")
        with _unchanged(model), pytest.raises(TypeError, match="input must be a floating-point"):
            prepare_fx(model, mapping, (x,))
        model[0] = model[0].fold()
        prepared = prepare_fx(model, mapping, (x,))
        torch.testing.assert_close(prepared(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_averaging_averages_the_parameters(name: str, x: Tensor):
    first, second = _model(name), _model(name)
    average = AveragedModel(first)
    for model in (first, second):
        average.update_parameters(model)
    for name_, p in average.module.named_parameters():
        wanted = (first.get_parameter(name_) + second.get_parameter(name_)) / 2
        torch.testing.assert_close(p, wanted)
    moving = AveragedModel(first, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    moving.update_parameters(first)
    torch.testing.assert_close(moving(x), first(x))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_optimisers_train_every_parameter(name: str, kind: type[torch.optim.Optimizer], x: Tensor):
    model = _model(name).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = kind(oc.param_groups(model, lr=0.01))
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    # a bias before a normalisation has no gradient
    still = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
    assert still <= {"0.bias"}
    copied = copy.deepcopy(model)
    assert torch.equal(copied(x), model(x))


@pytest.mark.parametrize("name", NAMES)
def test_skip_init_builds_the_layer_without_drawing(name: str):
    random = torch.get_rng_state()
    layer = nn.utils.skip_init(oc.card(name).classes[2], 4, _outputs(name), 3)
    assert torch.equal(torch.get_rng_state(), random)
    layer.reset_parameters()
    assert all(p.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_weight_has_the_gradient_of_what_it_is_made_of(name: str):
    layer = oc.create(name, 4, _outputs(name), 3)
    layer.weight.square().sum().backward()
    own = [p for n, p in layer.named_parameters() if n != "bias"]
    assert any(p.grad is not None and p.grad.any() for p in own)


def test_output_size_belongs_to_transposed_layers(x: Tensor):
    layer = oc.create("weighted", 4, 8, 3, stride=2, transposed=True)
    plain = layer.fold()
    wanted = plain(x, output_size=(16, 14))
    torch.testing.assert_close(layer(x, output_size=(16, 14)), wanted)
    torch.testing.assert_close(layer(x, (16, 14)), wanted)
    with pytest.raises(TypeError):
        oc.create("weighted", 4, 8, 3)(x, (5, 4))


def test_a_subclass_must_define_its_kernel():
    class Nothing(StaticKernel, nn.Conv2d):
        def setup(self, factory: dict[str, Any]) -> None:
            self.value = nn.Parameter(torch.zeros(1, **factory))

        def reset_parameters(self) -> None:
            pass

    layer = Nothing(1, 1, 1)
    with pytest.raises(NotImplementedError, match=r"Nothing must define kernel\(\)"):
        layer(torch.zeros(1, 1, 2, 2))
    with pytest.raises(NotImplementedError, match=r"Nothing must define load_kernel_\(\)"):
        Nothing.from_conv(nn.Conv2d(1, 1, 1))
