"""VGG: the paper's table, the network written out, both heads, any size, bad arguments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.analysis import count_flops, count_parameters
from omniconv.models import VGG, vgg

POOLED = {8: "1 2 3 4 5", 11: "1 2 34 56 78", 16: "12 34 567 89a bcd"}


def multiply_adds(model: nn.Module, *shape: int) -> int:
    """Of convolutions and linear layers alone."""
    found = count_flops(model.eval(), torch.zeros(shape, device="meta")).by_op
    return sum(found.get(f"aten.{name}", (0, 0))[0] for name in ("convolution", "addmm")) // 2


@pytest.mark.parametrize(
    ("depth", "millions", "parameters", "giga"),
    [
        (11, 133, 132_863_336, 7.609),
        (13, 133, 133_047_848, 11.308),
        (16, 138, 138_357_544, 15.470),
        (19, 144, 143_667_240, 19.632),
    ],
)
def test_classic_form_has_the_paper_s_parameters_and_published_multiply_adds(
    depth: int, millions: int, parameters: int, giga: float
) -> None:
    with torch.device("meta"):
        model = vgg(depth, classes=1000, classic=True)
    assert count_parameters(model) == parameters
    assert parameters / 1e6 == pytest.approx(millions, rel=0.01)  # the paper's table 2
    assert multiply_adds(model, 1, 3, 224, 224) / 1e9 == pytest.approx(giga, rel=1e-4)
    flops = count_flops(model, torch.zeros(1, 3, 224, 224, device="meta"))
    assert flops.unknown == ()
    assert flops.forward / 2e9 == pytest.approx(giga, rel=0.01)


@pytest.mark.parametrize(
    ("depth", "classes", "parameters"),
    [
        (8, 100, 3_965_028),
        (11, 10, 9_231_114),
        (13, 10, 9_416_010),
        (16, 10, 14_728_266),
        (19, 10, 20_040_522),
    ],
)
def test_form_for_small_images_has_the_published_parameters(
    depth: int, classes: int, parameters: int
) -> None:
    with torch.device("meta"):
        model = vgg(depth, classes=classes)
    assert count_parameters(model) == parameters


def test_multiply_adds_of_the_form_for_small_images() -> None:
    with torch.device("meta"):
        model = vgg(11)
    layers = ((3, 64, 32), (64, 128, 16), (128, 256, 8), (256, 256, 8), (256, 512, 4))
    layers += ((512, 512, 4), (512, 512, 2), (512, 512, 2))
    expected = sum(9 * before * after * side**2 for before, after, side in layers) + 5120
    assert multiply_adds(model, 1, 3, 32, 32) == expected == 152_769_536


def naive_convolutions(state: dict[str, Tensor], x: Tensor, pooled: str) -> Tensor:
    """All stages but the last pool, from the weights in their order."""
    weights = [key for key, value in state.items() if value.dim() == 4 and "fc" not in key]
    order = iter(weights)
    for stage, layers in enumerate(pooled.split()):
        if stage:
            x = F.max_pool2d(x, 2)
        for _ in layers:
            key = next(order)
            path = key.removesuffix("conv.weight")
            x = F.conv2d(x, state[key], state[f"{path}conv.bias"], padding=1)
            if f"{path}bn.weight" in state:
                mean, var = state[f"{path}bn.running_mean"], state[f"{path}bn.running_var"]
                x = (x - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]
                x = x * state[f"{path}bn.weight"][:, None, None]
                x = x + state[f"{path}bn.bias"][:, None, None]
            x = x.clamp(min=0)
    assert next(order, None) is None
    return x


def randomise(model: nn.Module) -> None:
    """Values that make every parameter and buffer count."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.normal_(0, 0.2)
            if name.endswith("running_var"):
                b.uniform_(0.5, 1.5)


@pytest.mark.parametrize(
    ("depth", "channels", "size"), [(8, 1, (32, 64)), (11, 3, (32, 32)), (16, 2, (64, 32))]
)
def test_forward_is_the_plain_network(depth: int, channels: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = vgg(depth, in_channels=channels, classes=7, width=4).double().eval()
    randomise(model)
    x = torch.randn(3, channels, *size, dtype=torch.float64)
    features = naive_convolutions(model.state_dict(), x, POOLED[depth])
    torch.testing.assert_close(model.features(x), features, rtol=1e-10, atol=1e-10)
    pooled = F.max_pool2d(features, 2).sum((2, 3)) / (size[0] * size[1] // 1024)
    expected = pooled @ model.linear.weight.T + model.linear.bias
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_classic_head_is_fully_connected_at_224_and_dense_above() -> None:
    torch.manual_seed(0)
    model = vgg(8, classes=5, width=1, classic=True).double().eval()
    randomise(model)
    x = torch.randn(2, 3, 256, 224, dtype=torch.float64)
    features = F.max_pool2d(naive_convolutions(model.state_dict(), x, POOLED[8]), 2)
    assert features.shape[2:] == (8, 7)
    scores = []
    for row in range(2):  # the two 7x7 windows of an 8x7 map
        y = features[:, :, row : row + 7].flatten(1)
        for fc in (model.fc1, model.fc2, model.fc3):
            y = F.linear(y if fc is model.fc1 else y.relu(), fc.weight.flatten(1), fc.bias)
        scores.append(y)
    torch.testing.assert_close(model(x), (scores[0] + scores[1]) / 2, rtol=1e-10, atol=1e-10)
    assert model(x[:, :, :224]).shape == (2, 5)


def test_classic_head_drops_hidden_units_in_training_only() -> None:
    torch.manual_seed(0)
    model = vgg(8, classes=3, width=1, classic=True)
    x = torch.randn(1, 3, 224, 224)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_the_paper_s_configuration_a_learns() -> None:
    """Eleven layers without normalisation: the loss on a fixed batch falls to a third."""
    torch.manual_seed(0)
    model = vgg(11, in_channels=1, classes=2, width=4, classic=True)
    x = torch.randn(6, 1, 193, 193)
    labels = torch.tensor([0, 1] * 3)

    def loss() -> Tensor:
        return F.cross_entropy(model(x), labels)

    model.eval()
    with torch.no_grad():
        before = loss().item()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        assert loss().item() < before / 3


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (33, 7), (50, 31)])
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_any_size_and_batch(size: tuple[int, int], batch: int) -> None:
    model = vgg(8, in_channels=1, classes=4, width=2).eval()
    x = torch.randn(batch, 1, *size)
    assert model(x).shape == (batch, 4)
    assert model.features(x).shape == (batch, 16, -(-size[0] // 16), -(-size[1] // 16))


def test_convolutions_start_from_kaiming_s_distribution() -> None:
    torch.manual_seed(0)
    for name, module in vgg(8, width=32).named_modules():
        if isinstance(module, nn.Conv2d) and name != "stem.conv":
            expected = (2 / (9 * module.in_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.03)
            assert module.bias is not None
            assert not module.bias.any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"depth": 12}, ValueError, r"depth must be one of 8, 11, 13, 16, 19, got 12"),
        ({"depth": 8.0}, TypeError, "depth must be an int"),
        ({"width": 0}, ValueError, "width must be an int of at least 1, got 0"),
        ({"classes": None}, TypeError, "classes must be an int of at least 1, got None"),
        ({"in_channels": -1}, ValueError, "in_channels must be an int of at least 1, got -1"),
        ({"classic": 1}, TypeError, "classic must be True or False, got 1"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        vgg(**{"depth": 8, **arguments})  # type: ignore[arg-type]


def test_images_too_small_for_the_classic_head() -> None:
    model = VGG(8, width=1, classic=True).eval()
    assert model(torch.zeros(1, 3, 193, 193)).shape == (1, 10)
    with pytest.raises(ValueError, match=r"images must be at least 193x193 .* got 192x224"):
        model(torch.zeros(1, 3, 192, 224))
