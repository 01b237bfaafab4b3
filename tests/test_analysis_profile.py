"""profile: the numbers of a model, layer by layer."""

from __future__ import annotations

import json
import time

import pytest
import torch
from torch import Tensor, nn

from omniconv.analysis import count_flops, peak_memory, profile


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + x


class Sleep(nn.Module):
    def __init__(self, milliseconds: float) -> None:
        super().__init__()
        self.milliseconds = milliseconds

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.milliseconds / 1000)
        return x


def test_rows_add_up_to_the_model() -> None:
    model = nn.Sequential(Residual(), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))
    x = torch.randn(2, 4, 8, 8)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    found = profile(model, x, steps=2)
    counted = count_flops(model, x, backward=True)
    assert (found.flops_forward, found.flops_backward) == (counted.forward, counted.backward)
    assert found.parameters == 4 * 4 * 9 + 8 + 256 * 5 + 5
    assert found.peak_bytes == peak_memory(model, x)
    assert found.unknown == ()
    assert found.step is not None
    assert found.step.ms > 0 < found.latency.ms
    assert found.latency.repeats == 2

    rows = {row.path: row for row in found.layers}
    assert list(rows) == ["", "0", "0.conv", "0.norm", "1", "2", "3"]
    assert sum(row.parameters for row in rows.values()) == found.parameters
    assert sum(row.flops_forward for row in rows.values()) == found.flops_forward
    assert sum(row.flops_backward for row in rows.values()) == found.flops_backward
    assert sum(row.share for row in rows.values()) == pytest.approx(1.0)

    image = 2 * 4 * 8 * 8 * 4
    moved = {path: row.bytes for path, row in rows.items()}
    assert moved == {
        "": 0,
        "0": 2 * image,
        "0.conv": 2 * image + 144 * 4,
        "0.norm": 2 * image + 4 * 4 * 4 + 8,
        "1": 2 * image,
        "2": 0,
        "3": image + 2 * 5 * 4 + (256 * 5 + 5) * 4,
    }
    assert found.bytes == sum(moved.values())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert model.training


def test_time_goes_to_the_module_that_spends_it() -> None:
    model = nn.Sequential(Sleep(3.0), nn.Sequential(Sleep(27.0), nn.Identity()))
    found = profile(model, torch.ones(1), steps=5, backward=False)
    shares = {row.path: row.share for row in found.layers}
    assert 0.7 < shares["1.0"] < 1.0
    assert 0.05 < shares["0"] < 0.3
    assert shares["1"] + shares[""] + shares["1.1"] < 0.2


def test_a_shared_parameter_stands_in_one_row() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    found = profile(model, torch.ones(1, 4), steps=1, backward=False)
    assert [row.parameters for row in found.layers] == [0, 16, 0]
    assert [row.bytes for row in found.layers] == [0, 32 + 64, 32 + 64]
    assert found.parameters == 16


def test_without_backward() -> None:
    found = profile(nn.BatchNorm1d(4), torch.randn(8, 4), steps=1, backward=False)
    assert (found.step, found.flops_backward) == (None, None)
    assert found.flops_forward == 2 * 32
    assert "backward:" not in str(found)


def test_table_and_json() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Identity())
    found = profile(model, (torch.randn(2, 3),), steps=1)
    text = str(found)
    assert "parameters:" in text
    assert "16" in text
    assert f"{found.latency.ms:.3g} ms" in text
    line = next(line.split() for line in text.splitlines() if " Linear " in line)
    assert line[:5] == ["0", "Linear", "16", "48", str(found.flops_backward)]
    data = json.loads(json.dumps(found.to_json()))
    assert data["layers"][1]["type"] == "Linear"
    assert data["step"]["ms"] == found.step.ms
    assert data["flops_forward"] == 48


def test_unknown_operators_are_shown() -> None:
    class Singular(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.svdvals(x)

    found = profile(Singular(), torch.rand(3, 3), steps=1, backward=False)
    assert found.unknown == ("aten._linalg_svd",)
    assert "aten._linalg_svd" in str(found)


def test_bad_calls() -> None:
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got 'resnet20'"):
        profile("resnet20", torch.ones(1))
    with pytest.raises(ValueError, match="steps must be an int of at least 1, got 0"):
        profile(nn.Identity(), torch.ones(1), steps=0)
    with pytest.raises(TypeError, match="backward must be True or False, got 'no'"):
        profile(nn.Identity(), torch.ones(1), backward="no")
