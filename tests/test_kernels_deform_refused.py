"""What deformable convolution refuses, in one sentence that names the argument."""

from __future__ import annotations

import pytest
import torch

from omniconv.kernels import backend
from omniconv.kernels.deform import deform, ops

RIGHT = {
    "x": torch.ones(2, 4, 6, 5),
    "offset": torch.ones(2, 12, 5, 3),
    "mask": torch.ones(2, 6, 5, 3),
    "weight": torch.ones(6, 4, 2, 3),
    "bias": torch.ones(6),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(4, 4)}, r"x must have shape \(B, C, \*S\)"),
        ({"weight": torch.ones(6, 4, 3)}, "weight must have 4 axes"),
        ({"weight": torch.ones(6, 3, 2, 3)}, "weight must have 4 input channels"),
        ({"weight": None}, "kernel_size must be given"),
        ({"kernel_size": 3}, r"kernel_size must be the weight's, \(2, 3\), got 3"),
        ({"offset": torch.ones(2, 12, 6, 5)}, r"offset must have shape \(2, 12, 5, 3\)"),
        ({"mask": torch.ones(2, 5, 5, 3)}, r"mask must have shape \(2, 6, 5, 3\)"),
        ({"bias": torch.ones(5)}, r"bias must have shape \(6,\), got \(5,\)"),
        ({"groups": 4}, "groups must divide out_channels=6, got 4"),
        ({"offset_groups": 3}, "offset_groups must divide channels=4, got 3"),
        ({"padding": [(1, 0)]}, "padding must be an int, 2 ints or 2 pairs of ints"),
        ({"padding": -1}, "padding must be an int"),
        ({"stride": 0}, "stride must be an int"),
        ({"dilation": 9}, "smaller than the kernel"),
        ({"weight": None, "kernel_size": (2, 3)}, "groups and bias need a weight"),
    ],
    ids=str,
)
def test_bad_input(change, message):
    deform(**RIGHT)
    with pytest.raises((TypeError, ValueError), match=message):
        deform(**{**RIGHT, **change})


@pytest.mark.skipif(bool(backend.load("deform").reason), reason="needs the kernel")
def test_the_operator_checks_what_it_is_given():
    x, offset, mask, weight, bias = RIGHT.values()
    window = [[2, 3], [1, 1], [0, 0, 0, 0], [1, 1], 1, 1]
    ops._forward(x, offset, mask, weight, bias, *window)
    for bad in (
        (x, offset[:, 1:], mask, weight, bias, *window),
        (x, offset, mask[:1], weight, bias, *window),
        (x, offset, mask.double(), weight, bias, *window),
        (x, offset, mask, weight[:, 1:], bias, *window),
        (x, offset, mask, weight, bias[1:], *window),
        (x, offset, mask, weight, bias, [2], *window[1:]),
        (x, offset, mask, weight, bias, *window[:4], 3, 1),
        (x, offset, mask, weight, bias, window[0], [0, 1], *window[2:]),
        (x.half(), offset.half(), mask.half(), weight.half(), bias.half(), *window),
    ):
        with pytest.raises(RuntimeError):
            ops._forward(*bad)
