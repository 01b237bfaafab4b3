"""5,000 random calls of the kernels, in one process each time: right numbers, or a clear error."""

from __future__ import annotations

import pytest
import torch

from kernel_draws import KERNELS, draw
from omniconv.kernels import backend

CALLS = 5000
PARTS = 10


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kernel", KERNELS)
def test_random_calls_are_right_or_refused(kernel: str, part: int):
    if backend.load(kernel).reason:
        pytest.skip(backend.load(kernel).reason)
    torch.manual_seed(0)
    calls = range(part, CALLS // len(KERNELS) + 1, PARTS)
    refused = 0
    for number in calls:
        found = draw(kernel, number)
        found.check()
        refused += bool(found.wrong)
    assert 0 < refused < len(calls) / 4
