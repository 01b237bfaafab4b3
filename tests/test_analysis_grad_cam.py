"""Grad-CAM against the formula written out, and on heads for which it is known."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.analysis import grad_cam
from omniconv.models import build


class Tiny(nn.Module):
    """``linear(mean(relu(conv(x))))``: the class activation map is known."""

    def __init__(self, maps: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, maps, 3, stride=2, padding=1)
        self.linear = nn.Linear(maps, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).mean((2, 3)))


class Layered(nn.Module):
    """``features`` as a module, as torchvision has it, and a head that is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def bilinear(x: Tensor, height: int, width: int) -> Tensor:
    """(h, w) -> (height, width), pixel by pixel, pixels being areas."""
    y = x.new_empty(height, width)
    for row in range(height):
        for column in range(width):
            total = 0.0
            source = []
            for p, new, old in ((row, height, x.shape[0]), (column, width, x.shape[1])):
                at = max((p + 0.5) * old / new - 0.5, 0.0)
                low = min(int(at), old - 1)
                source.append((low, min(low + 1, old - 1), at - low))
            (top, bottom, down), (left, right, across) = source
            for r, share in ((top, 1 - down), (bottom, down)):
                for c, part in ((left, 1 - across), (right, across)):
                    total = total + share * part * x[r, c]
            y[row, column] = total
    return y


def naive(model: nn.Module, head: nn.Module, images: Tensor, classes: list[int]) -> Tensor:
    """Derivatives one by one, by central differences on the head."""
    maps = []
    step = 1e-5
    for image, index in zip(images, classes, strict=True):
        a = model.features(image[None]).detach()  # type: ignore[operator]
        heat = torch.zeros_like(a[0, 0])
        for k in range(a.shape[1]):
            alpha = 0.0
            for i in range(a.shape[2]):
                for j in range(a.shape[3]):
                    above, below = a.clone(), a.clone()
                    above[0, k, i, j] += step
                    below[0, k, i, j] -= step
                    rise = head(above)[0, index] - head(below)[0, index]
                    alpha += float(rise) / (2 * step * a[0, k].numel())
            heat += alpha * a[0, k]
        heat = bilinear(heat.clamp(min=0), *image.shape[1:])
        maps.append(heat / heat.max() if heat.max() > 0 else heat)
    return torch.stack(maps)


@pytest.mark.parametrize("classes", [[0, 1, 2], [2, 2, 0]])
def test_the_formula_written_out(classes: list[int]) -> None:
    torch.manual_seed(0)
    model = Layered().double().eval()
    model.features[2].running_mean.normal_()
    images = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = naive(model, model.head, images, classes)
    assert expected.amax((1, 2)).tolist() == [1.0, 1.0, 1.0]
    found = grad_cam(model, images, torch.tensor(classes))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        found, grad_cam(model, images, torch.tensor(classes), layer="features.2")
    )


def test_mean_and_linear_head_gives_the_class_activation_map() -> None:
    torch.manual_seed(0)
    model = Tiny().double()
    images = torch.randn(3, 2, 12, 10, dtype=torch.float64)
    for target in range(3):
        maps = torch.einsum("k,bkhw->bhw", model.linear.weight[target], model.features(images))
        heat = F.interpolate(maps.clamp(min=0)[:, None], (12, 10), mode="bilinear")[:, 0]
        expected = heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-300)
        found = grad_cam(model, images, target)
        assert found.shape == (3, 12, 10)
        torch.testing.assert_close(found, expected.detach())
        assert 0 <= found.min() <= found.max() <= 1


def test_a_class_that_nothing_speaks_for_has_an_empty_map() -> None:
    model = Tiny()
    nn.init.constant_(model.linear.weight, -1.0)
    nn.init.ones_(model.linear.weight[0].data)
    maps = grad_cam(model, torch.rand(2, 2, 6, 6), torch.tensor([1, 0]))
    assert not maps[0].any()
    assert maps[1].max() == 1


def test_without_targets_the_predicted_classes_are_explained() -> None:
    torch.manual_seed(0)
    model = Tiny(maps=6).eval()
    images = 3 * torch.randn(8, 2, 6, 6)
    predicted = model(images).argmax(1)
    assert len(set(predicted.tolist())) > 1
    assert torch.equal(grad_cam(model, images), grad_cam(model, images, predicted))
    assert not torch.equal(grad_cam(model, images), grad_cam(model, images, 0))


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "unified"])
def test_backbones(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, width=4, in_channels=1)
    images = torch.rand(2, 1, 32, 20)
    maps = grad_cam(model, images, 1)
    assert maps.shape == (2, 32, 20)
    assert not maps.requires_grad
    assert "features" not in vars(model)
    last = {"resnet8": "layer3", "vgg8": "layer5", "unified": "head"}[name]
    torch.testing.assert_close(maps, grad_cam(model, images, 1, layer=last))


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = build("resnet8", width=4)
    model.layer1.eval()
    for p in model.parameters():
        p.requires_grad_(False)
    model.conv1.weight.requires_grad_(True)
    model.conv1.weight.grad = torch.full_like(model.conv1.weight, 3.0)
    twin = copy.deepcopy(model)
    images = torch.rand(2, 3, 12, 12)
    state = torch.get_rng_state()
    with torch.no_grad():
        maps = grad_cam(model, images, 2)
    assert maps.max() == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert not images.requires_grad
    for (name, new), (_, old) in zip(model.named_modules(), twin.named_modules(), strict=True):
        assert new.training == old.training, name
        assert not new._forward_hooks
    for new, old in zip(model.parameters(), twin.parameters(), strict=True):
        assert new.requires_grad == old.requires_grad
    assert (model.conv1.weight.grad == 3).all()
    assert model.layer3[0].conv1.weight.grad is None
    for name, value in twin.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    assert model.features.__func__ is type(model).features


def test_a_frozen_model_is_explained_too() -> None:
    torch.manual_seed(0)
    model = Tiny()
    expected = grad_cam(model, IMAGES, 1)
    assert torch.equal(grad_cam(model.requires_grad_(False), IMAGES, 1), expected)


def test_an_instance_s_own_features_come_back() -> None:
    model = Tiny()
    own = model.features
    model.features = own  # type: ignore[method-assign]
    grad_cam(model, torch.rand(1, 2, 6, 6))
    assert vars(model)["features"] is own


def test_features_and_hooks_go_when_the_model_raises() -> None:
    model = Tiny()
    with pytest.raises(RuntimeError):
        grad_cam(model, torch.rand(1, 3, 6, 6))
    assert "features" not in vars(model)
    with pytest.raises(RuntimeError):
        grad_cam(model, torch.rand(1, 3, 6, 6), layer="conv")
    assert not model.conv._forward_hooks


def test_batch_0_and_inference_mode() -> None:
    model = Tiny()
    assert grad_cam(model, torch.rand(0, 2, 6, 5)).shape == (0, 6, 5)
    assert grad_cam(model, torch.rand(0, 2, 6, 5), torch.zeros(0).long()).shape == (0, 6, 5)
    torch.manual_seed(0)
    with torch.inference_mode():
        images = torch.rand(2, 2, 6, 5)
        inside = grad_cam(model, images, 1)
    torch.testing.assert_close(inside.clone(), grad_cam(model, images.clone(), 1))


IMAGES = torch.rand(2, 2, 6, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 3}, TypeError, "model must be an nn.Module, got 3"),
        ({"images": [1]}, TypeError, "images must be a tensor of real floating point, got list"),
        ({"images": IMAGES.byte()}, TypeError, r"images must be .*got torch\.uint8"),
        ({"images": IMAGES[0]}, ValueError, r"images must be \(B, C, H, W\), got shape"),
        ({"targets": 3}, ValueError, "targets must be an int of at least 0 and at most 2, got 3"),
        ({"targets": "cat"}, TypeError, "targets must be an int"),
        ({"targets": torch.tensor([0, 3])}, ValueError, "targets must be from 0 to 2, got 0 to 3"),
        ({"targets": torch.tensor([0, -1])}, ValueError, "got -1 to 0"),
        ({"targets": torch.tensor([0.0, 1.0])}, TypeError, r"targets must be ints, got torch\.f"),
        ({"targets": torch.tensor([0])}, ValueError, r"each of 2 images, got shape \(1,\)"),
        (
            {"layer": "convv"},
            ValueError,
            r"path of a module, got 'convv' \(did you mean 'conv'\?\)",
        ),
        ({"layer": "linear"}, ValueError, r"one map \(B, K, h, w\), got \(2, 3\)"),
        ({"model": nn.Flatten()}, ValueError, "layer must be given, as Flatten has no features"),
        ({"model": nn.Conv2d(2, 2, 1), "layer": ""}, ValueError, r"logits \(B, classes\), got"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        grad_cam(**{"model": Tiny(), "images": IMAGES, **arguments})  # type: ignore[arg-type]


class Detached(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x).detach().mean((2, 3)))


class Unused(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "message"),
    [(Detached, "a map that the logits depend on"), (Unused, "one map .*got none")],
)
def test_maps_that_the_logits_do_not_depend_on(kind: type[Tiny], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grad_cam(kind(), IMAGES)
