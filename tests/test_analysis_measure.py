"""Times, page faults, memory and parameters of a model."""

from __future__ import annotations

import mmap
import time

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omniconv.analysis import (
    count_parameters,
    measure_latency,
    measure_step,
    peak_memory,
    time_latencies,
    time_steps,
)

SQUARE = 128 * 128 * 4  # bytes of a 128 x 128 float32 tensor


class Recorder(nn.Module):
    """Writes down how it is called, and takes its time."""

    def __init__(self, name: str, log: list[str], milliseconds: float = 0.0) -> None:
        super().__init__()
        self.name, self.log, self.milliseconds = name, log, milliseconds
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        self.log.append(f"{self.name}{'+' if self.training else '-'}{torch.is_grad_enabled():d}")
        time.sleep(self.milliseconds / 1000)
        return x * self.weight


def test_models_take_turns_and_each_gets_its_own_time() -> None:
    log: list[str] = []
    models = [Recorder("a", log), Recorder("b", log, milliseconds=4.0).eval()]
    quick, slow = time_steps(models, torch.ones(3), repeats=3)
    assert log == ["a+1", "b+1"] * (2 + 3)
    assert (quick.repeats, slow.repeats) == (3, 3)
    assert quick.low <= quick.ms <= quick.high
    assert quick.ms < slow.ms >= slow.low >= 4.0
    assert [m.training for m in models] == [True, False]
    log.clear()
    quick, slow = time_latencies(models, (torch.ones(3),), repeats=2)
    assert log == ["a-0", "b-0"] * (2 + 2)
    assert quick.ms < slow.ms >= 4.0


def test_a_step_clears_computes_and_restores_gradients() -> None:
    seen: list[object] = []
    model = nn.Linear(3, 2)
    model.weight.grad = torch.full((2, 3), 7.0)
    kept = model.weight.grad

    def loss(output: Tensor) -> Tensor:
        seen.append(model.weight.grad)
        return output.square().sum()

    assert measure_step(model, torch.ones(4, 3), loss, repeats=2) > 0
    assert seen == [None] * 4
    assert model.weight.grad is kept
    assert torch.equal(kept, torch.full((2, 3), 7.0))
    assert model.bias.grad is None
    with torch.inference_mode():
        assert measure_step(model, torch.ones(4, 3), repeats=1) > 0


def test_measuring_leaves_the_statistics_and_the_input_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    x = torch.randn(8, 3, requires_grad=True)
    torch.manual_seed(1)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    measure_step(model, x, repeats=1)
    measure_latency(model, x, repeats=1)
    peak_memory(model, x)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(model[0].running_mean, torch.zeros(3))
    assert int(model[0].num_batches_tracked) == 0
    assert x.grad is None


def test_page_faults_are_those_of_the_call() -> None:
    class Touch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with mmap.mmap(-1, 200 * mmap.PAGESIZE) as fresh:
                for page in range(200):
                    fresh[page * mmap.PAGESIZE] = 1
            return x

    still, touching = time_latencies([nn.Identity(), Touch()], torch.ones(1), repeats=5)
    assert still.faults is not None
    assert touching.faults is not None
    assert still.faults < 20
    assert 200 <= touching.faults < 400


def test_peak_memory_of_a_call_adds_up() -> None:
    """x @ w, its relu, and the product with w again: three squares beside x and w at most."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(128, 128))

        def forward(self, x: Tensor) -> Tensor:
            y = x @ self.weight
            z = y.relu()
            del y
            return z @ self.weight

    assert peak_memory(Chain(), torch.randn(128, 128), backward=False) == (2 + 2) * SQUARE


def test_peak_memory_of_a_step_adds_up() -> None:
    x = torch.randn(128, 128)
    linear = nn.Linear(128, 128, bias=False)
    # x and w; then output, its seed and dw
    assert peak_memory(linear, x) == (2 + 3) * SQUARE
    # x and w; then output, seed, dw and dx
    x.requires_grad_()
    assert [peak_memory(linear, x) for _ in range(5)] == [(2 + 4) * SQUARE] * 5
    frozen = nn.Linear(128, 128, bias=False).requires_grad_(False)
    assert peak_memory(frozen, x) == (2 + 3) * SQUARE


def test_peak_memory_sees_what_an_operator_needs_inside() -> None:
    """Unfolding keeps nine copies; a gradient needs them again, autograd alone would not tell."""
    image = 4 * 16 * 32 * 32 * 4

    def forward(x: Tensor) -> Tensor:
        return F.unfold(x, 3, padding=1).view(4, 16, 9, 32, 32).sum(2)

    class Unfolded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return forward(x)

    x = torch.randn(4, 16, 32, 32)
    assert peak_memory(Unfolded(), x, backward=False) == image + 9 * image + image


def test_shared_storage_is_resident_once() -> None:
    model = nn.Linear(64, 64, bias=False)
    x = torch.randn(1, 64)
    alone = peak_memory(model, x, backward=False)
    model.register_buffer("view", model.weight.detach().mT)
    assert peak_memory(model, x, backward=False) == alone


def test_what_only_the_first_call_allocates_is_not_part_of_a_step() -> None:
    class Caching(nn.Module):
        table: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.zeros(1000, 1000)
            return x + self.table[0, 0]

    assert peak_memory(Caching(), torch.ones(5), backward=False) == 2 * 5 * 4


def test_the_profiler_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    peak_memory(nn.Linear(3, 3), torch.ones(1, 3))
    assert capfd.readouterr() == ("", "")


def test_count_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert count_parameters(model) == 3 * 4 * 9 + 4 + 8
    model.append(model[0])
    model[0].bias.requires_grad_(False)
    assert count_parameters(model) == 3 * 4 * 9 + 4 + 8


def test_bad_calls() -> None:
    x = torch.ones(1, 3)
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got 3"):
        measure_step(3, x)
    with pytest.raises(TypeError, match=r"models must be a list of modules, got Sequential"):
        time_steps(nn.Sequential(nn.Linear(3, 3)), x)
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got None"):
        count_parameters(None)
    with pytest.raises(ValueError, match="repeats must be an int of at least 1, got 0"):
        measure_latency(nn.Linear(3, 3), x, repeats=0)
    with pytest.raises(ValueError, match="needs an output or loss that requires a gradient"):
        measure_step(nn.ReLU(), x)
    with pytest.raises(ValueError, match=r"its parameter '0\.weight' is still lazy"):
        count_parameters(nn.Sequential(nn.LazyLinear(3)))
