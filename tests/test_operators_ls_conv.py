"""LS convolution beyond the matrix: the released code's numbers, who shares, what is perceived."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import omniconv as oc


def waves(shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float64).mul(0.37).sin().view(shape)


def released_state(channels: int) -> dict[str, torch.Tensor]:
    """The released perception's parameters, with its initial running statistics."""
    hidden, kernels = channels // 2, 9 * channels // 8
    shapes = {
        "cv1.c.weight": (hidden, channels, 1, 1),
        "cv2.c.weight": (hidden, 1, 7, 7),
        "cv3.c.weight": (hidden, hidden, 1, 1),
        "cv4.weight": (kernels, hidden, 1, 1),
        "cv4.bias": (kernels,),
        "norm.weight": (kernels,),
        "norm.bias": (kernels,),
    }
    state = {name: waves(shape) for name, shape in shapes.items()}
    for i in (1, 2, 3):
        state |= {
            f"cv{i}.bn.weight": waves((hidden,)),
            f"cv{i}.bn.bias": waves((hidden,)),
            f"cv{i}.bn.running_mean": torch.zeros(hidden),
            f"cv{i}.bn.running_var": torch.ones(hidden),
            f"cv{i}.bn.num_batches_tracked": torch.tensor(0),
        }
    return state


# Printed by the released code (jameslahm/lsnet, model/lsnet.py, its Triton kernel replaced by
# unfold) run in float64 on the same inputs, first in training mode, then in evaluation mode:
# sum(y), sum(y s), max|y|, sum(dx x), sum|dW1|, sum|dD|, sum|dW2|, sum|dW3|, sum|d gamma| with
# s = cos(0.1 i), where i counts the outputs, and the last running variances' sum. (channels, size).
# fmt: off
RELEASED = {
    (16, (5, 6)): (
        (3.815990103, -4.609053502, 2.248682574, -4.609052172, 3.840204279,
         3.821289043, 3.510183202, 45.031658376, 11.494226511, 11.532974013),
        (5.284667887, -7.010058434, 2.534917684, -7.876942212, 42.57582728,
         13.318676051, 7.736871691, 42.939461445, 17.324229807, 11.532974013),
    ),
    (32, (8, 7)): (
        (-27.62939937, -0.161884591, 4.854503864, -0.162064264, 309.087422813,
         44.768973949, 59.359754345, 31.093451691, 21.023270698, 15.133177562),
        (1.884969237, -1.009213363, 5.31171361, 1.369552788, 166.853164267,
         32.378359087, 75.714618384, 89.610148032, 13.165333202, 15.133177562),
    ),
    (64, (4, 9)): (
        (-130.658689637, -5.597802689, 6.809494824, -5.597890286, 669.999288001,
         46.946566084, 42.537932044, 150.734387266, 89.664259755, 60.206656345),
        (-358.503312789, -5.997932191, 6.746074525, -6.260823352, 556.301679585,
         40.174596587, 31.161524501, 143.941318331, 72.325584563, 60.206656345),
    ),
}
# fmt: on


@pytest.mark.parametrize("case", RELEASED)
def test_numbers_of_the_released_code(case):
    channels, size = case
    layer = oc.nn.LSConv2d(
        channels, channels, 3, padding=1, group_channels=8, bias=False, dtype=torch.float64
    )
    layer.load_state_dict(layer.from_official(released_state(channels)), strict=True)
    x = waves((2, channels, *size)).requires_grad_()
    for training, released in zip((True, False), RELEASED[case], strict=True):
        y = layer.train(training)(x)
        seed = torch.arange(y.numel(), dtype=torch.float64).mul(0.1).cos().view_as(y)
        wanted = (x, layer.reduce, layer.perceive, layer.mix, layer.span, layer.scale)
        dx, *others = torch.autograd.grad((y * seed).sum(), wanted)
        got = [y.sum(), (y * seed).sum(), y.abs().max(), (dx * x).sum()]
        got += [gradient.abs().sum() for gradient in others] + [layer.mix_norm.running_var.sum()]
        assert [float(v.detach()) for v in got] == pytest.approx(released, rel=1e-8, abs=1e-8)


def test_from_official_names_what_is_missing():
    state = released_state(16)
    del state["cv4.bias"]
    with pytest.raises(ValueError, match=r"state_dict must hold exactly cv1.c.weight, .*, got"):
        oc.nn.LSConv2d.from_official(state)


def test_channels_that_share_a_kernel_lie_groups_apart():
    layer = oc.nn.LSConv1d(6, 6, 3, padding=1, groups=2, dtype=torch.float64).eval()
    x = waves((1, 6, 9))
    kernels = layer.kernels(x)
    assert kernels.shape == (1, 2, 3, 9)
    padded = F.pad(x, (1, 1))
    for c in range(6):
        taps = [kernels[0, c % 2, q] * padded[0, c, q : q + 9] for q in range(3)]
        torch.testing.assert_close(layer(x)[0, c], sum(taps) + layer.bias[c])


@pytest.mark.parametrize(("large", "reach"), [(7, 3), (3, 1), (1, 0)])
def test_kernels_see_as_far_as_the_large_kernel(large, reach):
    """Before GN, whose statistics see the whole image, a pixel reaches the kernels around it."""
    layer = oc.nn.LSConv2d(4, 4, 3, padding=1, large_kernel=large, dtype=torch.float64).eval()
    nn.init.constant_(layer.reduce_norm.bias, 9.0)  # no relu cuts a pixel off
    x = waves((1, 4, 15, 15)).requires_grad_()
    seen = []
    layer.mix_norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    layer(x)
    (dx,) = torch.autograd.grad(seen[0][0, :, 7, 7].sum(), x)
    rows = dx.abs().sum((0, 1, 3)).nonzero().flatten().tolist()
    assert set(rows) <= set(range(7 - reach, 8 + reach))
    assert (min(rows), max(rows)) == (7 - reach, 7 + reach)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_large_kernel_is_centred_on_the_small_ones_centre(stride):
    layer = oc.nn.LSConv1d(2, 2, 3, stride=stride, padding=2, dilation=2, dtype=torch.float64)
    x = torch.zeros(1, 2, 20, dtype=torch.float64)
    x[..., 6] = 1.0  # under the centre tap of position 6 / stride, where H is the furthest from 0
    with torch.no_grad():
        layer.reduce.fill_(1.0)
        layer.perceive.zero_()
        layer.perceive[..., 3] = 1.0
        layer.mix.fill_(1.0)
        layer.span.fill_(0.0)
        layer.span[1].fill_(1.0)  # the small kernel's centre tap
        kernels = layer.eval().kernels(x)[0, 0, 1]
    assert int(kernels.argmax()) == 6 // stride


def test_one_position_cannot_be_normalised_in_training():
    layer = oc.nn.LSConv2d(4, 4, 3)
    wide = oc.nn.LSConv2d(4, 4, 3, padding=2)
    for given, x in ((layer, torch.randn(1, 4, 3, 3)), (wide, torch.randn(4, 1, 1))):
        with pytest.raises(ValueError, match="input must have and give more than one position"):
            given(x)
        assert given.eval()(x).isfinite().all()
    assert layer.train()(torch.randn(2, 4, 3, 3)).isfinite().all()


def test_an_empty_batch_leaves_the_statistics_alone():
    layer = oc.nn.LSConv2d(4, 4, 3, padding=1)
    x = torch.randn(0, 4, 5, 5, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == (0, 4, 5, 5)
    for norm in (layer.reduce_norm, layer.perceive_norm, layer.mix_norm):
        assert norm.running_mean.eq(0).all()
        assert norm.running_var.eq(1).all()
    assert all(not p.grad.any() for p in layer.parameters())


def test_half_precision_follows_the_statistics_of_float32():
    half = oc.nn.LSConv2d(8, 8, 3, padding=1, group_channels=4).bfloat16()
    full = oc.nn.LSConv2d(8, 8, 3, padding=1, group_channels=4)
    full.load_state_dict({k: v.clone() for k, v in half.state_dict().items()})
    x = torch.randn(4, 8, 6, 6).bfloat16()
    half(x)
    full(x.float())
    for name, buffer in half.named_buffers():
        right = full.get_buffer(name)
        assert buffer.dtype in (torch.bfloat16, torch.int64)
        torch.testing.assert_close(buffer.to(right.dtype), right, rtol=2.0**-8, atol=1e-6)
    assert int(half.mix_norm.num_batches_tracked) == 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("dim", "size"), [(1, 400), (2, 24), (3, 9)])
def test_a_fresh_layer_has_the_depthwise_convolutions_variance(dim, size, training):
    torch.manual_seed(0)
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dim - 1]
    found = torch.zeros(2)
    for _ in range(20):
        x = torch.randn(2, 32, *[size] * dim)
        own = {"padding": 1, "dim": dim, "group_channels": 8}
        layer = oc.create("ls_conv", 32, 32, 3, **own).train(training)
        with torch.no_grad():
            found[0] += layer(x).var()
            found[1] += plain(32, 32, 3, padding=1, groups=32)(x).var()
    assert 0.9 < float(found[0] / found[1]) < 1.1


@pytest.mark.parametrize("extent", [None, 5, (3, 7)])
def test_from_conv_keeps_a_depthwise_convolution_and_learns(extent):
    conv = nn.Conv2d(6, 6, 3, stride=2, padding=1, dilation=2, groups=6).double().eval()
    layer = oc.nn.LSConv2d.from_conv(conv, extent)
    x = waves((2, 6, 9, 8))
    assert layer.groups == 6
    torch.testing.assert_close(layer(x), conv(x))
    layer(x).square().sum().backward()
    assert layer.scale.grad.abs().max() > 0


def test_from_conv_gives_sharing_channels_their_mean_kernel():
    conv = nn.Conv1d(6, 6, 5, padding=2, groups=6).double().eval()
    layer = oc.nn.LSConv1d.from_conv(conv, group_channels=3)
    x = waves((2, 6, 9))
    mean = torch.stack([conv.weight.detach()[c % 2 :: 2].mean(0) for c in range(6)])
    torch.testing.assert_close(layer(x), F.conv1d(x, mean, conv.bias, padding=2, groups=6))


def test_from_conv_refuses_a_dense_convolution():
    with pytest.raises(ValueError, match=r"conv must be depthwise .* got groups=2"):
        oc.nn.LSConv2d.from_conv(nn.Conv2d(4, 4, 3, groups=2))


@pytest.mark.parametrize(("channels", "each"), [(64, 8), (20, 5), (17, 1)])
def test_a_swapped_layer_has_the_papers_groups_or_the_nearest(channels, each):
    model = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1))
    oc.swap_(model, "ls_conv")
    assert model[0].mixer.groups == channels // each
    assert model(torch.randn(2, channels, 6, 6)).shape == (2, 8, 6, 6)
