"""Local relation layer beyond the matrix: its formula in loops, its start, what it represents."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import omniconv as oc

FORMS = ("product", "absolute", "squared")


def waves(shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float64).mul(0.37).sin().view(shape)


def _relation(form: str, s: float, t: float) -> float:
    return {"product": s * t, "absolute": -abs(s - t), "squared": -((s - t) ** 2)}[form]


@pytest.mark.parametrize("form", FORMS)
def test_the_layer_equals_a_naive_loop(form):
    """The paper's formula in Python numbers, one output after the other."""
    layer = oc.nn.LocalRelation2d(
        4, 4, (3, 2), stride=(2, 1), padding=(1, 0), groups=2, composability=form, hidden=3
    ).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(waves(p.shape))
    x = waves((1, 4, 4, 3)).flip(1)
    y = layer(x)[0].tolist()
    image = x[0].tolist()
    query, key = (p[:, :, 0, 0].tolist() for p in (layer.query, layer.key))
    shift, bias = layer.query_bias.tolist(), layer.bias.tolist()
    units = list(zip(layer.prior_in.tolist(), layer.prior_bias.tolist(), strict=True))
    last = layer.prior_out.tolist()

    def pixel(c: int, i: int, j: int) -> float:
        return image[c][i][j] if 0 <= i < 4 and 0 <= j < 3 else 0.0

    def prior(g: int, i: int, j: int) -> float:
        at = (i - 1) / 1, (j - 0) / 1  # from the centre (1, 0), in units of half the kernel
        hidden = [max(0.0, w[0] * at[0] + w[1] * at[1] + b) for w, b in units]
        return sum(v * h for v, h in zip(last[g], hidden, strict=True))

    assert layer(x).shape == (1, 4, 2, 2)
    for c in range(4):
        g = c // 2
        for i in range(2):
            for j in range(2):
                s = sum(query[g][d] * pixel(d, 2 * i, j) for d in range(4)) + shift[g]
                top = below = 0.0
                for u in range(3):
                    for v in range(2):
                        at = 2 * i - 1 + u, j + v
                        t = sum(key[g][d] * pixel(d, *at) for d in range(4))
                        share = math.exp(_relation(form, s, t) + prior(g, u, v))
                        top += share * pixel(c, *at)
                        below += share
                assert y[c][i][j] == pytest.approx(top / below + bias[c], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_a_window_are_shares(form):
    own = {"composability": form, "bias": False, "dtype": torch.float64}
    layer = oc.nn.LocalRelation2d(4, 4, 5, padding=2, padding_mode="replicate", **own)
    constant = torch.full((1, 4, 6, 7), 1.7, dtype=torch.float64)
    torch.testing.assert_close(layer(constant), constant)
    x = waves((2, 4, 6, 7))
    y = layer(x).detach()
    assert float(y.max()) <= float(x.max())
    assert float(y.min()) >= float(x.min())


def test_a_bias_of_the_keys_would_be_one_of_the_queries():
    """Only differences of logits count, so that a key's constant cancels or adds to a."""
    query, key, prior = waves((5, 1)), waves((5, 9)).flip(0), waves((9,))
    for form in FORMS:
        for extra in (0.3, -1.1):

            def shares(s, t, form=form):
                apart = {"product": s * t, "absolute": -(s - t).abs(), "squared": -((s - t) ** 2)}
                return (apart[form] + prior).softmax(1)

            moved = query if form == "product" else query - extra
            torch.testing.assert_close(shares(query, key + extra), shares(moved, key))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("dim", "extent", "size"), [(1, 7, 400), (2, 7, 30), (3, 5, 11), (2, 3, 24)]
)
def test_a_fresh_layer_has_the_depthwise_convolutions_variance(form, dim, extent, size):
    torch.manual_seed(0)
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dim - 1]
    found = torch.zeros(2)
    for _ in range(12):
        x = torch.randn(2, 32, *[size] * dim)
        own = {"dim": dim, "group_channels": 8, "composability": form}
        layer = oc.create("local_relation", 32, 32, extent, **own)
        with torch.no_grad():
            found[0] += layer(x).var()
            found[1] += plain(32, 32, extent, groups=32)(x).var()
    assert 0.85 < float(found[0] / found[1]) < 1.15


def test_a_fresh_prior_is_highest_at_the_centre_and_differs_from_group_to_group():
    layer = oc.nn.LocalRelation2d(32, 32, 7, group_channels=8, dtype=torch.float64)
    shares = layer.prior().flatten(1).softmax(1)
    assert shares.argmax(1).tolist() == [24] * 4
    torch.testing.assert_close(shares.square().sum(1), torch.full((4,), 1 / 3).double())
    assert (shares[0] - shares[1]).abs().max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_learns_to_relate(form):
    """Of two neighbours take the one that is like the pixel: no fixed kernel does this."""
    torch.manual_seed(0)
    layer = oc.nn.LocalRelation1d(2, 2, 3, padding=1, composability=form)
    sign = torch.randint(0, 2, (64, 1, 12)).float() * 2 - 1
    x = torch.cat((sign, sign * torch.rand(64, 1, 12)), 1)
    values = F.pad(x, (1, 1)).unfold(2, 3, 1)
    alike = (values[:, :1] * sign.unsqueeze(3) > 0).float()
    wanted = (values * alike).sum(3) / alike.sum(3)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (layer(x) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("extent", [None, 5])
def test_from_conv_keeps_a_blur(extent):
    """Positive taps that add up to 1, and a hidden unit for each of them."""
    conv = nn.Conv2d(4, 4, 3, stride=2, padding=1, dilation=2, groups=4).double().eval()
    with torch.no_grad():
        conv.weight.copy_(torch.rand(4, 9).softmax(1).view(4, 1, 3, 3))
    layer = oc.nn.LocalRelation2d.from_conv(conv, extent, hidden=64)
    x = waves((2, 4, 9, 8))
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if extent is None else {"rtol": 0.0, "atol": 0.03}
    torch.testing.assert_close(layer(x), conv(x), **tolerance)
    layer(x).square().sum().backward()
    assert layer.query.grad.abs().max() > 0


@pytest.mark.parametrize("form", FORMS)
def test_from_conv_takes_the_nearest_shares(form):
    conv = nn.Conv1d(2, 2, 3, padding=1, groups=2, bias=False).double().eval()
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[0.5, 0.7, -0.4]], [[2.0, 0.0, 0.0]]]))
    layer = oc.nn.LocalRelation1d.from_conv(conv, composability=form)
    shares = layer.prior().softmax(1)
    right = torch.tensor([[0.4, 0.6, 0.0], [1.0, 0.0, 0.0]]).double()
    torch.testing.assert_close(shares, right, rtol=0.0, atol=0.01)
    assert layer(waves((1, 2, 8))).isfinite().all()


def test_from_conv_refuses_a_dense_convolution():
    with pytest.raises(ValueError, match=r"conv must be depthwise .* got groups=2"):
        oc.nn.LocalRelation2d.from_conv(nn.Conv2d(4, 4, 3, groups=2))


def test_in_place_of_a_dense_convolution_stands_the_papers_layer():
    model = nn.Sequential(nn.Conv2d(24, 10, 3, stride=2, padding=1))
    oc.swap_(model, "local_relation", kernel_size=7)
    mixer, pointwise = model[0].mixer, model[0].pointwise
    assert (mixer.groups, mixer.kernel_size, mixer.bias) == (3, (7, 7), None)
    assert pointwise.kernel_size == (1, 1)
    assert model(torch.randn(2, 24, 9, 9)).shape == (2, 10, 5, 5)
