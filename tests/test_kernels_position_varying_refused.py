"""What the position-varying kernel refuses, and in which words."""

from __future__ import annotations

import pytest
import torch

from omniconv.kernels import backend
from omniconv.kernels.position_varying import ops, position_varying

X, W = torch.randn(2, 6, 7, 8), torch.randn(1, 3, 3, 3, 5, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": X[0, 0]}, ValueError, "x must have 3, 4 or 5 axes"),
        ({"x": X.long()}, TypeError, "x must be a floating-point tensor"),
        ({"weight": None}, TypeError, "weight must be a floating-point tensor, got NoneType"),
        ({"weight": W.double()}, TypeError, "weight must have the dtype of x, torch.float32"),
        ({"weight": W.to("meta")}, ValueError, "weight must be on the device of x, cpu"),
        ({"weight": W[0]}, ValueError, r"weight must have 6 axes \(batch 2 or 1, groups, 2 of"),
        ({"weight": W.expand(3, *W.shape[1:])}, ValueError, r"weight must have 6 axes"),
        ({"x": X[:, :4]}, ValueError, "groups that divides the 4 channels of x, got 3"),
        ({"stride": 2}, ValueError, r"output's spatial size \(3, 3\) .* got \(5, 6\)"),
        ({"padding": ((0, 1), (0, 0))}, ValueError, r"output's spatial size \(6, 6\)"),
        ({"stride": 0}, ValueError, "stride must be an int of at least 1"),
        ({"dilation": (1, 1, 1)}, ValueError, "dilation must be an int or 2 ints"),
        ({"padding": -1}, ValueError, "padding must be an int of at least 0"),
        ({"padding": ((1, 1), (1, 1, 1))}, ValueError, "or 2 pairs of ints"),
        (
            {"padding": ((1, -1), (1, 1))},
            ValueError,
            r"padding\[0\]\[1\] must be an int of at least 0",
        ),
        ({"softmax": 1}, TypeError, "softmax must be True or False"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        position_varying(**({"x": X, "weight": W} | arguments))


@pytest.mark.skipif(
    bool(backend.load("position_varying").reason), reason=backend.load("position_varying").reason
)
def test_the_operator_refuses_what_does_not_fit():
    four = torch.cat([W, W[:, :1]], 1)
    for wrong in (W[..., 1:], four, W.expand(3, *W.shape[1:]), W.double(), W[0]):
        with pytest.raises(RuntimeError, match=r"fit|spatial size|one dtype"):
            ops.position_varying(X, wrong, [1, 1], [0] * 4, [1, 1], False)
