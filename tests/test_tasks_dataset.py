"""Stratified draws, splits, limits, statistics and the hash of a dataset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omniconv.tasks.dataset import Dataset, Listing, Pick, Split, assemble, stratified


def listing(counts: dict[str, list[int]], size: tuple[int, int] = (4, 4)) -> Listing:
    """Random grey images, ``counts[split][label]`` of each class; image values name the image."""
    labels = {
        split: np.random.default_rng(len(split)).permutation(np.repeat(range(len(c)), c))
        for split, c in counts.items()
    }
    rng = np.random.default_rng(0)
    images = {
        s: rng.integers(0, 256, (len(v), 1, *size), dtype=np.uint8) for s, v in labels.items()
    }

    def decode(picks: Sequence[Pick]) -> list[np.ndarray]:
        return [images[split][at] for split, at in picks]

    classes = tuple(f"class {i}" for i in range(len(counts["train"])))
    return Listing("toy", "a toy", "CC0", classes, labels, decode)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.data())
@settings(max_examples=100, deadline=None)
def test_stratified_draws_are_proportional_nested_and_hold_every_class(
    counts: list[int], data: st.DataObject
) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(range(len(counts)), counts))
    size = data.draw(st.integers(len(counts), len(labels)))
    drawn = stratified(labels, size)
    assert len(drawn) == size
    assert np.array_equal(drawn, np.unique(drawn))
    found = np.bincount(labels[drawn], minlength=len(counts))
    assert found.min() >= 1
    # one share of all classes, rounded to whole samples, gives these numbers (Webster's method)
    most = ((found[found > 1] - 0.5) / np.array(counts)[found > 1]).max(initial=0.0)
    least = ((found + 0.5) / np.array(counts)).min()
    assert most <= least + 1e-12
    smaller = data.draw(st.integers(len(counts), size))
    assert set(stratified(labels, smaller)) <= set(drawn)


def test_stratified_draw_is_fixed_across_versions_and_varies_with_the_seed() -> None:
    labels = np.arange(40) % 4
    assert stratified(labels, 8).tolist() == EXPECTED
    assert stratified(labels, 8, seed=1).tolist() != EXPECTED
    assert np.bincount(labels[stratified(labels, 8)]).tolist() == [2, 2, 2, 2]


EXPECTED = [2, 3, 11, 13, 18, 20, 21, 32]


def test_validation_is_a_tenth_of_train_and_always_the_same() -> None:
    toy = listing({"train": [100, 50, 10], "test": [3, 3, 3]})
    data = assemble(toy)
    assert data.sizes == {"train": 144, "validation": 16, "test": 9}
    assert data.validation.labels.bincount().tolist() == [10, 5, 1]
    assert torch.equal(data.validation.images, assemble(toy).validation.images)
    kept = {image.numpy().tobytes() for image in data.train.images}
    held_out = {image.numpy().tobytes() for image in data.validation.images}
    assert not kept & held_out
    (everything,) = toy.decode([("train", np.arange(160))])
    assert kept | held_out == {image.tobytes() for image in everything}


def test_every_class_reaches_every_split_of_few_images() -> None:
    data = assemble(listing({"train": [200, 2, 2, 2], "test": [1, 1, 1, 1]}))
    assert (data.train.labels.bincount() >= 1).all()
    assert (data.validation.labels.bincount() >= 1).all()


def test_given_validation_split_is_used() -> None:
    data = assemble(listing({"train": [1, 1], "validation": [2, 3], "test": [1, 1]}))
    assert data.sizes == {"train": 2, "validation": 5, "test": 2}


def test_limit_train_is_stratified_and_leaves_the_other_splits() -> None:
    toy = listing({"train": [100, 50, 10], "test": [3, 3, 3]})
    whole, part = assemble(toy), assemble(toy, limit_train=30)
    assert part.train.labels.bincount().tolist() == [19, 9, 2]
    assert torch.equal(part.validation.images, whole.validation.images)
    assert torch.equal(part.test.images, whole.test.images)
    assert {i.numpy().tobytes() for i in part.train.images} <= {
        i.numpy().tobytes() for i in whole.train.images
    }
    assert torch.equal(assemble(toy, limit_train=144).train.images, whole.train.images)


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        (2, ValueError, "limit_train .* at least 3 and at most 144, got 2"),
        (145, ValueError, "at most 144, got 145"),
        (True, TypeError, "limit_train .* got True"),
        (9.0, TypeError, r"got 9.0 \(float\)"),
        ("9", TypeError, r"got '9' \(str\)"),
    ],
)
def test_bad_limit_train(limit: object, error: type[Exception], message: str) -> None:
    toy = listing({"train": [100, 50, 10], "test": [3, 3, 3]})
    with pytest.raises(error, match=message):
        assemble(toy, limit_train=limit)  # type: ignore[arg-type]


def test_too_few_images_or_classes() -> None:
    with pytest.raises(ValueError, match=r"a toy must hold at least 2 train .*got 1 of class 'cl"):
        assemble(listing({"train": [5, 1], "test": [1, 1]}))
    with pytest.raises(ValueError, match=r"at least 1 test .*got 0 of class 'class 1'"):
        assemble(listing({"train": [5, 5], "test": [1, 0]}))
    with pytest.raises(ValueError, match=r"at least 1 validation .*got 0 of class 'class 0'"):
        assemble(listing({"train": [5, 5], "test": [1, 1], "validation": [0, 1]}))
    with pytest.raises(ValueError, match=r"at least 2 classes, got 1"):
        assemble(listing({"train": [5], "test": [5]}))


def with_train(images: torch.Tensor, labels: torch.Tensor | None = None) -> Dataset:
    labels = torch.arange(len(images)) % 2 if labels is None else labels
    split = Split(images, labels)
    _, channels, height, width = images.shape
    return Dataset("x", "x", "x", ("a", "b"), channels, (height, width), split, split, split)


def test_hash_is_of_content_and_split_alone() -> None:
    images = torch.randint(0, 256, (6, 3, 2, 2), dtype=torch.uint8)
    first = with_train(images).hash
    assert len(first) == 64
    assert with_train(images.clone()).hash == first
    changed = images.clone()
    changed[5, 2, 1, 1] += 1
    assert with_train(changed).hash != first
    assert with_train(images, torch.tensor([1, 0, 1, 0, 1, 0])).hash != first
    assert with_train(images.reshape(6, 3, 1, 4)).hash != first
    assert with_train(images.float()).hash != first
    data = assemble(listing({"train": [9, 9], "test": [3, 3]}))
    assert data.hash != assemble(listing({"train": [9, 9], "test": [3, 3]}), limit_train=9).hash


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_mean_and_deviation_are_those_of_the_channels(dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (7, 3, 5, 4), dtype=torch.uint8).to(dtype)
    images[:, 2] = 17
    mean, std = with_train(images).mean_std
    values = images.double().numpy()
    assert mean.shape == std.shape == (3, 1, 1)
    torch.testing.assert_close(
        mean.flatten(), torch.from_numpy(values.mean((0, 2, 3))).float(), rtol=1e-6, atol=0
    )
    expected = torch.from_numpy(values.std((0, 2, 3))).float()
    expected[2] = 1
    torch.testing.assert_close(std.flatten(), expected, rtol=1e-6, atol=0)
