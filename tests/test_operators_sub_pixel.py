"""Sub-pixel convolution beyond the matrix: its two equalities, and a start without checkerboard."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omniconv as oc


def waves(shape: torch.Size | tuple[int, ...], step: float = 0.37) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(1, count + 1, dtype=torch.float64).mul(step).sin().view(shape)


def layer_of(dim: int = 2, **arguments) -> torch.nn.Module:
    base = {"in_channels": 4, "out_channels": 3, "kernel_size": 3, "padding": 1}
    return oc.create("sub_pixel", **{"dim": dim, "dtype": torch.float64} | base | arguments)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_torchs_convolution_and_pixel_shuffle_load_as_they_are(factor):
    pair = nn.Sequential(nn.Conv2d(4, 3 * factor**2, 3, padding=1), nn.PixelShuffle(factor))
    pair.double()
    layer = layer_of(upscale_factor=factor)
    layer.load_state_dict(pair[0].state_dict())
    x = waves((2, 4, 5, 6)).requires_grad_()
    y, right = layer(x), pair(x)
    assert torch.equal(y, right)
    seed = waves(y.shape, 0.1)
    assert torch.equal(*(torch.autograd.grad(out, x, seed)[0] for out in (y, right)))


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("arguments", [{}, {"groups": 2, "out_channels": 6}, {"stride": 2}])
def test_a_fresh_layer_is_nearest_neighbour_upsampling_of_a_convolution(dim, arguments):
    layer = layer_of(dim, upscale_factor=(2, 3, 2)[:dim], **arguments)
    pixels = layer.weight.shape[0] // layer.out_channels
    plain = oc.testing.Subject(oc.card("sub_pixel"), dim=dim).plain
    own = {"in_channels": 4, "out_channels": 3, "kernel_size": 3, "padding": 1} | arguments
    conv = plain(**own, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(layer.weight[::pixels])
        conv.bias.copy_(layer.bias[::pixels])
    x = waves((2, 4, *[5] * dim))
    right = F.interpolate(conv(x), scale_factor=layer.upscale_factor, mode="nearest")
    torch.testing.assert_close(layer(x), right)


def test_without_icnr_a_fresh_layer_has_a_checkerboard():
    flat = torch.ones(1, 4, 6, 6, dtype=torch.float64)
    inner = (..., slice(2, 10), slice(2, 10))
    smooth, rough = (layer_of(icnr=icnr)(flat).detach()[inner] for icnr in (True, False))
    assert float(smooth.flatten(2).std(-1).max()) < 1e-12
    assert float(rough.flatten(2).std(-1).min()) > 1e-3


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_it_is_a_transposed_convolution(dim, padding):
    """Extent r k, stride r, padding r (k - 1 - padding); one bias per channel."""
    k, r = 3, 2
    layer = layer_of(dim, padding=padding, icnr=False, bias=False)
    other = oc.testing.Subject(oc.card("weighted"), dim=dim, transposed=True).plain
    upsample = other(4, 3, r * k, r, r * (k - 1 - padding), bias=False, dtype=torch.float64)
    offsets = list(itertools.product(range(r), repeat=dim))
    with torch.no_grad():
        for tap in itertools.product(range(k), repeat=dim):
            for number, offset in enumerate(offsets):
                rows = layer.weight[(slice(number, None, len(offsets)), slice(None), *tap)]
                place = [(k - 1 - u) * r + i for u, i in zip(tap, offset, strict=True)]
                upsample.weight[(slice(None), slice(None), *place)] = rows.T
    x = waves((2, 4, *[5] * dim))
    torch.testing.assert_close(layer(x), upsample(x))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_depth_to_space_undoes_space_to_depth(dim):
    factor = (2, 3, 4)[:dim]
    x = waves((2, 3, *(4, 6, 8)[:dim]))
    deep = oc.functional.space_to_depth(x, factor)
    assert torch.equal(oc.functional.depth_to_space(deep, factor), x)


def test_depth_to_space_is_torchs_pixel_shuffle():
    x = waves((2, 18, 4, 5))
    assert torch.equal(oc.functional.depth_to_space(x, 3), F.pixel_shuffle(x, 3))


def test_it_is_no_replacement_of_a_convolution():
    with pytest.raises(ValueError, match="role 'resampler'"):
        oc.swap_(nn.Sequential(nn.Conv2d(3, 3, 3)), "sub_pixel")


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (("depth_to_space", None, 2), "x must be a floating-point tensor"),
        (("depth_to_space", torch.ones(2, 4), 2), "x must have 3 to 5 axes"),
        (("depth_to_space", torch.ones(1, 6, 2, 2), 2), "x must have a multiple of 4 channels"),
        (("depth_to_space", torch.ones(1, 4, 2, 2), 0), "factor must be an int of at least 1"),
        (("icnr", [1.0], 2), "weight must be a floating-point tensor"),
        (("icnr", torch.ones(4), 2), "weight must have 3 to 5 axes"),
        (("icnr", torch.ones(4, 2, 3, 3), 2.0), "factor must be an int"),
    ],
)
def test_bad_arguments_of_the_functionals(call, match):
    name, *arguments = call
    with pytest.raises((TypeError, ValueError), match=match):
        getattr(oc.functional, name)(*arguments)
