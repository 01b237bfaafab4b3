r"""KAN convolution: every kernel entry is a function of the value under it.

.. math::
    y_o(p) = b_o + \sum_{c, u} \varphi_{o,c,u}\big(x_c(p + u)\big), \qquad
    \varphi(x) = w\, s(x) + \sum_{i} c_i\, B_i(x)

Shapes: x (B, C, \*S), y (B, O, \*S'), w (O, C/groups, \*kernel_size), c (n O, C/groups,
\*kernel_size), basis function slow, for n basis functions B_i; s is SiLU or GELU.

==========  ==========================================================================  ============
basis       B_i                                                                         n
==========  ==========================================================================  ============
bspline     B-splines of ``degree`` on ``grid_size`` intervals over ``grid_range`` and  grid_size +
            ``degree`` more of that length h at either end: M((x - c_i) / h)            degree
rbf         exp(-((x - c_i) / h)^2), ``grid_size`` centres at distance h from end to    grid_size
            end of ``grid_range``
chebyshev   T_i(tanh x), degrees 0 to ``degree``                                        degree + 1
gram        P_i(tanh x): P_0 = 1, P_1 = t, P_i = t P_{i-1} - beta_{i-1} P_{i-2}, beta   degree + 1
            trained
==========  ==========================================================================  ============

Outside of its grid a spline or Gaussian is 0, and s alone is left.

Cost: n + 1 plain convolutions (n for polynomials: the constant one is a bias). Memory: one map of
basis values at a time; the backward pass computes them anew instead of keeping n times the input.

Source: A. D. Bodner, A. S. Tepsich, J. N. Spolski, S. Pourteau, "Convolutional Kolmogorov-Arnold
Networks", 2024 (splines); I. Drokin, "Kolmogorov-Arnold Convolutions: Design Principles and
Empirical Studies", 2024 (all four, and more).

The input is padded before the basis, since a padded pixel is a pixel of value 0.

The official code of the second paper pads the basis values, so that its borders differ. There the
layer also holds a norm (of the input for rbf, else of the output) and an activation, which are
other modules here. Its splines have GELU for s (``base="gelu"``), its Chebyshev layer has no s
(``base=None``), its Gram layer applies SiLU to the polynomials (``silu_basis=True``).
:meth:`from_official` converts its parameters. The official code of the first paper has a factor per
spline besides the coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from omniconv.core import args
from omniconv.core.card import Card, ErrorInput, Sample
from omniconv.core.geometry import ConvArguments, check_input
from omniconv.core.layer import ConvLayer, new_parameter, transfer
from omniconv.core.registry import register
from omniconv.kernels.convolve import convolve
from omniconv.math.bases import (
    BASES,
    centres,
    chebyshev,
    cox_de_boor,
    gram,
    gram_factor,
    kan_basis,
    on_grid,
    parse_grid,
)
from omniconv.math.naive import naive_convolution, naive_pad

__all__ = ["KANConv1d", "KANConv2d", "KANConv3d"]

BASE: dict[str | None, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu}


@lru_cache(maxsize=256)
def _energy(
    basis: str,
    degree: int,
    grid: tuple[int, tuple[float, float]] | None,
    base: str | None,
    silu_basis: bool,
) -> float:
    """The sum of E[f(x)^2] over all functions f of a layer, for normal x."""
    weights, values = _sampled(basis, degree, grid, base, silu_basis)
    return float((values.square() @ weights).sum())


def _sampled(
    basis: str,
    degree: int,
    grid: tuple[int, tuple[float, float]] | None,
    base: str | None,
    silu_basis: bool,
) -> tuple[Tensor, Tensor]:
    """A normal density's weights (points,), and all functions there (functions, points)."""
    x = torch.linspace(-6, 6, 1201, dtype=torch.float64, device="cpu")
    weights = (-x.square() / 2).exp()
    size, ends = grid or (None, None)
    values = kan_basis(x, basis, degree=degree, grid_size=size, grid_range=ends)
    values = [F.silu(v) for v in values] if silu_basis else values
    values += [] if base is None else [BASE[base](x)]
    return weights / weights.sum(), torch.stack(values)


def _recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function(*tensors)``, of which autograd keeps the arguments only; compilers choose."""
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return function(*tensors)
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return function(*tensors)
    try:
        with saved_tensors_hooks(torch.detach, torch.detach):
            pass
    except RuntimeError:  # torch.func's gradients forbid the hooks that recomputation needs
        return function(*tensors)
    result: Tensor = checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)
    return result


class _KANNd(ConvLayer):
    """KAN convolution over N axes (see the module's equation and table).

    Arguments are torch's, in torch's order, and then, keyword-only:

    Args:
        basis: "bspline", "rbf", "chebyshev" or "gram".
        degree: Of the splines (3: cubic), or the highest of the polynomials; default 3. "rbf" takes
            none.
        grid_size: Intervals of "bspline" (default 5), centres of "rbf" (default 8).
        grid_range: Ends of their grid; default (-1, 1) and (-2, 2).
        base: s: "silu", "gelu" or None for none.
        silu_basis: Apply SiLU to the polynomials of "gram", as the official code does.
    """

    base_kernel: Tensor | None
    beta: Tensor | None

    def setup(
        self,
        factory: dict[str, Any],
        *,
        basis: str = "bspline",
        degree: int | None = None,
        grid_size: int | None = None,
        grid_range: tuple[float, float] | None = None,
        base: str | None = "silu",
        silu_basis: bool = False,
    ) -> None:
        self.basis = args.choice("basis", basis, BASES)
        if degree is not None and basis == "rbf":
            raise ValueError(f"degree must be left out with basis='rbf', got {args.show(degree)}")
        self.degree = 3 if degree is None else args.positive_int("degree", degree)
        self.grid = parse_grid(basis, grid_size, grid_range)
        self.base = base if base is None else args.choice("base", base, [b for b in BASE if b])
        self.silu_basis = args.boolean("silu_basis", silu_basis)
        if self.silu_basis and basis != "gram":
            raise ValueError(f"silu_basis must be False with basis={basis!r}, got True")
        grown = {"bspline": self.degree, "rbf": 0}
        self.functions = self.grid[0] + grown[basis] if self.grid else self.degree + 1
        outputs, *rest = self.kernel_shape
        base_kernel = None if base is None else new_parameter(outputs, *rest, **factory)
        self.register_parameter("base_kernel", base_kernel)
        self.coefficients = new_parameter(self.functions * outputs, *rest, **factory)
        trained = basis == "gram" and self.degree > 1
        beta = new_parameter(self.degree - 1, **factory) if trained else None
        self.register_parameter("beta", beta)

    @property
    def _form(self) -> tuple[Any, ...]:
        return self.basis, self.degree, self.grid, self.base, self.silu_basis

    def reset_parameters(self) -> None:
        """Draw so that all functions weigh alike and outputs have the plain layer's variance."""
        if self.coefficients.is_meta:
            return
        bound = self.bound / math.sqrt(_energy(*self._form))
        nn.init.uniform_(self.coefficients, -bound, bound)
        if self.base_kernel is not None:
            nn.init.uniform_(self.base_kernel, -bound, bound)
        if self.beta is not None:
            entries = math.prod(self.geometry.kernel_size) * self.geometry.in_channels
            nn.init.normal_(self.beta, 0.0, 1 / (entries * (self.degree + 1)))
        self.reset_bias()

    def forward(self, input: Tensor) -> Tensor:
        r"""KAN convolution of ``input`` (B, C, \*S) or (C, \*S)."""
        check_input(self, input, self.coefficients)
        g = self.geometry
        if input.dim() == g.dim + 1:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        inner = replace(g, padding=(0,) * g.dim, padding_mode="zeros")
        x = g.pad(input).to(torch.promote_types(input.dtype, torch.float32))
        kernels = self.coefficients.unflatten(0, (self.functions, -1)).unbind()
        terms: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = []
        bias = self.bias
        if self.base_kernel is not None:
            terms.append((BASE[self.base], (self.base_kernel, x)))
        if self.grid:
            points, step = centres(self.basis, self.degree, *self.grid)
            for kernel, centre in zip(kernels, points, strict=True):
                member = partial(on_grid, basis=self.basis, degree=self.degree)
                terms.append((partial(member, centre=centre, step=step), (kernel, x)))
        else:
            constant, *kernels = kernels
            offset = constant.flatten(1).sum(1)
            offset = offset / (1 + math.exp(-1.0)) if self.silu_basis else offset
            bias = offset if bias is None else bias + offset
            t = x.tanh()
            shared = (t,) if self.beta is None else (t, self.beta.to(t.dtype))
            for i, kernel in enumerate(kernels, 1):
                terms.append((partial(self._polynomial, i), (kernel, *shared)))
        y = None
        for function, tensors in terms:
            term = _recomputed(partial(_convolved, function, inner, input.dtype), *tensors)
            y = term.to(x.dtype) if y is None else y + term
        assert y is not None  # there is a basis function besides the constant one
        y = y if bias is None else y + bias.view(-1, *[1] * g.dim)
        return y.to(term.dtype)

    def _polynomial(self, degree: int, t: Tensor, beta: Tensor | None = None) -> Tensor:
        if self.basis == "chebyshev":
            return chebyshev(t, degree)
        value = t if beta is None else gram(t, degree, beta)
        return F.silu(value) if self.silu_basis else value

    @classmethod
    def from_conv(
        cls, conv: nn.Module, extent: int | tuple[int, ...] | None = None, **own: Any
    ) -> Self:
        """This layer with the functions next to a trained convolution's w x.

        All of them are w times one function: the sum of s and the basis that is nearest to x in
        mean square for normal x (of variance 1). See :func:`omniconv.core.layer.transfer` for the
        arguments and errors.
        """
        layer, margins = transfer(cls, conv, extent, **own)
        source: Any = conv
        weights, values = _sampled(*layer._form)
        x = torch.linspace(-6, 6, values.shape[1], dtype=torch.float64, device="cpu")
        root = weights.sqrt()
        fit = torch.linalg.lstsq((values * root).T, (x * root)[:, None], driver="gelsd").solution
        with torch.no_grad():
            kernel = F.pad(source.weight.detach(), margins)
            for part, factor in zip(
                layer.coefficients.unflatten(0, (layer.functions, -1)), fit[:, 0], strict=False
            ):
                part.copy_(kernel * float(factor))
            if layer.base_kernel is not None:
                layer.base_kernel.copy_(kernel * float(fit[-1]))
            if layer.beta is not None:
                layer.beta.zero_()
            if source.bias is not None:
                layer.bias.copy_(source.bias)
        return layer

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of torch-conv-kan's layer, for this layer's ``load_state_dict``.

        Norms and activations (``layer_norm.*``, ``prelus.*``) are other modules and left out.

        Args:
            state_dict: Of a KANConv (bspline), FastKANConv (rbf), KACNConv (chebyshev) or KAGNConv
                (gram) layer over as many axes, of this layer's sizes; this one has ``bias=False``.

        Raises:
            ValueError: Names or shapes do not fit this layer.
        """
        groups = range(self.geometry.groups)
        name = "poly_conv" if self.basis == "chebyshev" else "spline_conv"
        wanted = [f"{name}.{i}.weight" for i in groups]
        if self.basis == "gram":
            wanted = ["poly_weights", "beta_weights"]
        bases = [f"base_conv.{i}.weight" for i in groups if self.base]
        left_out = ("layer_norm.", "prelus.", "rbf.", "arange")
        found = {key for key in state_dict if not key.startswith(left_out)}
        if found != {*wanted, *bases} or self.bias is not None:
            raise ValueError(
                f"state_dict must hold {', '.join([*wanted, *bases])} for a layer with bias=False, "
                f"got {args.show(sorted(found))}"
            )
        outputs, inputs, *size = self.kernel_shape
        converted: dict[str, Tensor] = {}
        if self.basis == "gram":
            rows = state_dict["poly_weights"].flatten(0, 1)
            order = (self.functions, inputs)
            if self.beta is not None:
                factors = [gram_factor(n) for n in range(1, self.degree)]
                trained = state_dict["beta_weights"][1 : self.degree]
                converted["beta"] = trained * trained.new_tensor(factors)
        else:
            rows = torch.cat([state_dict[key] for key in wanted])
            order = (inputs, self.functions)
        if tuple(rows.shape) != (outputs, math.prod(order), *size):
            raise ValueError(
                f"{wanted[0]} must fit coefficients of shape {tuple(self.coefficients.shape)}, "
                f"got {tuple(state_dict[wanted[0]].shape)}"
            )
        split = rows.unflatten(1, order)
        split = split if self.basis == "gram" else split.transpose(1, 2)
        converted["coefficients"] = split.transpose(0, 1).flatten(0, 1)
        if bases:
            converted["base_kernel"] = torch.cat([state_dict[key] for key in bases])
        return converted

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, basis={self.basis!r}"
        if self.basis != "rbf":
            text += f", degree={self.degree}"
        if self.grid:
            text += f", grid_size={self.grid[0]}, grid_range={self.grid[1]}"
        if self.base != "silu":
            text += f", base={self.base!r}"
        return text + (", silu_basis=True" if self.silu_basis else "")


def _convolved(
    function: Callable[..., Tensor],
    geometry: ConvArguments,
    dtype: torch.dtype,
    kernel: Tensor,
    *tensors: Tensor,
) -> Tensor:
    """The convolution of ``function(*tensors)`` in ``dtype``."""
    return convolve(function(*tensors).to(dtype), kernel, None, geometry)


class KANConv1d(_KANNd):
    dim = 1


class KANConv2d(_KANNd):
    dim = 2


class KANConv3d(_KANNd):
    dim = 3


def _reference(layer: Any, x: Tensor) -> Tensor:
    """Every function from another definition, and a naive convolution each."""
    g = layer.geometry
    if x.dim() == g.dim + 1:
        return _reference(layer, x.unsqueeze(0)).squeeze(0)
    padded = naive_pad(x, g)
    inner = replace(g, padding=(0,) * g.dim, padding_mode="zeros")
    values = _reference_basis(layer, padded)
    kernels = list(layer.coefficients.chunk(layer.functions))
    if layer.base == "gelu":
        values.append(padded * (1 + torch.erf(padded / math.sqrt(2))) / 2)
        kernels.append(layer.base_kernel)
    elif layer.base == "silu":
        values.append(padded / (1 + (-padded).exp()))
        kernels.append(layer.base_kernel)
    terms = [
        naive_convolution(value, kernel, None, inner)
        for value, kernel in zip(values, kernels, strict=True)
    ]
    y = torch.stack(terms).sum(0)
    return y if layer.bias is None else y + layer.bias.view(-1, *[1] * g.dim)


def _reference_basis(layer: Any, x: Tensor) -> list[Tensor]:
    if layer.basis == "rbf":
        low, high = layer.grid[1]
        each = layer.grid[0] - 1
        points = [(low * (each - i) + high * i) / each for i in range(each + 1)]
        return [(-(((x - c) * each / (high - low)) ** 2)).exp() for c in points]
    if layer.basis == "bspline":
        return cox_de_boor(x, layer.degree, *layer.grid)
    t = 1 - 2 / ((2 * x).exp() + 1)
    if layer.basis == "chebyshev":
        return [(n * t.acos()).cos() for n in range(layer.degree + 1)]
    # the polynomials' coefficients, lowest power first
    rows: list[list[Any]] = [[1.0], [0.0, 1.0]]
    for n in range(1, layer.degree):
        last, before = rows[-1], rows[-2]
        shifted = [0.0, *last]
        for power, value in enumerate(before):
            shifted[power] = shifted[power] - layer.beta[n - 1] * value
        rows.append(shifted)
    values = [sum(a * t**power for power, a in enumerate(row)) + 0 * t for row in rows]
    return [v / (1 + (-v).exp()) for v in values] if layer.silu_basis else values


def _member_flops(layer: Any, degree: int) -> tuple[int, int]:
    """Operations per number of one basis function and of its derivative."""
    if layer.basis == "rbf":
        return 5, 6
    if layer.basis == "bspline":
        pieces = (degree + 2) // 2
        return 2 + 5 * pieces, 3 + 6 * pieces
    # x has a gradient from every step, one more as P_1 in the second and in the third; P_j has two
    # from j + 2 <= degree on
    added = max(0, degree - 1 + (degree >= 3)) + max(0, degree - 3)
    steps, later = degree - 1, max(0, degree - 2)
    if layer.basis == "chebyshev":
        return 3 * steps, 3 * steps + later + added
    forward, backward = 2 * steps + later, 4 * steps + 2 * later + added
    return (forward + 2, backward + 6) if layer.silu_basis else (forward, backward)


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """A convolution per function; the functions twice, as the backward pass needs them again."""
    g = layer.geometry
    batch = shape[0] if len(shape) == g.dim + 2 else 1
    outputs = batch * g.out_channels * math.prod(g.output_size(shape[-g.dim :]))
    padded = [n + sum(pads) for n, pads in zip(shape[-g.dim :], g.pads, strict=True)]
    numbers = batch * g.in_channels * math.prod(padded)
    entries = math.prod(layer.kernel_shape)
    members = [_member_flops(layer, layer.degree)] * layer.functions
    if not layer.grid:
        members = [_member_flops(layer, i) for i in range(1, layer.degree + 1)]
    forward, backward = 0, (len(members) - 1) * numbers
    if layer.base:
        members.append({"silu": (2, 6), "gelu": (5, 11)}[layer.base])
        backward += numbers
    one = 2 * entries * outputs // g.out_channels
    forward += len(members) * one + (len(members) - 1) * outputs
    backward += 2 * len(members) * one
    forward += sum(there for there, _ in members) * numbers
    backward += sum(there + back for there, back in members) * numbers
    if not layer.grid:
        forward += numbers + entries + g.out_channels * (g.bias + layer.silu_basis)
        backward += 3 * numbers + g.out_channels * layer.silu_basis
        if layer.beta is not None:
            backward += (layer.degree - 2) * (layer.degree - 1)
    if g.bias or not layer.grid:
        forward, backward = forward + outputs, backward + outputs
    return forward, backward + g.pad_flops(shape)


def _samples(dim: int) -> tuple[Sample, ...]:
    uneven = tuple((5, 3, 2)[:dim])
    base = {"in_channels": 4, "out_channels": 2, "kernel_size": uneven, "padding": 1}
    return (Sample(arguments=base | {"groups": 2, "stride": 2}, size=(7, 6, 5)[:dim]),)


def _error_inputs(dim: int) -> tuple[ErrorInput, ...]:
    base = {"in_channels": 4, "out_channels": 4, "kernel_size": 3}

    def row(match: str, error: type[Exception] = ValueError, **own: Any) -> ErrorInput:
        return ErrorInput(arguments=base | own, match=match, error=error)

    return (
        row("basis must be one of 'bspline', .*did you mean 'gram'", basis="grams"),
        row("degree must be an int of at least 1", degree=0),
        row("degree must be left out with basis='rbf', got 3", basis="rbf", degree=3),
        row("grid_size must be an int of at least 2", grid_size=1),
        row("grid_size must be left out with basis='gram'", basis="gram", grid_size=5),
        row("grid_range must be left out", basis="chebyshev", grid_range=(-1, 1)),
        row("grid_range must be two numbers, the first one smaller", grid_range=(1, 1)),
        row("grid_range must be two numbers", grid_range=1.0),
        row(r"grid_range\[1\] must be a finite number", TypeError, grid_range=(-1, "1")),
        row("base must be one of 'silu', 'gelu'", base="relu"),
        row("silu_basis must be True or False", TypeError, silu_basis=1),
        row("silu_basis must be False with basis='bspline'", silu_basis=True),
    )


@register
def card() -> Card:
    return Card(
        name="kan",
        classes={1: KANConv1d, 2: KANConv2d, 3: KANConv3d},
        variants={
            "default": {},
            "rbf": {"basis": "rbf", "base": "gelu"},
            "chebyshev": {"basis": "chebyshev", "base": None},
            "gram": {"basis": "gram"},
            "gram_silu": {"basis": "gram", "degree": 4, "silu_basis": True},
            "bspline2": {"degree": 2, "grid_size": 2, "grid_range": (-2.0, 1.0)},
        },
        equation="y_o(p) = b_o + sum_cu phi_ocu(x_c(p+u)),  phi = w silu + sum_i c_i B_i",
        summary="Every kernel entry is a learned function: splines, Gaussians or polynomials.",
        citation="A. D. Bodner, A. S. Tepsich, J. N. Spolski, S. Pourteau: Convolutional "
        "Kolmogorov-Arnold Networks. 2024; I. Drokin: Kolmogorov-Arnold Convolutions: Design "
        "Principles and Empirical Studies. 2024",
        claim="Convolutional KANs: about the accuracy of plain networks on MNIST and Fashion-MNIST "
        "with half the parameters. The design study: best published results in segmentation on "
        "BUSI, GlaS and CVC with U-Nets of KAN convolutions (abstracts, without further figures).",
        source="IvanDrokin/torch-conv-kan",
        source_licence="MIT",
        rows=(132, 161),
        reference=_reference,
        flops=_flops,
        preserves_note="No plain convolution exactly; the nearest function to w x in mean square "
        "for normal inputs.",
        default_extent=3,
        kernels=("depthwise",),
        samples=_samples,
        error_inputs=_error_inputs,
    )
