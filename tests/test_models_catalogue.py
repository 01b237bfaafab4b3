"""Backbones by name: tasks, bodies, features, learning, swapping, export, bad names."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import omniconv as oc
from omniconv.core.compat import ConvNd
from omniconv.models import BACKBONES, build, task_of
from omniconv.tasks.classify import load

SMALL = ("resnet8", "vgg8", "unified", "unified-micro", "dncnn5", "nafnet")
CLASSIFY = tuple(name for name in SMALL if name not in ("dncnn5", "nafnet"))


def small(name: str, **given: int) -> nn.Module:
    torch.manual_seed(0)
    return build(name, **{"width": 4, "in_channels": 1, **given})  # type: ignore[arg-type]


def body(model: nn.Module) -> list[str]:
    """Paths of the convolutions that the body's patterns select."""
    where = oc.where.name(*model.body)  # type: ignore[misc]
    return [p for p, m in model.named_modules() if isinstance(m, ConvNd) and where(p, m)]


def test_every_backbone_is_tried_here() -> None:
    tried = {re.sub(r"\d+$", "<depth>", name) for name in SMALL}
    assert {row.builder for row in BACKBONES.values()} == {BACKBONES[p].builder for p in tried}


@pytest.mark.parametrize("name", SMALL)
def test_task(name: str) -> None:
    model = small(name)
    assert task_of(name) == model.task == ("classify" if name in CLASSIFY else "denoise")
    x = torch.randn(2, 1, 12, 9)
    assert model.eval()(x).shape == ((2, 10) if name in CLASSIFY else x.shape)


@pytest.mark.parametrize(
    ("name", "where", "width"),
    [
        ("resnet20", "conv1", 16),
        ("vgg11", "stem.conv", 64),
        ("dncnn17", "first", 64),
        ("nafnet", "intro", 16),
        ("nafnet-sidd", "intro", 32),
        ("unified", "stem.3", 16),
        ("unified-tiny", "stem.3", 96),
    ],
)
def test_width_of_the_first_stage(name: str, where: str, width: int) -> None:
    with torch.device("meta"):
        published = build(name)
        wider = build(name, width=3, in_channels=5, classes=4)
    assert published.get_submodule(where).out_channels == width
    assert wider.get_submodule(where).out_channels == 3
    assert next(m for m in wider.modules() if isinstance(m, nn.Conv2d)).in_channels == 5
    if task_of(name) == "classify":
        assert wider.linear.out_features == 4


@pytest.mark.parametrize("name", SMALL)
def test_a_width_below_1_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="width must be an int of at least 1, got 0"):
        build(name, width=0)


def test_denoisers_ignore_classes() -> None:
    assert build("dncnn3", classes=None, width=2)(torch.zeros(1, 3, 4, 4)).shape == (1, 3, 4, 4)
    with pytest.raises(TypeError, match="classes must be an int of at least 1, got None"):
        build("vgg8", classes=None)


@pytest.mark.parametrize(
    ("name", "number", "kernel"),
    [
        ("resnet20", 18, 3),
        ("vgg8", 4, 3),
        ("vgg16", 12, 3),
        ("dncnn17", 15, 3),
        ("nafnet", 9, 3),
        ("nafnet-gopro", 36, 3),
        ("unified-micro", 17, 7),
    ],
)
def test_body_is_the_inner_spatial_convolutions(name: str, number: int, kernel: int) -> None:
    with torch.device("meta"):
        model = build(name)
    found = [model.get_submodule(path) for path in body(model)]
    assert len(found) == number
    assert {conv.kernel_size for conv in found} == {(kernel, kernel)}
    assert 3 not in {conv.in_channels for conv in found} | {conv.out_channels for conv in found}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("operator", ["dcls", "involution"])
def test_the_body_can_be_swapped(name: str, operator: str) -> None:
    model = small(name, width=8)
    paths = body(model)
    before = model.eval()(torch.randn(1, 1, 16, 16)).shape
    report = oc.swap_(model, operator, oc.where.name(*model.body), from_weights=False)
    assert [layer.path for layer in report.layers] == paths
    assert {layer.status for layer in report.layers} == {"swapped"}
    y = model(torch.randn(1, 1, 16, 16))
    assert y.shape == before
    y.square().sum().backward()


@pytest.mark.parametrize("name", SMALL)
def test_learns(name: str) -> None:
    """The loss on a fixed batch falls to less than half in 40 steps."""
    model = small(name, width=8, classes=3)
    torch.manual_seed(1)
    x = torch.rand(8, 1, 16, 16)
    labels = torch.arange(8) % 3
    clean = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), 5, 1)

    def loss() -> Tensor:
        if task_of(name) == "classify":
            return F.cross_entropy(model(x), labels)
        return F.mse_loss(model(x), clean)

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0] / 2
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("name", "lr", "share"), [("vgg8", 3e-3, 0.7), ("unified", 1e-2, 0.4)])
def test_learns_digits_in_one_epoch(name: str, lr: float, share: float) -> None:
    """Share of right answers on 500 digits that were not seen in training; chance is 0.1."""
    data = load("mnist5k")
    images, labels = data.train
    unseen, answers = data.validation
    model = small(name, width=8)
    torch.manual_seed(0)

    def logits(x: Tensor) -> Tensor:
        return model((x.float() / 255 - 0.13) / 0.31)

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for batch in torch.randperm(len(images)).split(50):
        optimizer.zero_grad()
        F.cross_entropy(logits(images[batch]), labels[batch]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = (logits(unseen).argmax(1) == answers).double().mean()
    assert right > share


@pytest.mark.parametrize("name", CLASSIFY)
def test_forward_uses_features(name: str) -> None:
    model = small(name).eval()
    x = torch.randn(2, 1, 40, 33)
    features = model.features(x)
    assert features.dim() == 4
    y = model(x)
    model.features = lambda images: torch.zeros_like(features)
    assert not torch.equal(model(x), y)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own, in its exporter
def test_exports_with_any_batch(name: str) -> None:
    model = small(name).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (torch.randn(2, 1, 20, 17),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 1, 20, 17)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_and_double_precision(name: str) -> None:
    model = small(name).double().eval()
    x = torch.randn(2, 1, 19, 16, dtype=torch.float64)
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("vgg12", "vgg11"),
        ("vgg1", "vgg8"),
        ("vgg", "vgg11"),
        ("VGG-16", "vgg16"),
        ("dncnn2", "dncnn3"),
        ("dncnn999", "dncnn100"),
        ("dncn17", "dncnn17"),
        ("nafnett", "nafnet"),
        ("unified_tiny", "unified-tiny"),
        ("resnet21", "resnet20"),
    ],
)
def test_names_that_are_nearly_right(name: str, guess: str) -> None:
    for function in (build, task_of):
        with pytest.raises(ValueError, match=rf"got '{name}' \(did you mean '{guess}'\?\)$"):
            function(name)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["resnet<depth>", "vgg016", "vgg8 ", "nafnet16", "dncnn-1"])
def test_patterns_and_other_text_are_no_names(name: str) -> None:
    with pytest.raises(ValueError, match="backbone must be 'resnet<depth>' with depth 6 n"):
        build(name)


def test_the_message_lists_every_name() -> None:
    with pytest.raises(TypeError, match="got None") as caught:
        task_of(None)  # type: ignore[arg-type]
    for pattern in BACKBONES:
        assert repr(pattern) in str(caught.value)
