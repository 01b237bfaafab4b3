"""PHC beyond the matrix: the released code's numbers, algebras, and the nearest kernel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import omniconv as oc
from omniconv.math.algebra import ALGEBRAS, multiplication_table


def waves(shape: torch.Size | tuple[int, ...], step: float = 0.37) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(1, count + 1, dtype=torch.float64).mul(step).sin().view(shape)


# Printed by the released code (eleGAN23/HyperNets, layers/ph_layers.py: PHConv1D, PHConv2d,
# PHConv3D) run in float64 on the same inputs: sum(y), sum(y s), max|y|, sum(dx x), sum|dA|,
# sum|dF| with s = cos(0.1 i), where i counts the outputs. n = 3, 6 -> 9 channels, extent 3,
# stride 2, padding 1.
RELEASED = {
    1: (50.110486612, -3.636357058, 11.961932092, -3.636357058, 45.004976346, 172.85749423),
    2: (-21.978288167, 69.163038138, 6.834719265, 69.163038138, 532.662296096, 948.134922867),
    3: (2.320786989, 4.069480636, 7.279771537, 4.069480636, 118.35063656, 495.434825424),
}


def layer_of(dim: int = 2, **arguments) -> torch.nn.Module:
    return oc.create("phc", **{"dim": dim, "dtype": torch.float64} | arguments)


def sized(channels: int, **arguments) -> torch.nn.Module:
    both = {"in_channels": channels, "out_channels": channels, "kernel_size": 3}
    return layer_of(**both | arguments)


@pytest.mark.parametrize("dim", RELEASED)
def test_numbers_of_the_released_code(dim):
    own = {"in_channels": 6, "out_channels": 9, "kernel_size": 3, "stride": 2, "padding": 1}
    layer = layer_of(dim, n=3, **own)
    released = {
        "A": waves((3, 3, 3)),
        "F": waves((3, 3, 2, *[3] * dim), 0.53),
        "bias": torch.ones(9).double(),  # declared there and never added
    }
    layer.load_state_dict(layer.from_official(released))
    x = waves((2, 6, *(9, 8, 7)[:dim])).requires_grad_()
    y = layer(x)
    seed = torch.arange(y.numel(), dtype=torch.float64).mul(0.1).cos().view_as(y)
    (y * seed).sum().backward()
    grads = (layer.rules.grad.abs().sum(), layer.blocks.grad.abs().sum())
    got = (y.sum(), (y * seed).sum(), y.abs().max(), (x.grad * x).sum(), *grads)
    assert [float(v.detach()) for v in got] == pytest.approx(RELEASED[dim], abs=1e-7)
    assert layer.bias.grad.abs().min() > 0  # ours is added


@pytest.mark.parametrize("algebra", ALGEBRAS)
def test_the_norm_of_a_product_is_the_product_of_the_norms(algebra):
    table = multiplication_table(algebra)
    a, x = waves((2, len(table)))
    product = torch.einsum("spq,s,q->p", table, a, x)
    assert float(product.norm()) == pytest.approx(float(a.norm() * x.norm()))
    assert torch.equal(table[0], torch.eye(len(table)).double())


def test_quaternion_units_multiply_as_hamilton_carved_them():
    table = multiplication_table("quaternion")
    one, i, j, k = torch.eye(4).double()

    def times(a, b):
        return torch.einsum("spq,s,q->p", table, a, b)

    for unit in (i, j, k, times(i, j)):
        assert torch.equal(times(unit, unit), -one)
    assert torch.equal(times(i, j), k)
    assert torch.equal(times(j, i), -k)


def test_complex_layers_are_complex_convolutions():
    layer = layer_of(in_channels=6, out_channels=4, kernel_size=3, algebra="complex", bias=False)
    x = waves((2, 6, 5, 5))
    weight = torch.complex(*layer.blocks.detach().chunk(2))
    y = F.conv2d(torch.complex(*x.chunk(2, 1)), weight)
    assert torch.allclose(layer(x), torch.cat([y.real, y.imag], 1))


def test_quaternion_kernels_are_hamilton_products():
    layer = sized(8, algebra="quaternion", bias=False)
    r, i, j, k = layer.blocks.detach().chunk(4)
    rows = ([r, -i, -j, -k], [i, r, -k, j], [j, k, r, -i], [k, -j, i, r])
    assert torch.equal(layer.weight, torch.cat([torch.cat(row, 1) for row in rows]))


def test_a_transposed_layer_is_the_adjoint():
    forward = sized(8, algebra="quaternion", bias=False)
    back = sized(8, algebra="quaternion", bias=False, transposed=True)
    back.load_state_dict(forward.state_dict())
    x, y = waves((1, 8, 6, 6)), waves((1, 8, 4, 4), 0.6)
    with torch.no_grad():
        assert float((forward(x) * y).sum()) == pytest.approx(float((x * back(y)).sum()))


def test_fixed_rules_are_no_parameters():
    layer = sized(8, algebra="quaternion")
    assert dict(layer.named_parameters()).keys() == {"bias", "blocks"}
    assert layer.state_dict().keys() == {"bias", "blocks", "rules"}


def test_each_group_is_a_layer_of_its_own():
    layer = sized(8, groups=2, n=2, bias=False)
    parts = [sized(4, n=2, bias=False) for _ in range(2)]
    for part, blocks in zip(parts, layer.blocks.detach().chunk(2), strict=True):
        part.load_state_dict({"rules": layer.rules, "blocks": blocks})
    x = waves((2, 8, 5, 5))
    alone = [part(half) for part, half in zip(parts, x.chunk(2, 1), strict=True)]
    assert torch.allclose(layer(x), torch.cat(alone, 1))


def test_parameters_are_a_fraction_of_the_plain_layers():
    layer = sized(64, n=4, bias=False)
    assert sum(p.numel() for p in layer.parameters()) == 64 * 64 * 9 // 4 + 4**3


@pytest.mark.parametrize(
    ("channels", "n"),
    [((3, 16, 1), 1), ((16, 32, 1), 4), ((6, 9, 1), 3), ((10, 6, 1), 2), ((8, 8, 4), 2)],
)
def test_default_n_is_the_largest_up_to_four_that_divides(channels, n):
    inputs, outputs, groups = channels
    assert oc.PHConv1d(inputs, outputs, 3, groups=groups).n == n


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_kernels_of_its_kind_are_taken_over_exactly(n, transposed):
    torch.manual_seed(n)
    own = {"n": n, "groups": 2, "transposed": transposed}
    source, target = sized(12 * n, **own), sized(12 * n, **own)
    target.load_kernel_(source.weight.detach())
    assert torch.allclose(target.weight, source.weight, atol=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_learned_rules_take_the_nearest_kernel(dim):
    torch.manual_seed(dim)
    n, channels = 2, 6
    weight = torch.randn(channels, channels, *[3] * dim, dtype=torch.float64)
    layer = sized(channels, dim=dim, n=n)
    layer.load_kernel_(weight)
    blocks = weight.view(n, channels // n, n, channels // n, -1).movedim(2, 1)
    lost = torch.linalg.svdvals(blocks.reshape(n * n, -1))[n:]
    assert float((layer.weight.detach() - weight).norm()) == pytest.approx(
        float(lost.norm()), rel=1e-9
    )


@pytest.mark.parametrize("algebra", ["complex", "quaternion", "octonion"])
def test_fixed_rules_take_the_orthogonal_projection(algebra):
    torch.manual_seed(0)
    weight = torch.randn(8, 8, 3, 3, dtype=torch.float64)
    layer = sized(8, algebra=algebra)
    layer.load_kernel_(weight)
    rest = layer.weight - weight
    slope = torch.autograd.grad(rest.square().sum(), layer.blocks)[0]
    assert slope.abs().max() < 1e-12
    assert rest.norm() > 0.1


def test_tiny_layers_keep_rules_that_can_learn():
    layer = sized(4, n=4, kernel_size=1)
    layer.load_kernel_(waves((4, 4, 1, 1)))
    assert layer.rules.detach().square().sum((1, 2)).tolist() == pytest.approx([4.0] * 4)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("own", [{"n": 2}, {"n": 8}, {"algebra": "octonion"}])
def test_fresh_outputs_have_the_plain_layers_variance(own, transposed):
    torch.manual_seed(0)
    layer = sized(64, padding=1, dtype=torch.float32, transposed=transposed, **own)
    plain = (torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d)(64, 64, 3, padding=1)
    x = torch.randn(8, 64, 16, 16)
    with torch.no_grad():
        ratio = layer(x).var((0, 2, 3)).view(-1, 8).mean(1) / plain(x).var()
    assert ratio.tolist() == pytest.approx([1.0] * 8, abs=0.2)


def test_official_parameters_must_fit():
    layer = oc.PHConv2d(4, 8, 3, n=2, bias=False)
    good = {"A": torch.ones(2, 2, 2), "F": torch.ones(2, 4, 2, 3, 3)}
    assert set(layer.from_official(good)) == {"rules", "blocks"}
    with pytest.raises(ValueError, match="must hold exactly A, F, bias"):
        layer.from_official({"A": good["A"]})
    with pytest.raises(ValueError, match=r"F must have shape \(2, 4, 2, 3, 3\)"):
        layer.from_official(good | {"F": good["F"][:1]})
    with pytest.raises(ValueError, match="A must be the rules of algebra='complex'"):
        oc.PHConv2d(4, 8, 3, algebra="complex").from_official(good)
    with pytest.raises(ValueError, match="groups=1"):
        oc.PHConv2d(4, 8, 3, groups=2).from_official(good)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rules": torch.ones(2, 2)}, r"rules must have shape \(n, n, n\)"),
        ({"rules": [[[1.0]]]}, "rules must be a floating-point tensor"),
        ({"blocks": torch.ones(5, 2, 3)}, "blocks must have a multiple of groups . n = 2 rows"),
        ({"blocks": torch.ones(4)}, "blocks must have shape"),
        ({"blocks": None}, "blocks must be a floating-point tensor"),
        ({"groups": 3}, "blocks must have a multiple of groups . n = 6 rows"),
        ({"groups": 0}, "groups must be an int of at least 1"),
    ],
)
def test_bad_arguments_of_the_functional(change, match):
    good = {"rules": torch.ones(2, 2, 2), "blocks": torch.ones(4, 2, 3), "groups": 1}
    assert oc.functional.hypercomplex_kernel(**good).shape == (4, 4, 3)
    with pytest.raises((TypeError, ValueError), match=match):
        oc.functional.hypercomplex_kernel(**(good | change))
