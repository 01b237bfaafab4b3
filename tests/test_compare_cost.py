"""Costs: what can be counted equals the count, what is timed is plausible, failures are rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compare_tiny import tiny, write_idx
from omniconv.analysis import count_flops
from omniconv.compare import cost, network, parse, whole, worker
from omniconv.compare.prepare import prepare
from omniconv.compare.results import _cost
from omniconv.models import build

ROWS = ["conv", "conv(kernel_size=5)", "weighted", "involution", "conv(width=1.5)"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The cost job of five rows, run here and now: (its events, the plan)."""
    folder = tmp_path_factory.mktemp("cost")
    prepared = prepare(parse(tiny(write_idx(folder), rows=ROWS, batch_size=10)))
    whole.save_data(folder / "data.pt", "classify", prepared.dataset)
    job = {
        "points": [prepared.plan.point(row) for row in prepared.plan.rows],
        "batch": 10,
        "threads": 1,
        "backend": "auto",
        "data": str(folder / "data.pt"),
        "skip": {},
    }
    patch = pytest.MonkeyPatch()
    patch.setattr(torch, "set_num_interop_threads", lambda count: None)
    patch.setattr(cost, "SECONDS", 0.05)
    events: list[worker.Event] = []
    cost.work(job, events.append)
    yield events, prepared, job, patch
    patch.undo()


def test_every_row_is_announced_before_it_runs_and_then_the_times(measured):
    events = measured[0]
    assert [(e["event"], e.get("row")) for e in events[:-1]] == [
        *(("row", i) for i in range(5)),
        ("times", None),
    ]
    assert events[-1]["event"] == "end"


def test_parameters_and_flops_are_those_of_the_network(measured):
    events, *_ = measured
    plain, larger, weighted, involution, wider = events[-1]["rows"]
    model = build("resnet8", in_channels=1, classes=3, width=4)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    x = torch.zeros(1, 1, 8, 8)
    assert plain["parameters"] == sum(p.numel() for p in model.parameters())
    extra = sum(m.weight[:, :, 0, 0].numel() * 16 for m in convolutions[1:])
    assert larger["parameters"] == plain["parameters"] + extra
    assert plain["flops_forward"] == count_flops(model.eval(), x).forward
    # folded, a weighted convolution is a plain one; while it is trained it has a kernel to make
    assert weighted["flops_forward"] == plain["flops_forward"]
    assert weighted["flops_backward"] > plain["flops_backward"]
    wide = build("resnet8", in_channels=1, classes=3, width=6)
    assert wider["parameters"] == sum(p.numel() for p in wide.parameters())
    assert involution["parameters"] < plain["parameters"]
    backward = count_flops(model.train(), torch.zeros(10, 1, 8, 8), backward=True).backward
    assert plain["flops_backward"] == round(backward / 10)


def test_what_folds_is_said_and_times_and_memory_are_plausible(measured):
    rows = measured[0][-1]["rows"]
    assert [row["folded"] for row in rows] == [False, False, True, False, False]
    for row in rows:
        assert row["batch"] == 10
        assert 0 < row["latency_1_ms"] < 1000
        assert 0 < row["latency_n_ms"] < 1000
        assert 0 < row["step_ms"] < 10_000
        assert row["peak_bytes"] > 4 * 2 * row["parameters"]


def test_what_folding_makes_dearer_is_deployed_as_it_is(measured, tmp_path):
    _, _, job, _ = measured
    prepared = prepare(parse(tiny(write_idx(tmp_path), rows=["conv", "pconv"], batch_size=10)))
    points = [prepared.plan.point(row) for row in prepared.plan.rows]
    events: list[worker.Event] = []
    cost.work(job | {"points": points}, events.append)
    plain, partial = events[-1]["rows"]
    assert partial["flops_forward"] < 0.5 * plain["flops_forward"]
    assert not partial["folded"]


def test_ratios_are_to_the_first_row(measured):
    rows = measured[0][-1]["rows"]
    for row in rows:
        ratio = _cost(row, rows[0])["ratio"]
        assert ratio == {name: row[name] / rows[0][name] for name in cost.RATIOS}
    assert _cost({"reason": "x"}, rows[0]) is None
    assert _cost(None, rows[0]) is None
    for first in ({"reason": "x"}, None):
        assert set(_cost(rows[1], first)["ratio"].values()) == {None}


def test_a_row_that_raises_or_took_a_process_down_does_not_keep_the_others(measured, monkeypatch):
    _, _, job, _ = measured

    def broken(*_):
        raise RuntimeError("two\nlines")

    build_network = network.build

    def build_or_break(point, dataset):
        built = build_network(point, dataset)
        if point["row"]["operator"] == "weighted":
            built.model.register_forward_pre_hook(broken)
        return built

    monkeypatch.setattr(cost, "build", build_or_break)
    events: list[worker.Event] = []
    points = job["points"][:3]
    cost.work(job | {"points": points, "skip": {"1": "killed"}}, events.append)
    plain, larger, weighted = events[-1]["rows"]
    assert plain["step_ms"] > 0
    assert larger == {"reason": "killed"}
    assert weighted == {"reason": "RuntimeError: two lines"}


def test_latencies_are_of_one_image_and_of_a_batch(measured, monkeypatch):
    _, _, job, _ = measured
    sizes = []

    def spy(models, images, repeats):
        sizes.append(len(images))
        return time_latencies(models, images, repeats=repeats)

    time_latencies = cost.time_latencies
    monkeypatch.setattr(cost, "time_latencies", spy)
    cost.work(job | {"points": job["points"][:1]}, lambda event: None)
    assert sizes == [1, 1, 10, 10]  # each once to see how long it takes


def test_nothing_at_all_is_measured_where_every_row_fails(measured):
    _, _, job, _ = measured
    events: list[worker.Event] = []
    cost.work(job | {"points": job["points"][:1], "skip": {"0": "killed"}}, events.append)
    assert events[-1] == {"event": "end", "rows": [{"reason": "killed"}]}
