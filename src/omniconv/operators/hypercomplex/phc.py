r"""Parameterised hypercomplex convolution: the kernel is a sum of Kronecker products.

.. math::
    W = \sum_{s=1}^n A_s \otimes F_s, \qquad y = b + W * x

Channels are n-dimensional numbers: component p of all of them, then component p + 1. Block (p, q)
of W, which sends component q of the input to component p of the output, is
:math:`\sum_s A_s[p, q] F_s`: :math:`F_s` is component s of the weights and :math:`A_s` the rule by
which its unit multiplies. The rules are learned, or fixed to an algebra, where the layer multiplies
inputs by weights from the left.

A transposed layer is the adjoint, as torch's: with fixed rules it multiplies by the conjugates.

Shapes: as ``nn.ConvNd``; rules (n, n, n), blocks (O, I/(groups n), \*kernel_size), which are the n
components of each group one after the other. Each group is a convolution of its own; the rules are
shared. n divides the channels of a group.

Cost: the plain convolution, plus 2 n operations per kernel entry. Parameters: 1/n of the plain
layer's, plus n^3.

Source: E. Grassucci, A. Zhang, D. Comminiello, "PHNNs: Lightweight Neural Networks via
Parameterized Hypercomplex Convolutions", 2022.

The official code declares a bias in its convolutions and never adds it, and has no groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from omniconv.core import args
from omniconv.core.card import Card, ErrorInput, Sample
from omniconv.core.geometry import check_floating
from omniconv.core.layer import new_parameter
from omniconv.core.registry import register
from omniconv.math.algebra import ALGEBRAS, multiplication_table
from omniconv.math.naive import naive_convolution
from omniconv.operators.static_kernel import StaticKernel

__all__ = [
    "PHConv1d",
    "PHConv2d",
    "PHConv3d",
    "PHConvTranspose1d",
    "PHConvTranspose2d",
    "PHConvTranspose3d",
    "hypercomplex_kernel",
]

LARGEST_DEFAULT = 4


def hypercomplex_kernel(rules: Tensor, blocks: Tensor, groups: int = 1) -> Tensor:
    r"""The kernel :math:`\sum_s A_s \otimes F_s` of each group, one below the other.

    Args:
        rules: (n, n, n): ``rules[s]`` is :math:`A_s`.
        blocks: (O, I/(groups n), \*size): for each group its :math:`F_1, \dots, F_n`.
        groups: Number of groups.

    Returns:
        (O, I/groups, \*size).

    Raises:
        TypeError: An argument is not a floating-point tensor, or ``groups`` not an int.
        ValueError: Shapes do not fit.
    """
    check_floating("rules", rules)
    check_floating("blocks", blocks)
    n = rules.shape[0] if rules.dim() else 0
    if rules.shape != (n, n, n) or n == 0:
        raise ValueError(f"rules must have shape (n, n, n), got {tuple(rules.shape)}")
    if blocks.dim() < 3:
        raise ValueError(
            f"blocks must have shape (O, I/(groups n), *size), got {tuple(blocks.shape)}"
        )
    groups = args.positive_int("groups", groups)
    if blocks.shape[0] % (groups * n):
        raise ValueError(
            f"blocks must have a multiple of groups * n = {groups * n} rows, got {blocks.shape[0]}"
        )
    rows, columns, *size = blocks.shape
    parts = blocks.reshape(groups, n, -1)  # (g, s, o i taps)
    kernel = torch.bmm(rules.flatten(1).t().expand(groups, -1, -1), parts)
    kernel = kernel.view(groups, n, n, rows // (groups * n), -1).transpose(2, 3)  # (g, p, o, q, .)
    return kernel.reshape(rows, n * columns, *size)


class _PHCNd(StaticKernel):
    """Parameterised hypercomplex convolution over N axes (see the module's equation).

    Arguments are torch's, in torch's order, and then, keyword-only:

    Args:
        n: Dimension of the numbers; divides the input and the output channels of a group. Default:
            that of ``algebra``; where it is learned, the largest possible one up to 4.
        algebra: ``"learned"``, or fixed rules: ``"real"`` (n = 1), ``"complex"`` (2),
            ``"quaternion"`` (4) or ``"octonion"`` (8).
    """

    rules: Tensor

    def setup(
        self, factory: dict[str, Any], *, n: int | None = None, algebra: str = "learned"
    ) -> None:
        self.algebra = args.choice("algebra", algebra, ("learned", *ALGEBRAS))
        g = self.geometry
        channels = {
            "in_channels/groups": g.in_channels // g.groups,
            "out_channels/groups": g.out_channels // g.groups,
        }
        if n is not None:
            n = args.divisor("n", n, **channels)
        if self.algebra in ALGEBRAS:
            dimension = ALGEBRAS[self.algebra]
            if n not in (None, dimension):
                raise ValueError(f"n must be {dimension} for algebra={self.algebra!r}, got {n}")
            for name, count in channels.items():
                if count % dimension:
                    raise ValueError(
                        f"algebra={self.algebra!r} needs {name} divisible by {dimension}, "
                        f"got {count}"
                    )
            n = dimension
        if n is None:
            common = math.gcd(*channels.values())
            n = max(m for m in range(1, LARGEST_DEFAULT + 1) if common % m == 0)
        self.n = n
        rows, columns, *size = self.kernel_shape
        self.blocks = new_parameter(rows, columns // n, *size, **factory)
        rules = new_parameter(n, n, n, **factory)
        if self.algebra == "learned":
            self.rules = rules
        else:
            self.register_buffer("rules", rules.detach())

    def kernel(self) -> Tensor:
        """The kernel that is applied: ``hypercomplex_kernel(rules, blocks, groups)``."""
        return hypercomplex_kernel(self.rules, self.blocks, self.geometry.groups)

    def load_kernel_(self, weight: Tensor) -> None:
        """Set the kernel nearest to ``weight`` in the Frobenius norm.

        Learned rules: as a matrix from blocks (p, q) to the entries within a block the kernel has
        rank n at most, so that the nearest one keeps the n largest singular values (Van Loan and
        Pitsianis). Fixed rules: the orthogonal projection onto the algebra's kernels.
        """
        with torch.no_grad():
            n = self.n
            groups = self.geometry.groups
            parts = weight.double().flatten(2)
            parts = parts.unflatten(1, (n, -1)).unflatten(0, (groups, n, -1))  # (g, p, o, q, i, k)
            matrix = parts.permute(1, 3, 0, 2, 4, 5).flatten(2).flatten(0, 1)  # (p q, g o i k)
            if self.algebra == "learned":
                _, directions = torch.linalg.eigh(matrix @ matrix.T)
                # the scale that reset_parameters gives
                self.rules.copy_(math.sqrt(n) * directions[:, -n:].T.unflatten(1, (n, n)))
            basis = self.rules.double().flatten(1).T  # (p q, s)
            blocks = (torch.linalg.pinv(basis) @ matrix).unflatten(1, (groups, -1))
            self.blocks.copy_(blocks.movedim(0, 1).reshape(self.blocks.shape))

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The official layer's parameters, for this layer's ``load_state_dict``.

        The official bias is never added, so a bias of this layer becomes 0.

        Args:
            state_dict: ``A``, ``F`` and ``bias`` of an official convolution with this layer's n
                and sizes.

        Raises:
            ValueError: Names or shapes do not fit this layer, or its rules are fixed otherwise.
        """
        if set(state_dict) - {"bias"} != {"A", "F"}:
            raise ValueError(
                f"state_dict must hold exactly A, F, bias, got {args.show(sorted(state_dict))}"
            )
        g = self.geometry
        if g.groups != 1 or g.transposed:
            raise ValueError(
                f"layer must have groups=1 and not be transposed, as the official one, got "
                f"groups={g.groups} in {type(self).__name__}"
            )
        rules, blocks = state_dict["A"], state_dict["F"]
        wanted = (self.n, self.blocks.shape[0] // self.n, *self.blocks.shape[1:])
        for name, tensor, shape in (("A", rules, (self.n,) * 3), ("F", blocks, wanted)):
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        if self.algebra != "learned" and not torch.equal(rules.to(self.rules), self.rules):
            raise ValueError(f"A must be the rules of algebra={self.algebra!r}, got others")
        found = {"rules": rules, "blocks": blocks.flatten(0, 1)}
        return found if self.bias is None else found | {"bias": torch.zeros_like(self.bias)}

    def reset_parameters(self) -> None:
        """Draw blocks as torch draws kernels, and learned rules of the plain layer's variance.

        The squares of the rules that lead to a component sum to n, as in the fixed algebras.
        """
        with torch.no_grad():
            if self.algebra == "learned":
                nn.init.normal_(self.rules)
                inputs = 1 if self.geometry.transposed else 2
                energy = self.rules.square().sum((0, inputs), keepdim=True)
                self.rules.mul_((self.n / energy).sqrt())
            else:
                self.rules.copy_(multiplication_table(self.algebra))
            nn.init.uniform_(self.blocks, -self.bound, self.bound)
            self.reset_bias()

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, n={self.n}"
        return text + (f", algebra={self.algebra!r}" if self.algebra != "learned" else "")


class PHConv1d(_PHCNd, nn.Conv1d): ...


class PHConv2d(_PHCNd, nn.Conv2d): ...


class PHConv3d(_PHCNd, nn.Conv3d): ...


class PHConvTranspose1d(_PHCNd, nn.ConvTranspose1d): ...


class PHConvTranspose2d(_PHCNd, nn.ConvTranspose2d): ...


class PHConvTranspose3d(_PHCNd, nn.ConvTranspose3d): ...


def _reference(layer: Any, x: Tensor) -> Tensor:
    """Entry by entry: group, component and place within it of the kernel's row and column."""
    g, n = layer.geometry, layer.n
    rows, columns = layer.kernel_shape[:2]
    per_group = rows // g.groups
    lines = []
    for row in range(rows):
        group, inside = divmod(row, per_group)
        p, o = divmod(inside, per_group // n)
        entries = []
        for column in range(columns):
            q, i = divmod(column, columns // n)
            total = torch.zeros_like(layer.blocks[0, 0])
            for s in range(n):
                block = layer.blocks[(group * n + s) * (per_group // n) + o, i]
                total = total + layer.rules[s, p, q] * block
            entries.append(total)
        lines.append(torch.stack(entries))
    return naive_convolution(x, torch.stack(lines), layer.bias, g)


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """The plain convolution and the matrix product of rules and blocks."""
    forward, backward = layer.geometry.flops(shape)
    product = 2 * layer.n * math.prod(layer.kernel_shape)
    backward += product
    if layer.algebra == "learned":
        backward += product + layer.geometry.groups * layer.n**3  # the groups' gradients are added
    return forward + product, backward


def _multiple(own: Mapping[str, Any]) -> int:
    return int(own.get("n") or ALGEBRAS.get(own.get("algebra", "learned"), 1))


def _samples(dim: int) -> tuple[Sample, ...]:
    base = {"kernel_size": tuple((3, 2, 2)[:dim]), "padding": 1}
    return (
        Sample(arguments=base | {"in_channels": 12, "out_channels": 24}, size=(5, 4, 3)[:dim]),
        Sample(
            arguments=base | {"in_channels": 24, "out_channels": 24, "groups": 2},
            size=(4, 3, 3)[:dim],
        ),
    )


def _error_inputs(dim: int) -> tuple[ErrorInput, ...]:
    base = {"in_channels": 8, "out_channels": 12, "kernel_size": 3}
    return (
        ErrorInput(arguments=base | {"n": 3}, match="n must divide in_channels/groups=8, got 3"),
        ErrorInput(arguments=base | {"n": 0}, match="n must be an int of at least 1, got 0"),
        ErrorInput(arguments=base | {"n": 2.0}, match="n must be an int", error=TypeError),
        ErrorInput(
            arguments=base | {"algebra": "octonion"},
            match="algebra='octonion' needs out_channels/groups divisible by 8, got 12",
        ),
        ErrorInput(
            arguments=base | {"algebra": "quaternion", "n": 2},
            match="n must be 4 for algebra='quaternion', got 2",
        ),
        ErrorInput(arguments=base | {"algebra": "quaternions"}, match="did you mean 'quaternion'"),
    )


@register
def card() -> Card:
    return Card(
        name="phc",
        classes={1: PHConv1d, 2: PHConv2d, 3: PHConv3d},
        transposed={1: PHConvTranspose1d, 2: PHConvTranspose2d, 3: PHConvTranspose3d},
        variants={
            "default": {},
            "n3": {"n": 3},
            "complex": {"algebra": "complex"},
            "quaternion": {"algebra": "quaternion"},
        },
        equation="W = sum_s A_s kron F_s,  y = b + W * x",
        summary="Channels are n-dimensional numbers; how they multiply is learned or fixed.",
        citation="E. Grassucci, A. Zhang, D. Comminiello: PHNNs: Lightweight Neural Networks via "
        "Parameterized Hypercomplex Convolutions. 2022",
        claim="Networks with 1/n of the real layers' parameters do better than real and quaternion "
        "ones on several image and audio sets (abstract, without figures).",
        source="eleGAN23/HyperNets",
        source_licence="MIT",
        rows=(191,),
        reference=_reference,
        flops=_flops,
        folds=True,
        preserves_function=False,
        preserves_note="Only kernels that are such a sum (all, where n = 1); else the nearest in "
        "the Frobenius norm.",
        default_extent=3,
        kernels=("depthwise",),
        channel_multiple=_multiple,
        samples=_samples,
        error_inputs=_error_inputs,
    )
