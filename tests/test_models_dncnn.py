"""DnCNN: counts from the paper's layers, the network written out, its field, bad arguments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from omniconv.analysis import count_flops, count_parameters
from omniconv.models import DnCNN, dncnn


@pytest.mark.parametrize(
    ("depth", "channels", "published"),
    [(17, 1, 556_032), (20, 1, 667_008), (20, 3, 669_312), (17, 3, 558_336)],
)
def test_parameters_and_multiply_adds_follow_from_the_paper_s_layers(
    depth: int, channels: int, published: int
) -> None:
    model = dncnn(depth, in_channels=channels)
    convolutions = 2 * 9 * 64 * channels + (depth - 2) * 9 * 64 * 64
    norms = (depth - 2) * 2 * 64
    assert convolutions + norms == published
    assert count_parameters(model) == published + 64  # the first convolution's bias
    flops = count_flops(model.eval(), torch.zeros(1, channels, 40, 50))
    assert flops.unknown == ()
    assert flops.by_op["aten.convolution"][0] == 2 * convolutions * 40 * 50
    assert flops.forward == pytest.approx(2 * convolutions * 40 * 50, rel=0.01)


@pytest.mark.parametrize(("depth", "channels"), [(3, 1), (7, 3)])
def test_forward_is_the_paper_s_network(depth: int, channels: int) -> None:
    torch.manual_seed(0)
    model = dncnn(depth, in_channels=channels, width=6).double()
    model(torch.randn(4, channels, 9, 8, dtype=torch.float64))  # moves the running statistics
    model.eval()
    state = model.state_dict()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    x = torch.randn(2, channels, 11, 7, dtype=torch.float64)
    y = F.conv2d(x, state["first.weight"], state["first.bias"], padding=1).clamp(min=0)
    for layer in range(depth - 2):
        path = f"layers.{layer}"
        y = F.conv2d(y, state[f"{path}.conv.weight"], padding=1)
        scale = state[f"{path}.bn.weight"] / (state[f"{path}.bn.running_var"] + 1e-5).sqrt()
        shift = state[f"{path}.bn.bias"] - scale * state[f"{path}.bn.running_mean"]
        y = (y * scale[:, None, None] + shift[:, None, None]).clamp(min=0)
    expected = x - F.conv2d(y, state["last.weight"], padding=1)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("depth", [5, 17])
def test_receptive_field_is_the_paper_s(depth: int) -> None:
    model = dncnn(depth, width=2).double().eval()  # 35x35 for depth 17
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.fill_(-0.1 if name == "last.weight" else 0.3)
    x = torch.rand(1, 1, 41, 41, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x)[0, 0, 20, 20], x)
    rows, columns = gradient[0, 0].nonzero().unbind(1)
    assert (rows.min(), rows.max()) == (20 - depth, 20 + depth)
    assert (columns.min(), columns.max()) == (20 - depth, 20 + depth)


@pytest.mark.parametrize("size", [(1, 1), (5, 8), (33, 7)])
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_any_size_and_batch(size: tuple[int, int], batch: int) -> None:
    x = torch.randn(batch, 3, *size)
    assert dncnn(4, in_channels=3, width=4).eval()(x).shape == x.shape


def test_convolutions_start_from_kaiming_s_distribution() -> None:
    torch.manual_seed(0)
    model = dncnn(5)
    for module in model.layers.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            assert module.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert not model.first.bias.any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"depth": 2}, ValueError, "depth must be an int of at least 3 and at most 100, got 2"),
        ({"depth": 101}, ValueError, "at most 100, got 101"),
        ({"depth": "17"}, TypeError, "depth must be an int"),
        ({"width": 0}, ValueError, "width must be an int of at least 1, got 0"),
        ({"in_channels": 1.0}, TypeError, "in_channels must be an int"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        DnCNN(**arguments)  # type: ignore[arg-type]
