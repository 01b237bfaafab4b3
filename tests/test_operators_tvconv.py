"""TVConv beyond the matrix: the released code's numbers, its grid, kernels that never are stale."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import omniconv as oc


def waves(shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float64).mul(0.37).sin().view(shape)


def released_state(
    channels: int, extent: int, hidden: int, layers: int, size: tuple[int, int]
) -> dict[str, torch.Tensor]:
    """The released layer's parameters, and those of its buffers that are not of use here."""
    inputs = [4] + [hidden] * layers
    shapes = {"posi_map": (1, 4, *size)}
    for i, n in enumerate(inputs):
        shapes[f"weight_layers.{i}.0.weight"] = (hidden, n, 3, 3)
        shapes[f"weight_layers.{i}.1.weight"] = (hidden, *size)
        shapes[f"weight_layers.{i}.1.bias"] = (hidden, *size)
    shapes[f"weight_layers.{len(inputs)}.weight"] = (channels * extent**2, hidden, 3, 3)
    unused = {"TVConv_k": extent, "TVConv_k_square": extent**2, "h": size[0], "w": size[1]}
    state = {name: waves(shape) for name, shape in shapes.items()}
    return state | {name: torch.tensor(value) for name, value in unused.items()}


# Printed by the released code (JierunChen/TVConv, face_recognition/model/atoms/TVConv.py) run in
# float64 on the same inputs: sum(y), sum(y s), max|y|, sum(dx x), sum|dA|, sum|dU_1|,
# sum|d gamma_1|, sum|dV| with s = cos(0.1 i), where i counts the outputs.
# (channels, extent, stride, TVConv_inter_chans, TVConv_inter_layers, size of the input).
# fmt: off
RELEASED = {
    (6, 3, 1, 16, 1, (5, 6)): (
        45.665862444, -31.756304878, 31.087600452, -31.756304878,
        2001.974912542, 13884.936401509, 944.312844487, 11376.790475172),
    (4, 3, 2, 16, 1, (6, 8)): (
        70.124763854, -125.985627806, 52.121232844, -125.985627806,
        257.44226838, 1003.214794997, 394.379719537, 8653.555001442),
    (3, 5, 1, 8, 3, (4, 7)): (
        -7.204141725, -8.137733438, 7.000106707, -8.137733438,
        112.414650352, 166.395134678, 91.093462565, 5828.854390184),
    (5, 3, 1, 4, 0, (3, 4)): (
        0.213684277, 1.983750247, 16.075165251, 1.983750247,
        5.167099107, 8.900915839, 4.596681279, 351.762789958),
}
# fmt: on


@pytest.mark.parametrize("case", RELEASED)
def test_numbers_of_the_released_code(case):
    channels, extent, stride, hidden, layers, size = case
    grid = tuple((n - 1) // stride + 1 for n in size)
    layer = oc.nn.TVConv2d(
        channels,
        channels,
        extent,
        stride=stride,
        padding=(extent - 1) // 2,
        feature_size=grid,
        hidden_channels=hidden,
        blocks=layers + 1,
        bias=False,
        dtype=torch.float64,
    )
    state = released_state(channels, extent, hidden, layers, grid)
    layer.load_state_dict(layer.from_official(state), strict=True)
    x = waves((2, channels, *size)).requires_grad_()
    y = layer(x)
    seed = torch.arange(y.numel(), dtype=torch.float64).mul(0.1).cos().view_as(y)
    wanted = (x, layer.affinity, layer.filters[0], layer.scales[0], layer.span)
    dx, *others = torch.autograd.grad((y * seed).sum(), wanted)
    got = [y.sum(), (y * seed).sum(), y.abs().max(), (dx * x).sum()]
    got += [gradient.abs().sum() for gradient in others]
    assert [float(v.detach()) for v in got] == pytest.approx(RELEASED[case], rel=1e-8, abs=1e-8)


def test_from_official_names_what_is_missing_or_surplus():
    layer = oc.nn.TVConv2d(3, 3, 3, feature_size=4, hidden_channels=2, bias=False)
    state = released_state(3, 3, 2, 1, (4, 4))
    layer.load_state_dict(layer.from_official(state))
    with pytest.raises(ValueError, match=r"state_dict must hold posi_map, .* with blocks=2, got"):
        layer.from_official(state | {"bias_layers.0.0.weight": state["posi_map"]})
    with pytest.raises(ValueError, match=r"state_dict must hold posi_map"):
        layer.from_official(released_state(3, 3, 2, 2, (4, 4)))


@pytest.mark.parametrize(("dim", "size"), [(1, (9,)), (2, (5, 12)), (3, (2, 5, 9))])
def test_on_another_grid_the_kernels_are_interpolated(dim, size):
    own = {"padding": 1, "dim": dim, "feature_size": (4, 5, 3)[:dim], "dtype": torch.float64}
    layer = oc.create("tvconv", 2, 2, 3, **own)
    with torch.no_grad():
        for offset in layer.offsets:
            offset.copy_(waves(offset.shape))
    learned = layer.kernels(layer.feature_size).flatten(1, 1 + dim)
    mode = ("linear", "bilinear", "trilinear")[dim - 1]
    right = F.interpolate(learned, size, mode=mode)
    assert right.std() > 0.1
    torch.testing.assert_close(layer.kernels(size).flatten(1, 1 + dim), right)
    x = waves((2, 2, *size))
    padded = F.pad(x, [1] * 2 * dim)
    grown = layer.kernels(size)
    y = sum(
        grown[(slice(None), slice(None), *tap)]
        * padded[(..., *(slice(t, t + n) for t, n in zip(tap, size, strict=True)))]
        for tap in torch.cartesian_prod(*[torch.arange(3)] * dim).view(-1, dim).tolist()
    )
    torch.testing.assert_close(layer(x), y + layer.bias.view(-1, *[1] * dim))


def test_kernels_follow_every_change_of_a_parameter_in_either_mode():
    layer = oc.nn.TVConv2d(2, 2, 3, padding=1).eval()
    x = torch.randn(1, 2, 7, 7)
    with torch.no_grad():
        before = layer(x)
        for p in layer.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
            after = layer(x)
            assert not torch.equal(before, after)
            before = after
        layer.train()
        assert torch.equal(layer(x), before)


def test_the_same_kernels_serve_every_input_and_the_layer_is_linear():
    layer = oc.nn.TVConv2d(3, 3, 3, padding=1, bias=False, dtype=torch.float64)
    x, other = waves((2, 3, 6, 5)), waves((2, 3, 6, 5)).flip(2)
    torch.testing.assert_close(layer(x) + 2 * layer(other), layer(x + 2 * other))
    torch.testing.assert_close(layer(x)[1], layer(x[1:])[0])


def test_a_trained_layer_tells_positions_apart():
    layer = oc.nn.TVConv1d(1, 1, 3, padding=1, feature_size=8)
    x = torch.randn(64, 1, 8)
    wanted = torch.where(torch.arange(8) < 4, x, -x)  # no convolution does this
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (layer(x) - wanted).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05


@pytest.mark.parametrize(("dim", "size"), [(1, 400), (2, 24), (3, 9)])
def test_a_fresh_layer_has_the_depthwise_convolutions_variance(dim, size):
    torch.manual_seed(0)
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dim - 1]
    found = torch.zeros(2)
    for _ in range(20):
        x = torch.randn(2, 32, *[size] * dim)
        layer = oc.create("tvconv", 32, 32, 3, padding=1, dim=dim)
        with torch.no_grad():
            found[0] += layer(x).var()
            found[1] += plain(32, 32, 3, padding=1, groups=32)(x).var()
    assert 0.85 < float(found[0] / found[1]) < 1.15


@pytest.mark.parametrize("own", [{}, {"blocks": 1, "feature_size": (3, 6)}, {"hidden_channels": 1}])
@pytest.mark.parametrize("extent", [None, 5])
def test_from_conv_keeps_a_depthwise_convolution_and_learns(extent, own):
    conv = nn.Conv2d(4, 4, 3, stride=2, padding=1, dilation=2, groups=4).double().eval()
    layer = oc.nn.TVConv2d.from_conv(conv, extent, **own)
    x = waves((2, 4, 13, 11))
    torch.testing.assert_close(layer(x), conv(x))
    layer(x).square().sum().backward()
    assert layer.span.grad.abs().max() > 0
    if layer.hidden_channels > 1:
        assert layer.scales[-1].grad.abs().max() > 0


def test_from_conv_refuses_a_dense_convolution():
    with pytest.raises(ValueError, match=r"conv must be depthwise .* got groups=2"):
        oc.nn.TVConv2d.from_conv(nn.Conv2d(4, 4, 3, groups=2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_the_kernels_once(dtype):
    layer = oc.nn.TVConv2d(3, 3, 3, padding=1).to(dtype)
    exact = oc.nn.TVConv2d(3, 3, 3, padding=1, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    with torch.no_grad():
        kernels, right = layer.kernels((9, 9)), exact.kernels((9, 9))
    assert kernels.dtype == dtype
    error = (kernels.double() - right).abs() / right.abs().clamp_min(1e-3)
    assert float(error.max()) <= 0.51 * torch.finfo(dtype).eps


def test_autocast_generates_the_kernels_in_float32():
    layer = oc.nn.TVConv2d(3, 3, 3, padding=1)
    right = layer.kernels((9, 9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kernels = layer.kernels((9, 9))
        assert layer(torch.randn(1, 3, 9, 9)).dtype == torch.bfloat16
    assert torch.equal(kernels, right.bfloat16())
