"""Effective receptive fields of convolutions whose kernels are known, and areas of known maps."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniconv.analysis import area, effective_receptive_field
from omniconv.models import build


def convolution(kernel: Tensor, **arguments: int) -> nn.Conv2d:
    """One channel to one, with a kernel given."""
    conv = nn.Conv2d(1, 1, tuple(kernel.shape), bias=False, **arguments)  # type: ignore[arg-type]
    conv = conv.to(kernel.dtype)
    with torch.no_grad():
        conv.weight[0, 0] = kernel
    return conv


def spread(kernel: Tensor, dilation: int) -> Tensor:
    """The kernel with zeros between its taps."""
    height, width = ((k - 1) * dilation + 1 for k in kernel.shape)
    wide = kernel.new_zeros(height, width)
    wide[::dilation, ::dilation] = kernel
    return wide


def at(field: Tensor, row: int, column: int, height: int, width: int) -> Tensor:
    """A window of the field, after a check that all outside it is 0."""
    window = field[row : row + height, column : column + width]
    assert window.shape == (height, width)
    assert window.count_nonzero() == field.count_nonzero()
    return window


def test_a_kernel_of_ones_is_a_box_about_the_centre() -> None:
    field = effective_receptive_field(
        convolution(torch.ones(3, 3), padding=1), torch.rand(2, 1, 9, 8)
    )
    assert torch.equal(at(field, 3, 3, 3, 3), torch.ones(3, 3))  # about (4, 4)
    assert area(field) == 9 / 72


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_the_field_of_one_convolution_is_its_kernel(dilation: int) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(3, 5, dtype=torch.float64)
    field = effective_receptive_field(
        convolution(kernel, dilation=dilation), torch.rand(1, 1, 15, 17, dtype=torch.float64)
    )
    expected = spread(kernel, dilation).abs()
    rows, columns = 15 - 2 * dilation, 17 - 4 * dilation  # of the output
    window = at(field, rows // 2, columns // 2, *expected.shape)
    torch.testing.assert_close(window, expected / expected.max())


@pytest.mark.parametrize("layers", [2, 5])
def test_the_field_of_a_stack_is_the_convolved_kernel(layers: int) -> None:
    ones = torch.ones(3, 3, dtype=torch.float64)
    stack = nn.Sequential(*(convolution(ones, padding=1) for _ in range(layers)))
    field = effective_receptive_field(stack, torch.rand(1, 1, 21, 21, dtype=torch.float64))
    line = [1]  # trinomial coefficients: the row of ones, convolved with itself
    for _ in range(layers):
        padded = [0, 0, *line, 0, 0]
        line = [sum(padded[i : i + 3]) for i in range(len(line) + 2)]
    assert sum(line) == 3**layers
    expected = torch.tensor([[a * b for b in line] for a in line], dtype=torch.float64)
    window = at(field, 10 - layers, 10 - layers, 2 * layers + 1, 2 * layers + 1)
    torch.testing.assert_close(window, expected / max(line) ** 2)


def test_stride_moves_the_centre_and_spreads_the_next_kernel() -> None:
    torch.manual_seed(0)
    first, second = torch.rand(2, 3, 3, dtype=torch.float64)
    stack = nn.Sequential(convolution(first, stride=2, padding=1), convolution(second, padding=1))
    field = effective_receptive_field(stack, torch.rand(1, 1, 16, 16, dtype=torch.float64))
    # output (4, 4) reads positions 3 to 5 of the map in between, these pixels 5 to 11
    expected = torch.zeros(7, 7, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            expected[2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += second[i, j] * first
    torch.testing.assert_close(at(field, 5, 5, 7, 7), expected / expected.max())


def test_mean_over_images_and_channels_of_the_sum_over_outputs() -> None:
    """Image b has the gradient 2 b x; outputs add up with their signs before the size is taken."""
    x = torch.rand(3, 2, 5, 5, dtype=torch.float64) + 0.5

    def function(images: Tensor) -> Tensor:
        square = images**2
        return torch.stack((square[:, 0], -3 * square[:, 0] + square[:, 1]), 1)

    field = effective_receptive_field(function, x)
    centre = (2 * 2 * x[:, 0, 2, 2] + 2 * x[:, 1, 2, 2]).sum()
    assert centre > 0
    expected = torch.zeros(5, 5, dtype=torch.float64)
    expected[2, 2] = 1
    torch.testing.assert_close(field, expected)

    def two(images: Tensor) -> Tensor:  # pixel (2, 2) by 2 and 1 per channel, its neighbour by 1
        y = torch.zeros_like(images[:, :1])
        y[:, 0, 2, 2] = images[:, 0, 2, 2] - 2 * images[:, 1, 2, 2] + images[:, 0, 2, 3]
        y[0, 0, 2, 2] += 3 * images[0, 1, 2, 3]
        return torch.cat((y, y), 1)

    field = effective_receptive_field(two, x)
    expected[2, 3] = (3 * 1 + 3) / (3 * 1 + 3 * 2)
    torch.testing.assert_close(field, expected)


@pytest.mark.parametrize("dim", [1, 3])
def test_any_number_of_axes(dim: int) -> None:
    conv = (nn.Conv1d if dim == 1 else nn.Conv3d)(1, 1, 3, padding=1)
    nn.init.constant_(conv.weight, -2.0)
    field = effective_receptive_field(conv, torch.rand(1, 1, *(7,) * dim))
    expected = torch.zeros(*(7,) * dim)
    expected[(slice(2, 5),) * dim] = 1
    assert torch.equal(field, expected)


def test_models_with_features_are_judged_by_them_others_by_their_output() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 12, 12)
    classifier = build("resnet8", width=4).eval()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(classifier.features(leaf)[:, :, 1, 1].sum(), leaf)
    expected = gradient.abs().sum((0, 1))
    found = effective_receptive_field(classifier, x)
    torch.testing.assert_close(found, expected / expected.max())
    denoiser = build("dncnn3", width=4).eval()
    (gradient,) = torch.autograd.grad(denoiser(leaf)[:, :, 6, 6].sum(), leaf)
    assert effective_receptive_field(denoiser, x).nonzero().tolist() == [
        list(p) for p in gradient.abs().sum((0, 1)).nonzero().tolist()
    ]


def test_the_model_runs_in_evaluation_mode_and_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = build("resnet8", width=4)
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    model.linear.weight.grad = torch.full_like(model.linear.weight, 3.0)
    twin = copy.deepcopy(model)
    x = torch.rand(2, 3, 12, 12)
    state = torch.get_rng_state()
    with torch.no_grad():
        field = effective_receptive_field(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert not x.requires_grad
    for (name, new), (_, old) in zip(model.named_modules(), twin.named_modules(), strict=True):
        assert new.training == old.training, name
    for (name, new), old in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert new.requires_grad == old.requires_grad
        assert (new.grad is None) == (name != "linear.weight")
    assert (model.linear.weight.grad == 3).all()
    for name, value in twin.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    assert torch.equal(field, effective_receptive_field(model.eval(), x))


def test_under_inference_mode() -> None:
    conv = convolution(torch.ones(3, 3), padding=1)
    with torch.inference_mode():
        field = effective_receptive_field(conv, torch.rand(1, 1, 5, 5))
    assert field.sum() == 9


def test_an_output_that_depends_on_nothing_has_an_empty_field() -> None:
    x = torch.rand(1, 1, 4, 4)
    for function in (lambda images: torch.ones(1, 2, 3, 3), lambda images: images.detach()):
        assert torch.equal(effective_receptive_field(function, x), torch.zeros(4, 4))
    assert torch.equal(effective_receptive_field(lambda images: 0 * images, x), torch.zeros(4, 4))


@pytest.mark.parametrize(
    ("function", "x", "error", "message"),
    [
        (3, torch.rand(1, 1, 4, 4), TypeError, "function must be a module or a function, got 3"),
        (nn.Identity(), [1.0], TypeError, "x must be a tensor of real floating point, got list"),
        (nn.Identity(), torch.zeros(1, 1, 4, 4, dtype=torch.int), TypeError, r"got torch\.int32"),
        (nn.Identity(), torch.rand(4, 4), ValueError, r"x must be images .*got shape \(4, 4\)"),
        (nn.Identity(), torch.rand(0, 1, 4, 4), ValueError, "at least one, got shape"),
        (nn.Flatten(), torch.rand(2, 1, 4, 4), ValueError, r"a map \(B, K, \*T\).*\(2, 16\)"),
        (lambda x: (x,), torch.rand(2, 1, 4, 4), TypeError, "a tensor of floats, got tuple"),
    ],
)
def test_bad_arguments_are_refused(
    function: object, x: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        effective_receptive_field(function, x)  # type: ignore[arg-type]


def test_area_is_the_smallest_number_of_pixels() -> None:
    field = torch.tensor([[8.0, 0.0, 1.0], [0.0, 4.0, 2.0], [0.0, 1.0, 0.0]])
    assert area(field, 0.5) == 1 / 9
    assert area(field, 0.51) == 2 / 9
    assert area(field, 0.75) == 2 / 9
    assert area(field, 0.9) == 4 / 9
    assert area(field) == 5 / 9
    assert area(field, 1) == 5 / 9
    assert area(3 * field.half(), 0.75) == 2 / 9
    assert area(torch.ones(10, 10)) == 0.95


def test_area_of_a_gaussian() -> None:
    line = torch.arange(-100, 101, dtype=torch.float64)
    field = torch.exp(-(line[:, None] ** 2 + line**2) / (2 * 15.0**2))
    pixels = math.pi * 2 * 15.0**2 * math.log(20)  # a disc of radius sigma sqrt(2 ln 20)
    assert area(field) * 201**2 == pytest.approx(pixels, rel=0.005)


@pytest.mark.parametrize(
    ("field", "share", "error", "message"),
    [
        ([1.0], 0.5, TypeError, "field must be a tensor of real numbers"),
        (torch.zeros(3), 0.5, ValueError, "one of them positive"),
        (torch.tensor([1.0, -1.0]), 0.5, ValueError, "at least 0"),
        (torch.tensor([1.0, math.nan]), 0.5, ValueError, "finite"),
        (torch.ones(2), 0.0, ValueError, "share must be above 0"),
        (torch.ones(2), 1.5, ValueError, r"share must be a finite number in \[0, 1\], got 1.5"),
        (torch.ones(2), "x", TypeError, "share must be a finite number"),
    ],
)
def test_bad_areas_are_refused(
    field: object, share: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        area(field, share)  # type: ignore[arg-type]


def test_a_small_kernel_sees_less_than_a_large_one() -> None:
    x = torch.rand(1, 1, 31, 31)
    small, large = (
        area(effective_receptive_field(lambda y, k=k: F.avg_pool2d(y, k, 1, k // 2), x))
        for k in (3, 9)
    )
    assert (small * 961, large * 961) == (pytest.approx(9), pytest.approx(77))  # 0.95 x 81 = 76.95
