"""What depthwise convolution refuses, in one sentence that names the argument."""

from __future__ import annotations

import re

import pytest
import torch

from omniconv.kernels import backend
from omniconv.kernels.depthwise import depthwise, ops


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3, 4)}, "x must be (B, C, *S) with one to three axes"),
        ({"weight": torch.ones(6, 1, 3, 3)}, "weight must be (C m, 1, *K) for C=4"),
        ({"weight": torch.ones(4, 2, 3, 3)}, "weight must be (C m, 1, *K) for C=4"),
        ({"weight": torch.ones(4, 1, 3)}, "weight must be (C m, 1, *K) for C=4 and 2 axes"),
        ({"bias": torch.ones(3)}, "bias must be (4,), got [3]"),
        ({"stride": 0}, "stride must be an int of at least 1"),
        ({"padding": -1}, "padding must be an int of at least 0"),
        ({"padding": [(1, 1)]}, "padding must be an int, 2 ints or 2 pairs of ints"),
        ({"dilation": 5}, "is larger than the padded x [6, 5]"),
    ],
    ids=str,
)
def test_bad_arguments(change, message):
    given = {"x": torch.ones(2, 4, 6, 5), "weight": torch.ones(4, 1, 3, 3), **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        depthwise(**given)


@pytest.mark.skipif(bool(backend.load("depthwise").reason), reason="needs the kernel")
def test_the_kernel_refuses_what_does_not_fit():
    x, weight = torch.ones(2, 4, 6, 5), torch.ones(4, 1, 3, 3)
    with pytest.raises(RuntimeError, match="sizes do not fit"):
        ops.run(ops.FORWARD, torch.ones(2, 4, 6, 5), weight, x, None, [1, 1], [0] * 4, [1, 1])
    with pytest.raises(RuntimeError, match="channels do not fit"):
        ops.run(ops.FORWARD, torch.ones(2, 5, 6, 5), weight, x, None, [1, 1], [1] * 4, [1, 1])
    with pytest.raises(RuntimeError, match="several dtypes"):
        ops.run(ops.FORWARD, x.double(), weight, x, None, [1, 1], [1] * 4, [1, 1])
