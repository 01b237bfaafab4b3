"""KAN convolution beyond the matrix: bases, the released codes' numbers, memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import BSpline
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import omniconv as oc
from omniconv.math import bases


def waves(shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float64).mul(0.37).sin().view(shape)


LINE = torch.linspace(-3.3, 3.1, 257, dtype=torch.float64)


def derivative(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(y.sum(), x, retain_graph=True)[0]


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("size", "ends"), [(5, (-1.0, 1.0)), (2, (-2.0, 1.5))])
def test_splines_are_scipys(degree, size, ends):
    x = LINE.clone().requires_grad_()
    step = (ends[1] - ends[0]) / size
    knots = ends[0] + step * np.arange(-degree, size + degree + 1)
    found = bases.kan_basis(x, degree=degree, grid_size=size, grid_range=ends)
    assert len(found) == size + degree
    for i, y in enumerate(found):
        spline = BSpline.basis_element(knots[i : i + degree + 2], extrapolate=False)
        right = torch.from_numpy(np.nan_to_num(spline(LINE.numpy())))
        torch.testing.assert_close(y, right)
        if degree > 1:
            right = torch.from_numpy(np.nan_to_num(spline.derivative()(LINE.numpy())))
            torch.testing.assert_close(derivative(y, x), right)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_splines_add_up_to_one_on_the_grid_and_are_zero_far_from_it(degree):
    values = torch.stack(bases.kan_basis(LINE, degree=degree))
    total, inside = values.sum(0), LINE.abs() <= 1
    torch.testing.assert_close(total[inside], torch.ones_like(total[inside]))
    far = LINE.abs() > 1 + degree * 0.4
    assert not values[:, far].any()
    assert values.ge(0).all()


def test_gaussians_sit_on_the_grid():
    values = bases.kan_basis(LINE, "rbf", grid_size=5, grid_range=(-1, 3))
    for centre, y in zip((-1, 0, 1, 2, 3), values, strict=True):
        torch.testing.assert_close(y, (-((LINE - centre) ** 2)).exp())


def test_chebyshev_polynomials_are_numpys():
    x = LINE.clone().requires_grad_()
    t = np.tanh(LINE.numpy())
    for n, y in enumerate(bases.kan_basis(x, "chebyshev", degree=6)):
        series = np.polynomial.Chebyshev.basis(n)
        torch.testing.assert_close(y, torch.from_numpy(series(t)))
        if n:
            right = torch.from_numpy(series.deriv()(t) * (1 - t * t))
            torch.testing.assert_close(derivative(y, x), right)


def test_grams_recursion_gives_powers_and_legendre_polynomials():
    t = LINE.tanh()
    for n, y in enumerate(bases.kan_basis(LINE, "gram", degree=5)):
        torch.testing.assert_close(y, t**n)
    beta = torch.tensor([n * n / (4 * n * n - 1) for n in range(1, 5)], dtype=torch.float64)
    for n, y in enumerate(bases.kan_basis(LINE, "gram", degree=5, beta=beta)):
        series = np.polynomial.Legendre.basis(n).convert(kind=np.polynomial.Polynomial)
        right = torch.from_numpy(series(t.numpy()) / series.coef[-1])
        torch.testing.assert_close(y, right)


def test_the_factor_of_the_official_beta():
    """m (m, n) of torch-conv-kan at m = n + 1, as it is written there."""
    for n in range(1, 6):
        m = n + 1
        right = ((m + n) * (m - n) * n**2) / (m**2 / (4.0 * n**2 - 1.0))
        assert bases.gram_factor(n) == pytest.approx(right, rel=1e-14)


# Printed by the released code (IvanDrokin/torch-conv-kan, kan_convs: kan_conv.py,
# fast_kan_conv.py, kacn_conv.py, kagn_conv.py) run in float64 with its norms and last activations
# replaced by the identity, on the same inputs and without padding: sum(y), sum(y s), max|y|,
# sum(dx x), sum|dw| of s and of the basis, by group, with s = cos(0.1 i), where i counts outputs.
CHEBYSHEV = {"basis": "chebyshev", "degree": 4, "base": None}
GRAM = {"basis": "gram", "degree": 4, "silu_basis": True}
# fmt: off
RELEASED = [
    (
        {"stride": 2, "base": "gelu"},
        (-4.49036315, 2.499435608, 3.626545381, -1.204617727),
        (114.287754001,), (564.529482279,),
    ),
    (
        {"stride": 2, "base": "gelu", "groups": 2},
        (5.419981642, -0.018473091, 2.074159455, 1.712487813),
        (34.660502262, 22.269478512), (138.888323449, 144.017894337),
    ),
    (
        {"basis": "rbf", "dilation": 2},
        (1.186797784, 2.635945275, 3.246545613, 6.801064579),
        (77.959102886,), (1120.081492975,),
    ),
    (
        {"basis": "rbf", "dilation": 2, "groups": 2},
        (-3.430430004, 0.148427081, 1.193660029, 0.409725005),
        (24.504928354, 14.474435073), (268.36163258, 288.456256442),
    ),
    (CHEBYSHEV, (33.707724514, 48.946955438, 2.819502191, 170.481489701), (), (7623.229059962,)),
    (
        CHEBYSHEV | {"groups": 2},
        (23.20789161, -49.922676316, 2.525685576, 40.908098039),
        (), (1805.713296185, 2007.23035757),
    ),
    (
        GRAM,
        (32.712445814, -50.119401446, 15.708278604, -88.096065659),
        (1043.258109798,), (18880.903214142,),
    ),
    (
        GRAM | {"groups": 2},
        (12.947808223, -63.841886363, 10.281266119, -30.987826907),
        (256.922259233, 264.577980722), (9438.003957853,),
    ),
]
# fmt: on


def released_state(layer: nn.Module) -> dict[str, torch.Tensor]:
    groups, functions = layer.groups, layer.functions
    outputs, inputs = 6 // groups, 4 // groups
    state = {"layer_norm.0.weight": torch.ones(3), "prelus.0.weight": torch.ones(1)}
    if layer.basis == "gram":
        state["poly_weights"] = 0.3 * waves((groups, outputs, inputs * functions, 3, 3))
        # in float32 whatever the layer's dtype, the product with the factor too
        state["beta_weights"] = (0.3 * waves((functions,))).float()
    for i in range(groups):
        if layer.base:
            state[f"base_conv.{i}.weight"] = 0.3 * waves((outputs, inputs, 3, 3))
        if layer.basis != "gram":
            name = "poly_conv" if layer.basis == "chebyshev" else "spline_conv"
            state[f"{name}.{i}.weight"] = 0.3 * waves((outputs, inputs * functions, 3, 3))
    return state


@pytest.mark.parametrize(("own", "values", "base", "basis"), RELEASED)
def test_numbers_of_the_released_code(own, values, base, basis):
    layer = oc.nn.KANConv2d(4, 6, 3, bias=False, dtype=torch.float64, **own)
    layer.load_state_dict(layer.from_official(released_state(layer)), strict=True)
    x = (1.4 * waves((2, 4, 7, 6))).requires_grad_()
    y = layer(x)
    loss = (y * torch.arange(y.numel(), dtype=torch.float64).mul(0.1).cos().view_as(y)).sum()
    kernels = [layer.coefficients] + ([layer.base_kernel] if layer.base else [])
    dx, dc, *dw = torch.autograd.grad(loss, (x, *kernels))
    got = [y.sum(), loss, y.abs().max(), (dx * x).sum(), dc.abs().sum()]
    got += [d.abs().sum() for d in dw]
    right = [*values, sum(basis)] + ([sum(base)] if base else [])
    assert [float(v.detach()) for v in got] == pytest.approx(right, rel=1e-9, abs=1e-8)


# The same of AntonioTepsich/Convolutional-KANs (kan_convolutional, one KANLinear per pair of
# channels): sum|d base| of the first pair, sum|d coefficients| of the last, which are those of its
# spline_weight. Its calculation in float64 took the grid in float64 too.
SECOND = (159.578691979, -46.388124652, 3.209927575, -12.186394386, 39.002785254, 79.414553193)


def test_numbers_of_the_other_released_code():
    layer = oc.nn.KANConv2d(
        2, 3, 3, stride=(2, 1), padding=1, dilation=(1, 2), bias=False, dtype=torch.float64
    )
    scale = torch.zeros(3, 2, 9, dtype=torch.float64)
    with torch.no_grad():
        coefficients = layer.coefficients.unflatten(0, (8, 3))
        for number, (o, c) in enumerate(itertools.product(range(3), range(2))):
            spline, scaler = (0.3 * waves(s) + 0.05 * number for s in ((9, 8), (9,)))
            layer.base_kernel[o, c] = (0.3 * waves((9,)) + 0.05 * number).view(3, 3)
            coefficients[:, o, c] = (spline * scaler[:, None]).T.reshape(8, 3, 3)
            scale[o, c] = scaler
    x = (1.4 * waves((2, 2, 7, 6))).requires_grad_()
    y = layer(x)
    loss = (y * torch.arange(y.numel(), dtype=torch.float64).mul(0.1).cos().view_as(y)).sum()
    dx, dw, dc = torch.autograd.grad(loss, (x, layer.base_kernel, layer.coefficients))
    last = dc.unflatten(0, (8, 3))[:, 2, 1].flatten(1) * scale[2, 1]
    got = [y.sum(), loss, y.abs().max(), (dx * x).sum(), dw[0, 0].abs().sum(), last.abs().sum()]
    assert [float(v.detach()) for v in got] == pytest.approx(SECOND, rel=1e-9, abs=1e-8)


def test_from_official_names_what_does_not_fit():
    layer = oc.nn.KANConv2d(4, 6, 3, bias=False)
    state = released_state(layer)
    with pytest.raises(ValueError, match=r"must hold spline_conv\.0\.weight, base_conv\.0\.wei"):
        layer.from_official({k: v for k, v in state.items() if "base" not in k})
    with pytest.raises(ValueError, match="for a layer with bias=False"):
        oc.nn.KANConv2d(4, 6, 3).from_official(state)
    with pytest.raises(ValueError, match=r"spline_conv\.0\.weight must fit coefficients of shape"):
        oc.nn.KANConv2d(4, 6, 3, bias=False, grid_size=6).from_official(state)


def test_each_kernel_entry_is_its_own_function():
    """A spline through scipy, one per tap, added by hand."""
    layer = oc.nn.KANConv1d(1, 1, 2, bias=False, dtype=torch.float64)
    x = 2 * waves((1, 1, 20))
    knots = -1 + 0.4 * np.arange(-3, 9)
    right = 0
    for tap in range(2):
        values = x[0, 0, tap : 19 + tap]
        spline = BSpline(knots, layer.coefficients[:, 0, tap].detach().numpy(), 3)
        inside = (values > knots[0]) & (values < knots[-1])
        elements = [
            np.nan_to_num(BSpline.basis_element(knots[i : i + 5], extrapolate=False)(values))
            for i in range(8)
        ]
        assert np.allclose(
            spline(values[values.abs() < 1]), (spline.c @ elements)[values.abs() < 1]
        )
        right = right + torch.from_numpy(spline.c @ elements) * inside
        right = right + layer.base_kernel[0, 0, tap].detach() * F.silu(values)
    torch.testing.assert_close(layer(x)[0, 0], right)


def test_splines_hold_every_plain_convolution_of_inputs_within_the_grid():
    """Marsden: x = sum_i c_i B_i(x) on the grid, with the splines' own centres c_i."""
    conv = nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float64)
    layer = oc.nn.KANConv2d(2, 3, 3, padding=1, base=None, dtype=torch.float64)
    with torch.no_grad():
        layer.bias.copy_(conv.bias)
        for i, part in enumerate(layer.coefficients.chunk(8)):
            part.copy_(conv.weight * (-1 + 0.4 * (i - 1)))
    x = waves((2, 2, 6, 5))
    torch.testing.assert_close(layer(x), conv(x))


@pytest.mark.parametrize("basis", ["bspline", "rbf", "chebyshev", "gram"])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_padded_pixels_are_pixels(basis, mode):
    """Not so in the official code, whose borders see basis values of 0."""
    layer = oc.nn.KANConv2d(2, 3, 3, padding=1, padding_mode=mode, basis=basis)
    bare = oc.nn.KANConv2d(2, 3, 3, basis=basis)
    bare.load_state_dict(layer.state_dict())
    x = torch.randn(2, 2, 5, 6)
    padded = F.pad(x, (1, 1, 1, 1), mode="constant" if mode == "zeros" else mode)
    torch.testing.assert_close(layer(x), bare(padded))


def test_the_constant_polynomial_is_a_bias():
    layer = oc.nn.KANConv2d(2, 3, 3, padding=1, bias=False, basis="chebyshev", base=None)
    with torch.no_grad():
        layer.coefficients[3:] = 0
    right = layer.coefficients[:3].sum((1, 2, 3)).view(3, 1, 1).expand(2, 3, 4, 5)
    torch.testing.assert_close(layer(torch.randn(2, 2, 4, 5)), right)


class _Largest(TorchDispatchMode):
    """The largest tensor that any operator returns."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor):
                self.numbers = max(self.numbers, t.numel())
        return out


@pytest.mark.parametrize("basis", ["bspline", "rbf", "chebyshev", "gram"])
def test_no_step_forms_the_expanded_input(basis):
    layer = oc.nn.KANConv2d(4, 4, 3, padding=1, basis=basis)
    x = torch.randn(2, 4, 20, 20, requires_grad=True)
    with _Largest() as largest:
        layer(x).sum().backward()
    assert largest.numbers == 2 * 4 * 22 * 22


@pytest.mark.parametrize("basis", ["bspline", "rbf", "chebyshev", "gram"])
def test_a_training_step_keeps_no_basis_values_for_the_backward_pass(basis):
    layer = oc.nn.KANConv2d(4, 4, 3, basis=basis)
    x = torch.randn(2, 4, 64, 64, requires_grad=True)
    layer(x).sum().backward()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        y = layer(x)
    kept = sum(event.self_cpu_memory_usage for event in profile.key_averages())
    assert y.requires_grad
    # the output, tanh x for polynomials, and next to nothing else; with the basis 4 to 9 inputs
    assert kept < 2.2 * 4 * x.numel()


def test_without_recomputation_the_numbers_are_the_same(monkeypatch):
    """Compiled code takes the other path: the gradients must not depend on it."""
    layer = oc.nn.KANConv2d(3, 4, 3, dtype=torch.float64)
    x = waves((2, 3, 6, 6)).requires_grad_()
    wanted = (x, *layer.parameters())
    first = torch.autograd.grad(layer(x).square().sum(), wanted)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    second = torch.autograd.grad(layer(x).square().sum(), wanted)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


def test_per_sample_gradients_by_torch_func():
    """torch.func forbids what recomputation needs; then nothing is recomputed."""
    layer = oc.nn.KANConv2d(3, 4, 3, dtype=torch.float64)
    parameters, x = dict(layer.named_parameters()), waves((2, 3, 6, 6))

    def loss(parameters, sample):
        return torch.func.functional_call(layer, parameters, (sample,)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i, sample in enumerate(x):
        right = torch.autograd.grad(layer(sample).square().sum(), list(parameters.values()))
        for name, gradient in zip(parameters, right, strict=True):
            torch.testing.assert_close(found[name][i], gradient)


@pytest.mark.parametrize(
    ("own", "error"),
    [
        ({}, 0.45),  # nothing is near x below the grid, -2.2
        ({"grid_range": (-3, 3)}, 0.05),
        ({"basis": "rbf"}, 0.25),
        ({"basis": "chebyshev"}, 0.15),
        ({"basis": "gram"}, 0.15),
        ({"basis": "chebyshev", "base": None}, 0.15),
    ],
)
@torch.no_grad()
def test_from_conv_is_near_for_normal_inputs(own, error):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    layer = oc.nn.KANConv2d.from_conv(conv, **own)
    x = torch.randn(8, 8, 12, 12)
    y, right = layer(x), conv(x)
    assert float((y - right).std() / right.std()) < error


def test_swap_takes_dense_and_depthwise_layers():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8))
    oc.swap_(model, "kan", basis="gram")
    assert all(type(layer) is oc.nn.KANConv2d for layer in model)
    assert model(torch.randn(2, 4, 7, 7)).shape == (2, 8, 5, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": 1.0}, TypeError, "x must be a floating-point tensor, got float"),
        ({"basis": "spline"}, ValueError, "basis must be one of .*did you mean 'bspline'"),
        ({"degree": 0}, ValueError, "degree must be an int of at least 1, got 0"),
        ({"grid_range": (1, 0)}, ValueError, "grid_range must be two numbers, the first one"),
        ({"basis": "gram", "grid_size": 4}, ValueError, "grid_size must be left out with basis"),
        ({"basis": "gram", "beta": LINE}, ValueError, r"beta must have shape \(2,\), got \(257,\)"),
    ],
)
def test_wrong_arguments_of_the_bases_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        bases.kan_basis(**({"x": LINE} | arguments))
