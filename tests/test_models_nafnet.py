"""NAFNet: published sizes, the network written out, any size, bad arguments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.analysis import count_flops, count_parameters
from omniconv.models import NAFNet, nafnet
from omniconv.models.norm import LayerNorm2d


@pytest.mark.parametrize(
    ("name", "width", "parameters", "convolutions", "published"),
    [
        ("nafnet-sidd", 32, 29_159_715, 16_045_035_520, 16.25),
        ("nafnet-sidd", 64, 115_982_915, 63_236_423_680, 63.6),
        ("nafnet-gopro", 32, 17_111_907, 15_956_027_392, None),
        ("nafnet-gopro", 64, 67_888_835, 63_054_979_072, None),
    ],
)
def test_parameters_and_multiply_adds_are_the_published_ones(
    name: str, width: int, parameters: int, convolutions: int, published: float | None
) -> None:
    """Parameters and convolutions are those of the official network, counted on its code."""
    with torch.device("meta"):
        model = nafnet(name, width=width)
    assert count_parameters(model) == parameters
    flops = count_flops(model, torch.zeros(1, 3, 256, 256, device="meta"))
    assert flops.unknown == ()
    assert flops.by_op["aten.convolution"][0] == 2 * convolutions
    if published is not None:
        assert flops.forward / 2e9 == pytest.approx(published, rel=0.01)


def test_blocks_number_36_in_both_published_arrangements() -> None:
    with torch.device("meta"):
        for name in ("nafnet-sidd", "nafnet-gopro"):
            model = nafnet(name)
            assert sum(path.endswith("conv2") for path, _ in model.named_modules()) == 36
            assert model.intro.out_channels == 32
        assert nafnet().intro.out_channels == 16


def pixel_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.sum(1, keepdim=True) / x.shape[1]
    variance = (centred**2).sum(1, keepdim=True) / x.shape[1]
    return centred / (variance + 1e-6) ** 0.5 * weight[:, None, None] + bias[:, None, None]


def test_layer_norm_is_over_the_channels_of_a_pixel() -> None:
    torch.manual_seed(0)
    norm = LayerNorm2d(5).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(norm(x), pixel_norm(x, norm.weight, norm.bias))


def naive_block(state: dict[str, Tensor], path: str, x: Tensor) -> Tensor:
    def pointwise(name: str, y: Tensor) -> Tensor:
        weight, bias = state[f"{path}.{name}.weight"], state[f"{path}.{name}.bias"]
        return torch.einsum("oi,bihw->bohw", weight[:, :, 0, 0], y) + bias[:, None, None]

    y = pixel_norm(x, state[f"{path}.norm1.weight"], state[f"{path}.norm1.bias"])
    y = pointwise("conv1", y)
    kernel = state[f"{path}.conv2.weight"]
    y = F.conv2d(y, kernel, state[f"{path}.conv2.bias"], padding=1, groups=len(kernel))
    y = y[:, : len(kernel) // 2] * y[:, len(kernel) // 2 :]
    y = y * pointwise("sca.1", y.sum((2, 3), keepdim=True) / (y.shape[2] * y.shape[3]))
    x = x + state[f"{path}.beta"] * pointwise("conv3", y)
    y = pixel_norm(x, state[f"{path}.norm2.weight"], state[f"{path}.norm2.bias"])
    y = pointwise("conv4", y)
    half = y.shape[1] // 2
    return x + state[f"{path}.gamma"] * pointwise("conv5", y[:, :half] * y[:, half:])


def shuffled(x: Tensor) -> Tensor:
    """Channel 4 c + 2 i + j of a pixel becomes channel c of the pixel (i, j) of a 2x2 patch."""
    y = x.new_empty(x.shape[0], x.shape[1] // 4, 2 * x.shape[2], 2 * x.shape[3])
    for i in range(2):
        for j in range(2):
            y[:, :, i::2, j::2] = x[:, 2 * i + j :: 4]
    return y


@pytest.mark.parametrize("size", [(8, 12), (7, 5), (1, 1)])
def test_forward_is_the_paper_s_network(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = NAFNet((1, 2), 1, (2, 1), in_channels=2, width=3).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.4)
    state = model.state_dict()
    images = torch.randn(2, 2, *size, dtype=torch.float64)
    x = images.new_zeros(2, 2, -(-size[0] // 4) * 4, -(-size[1] // 4) * 4)
    x[:, :, : size[0], : size[1]] = images
    y = F.conv2d(x, state["intro.weight"], state["intro.bias"], padding=1)
    kept = []
    for level, blocks in enumerate((1, 2)):
        for block in range(blocks):
            y = naive_block(state, f"encoders.{level}.{block}", y)
        kept.append(y)
        y = F.conv2d(y, state[f"downs.{level}.weight"], state[f"downs.{level}.bias"], stride=2)
    y = naive_block(state, "middle_blks.0", y)
    for level, blocks in enumerate((2, 1)):
        y = shuffled(F.conv2d(y, state[f"ups.{level}.0.weight"])) + kept[1 - level]
        for block in range(blocks):
            y = naive_block(state, f"decoders.{level}.{block}", y)
    y = x + F.conv2d(y, state["ending.weight"], state["ending.bias"], padding=1)
    torch.testing.assert_close(model(images), y[:, :, : size[0], : size[1]], rtol=1e-9, atol=1e-9)


def test_blocks_start_as_the_identity() -> None:
    torch.manual_seed(0)
    model = nafnet(width=4)
    x = torch.randn(1, 4, 6, 6)
    assert torch.equal(model.encoders[0](x), x)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 31), (5, 40)])
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_any_size_and_batch(size: tuple[int, int], batch: int) -> None:
    x = torch.randn(batch, 1, *size)
    assert nafnet(in_channels=1, width=2)(x).shape == x.shape


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"encoder": (1, 1)}, ValueError, r"decoder must have as many levels as encoder=\(1, 1\)"),
        ({"encoder": 3}, TypeError, "encoder must be a sequence of ints, one per level, got 3"),
        (
            {"decoder": ()},
            TypeError,
            r"decoder must be a sequence of ints, one per level, got \(\)",
        ),
        ({"decoder": (1, 1, 1, -1)}, ValueError, r"decoder\[3\] must be an int of at least 0"),
        ({"middle": -1}, ValueError, "middle must be an int of at least 0, got -1"),
        ({"width": 0}, ValueError, "width must be an int of at least 1, got 0"),
        ({"in_channels": None}, TypeError, "in_channels must be an int of at least 1, got None"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        NAFNet(**arguments)  # type: ignore[arg-type]


def test_unknown_arrangement() -> None:
    with pytest.raises(ValueError, match=r"name must be one of .*did you mean 'nafnet-sidd'"):
        nafnet("nafnet-side")
