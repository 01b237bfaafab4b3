"""Every rule of the FLOP table, counted by hand on small shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omniconv.analysis import count_flops
from omniconv.analysis.flop_rules import FREE, PER_INPUT, PER_OUTPUT, SPECIAL

N = 2 * 3 * 4 * 8


def flops(function: Callable[..., Any], *shape: int, complex_: bool = False) -> tuple[int, int]:
    torch.manual_seed(0)
    dtype = torch.complex64 if complex_ else torch.float32
    x = torch.rand(*(shape or (2, 3, 4, 8)), dtype=dtype).mul_(0.5).add_(0.1).requires_grad_()
    counted = count_flops(function, x, backward=True)
    assert counted.unknown == ()
    return counted.forward, counted.backward


@pytest.mark.parametrize(
    "name", sorted(FREE | PER_INPUT.keys() | PER_OUTPUT.keys() | SPECIAL.keys())
)
def test_the_table_names_real_operators(name: str) -> None:
    assert hasattr(torch.ops.aten, name) or hasattr(torch.ops.aten, f"{name}_")


def test_no_operator_stands_in_two_tables() -> None:
    names = [*FREE, *PER_INPUT, *PER_OUTPUT, *SPECIAL]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("function", "forward", "backward"),
    [
        pytest.param(lambda x: x + 1, 1, 0, id="add"),
        pytest.param(lambda x: torch.add(x, x.detach(), alpha=3), 2, 0, id="add-alpha"),
        pytest.param(lambda x: x * 3 - x.detach() / 2, 3, 1, id="mul-sub-div"),
        pytest.param(lambda x: -x.abs(), 2, 3, id="neg-abs"),
        pytest.param(torch.exp, 1, 1, id="exp"),
        pytest.param(torch.log, 1, 1, id="log"),
        pytest.param(torch.sigmoid, 1, 3, id="sigmoid"),
        pytest.param(torch.tanh, 1, 3, id="tanh"),
        pytest.param(torch.relu, 1, 1, id="relu"),
        pytest.param(lambda x: x.clamp(0, 1), 1, 0, id="clamp"),
        pytest.param(lambda x: x.clone().mul_(2).add_(1), 2, 1, id="in-place"),
        pytest.param(lambda x: torch.addcmul(x, x.detach(), x.detach()), 2, 0, id="addcmul"),
        pytest.param(lambda x: torch.lerp(x, x.detach(), 0.5), 3, 1, id="lerp"),
        pytest.param(F.silu, 2, 6, id="silu"),
        pytest.param(F.elu, 2, 3, id="elu"),
        pytest.param(F.gelu, 5, 11, id="gelu"),
        pytest.param(F.hardswish, 4, 4, id="hardswish"),
        pytest.param(F.leaky_relu, 1, 1, id="leaky_relu"),
        pytest.param(lambda x: x.softmax(1), 5, 4, id="softmax"),
        pytest.param(lambda x: x.log_softmax(1), 5, 4, id="log_softmax"),
        pytest.param(lambda x: F.dropout(x, 0.5), 2, 1, id="dropout"),
        pytest.param(lambda x: x.sum(1), 1, 0, id="sum"),
        pytest.param(lambda x: x.amax(2), 1, None, id="amax"),
        pytest.param(lambda x: x.max(1).values, 1, 0, id="max-axis"),
        pytest.param(lambda x: torch.max(x, x.detach()), 1, None, id="max-pair"),
        pytest.param(lambda x: x.cumsum(2), 1, 1, id="cumsum"),
        pytest.param(lambda x: x.var((0, 2)), 3, None, id="var"),
        pytest.param(
            lambda x: torch.linalg.vector_norm(x.detach()) + x[0, 0, 0, 0],
            2,
            None,
            id="vector-norm",
        ),
    ],
)
def test_per_element(
    function: Callable[[Tensor], Tensor], forward: int, backward: int | None
) -> None:
    counted = flops(function)
    assert counted[0] // N == forward
    assert backward is None or counted[1] == backward * N


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.permute(3, 2, 1, 0).reshape(8, -1)[None, ::2].expand(3, 4, 24).contiguous(),
        lambda x: torch.cat([x.flip(1), x.roll(1, 2)]).to(torch.float64),
        lambda x: F.pad(F.pixel_shuffle(F.pad(x, (0, 0, 0, 0, 1, 0)), 2), (1, 1)),
        lambda x: torch.where(x > 0.3, x, torch.zeros_like(x)).masked_fill(x < 0.4, 2.0),
        lambda x: x.gather(3, (torch.arange(8) * 2 % 8).expand(2, 3, 4, 8)) == x,
        lambda x: torch.rand_like(x).normal_(),
        lambda x: F.unfold(x, 3, padding=1),
        lambda x: x.topk(2).values.sort(1).values,
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: torch.arange(10) * 3 + torch.ones(10, dtype=torch.long).cumsum(0),
    ],
)
def test_moving_comparing_drawing_and_index_arithmetic_are_free(function: Any) -> None:
    counted = count_flops(function, torch.rand(2, 3, 4, 8))
    assert (counted.by_op, counted.unknown) == ({}, ())


def test_unfold_times_weight_summed_is_two_per_multiply_add() -> None:
    """An involution-like apply: every tap multiplied and added once."""
    weight = torch.rand(2, 27, 32)
    taps = 2 * 27 * 32
    forward, backward = flops(lambda x: (F.unfold(x, 3, padding=1) * weight).sum(1))
    assert (forward, backward) == (2 * taps, 2 * taps)


def test_fold_adds_every_column() -> None:
    columns = 2 * 12 * 21
    assert flops(lambda x: F.fold(x, (4, 8), 2), 2, 12, 21) == (columns, 0)


def test_scatters_add_their_source() -> None:
    index = torch.tensor([0, 2, 2])
    assert flops(lambda x: torch.zeros(5, 4).index_add(0, index, x), 3, 4) == (12, 0)
    assert flops(
        lambda x: torch.zeros(5, 4).scatter_add(0, index[:, None].expand(3, 4), x), 3, 4
    ) == (
        12,
        0,
    )
    assert flops(lambda x: torch.zeros(5, 4).index_put((index,), x, accumulate=True), 3, 4)[0] == 12
    assert flops(lambda x: torch.zeros(5, 4).index_put((index,), x), 3, 4)[0] == 0
    assert flops(lambda x: x[index], 3, 4) == (0, 12)
    assert flops(lambda x: x.index_select(0, index), 3, 4) == (0, 12)
    assert flops(lambda x: F.embedding(index, x), 3, 4) == (0, 12)
    assert flops(lambda x: x.unfold(1, 3, 1), 3, 4) == (0, 18)
    assert flops(lambda x: F.pad(x, (1, 1), mode="reflect"), 3, 4) == (0, 18)


@pytest.mark.parametrize(
    ("function", "forward", "backward"),
    [
        (lambda x: F.batch_norm(x, None, None, training=True), 5, 9),
        (lambda x: F.batch_norm(x, torch.zeros(3), torch.ones(3)), 2, 1),
        (lambda x: F.group_norm(x, 3), 5, 9),
        (lambda x: F.layer_norm(x, (8,)), 5, 9),
        (nn.LayerNorm(8), 7, 10 + 2 + 1),
        (nn.BatchNorm2d(3), 5, 9),
        (nn.BatchNorm2d(3).eval(), 2, 1 + 4 + 1),
        (nn.GroupNorm(3, 3), 5, 9),
    ],
)
def test_normalisation(function: Callable[[Tensor], Tensor], forward: int, backward: int) -> None:
    assert flops(function) == (forward * N, backward * N)


def test_pooling_counts_the_window() -> None:
    out = 2 * 3 * 2 * 4
    assert flops(lambda x: F.avg_pool2d(x, 2)) == (4 * out, 4 * out)
    assert flops(lambda x: F.max_pool2d(x, (2,))) == (4 * out, out)
    assert flops(lambda x: F.avg_pool3d(x[None], (1, 2, 2)))[0] == 4 * out
    assert flops(lambda x: F.max_pool1d(x[0], 2))[0] == 2 * 3 * 4 * 4
    assert flops(lambda x: F.adaptive_avg_pool2d(x, (2, 4))) == (4 * out, 4 * out)
    overlapping = 2 * 3 * (2 + 2 + 2) * (3 + 4 + 3)
    assert flops(lambda x: F.adaptive_max_pool2d(x, (3, 3)))[0] == overlapping


def test_resampling_counts_two_per_tap() -> None:
    out = 4 * N
    assert flops(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")) == (8 * out, 8 * out)
    assert flops(lambda x: F.interpolate(x, scale_factor=2, mode="bicubic")) == (32 * out, 32 * out)
    assert flops(lambda x: F.interpolate(x, scale_factor=2)) == (0, out)
    grid = torch.rand(2, 5, 5, 2)
    sampled = 2 * 3 * 25
    assert flops(lambda x: F.grid_sample(x, grid, align_corners=False)) == (
        8 * sampled,
        8 * sampled,
    )
    both = flops(
        lambda g: F.grid_sample(torch.ones(2, 3, 4, 8), g, align_corners=False), 2, 5, 5, 2
    )
    assert both == (8 * sampled, 16 * sampled)


def test_matrix_products() -> None:
    assert flops(lambda x: x @ torch.rand(4, 5), 3, 4) == (2 * 3 * 4 * 5, 2 * 3 * 4 * 5)
    assert flops(lambda x: torch.einsum("bij,bjk->bik", x, x), 2, 4, 4) == (256, 512 + 32)
    assert flops(lambda x: torch.baddbmm(torch.rand(2, 4, 4), x, x), 2, 4, 4)[0] == 256
    assert flops(lambda x: x @ torch.rand(4), 3, 4)[0] == 24
    assert flops(lambda x: x @ torch.rand(4), 4)[0] == 8
    query = 2 * 3 * 4 * 8
    attention = flops(lambda x: F.scaled_dot_product_attention(x, x.detach(), x.detach()))
    assert attention[0] == 2 * query * 4 * 2


def test_complex_numbers_count_their_real_operations() -> None:
    other = torch.rand(3, 4, dtype=torch.complex64)
    assert flops(lambda x: x + other, 3, 4, complex_=True) == (24, 0)
    assert flops(lambda x: x * other, 3, 4, complex_=True)[0] == 72
    assert flops(lambda x: x * 2.0, 3, 4, complex_=True)[0] == 24
    assert flops(lambda x: x / other, 3, 4, complex_=True)[0] == 132
    assert flops(torch.abs, 3, 4, complex_=True)[0] == 48
    assert flops(lambda x: x.sum(0), 3, 4, complex_=True)[0] == 24
    assert flops(lambda x: x @ other.mT, 3, 4, complex_=True)[0] == 8 * 3 * 4 * 3
    assert flops(lambda x: torch.view_as_real(x).flip(0).conj(), 3, 4, complex_=True) == (0, 0)


def test_fourier_transforms() -> None:
    """5 N log2 N for complex points, half for real ones; several axes are one transform."""
    assert flops(torch.fft.fft, 3, 8, complex_=True) == (3 * 5 * 8 * 3, 3 * 5 * 8 * 3)
    assert flops(torch.fft.ifft2, 4, 8, complex_=True)[0] == 5 * 32 * 5
    assert flops(torch.fft.rfft, 3, 16)[0] == 3 * 5 * 16 * 4 // 2
    assert flops(lambda x: torch.fft.irfft(x, 16), 3, 9, complex_=True)[0] == 3 * 5 * 16 * 4 // 2
    assert flops(torch.fft.rfft2, 2, 3, 4, 8)[0] == 6 * 5 * 32 * 5 // 2
    assert flops(torch.fft.fft, 3, 1, complex_=True) == (0, 0)
    assert flops(torch.fft.fft, 1, 6, complex_=True)[0] == round(5 * 6 * 2.584962500721156)


def test_linear_algebra() -> None:
    cube = 6**3
    well = torch.eye(6) * 3
    assert flops(lambda x: torch.linalg.slogdet(x + well)[1], 2, 6, 6)[0] == 72 + 2 * 2 * cube // 3
    assert flops(lambda x: torch.linalg.inv(x + well), 2, 6, 6)[0] == 72 + 2 * 2 * cube
    right = torch.rand(6, 4)
    solved = flops(lambda x: torch.linalg.solve(x + well, right), 6, 6)[0]
    assert solved == 36 + 2 * cube // 3 + 2 * 36 * 4
    triangular = flops(lambda x: torch.linalg.solve_triangular(x + well, right, upper=True), 6, 6)
    assert triangular[0] == 36 + 36 * 4
    positive = flops(lambda x: torch.linalg.cholesky(x @ x.mT + 9 * well), 6, 6)[0]
    assert positive == 2 * cube + 36 + 36 + cube // 3


def test_losses() -> None:
    target = torch.zeros(2, 4, 8, dtype=torch.long)
    assert flops(lambda x: F.cross_entropy(x, target)) == (5 * N + 64, 4 * N + 64)
    assert flops(lambda x: F.mse_loss(x, torch.zeros_like(x))) == (3 * N, 2 * N)


def test_lists_of_tensors() -> None:
    pair = [torch.rand(3), torch.rand(5)]
    assert count_flops(lambda: torch._foreach_mul(pair, 2.0)).forward == 8
    assert count_flops(lambda: torch._foreach_add_(pair, pair)).forward == 8
    assert count_flops(lambda: torch._foreach_zero_(pair)).total == 0
