"""The unified network: official sizes, the network written out, other mixers, bad arguments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import omniconv as oc
from omniconv.analysis import count_flops, count_parameters
from omniconv.models import UnifiedBackbone, unified


@pytest.mark.parametrize(
    ("name", "parameters", "convolutions_and_products"),
    [
        ("unified-micro", 4_439_624, 1_296_287_232),
        ("unified-tiny", 31_912_360, 9_994_653_696),
        ("unified-small", 54_393_640, 18_775_704_576),
        ("unified-base", 95_865_576, 33_242_263_552),
    ],
)
def test_parameters_and_flops_are_those_of_the_official_networks(
    name: str, parameters: int, convolutions_and_products: int
) -> None:
    """Numbers counted on the networks that the official code makes."""
    with torch.device("meta"):
        model = unified(name, classes=1000)
    assert count_parameters(model) == parameters
    flops = count_flops(model.eval(), torch.zeros(1, 3, 224, 224, device="meta"))
    assert flops.unknown == ()
    products = ("aten.convolution", "aten.addmm", "aten.mm", "aten.bmm")
    found = sum(flops.by_op.get(name, (0, 0))[0] for name in products)
    assert found == convolutions_and_products


def test_sizes_are_about_those_of_the_official_page() -> None:
    with torch.device("meta"):
        for name, millions in (("micro", 4.5), ("tiny", 30), ("small", 50), ("base", 100)):
            found = count_parameters(unified(f"unified-{name}", classes=1000)) / 1e6
            assert found == pytest.approx(millions, rel=0.1)


def norm(state: dict[str, Tensor], path: str, x: Tensor) -> Tensor:
    mean = x.sum(1, keepdim=True) / x.shape[1]
    variance = ((x - mean) ** 2).sum(1, keepdim=True) / x.shape[1]
    scale, shift = state[f"{path}.weight"], state[f"{path}.bias"]
    return (x - mean) / (variance + 1e-6) ** 0.5 * scale[:, None, None] + shift[:, None, None]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def product(state: dict[str, Tensor], path: str, x: Tensor) -> Tensor:
    """A 1x1 convolution or a linear layer, on each pixel."""
    y = torch.einsum("oi,bihw->bohw", state[f"{path}.weight"].flatten(1), x)
    return y + state[f"{path}.bias"][:, None, None]


def naive_features(state: dict[str, Tensor], x: Tensor, depths: tuple[int, ...]) -> Tensor:
    x = F.conv2d(x, state["stem.0.weight"], state["stem.0.bias"], stride=2, padding=1)
    x = gelu(norm(state, "stem.1", x))
    x = F.conv2d(x, state["stem.3.weight"], state["stem.3.bias"], stride=2, padding=1)
    x = norm(state, "stem.4", x)
    for stage, depth in enumerate(depths):
        if stage:
            x = F.conv2d(x, state[f"downs.{stage - 1}.0.weight"], stride=2, padding=1)
            x = norm(state, f"downs.{stage - 1}.1", x)
        for block in range(depth):
            path = f"layer{stage + 1}.{block}"
            y = product(state, f"{path}.mixer.proj_in", norm(state, f"{path}.norm1", x))
            kernel, bias = (state[f"{path}.mixer.spatial.{key}"] for key in ("weight", "bias"))
            y = F.conv2d(y, kernel, bias, padding=3, groups=len(kernel))
            x = x + state[f"{path}.scale1"] * product(state, f"{path}.mixer.proj_out", y)
            y = gelu(product(state, f"{path}.expand", norm(state, f"{path}.norm2", x)))
            x = x + state[f"{path}.scale2"][:, None, None] * product(state, f"{path}.reduce", y)
        x = norm(state, f"norms.{stage}", x)
    x = F.conv2d(x, state["head.0.weight"])
    scale = state["head.1.weight"] / (state["head.1.running_var"] + 1e-5).sqrt()
    shift = state["head.1.bias"] - scale * state["head.1.running_mean"]
    return gelu(x * scale[:, None, None] + shift[:, None, None])


@pytest.mark.parametrize("size", [(32, 64), (45, 31)])
def test_forward_is_the_official_network(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = UnifiedBackbone((2, 1, 2, 1), (4, 6, 5, 8), in_channels=2, classes=3).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.5)
        model.head[1].running_mean.normal_()
        model.head[1].running_var.uniform_(0.5, 1.5)
    model.eval()
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    features = naive_features(model.state_dict(), x, (2, 1, 2, 1))
    torch.testing.assert_close(model.features(x), features, rtol=1e-9, atol=1e-9)
    mean = features.sum((2, 3)) / (features.shape[2] * features.shape[3])
    expected = mean @ model.linear.weight.T + model.linear.bias
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


def test_initial_values() -> None:
    torch.manual_seed(0)
    model = unified("unified-micro", classes=1000)
    for name, value in model.named_parameters():
        if name.endswith(("scale1", "scale2")):
            assert (value == 1e-6).all()
        elif value.dim() > 1:
            assert value.std().item() == pytest.approx(0.02, rel=0.12)
        elif name.endswith("bias"):
            assert not value.any()
    small = unified()
    assert (small.layer1[0].scale1 == 1).all()
    assert small.layer4[0].expand.weight.std().item() == pytest.approx((3 * 128) ** -0.5, rel=0.05)


def test_any_mixer_takes_the_place() -> None:
    torch.manual_seed(0)
    made: list[int] = []

    def mixer(dim: int) -> nn.Module:
        made.append(dim)
        return oc.nn.Involution2d(dim, dim, 3, padding=1)

    model = unified(width=8, mixer=mixer)
    assert made == [8, 16, 32, 32, 32, 64]
    plain = unified(width=8)
    outside = {key: value.shape for key, value in plain.state_dict().items() if "mixer" not in key}
    assert outside == {k: v.shape for k, v in model.state_dict().items() if "mixer" not in k}
    selected = oc.where.name(*model.body)
    found = [path for path, m in model.named_modules() if selected(path, m) and path.endswith("r")]
    assert found == [path for path, _ in model.named_modules() if path.endswith(".mixer")]
    x = torch.randn(2, 3, 16, 16)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.layer3[2].mixer.parameters())


def test_a_given_mixer_starts_as_it_was_made() -> None:
    def mixer(dim: int) -> nn.Module:
        conv = nn.Conv2d(dim, dim, 3, padding=1)
        nn.init.constant_(conv.weight, 7.0)
        return conv

    model = UnifiedBackbone((1, 1, 1, 1), (2, 2, 2, 2), mixer)
    assert (model.layer4[0].mixer.weight == 7).all()


@pytest.mark.parametrize(("stride", "side"), [(1, 4), (2, 2), (4, 1)])
def test_stride_of_the_stem(stride: int, side: int) -> None:
    model = UnifiedBackbone((1, 1, 1, 1), (2, 2, 2, 2), stride=stride).eval()
    assert model.features(torch.zeros(1, 3, 32, 32)).shape == (1, 3, side, side)


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (33, 7)])
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_any_size_and_batch(size: tuple[int, int], batch: int) -> None:
    model = unified(in_channels=1, classes=4, width=2).eval()
    assert model(torch.randn(batch, 1, *size)).shape == (batch, 4)
    assert unified(width=1).eval()(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


FOUR = {"depths": (1, 1, 1, 1), "dims": (2, 2, 2, 2)}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"depths": (1, 1)}, ValueError, r"depths must be 4 ints, one per stage, got \(1, 1\)"),
        ({"depths": 4}, TypeError, "depths must be 4 ints, one per stage, got 4"),
        ({"dims": (2, 2, 0, 2)}, ValueError, r"dims\[2\] must be an int of at least 1, got 0"),
        ({"mixer": 7}, TypeError, "mixer must be a function of dim or None, got 7"),
        ({"mixer": lambda dim: dim}, TypeError, "mixer must make an nn.Module, got 2"),
        ({"stride": 3}, ValueError, "stride must be 1, 2 or 4, got 3"),
        ({"classes": None}, TypeError, "classes must be an int of at least 1, got None"),
        ({"scale": "1"}, TypeError, "scale must be a finite number"),
        ({"std": -1.0}, ValueError, "std must be a finite number"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        UnifiedBackbone(**{**FOUR, **arguments})  # type: ignore[arg-type]


def test_a_mixer_that_changes_the_shape_is_refused() -> None:
    model = unified(width=2, mixer=lambda dim: nn.Conv2d(dim, dim, 3))
    with pytest.raises(ValueError, match=r"mixer must keep the shape \(1, 2, 8, 8\) .*Conv2d"):
        model(torch.zeros(1, 3, 8, 8))


def test_unknown_size() -> None:
    with pytest.raises(ValueError, match=r"name must be one of .*did you mean 'unified-tiny'"):
        unified("unified-tinny")
