"""One trial: its training is torch's, and interrupted anywhere it ends in the same numbers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from compare_tiny import tiny, write_idx
from omniconv.compare import network, parse, pictures, trial, whole
from omniconv.compare.optimizer import SGD, Adam
from omniconv.compare.prepare import prepare
from omniconv.kernels import backend
from omniconv.models import build
from omniconv.surgery.accelerated import AcceleratedConv2d
from omniconv.tasks import classify
from omniconv.tasks.dataset import FACTS


@pytest.fixture(autouse=True)
def _settings(monkeypatch):
    """Put back what a trial fixes for its process."""
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    monkeypatch.setattr(backend, "_backend", backend.get_backend())
    monkeypatch.setattr(torch, "set_num_interop_threads", lambda count: None)
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def make_job(tmp_path):
    """A function that makes the job of one row (the last one of the plan) with seed 0."""

    def make(**changes):
        prepared = prepare(parse(tiny(write_idx(tmp_path), **changes)))
        whole.save_data(tmp_path / "data.pt", "classify", prepared.dataset)
        (*_, row) = prepared.plan.rows
        return {
            "point": prepared.plan.point(replace(row, lr=row.lr or 0.1)),
            "seed": 0,
            "test": True,
            "data": str(tmp_path / "data.pt"),
            "checkpoint": str(tmp_path / "checkpoint.pt"),
        }

    return make


def _run(job):
    """The events of a trial, without times and steps."""
    events = []
    trial.work(job, events.append)
    return [
        {key: value for key, value in event.items() if key != "seconds"}
        for event in events
        if event["event"] != "step"
    ]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs_to_the_last_bit(momentum):
    ours, theirs = (nn.Linear(5, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    groups = [
        [
            {"params": [m.weight], "lr": 0.3, "weight_decay": 0.1},
            {"params": [m.bias], "lr": 0.03, "weight_decay": 0.0},
        ]
        for m in (ours, theirs)
    ]
    sgd, known = SGD(groups[0], momentum), torch.optim.SGD(groups[1], momentum=momentum)
    for step in range(4):
        for group, rate in zip(known.param_groups, (0.3, 0.03), strict=True):
            group["lr"] = rate * (1 - step / 4)
        x = torch.randn(7, 5)
        for model in (ours, theirs):
            model(x).square().sum().backward()
        sgd.step(1 - step / 4)
        known.step()
        known.zero_grad()
        assert ours.weight.grad is None
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.bias, theirs.bias)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_adam_is_torchs(momentum):
    torch.manual_seed(0)
    ours, theirs = (nn.Linear(5, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    group = {"params": [*ours.parameters()], "lr": 0.01, "weight_decay": 0.1}
    adam = Adam([group], momentum)
    known = torch.optim.Adam(theirs.parameters(), 0.01, (momentum, 0.999), weight_decay=0.1)
    for step in range(5):
        known.param_groups[0]["lr"] = 0.01 * (1 - step / 5)
        x = torch.randn(7, 5)
        for model in (ours, theirs):
            model(x).square().sum().backward()
        adam.step(1 - step / 5)
        known.step()
        known.zero_grad()
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_a_trial_that_tunes_never_sees_the_test_split(make_job, monkeypatch):
    seen = []
    batches = classify.batches

    def spy(dataset, split, *arguments, **keywords):
        seen.append(split)
        return batches(dataset, split, *arguments, **keywords)

    monkeypatch.setattr(classify, "batches", spy)
    job = make_job(budget="1epoch")
    end = _run(job | {"test": False})[-1]
    assert end == {"event": "end", "status": "done", "kernels": end["kernels"]}
    assert set(seen) == {"train", "validation"}
    whole.Path(job["checkpoint"]).unlink()
    _run(job)
    assert "test" in seen


def test_a_trial_is_the_loop_that_one_would_write(make_job):
    """The same numbers as a plain training loop with torch's optimiser."""
    job = make_job(rows=["conv(lr=0.2)"]) | {"seed": 3}
    events = _run(job)
    dataset = whole.load_data(job["data"])[1]
    torch.manual_seed(3)
    model = build("resnet8", in_channels=1, classes=3, width=4)
    order = torch.Generator().manual_seed(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-4)
    count = dataset.sizes["train"]
    steps = math.ceil(count / 16)
    for epoch in range(2):
        losses = []
        draw = classify.batches(dataset, "train", 16, generator=order)
        for step, (images, labels) in enumerate(draw):
            done = (epoch + step / steps) / 2
            optimizer.param_groups[0]["lr"] = 0.2 * 0.5 * (1 + math.cos(math.pi * done))
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item() * len(labels))
        loss, score = classify.evaluate(model, dataset, "validation")
        assert events[epoch]["at"] == epoch + 1
        assert events[epoch]["train_loss"] == pytest.approx(sum(losses) / count, rel=1e-6)
        assert events[epoch]["validation_loss"] == pytest.approx(loss, rel=1e-5)
        assert events[epoch]["validation_score"] == score
    assert events[2]["status"] == "done"
    assert events[2]["score"] == classify.evaluate(model, dataset, "test")[1]


@pytest.mark.parametrize("row", ["weighted(trainable_density=True)", "dcls(kernel_size=5, taps=4)"])
def test_a_trial_that_is_stopped_after_an_epoch_ends_in_the_same_numbers(
    make_job, row, tmp_path, monkeypatch
):
    def build_with_dropout(point, dataset):
        built = network.build(point, dataset)
        built.model.linear = nn.Sequential(nn.Dropout(0.2), built.model.linear)
        return built

    monkeypatch.setattr(trial, "build", build_with_dropout)  # so that random numbers matter
    job = make_job(rows=[row], budget="3epochs")
    whole_run = _run(job)
    (tmp_path / "checkpoint.pt").unlink()
    for epoch in (1, 2):

        def stop(event, epoch=epoch):
            if event["event"] == "leg" and event["at"] == epoch:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trial.work(job, stop)
        torch.manual_seed(99)  # another process would have other random numbers
    assert _run(job) == whole_run
    assert _run(job) == whole_run  # and once more, from the checkpoint of the last epoch


def test_the_order_of_the_batches_depends_on_the_seed_alone(make_job, monkeypatch):
    drawn = []

    def spy(dataset, split, *arguments, **keywords):
        for images, labels in draw(dataset, split, *arguments, **keywords):
            if split == "train":
                drawn[-1].append(labels)
            yield images, labels

    draw = classify.batches
    monkeypatch.setattr(classify, "batches", spy)
    for row, seed in (("conv", 0), ("weighted", 0), ("weighted", 1)):
        job = make_job(rows=[row], budget="1epoch") | {"seed": seed}
        drawn.append([])
        _run(job)
        whole.Path(job["checkpoint"]).unlink()
    first, same, other = (torch.cat(labels) for labels in drawn)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_constraints_hold_after_every_step(make_job, monkeypatch):
    constrained = []
    monkeypatch.setattr(trial, "constrain_", constrained.append)
    _run(make_job(rows=["weighted"], budget="2epochs", batch_size=20))
    assert len(constrained) == 2 * 3


def test_a_trial_in_double_precision(make_job):
    job = make_job(rows=["weighted"], dtype="float64", budget="1epoch")
    assert network.build(
        job["point"], whole.load_data(job["data"])[1]
    ).model.linear.weight.dtype == (torch.float64)
    assert _run(job)[-1]["status"] == "done"


def test_a_trial_says_which_kernels_ran(make_job, monkeypatch):
    for chosen, ran in (("auto", ["dcls"]), ("torch", [])):
        monkeypatch.setattr(backend, "_used", set())
        job = make_job(rows=["dcls(taps=4)"], budget="1epoch", backend=chosen)
        *_, end = _run(job)
        assert end["kernels"] == ran
        assert backend.get_backend() == chosen
        whole.Path(job["checkpoint"]).unlink()


def test_depthwise_layers_are_accelerated_but_for_the_torch_back_end(make_job, monkeypatch):
    dataset = whole.load_data(make_job()["data"])[1]
    for chosen in ("auto", "torch"):
        job = make_job(rows=["depthwise(kernel_size=5)"], backend=chosen)
        model = network.build(job["point"], dataset).model
        fast = [m for m in model.modules() if isinstance(m, AcceleratedConv2d)]
        assert len(fast) == (6 if chosen == "auto" else 0)
        found = pictures.learned_kernels(network.build(job["point"], dataset))
        assert {entry["type"] for entry in found} == {"Conv2d"}


def test_a_loss_that_is_no_number_is_a_diverged_trial(make_job):
    *_, end = _run(make_job(rows=["weighted(lr=1e9)"]))
    assert (end["event"], end["status"]) == ("end", "diverged")
    assert "became" in end["reason"]
    assert "before the end of epoch 1" in end["reason"]


@pytest.mark.parametrize(("schedule", "factors"), [("constant", (1, 1)), ("cosine", (1, 0.5))])
def test_the_schedules(schedule, factors):
    assert trial._factor(schedule, 0.0) == factors[0]
    assert trial._factor(schedule, 0.5) == pytest.approx(factors[1])


def test_learned_kernels_are_those_that_are_applied(make_job):
    job = make_job(rows=["dcls(kernel_size=5, taps=4)"])
    dataset = whole.load_data(job["data"])[1]
    built = network.build(job["point"], dataset)
    found = pictures.learned_kernels(built)
    assert [entry["layer"] for entry in found] == [
        "layer1.0.conv1",
        "layer2.0.conv1",
        "layer3.0.conv2",
    ]
    last = torch.tensor(found[-1]["kernels"])
    assert last.shape == (16, 5, 5)
    layer = built.model.get_submodule("layer3.0.conv2")
    torch.testing.assert_close(last, layer.weight[:16, 0].detach(), rtol=1e-4, atol=1e-6)
    assert found[0]["type"] == "DCLSConv2d"
    assert len(found[0]["kernels"]) == 4
    involution = network.build(make_job(rows=["involution"])["point"], dataset)
    assert pictures.learned_kernels(involution)[0] == {
        "layer": "layer1.0.conv1",
        "type": "Involution2d",
        "kernels": None,
    }


def test_a_larger_plain_kernel_starts_as_the_backbones_own_layers_do(make_job):
    job = make_job(rows=["conv(kernel_size=7)"], width=32)
    dataset = whole.load_data(job["data"])[1]
    torch.manual_seed(0)
    larger = network.build(job["point"], dataset).model.layer3[0].conv2
    plain = build("resnet8", in_channels=1, classes=3, width=32).layer3[0].conv2
    assert larger.weight.shape == (128, 128, 7, 7)
    assert larger.padding == (3, 3)
    ratio = larger.weight.var().item() * 49 / (plain.weight.var().item() * 9)
    assert ratio == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("padding", "dilation", "stride"), [(1, 1, 1), ((2, 0), 2, 1), ("same", 1, 1), ("valid", 1, 2)]
)
def test_a_resized_plain_layer_keeps_the_output_grid(padding, dilation, stride):
    conv = nn.Conv2d(2, 3, 3, padding=padding, dilation=dilation, stride=stride)
    larger = network._Plain(7)(conv)
    x = torch.zeros(1, 2, 17, 16)
    assert larger(x).shape == conv(x).shape
    with pytest.raises(ValueError, match="kernel_size must differ from"):
        network._Plain(4)(conv)


def test_a_plain_layer_without_padding_to_lose_cannot_shrink():
    with pytest.raises(ValueError, match="kernel_size must be at least"):
        network._Plain(1)(nn.Conv2d(2, 3, 3))


@pytest.mark.parametrize("row", ["weighted", "dcls"])
def test_a_trial_costs_less_than_a_second_besides_the_import_of_torch(make_job, row):
    """And imports nothing that only the driver needs, nor torch's compiler."""
    code = (
        "import json, sys, time, torch; start = time.process_time();"
        "from omniconv.compare import trial;"
        "trial.work(json.loads(sys.argv[1]), lambda event: None);"
        "print(json.dumps([time.process_time() - start, sorted(sys.modules)]))"
    )
    job = make_job(rows=[row], budget="1epoch")
    run = subprocess.run(
        [sys.executable, "-c", code, json.dumps(job)], capture_output=True, text=True, check=True
    )
    seconds, modules = json.loads(run.stdout)
    assert seconds < 1.0
    driver_only = {"scipy", "rich", "jinja2", "yaml", "sympy", "torch._dynamo", "sqlite3", "typer"}
    assert driver_only.isdisjoint(modules)
    ours = {name.removeprefix("omniconv.compare.") for name in modules if "compare." in name}
    needed = "budget grammar network optimizer pictures refused rows trial whole worker"
    assert ours == set(needed.split())


def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "file"
    whole.write(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        whole.write(path, fail)
    with path.open("rb") as reader:
        whole.write(path, lambda file: file.write(b"new"))
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_dataset_comes_back_whole(tmp_path):
    dataset = classify.load(write_idx(tmp_path))
    whole.save_data(tmp_path / "data.pt", "classify", dataset)
    task, found = whole.load_data(tmp_path / "data.pt")
    assert task is classify
    assert found.hash == dataset.hash
    assert all(getattr(found, name) == getattr(dataset, name) for name in FACTS)
