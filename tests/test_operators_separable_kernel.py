"""Separable kernels beyond the matrix: the chain in every form, transfer, parameters."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import omniconv as oc
from omniconv import testing
from omniconv.math.cp import cp_nearest, cp_product

CHAINED = replace(
    oc.card("separable_kernel"),
    transposed={},
    variants={"default": {"chain": True}, "rank2": {"chain": True, "rank": 2}},
)
test_chains_pass_the_matrix = testing.matrix(CHAINED)


def layer_of(*arguments, dim: int = 2, transposed: bool = False, **own) -> nn.Module:
    arguments = arguments or (4, 6, (4, 5, 3)[:dim])
    own = {"dtype": torch.float64} | own
    return oc.create("separable_kernel", *arguments, dim=dim, transposed=transposed, **own)


class _Kernels(TorchDispatchMode):
    """Shapes of the kernels that convolutions are given, with their groups."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "convolution" in str(func):
            self.seen.append((tuple(args[1].shape), args[8]))
        if str(func) == "omniconv.depthwise.default":
            self.seen.append((tuple(args[1].shape), args[0].shape[1]))
        return func(*args, **(kwargs or {}))


def test_a_chain_is_one_convolution_per_factor():
    layer = oc.nn.SeparableKernelConv2d(64, 32, 7, rank=2, padding=3)
    with torch.no_grad(), _Kernels() as kernels:
        layer(torch.randn(1, 64, 9, 9))
    assert kernels.seen == [((64, 64, 1, 1), 1), ((64, 1, 7, 1), 64), ((32, 2, 1, 7), 32)]


@pytest.mark.parametrize(
    ("arguments", "own", "chain"),
    [
        ((64, 64, 3), {}, True),  # 576 against 64 + 6
        ((16, 16, 3), {}, False),  # 144 against 16 + 6
        ((64, 64, 3), {"rank": 2}, False),
        ((64, 64, 3), {"stride": 2}, False),  # the channels are mixed before the stride
        ((64, 64, 3), {"groups": 64}, False),
        ((64, 64, 31), {"groups": 64}, True),  # 961 against 1 + 62
        ((64, 64, 9), {"factor_channels": False}, False),
        ((64, 64, 3), {"chain": False}, False),
        ((2, 2, 2), {"chain": True}, True),
    ],
)
def test_a_chain_runs_where_it_needs_an_eighth_of_the_operations(arguments, own, chain):
    layer = oc.nn.SeparableKernelConv2d(*arguments, **own)
    assert layer.chain is chain
    assert oc.create("separable_kernel", 64, 64, 9, transposed=True).chain is False


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_both_ways_to_run_agree(dim, mode):
    torch.manual_seed(0)
    own = {"stride": (2, 1, 3)[:dim], "padding": (3, 2, 1)[:dim], "dilation": 2, "groups": 2}
    one, other = (
        layer_of(dim=dim, rank=3, padding_mode=mode, chain=c, **own) for c in (True, False)
    )
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 4, *(9, 11, 8)[:dim], dtype=torch.float64)
    torch.testing.assert_close(one(x), other(x))
    torch.testing.assert_close(one(x), one.fold()(x))


def test_parameters_are_a_sum_instead_of_a_product():
    layer = oc.nn.SeparableKernelConv2d(64, 32, 7, rank=3, bias=False)
    assert sum(p.numel() for p in layer.parameters()) == 32 * 3 * (64 + 7 + 7)
    pairs = oc.nn.SeparableKernelConv3d(4, 6, (7, 5, 3), factor_channels=False, bias=False)
    assert sum(p.numel() for p in pairs.parameters()) == 24 * (7 + 5 + 3)
    assert pairs.state_dict().keys() == {"filter0", "filter1", "filter2"}


def test_kernels_are_sums_of_outer_products():
    layer = layer_of(1, 1, (2, 3), rank=2, factor_channels=False)
    with torch.no_grad():
        layer.filter0.copy_(torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]))
        layer.filter1.copy_(torch.tensor([[[1.0, 0.0, 3.0], [5.0, 0.0, 0.0]]]))
    assert layer.weight.tolist() == [[[[1, 0, 3], [7, 0, 6]]]]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("factor_channels", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_kernels_of_rank_one_are_taken_over_exactly(dim, factor_channels, transposed):
    torch.manual_seed(dim)
    own = {"dim": dim, "factor_channels": factor_channels, "transposed": transposed}
    source, target = layer_of(**own), layer_of(**own)
    target.load_kernel_(source.weight.detach())
    torch.testing.assert_close(target.weight, source.weight, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("dim", "factor_channels", "rank"), [(1, True, 4), (2, False, 4), (2, True, 20)]
)
def test_a_high_rank_holds_every_kernel(dim, factor_channels, rank):
    conv = (nn.Conv1d, nn.Conv2d)[dim - 1](7, 3, (4, 5)[:dim], dtype=torch.float64)
    own = {"rank": rank, "factor_channels": factor_channels}
    layer = oc.card("separable_kernel").layer(dim).from_conv(conv, **own)
    torch.testing.assert_close(layer.weight, conv.weight, atol=1e-12, rtol=0)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_two_factors_keep_the_largest_singular_values(rank):
    torch.manual_seed(rank)
    conv = nn.Conv2d(3, 4, (5, 6), dtype=torch.float64)
    layer = oc.nn.SeparableKernelConv2d.from_conv(conv, rank=rank, factor_channels=False)
    lost = torch.linalg.svdvals(conv.weight.detach())[..., rank:].norm()
    rest = (layer.weight - conv.weight).detach().norm()
    assert float(rest) == pytest.approx(float(lost), rel=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_more_factors_end_where_no_factor_can_improve(rank):
    torch.manual_seed(rank)
    conv = nn.Conv2d(6, 4, 5, dtype=torch.float64)
    layer = oc.nn.SeparableKernelConv2d.from_conv(conv, rank=rank)
    rest = (layer.weight - conv.weight).square().sum()
    factors = layer.factors()
    slopes = torch.autograd.grad(rest, factors)
    energy = float(conv.weight.detach().square().sum())
    for factor, slope in zip(factors, slopes, strict=True):
        assert float((factor * slope).detach().abs().max()) < 5e-4 * energy
    # each unfolding bounds what a sum of this rank can hold; a random one holds far less
    bounds = [
        torch.linalg.svdvals(conv.weight.detach().movedim(axis, 1).flatten(2))[:, rank:].norm()
        for axis in (1, 2, 3)
    ]
    found = float(rest.detach().sqrt())
    assert found >= max(map(float, bounds)) - 1e-9
    assert found < 0.97 * energy**0.5


@pytest.mark.parametrize("rank", [2, 3])
def test_sums_of_few_products_are_found(rank):
    torch.manual_seed(0)
    factors = [torch.randn(5, rank, n, dtype=torch.float64) for n in (8, 5, 6)]
    wanted = cp_product(factors)
    found = cp_product(cp_nearest(wanted, rank))
    lost = (found - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
    assert float(lost.median()) < 1e-3


def test_every_product_beyond_the_sizes_still_helps():
    torch.manual_seed(0)
    wanted = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    lost = [float((cp_product(cp_nearest(wanted, r)) - wanted).norm()) for r in range(1, 8)]
    assert all(more < 0.95 * fewer for fewer, more in pairwise(lost))


def test_a_kernel_of_zeros_and_one_entry_are_taken_over():
    conv = nn.Conv2d(2, 2, 3, bias=False)
    nn.init.zeros_(conv.weight)
    layer = oc.nn.SeparableKernelConv2d.from_conv(conv, rank=2)
    assert not layer.weight.any()
    layer.weight.sum().backward()
    assert layer.channels.grad.any()
    nn.init.ones_(conv.weight[0, 0, 1:2, 2:])
    layer = oc.nn.SeparableKernelConv2d.from_conv(conv, 5, rank=2)
    assert layer.weight[0, 0, 2, 3].item() == pytest.approx(1)
    assert layer.weight.abs().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("own", [{}, {"rank": 4}, {"rank": 2, "factor_channels": False}])
@pytest.mark.parametrize("transposed", [False, True])
def test_fresh_kernels_have_the_plain_layers_energy(own, transposed):
    torch.manual_seed(0)
    layer = oc.create("separable_kernel", 64, 96, (5, 3), transposed=transposed, **own)
    plain = (nn.ConvTranspose2d if transposed else nn.Conv2d)(64, 96, (5, 3))
    ratio = layer.weight.detach().square().sum() / plain.weight.detach().square().sum()
    assert float(ratio) == pytest.approx(1, abs=0.06)


def test_chains_are_refused_where_there_is_none():
    with pytest.raises(
        ValueError, match="chain must be None or False in a transposed layer, got T"
    ):
        oc.nn.SeparableKernelConvTranspose2d(4, 4, 3, chain=True)
    with pytest.raises(ValueError, match="chain must be None or False with factor_channels=False"):
        oc.nn.SeparableKernelConv2d(4, 4, 3, chain=True, factor_channels=False)


def test_the_representation_shows_what_was_given():
    assert "rank=1)" in repr(oc.nn.SeparableKernelConv2d(64, 64, 9))
    assert "rank=2, factor_channels=False, chain=False)" in repr(
        oc.nn.SeparableKernelConv2d(4, 4, 3, rank=2, factor_channels=False, chain=False)
    )


@pytest.mark.parametrize(
    ("factors", "error", "message"),
    [
        ([], TypeError, "factors must be a sequence of tensors"),
        (torch.ones(2, 1, 3), TypeError, "factors must be a sequence of tensors"),
        ([None], TypeError, r"factors\[0\] must be a floating-point tensor, got NoneType"),
        ([torch.ones(2, 3)], ValueError, r"factors\[0\] must have shape \(A, R, size\), got"),
        (
            [torch.ones(2, 1, 3), torch.ones(2, 2, 3)],
            ValueError,
            r"factors\[1\] must have shape \(2, 1, size\), got \(2, 2, 3\)",
        ),
    ],
)
def test_bad_arguments_of_the_functional(factors, error, message):
    good = [torch.ones(2, 3, 4), torch.ones(2, 3, 5)]
    assert oc.functional.separable_kernel(good).tolist() == torch.full((2, 4, 5), 3.0).tolist()
    with pytest.raises(error, match=message):
        oc.functional.separable_kernel(factors)
