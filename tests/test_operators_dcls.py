"""DCLS beyond the matrix: the released code's numbers, the box, transfer, construction."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import omniconv as oc
from omniconv.kernels import backend
from omniconv.math import taps as construction
from omniconv.math.slices import in_slices

VERSIONS = {"v0": "bilinear", "v1": "bilinear", "gauss": "gauss", "max": "triangle"}
BOTH = ("gauss", "triangle")


def waves(shape: torch.Size | tuple[int, ...], step: float = 0.37) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(1, count + 1, dtype=torch.float64).mul(step).sin().view(shape)


# Printed by the released code (K-H-Ismail/Dilated-Convolution-with-Learnable-Spacings-PyTorch,
# Dcls1d, 2d and 3d of each version) run in float64 on the same inputs: sum(y), sum(y s), max|y|,
# sum(dx x), sum|dweight|, sum|dP|, sum|dSIG| with s = cos(0.1 i), where i counts the outputs.
# 3 taps, extents (4, 5, 5), stride 2, padding 2, two groups, 4 -> 6 channels; all positions lie in
# the box.
RELEASED = {
    (1, "v0"): (44.12122291, 0.169444843, 3.340392482, 2.587750842, 34.033888841, 1.624735779),
    (1, "v1"): (44.121223183, 0.169444584, 3.340392227, 2.587750584, 34.033885438, 1.624735617),
    (1, "gauss"): (
        *(44.211819235, 0.24946402, 3.233564647, 2.667770019, 33.387164517, 1.21538466),
        1.322667521,
    ),
    (1, "max"): (
        *(44.45956216, 0.167389027, 3.249973988, 2.585695027, 33.770297102, 1.641659797),
        0.871145794,
    ),
    (2, "v0"): (
        *(187.797516041, -22.444733066, 2.517013567, -9.894643695, 144.911479902),
        424.669638087,
    ),
    (2, "v1"): (
        *(184.747570608, -24.226302126, 2.623504192, -11.676212755, 142.461695281),
        420.154521893,
    ),
    (2, "gauss"): (
        *(216.374549176, -31.578035817, 2.418417188, -19.027946446, 55.568169991, 85.618588844),
        76.16546688,
    ),
    (2, "max"): (
        *(210.271680621, -33.676255853, 2.384128352, -21.126166482, 54.543994672, 122.287668023),
        60.469019275,
    ),
    (3, "v0"): (
        *(748.389250525, -7.587982146, 2.355340438, -11.374427708, 51.137221093),
        198.762720435,
    ),
    (3, "v1"): (
        *(748.701231241, -9.863252195, 2.198730064, -13.649697757, 59.335952202),
        215.55477723,
    ),
    (3, "gauss"): (
        *(748.31944839, 5.065529618, 1.362201013, 1.279084056, 10.641636187, 22.122509817),
        19.139247251,
    ),
    (3, "max"): (
        *(747.650302501, 3.260464647, 1.449380868, -0.525980915, 11.244790517, 30.839954722),
        16.497682175,
    ),
}
# The same with extents (4, 7) and positions up to 2.5 from the official centre, many of them
# outside the box: the first four numbers.
RELEASED_OUTSIDE = {
    "v0": (140.066319082, -4.948060367, 1.670764357, -2.024794233),
    "v1": (170.907192627, -2.086392397, 2.057949453, 0.836873737),
}


def official(layer: torch.nn.Module, reach: float) -> dict[str, torch.Tensor]:
    """The parameters that the released code was run with."""
    shape = layer.taps.shape
    state = {"weight": waves(shape), "bias": waves(layer.bias.shape)}
    state["P"] = reach * waves((layer.geometry.dim, *shape), 0.53)
    if layer.width is not None:
        state["SIG"] = waves((layer.geometry.dim, *shape), 0.29)
    return state


def run(dim: int, version: str, size: tuple[int, ...], reach: float) -> list[float]:
    own = {"taps": 3, "interpolation": VERSIONS[version], "dtype": torch.float64}
    layer = oc.create("dcls", 4, 6, size, dim=dim, stride=2, padding=2, groups=2, **own)
    layer.load_state_dict(layer.from_official(official(layer, reach), version))
    x = waves((2, 4, *(9, 8, 7)[:dim])).requires_grad_()
    y = layer(x)
    seed = torch.arange(y.numel(), dtype=torch.float64).mul(0.1).cos().view_as(y)
    (y * seed).sum().backward()
    found = [y.sum(), (y * seed).sum(), y.abs().max(), (x.grad * x).sum()]
    own = (layer.taps, layer.position, layer.width)
    found += [p.grad.abs().sum() for p in own if p is not None]
    return [float(v.detach()) for v in found]


@pytest.mark.parametrize(("dim", "version"), RELEASED)
def test_numbers_of_the_released_code(dim, version):
    # its division by (sum + 1e-7) is the only difference
    exact = {"v0": 1e-8}.get(version, 2e-5)
    got = run(dim, version, (4, 5, 5)[:dim], 0.9)
    assert got == pytest.approx(RELEASED[dim, version], rel=exact, abs=exact)


@pytest.mark.parametrize("version", RELEASED_OUTSIDE)
def test_released_kernels_survive_positions_outside_the_box(version):
    got = run(2, version, (4, 7), 2.5)[:4]
    assert got == pytest.approx(RELEASED_OUTSIDE[version], rel=1e-5)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("version", VERSIONS)
def test_agrees_with_the_installed_package(dim, version):
    modules = pytest.importorskip("DCLS.construct.modules", reason="needs the package DCLS")
    torch.manual_seed(dim)
    for size in ((5,) * dim, (4,) * dim, (6, 5, 7)[:dim]):
        theirs = getattr(modules, f"Dcls{dim}d")(
            *(4, 6, 5), dilated_kernel_size=size, version=version
        ).double()
        own = {"taps": 5, "interpolation": VERSIONS[version], "dtype": torch.float64}
        ours = oc.create("dcls", 4, 6, size, dim=dim, **own)
        torch.nn.init.uniform_(theirs.P, -0.4, 0.4)
        ours.load_state_dict(ours.from_official(theirs.state_dict(), version))
        expected = theirs.DCK(theirs.weight, theirs.P, theirs.SIG).detach()
        assert torch.allclose(ours.weight, expected, atol=1e-5 * float(expected.abs().max()))


def kernel_of(position: list[float], size: tuple[int, ...], **own) -> torch.Tensor:
    """The kernel of one tap of weight 1 at ``position``."""
    place = torch.tensor(position, dtype=torch.float64).view(1, 1, -1)
    return oc.functional.dcls_kernel(torch.ones(1, 1, 1).double(), place, size, **own)[0, 0]


def test_a_tap_is_shared_by_its_neighbours():
    assert kernel_of([0.25], (5,)).tolist() == [0, 0, 0.75, 0.25, 0]
    assert kernel_of([-1.0, 0.5], (3, 3)).tolist() == [[0, 0.5, 0.5], [0, 0, 0], [0, 0, 0]]


def test_taps_stay_on_a_flat_axis():
    assert kernel_of([0.7, 0.25], (1, 3)).tolist() == [[0, 0.75, 0.25]]
    assert kernel_of([0.25, 0.7], (3, 1)).tolist() == [[0], [0.75], [0.25]]


def test_the_centre_of_an_even_kernel_lies_between_two_entries():
    assert kernel_of([0.0], (4,)).tolist() == [0, 0.5, 0.5, 0]
    assert kernel_of([1.5], (4,)).tolist() == [0, 0, 0, 1]


def test_footprints_of_gauss_and_triangle_sum_to_one_and_have_their_width():
    width = torch.full((1, 1, 1), -0.73, dtype=torch.float64)
    gauss = kernel_of([0.0], (7,), interpolation="gauss", width=width)
    assert float(gauss.sum()) == pytest.approx(1)
    assert float(gauss[4] / gauss[3]) == pytest.approx(torch.tensor(-0.5).exp().item())
    triangle = kernel_of([0.0], (7,), interpolation="triangle", width=width)
    assert float(triangle[4] / triangle[3]) == pytest.approx(0.73 / 1.73)


@pytest.mark.parametrize("interpolation", ["bilinear", *BOTH])
def test_positions_are_clamped_to_the_box(interpolation):
    layer = oc.DCLSConv2d(1, 1, (5, 4), taps=1, interpolation=interpolation)
    with torch.no_grad():
        layer.position.copy_(torch.tensor([[[9.0, -9.0]]]))
    outside = layer.weight
    outside.square().sum().backward()
    assert layer.position.grad.abs().max() == 0
    oc.constrain_(layer)
    assert layer.position.tolist() == [[[2.0, -1.5]]]
    assert torch.equal(layer.weight, outside)


@pytest.mark.parametrize("interpolation", ["bilinear", *BOTH])
@pytest.mark.parametrize("end", [-2.0, 2.0])
def test_a_tap_on_the_border_can_move_inwards(interpolation, end):
    layer = oc.DCLSConv1d(1, 1, 5, taps=1, interpolation=interpolation)
    with torch.no_grad():
        layer.taps.fill_(1)
        layer.position.fill_(end)
    inner = layer.weight[0, 0, 3 if end > 0 else 1]
    inner.backward()
    assert layer.position.grad.item() * end < 0


def test_the_width_of_a_fresh_triangle_can_grow():
    layer = oc.DCLSConv1d(2, 2, 5, interpolation="triangle")
    assert layer.width.abs().max() == 0
    layer.weight[..., ::2].sum().backward()
    assert layer.width.grad.abs().min() > 0


def test_diverged_positions_give_nan_and_no_crash():
    layer = oc.DCLSConv2d(1, 1, 5)
    torch.nn.init.constant_(layer.position, float("nan"))
    assert layer.weight.isnan().any()


@pytest.mark.parametrize("interpolation", ["bilinear", "triangle"])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_tap_per_entry_holds_every_kernel(dim, interpolation):
    size = (4, 5, 3)[:dim]
    conv = getattr(torch.nn, f"Conv{dim}d")(3, 2, size, dtype=torch.float64)
    layer = oc.card("dcls").layer(dim).from_conv(conv, interpolation=interpolation)
    assert torch.allclose(layer.weight, conv.weight, atol=1e-12)
    gauss = oc.card("dcls").layer(dim).from_conv(conv, interpolation="gauss")
    assert torch.allclose(gauss.weight, conv.weight, atol=1e-9)


def test_a_larger_extent_keeps_the_taps_that_count():
    conv = torch.nn.Conv2d(3, 2, 3, padding=1, dtype=torch.float64)
    layer = oc.DCLSConv2d.from_conv(conv, 9, taps=9)
    assert torch.equal(layer.weight[..., 3:6, 3:6], conv.weight)
    assert layer.weight.count_nonzero() == conv.weight.numel()


def test_fewer_taps_keep_the_largest_entries():
    conv = torch.nn.Conv1d(1, 1, 5, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[1.0, -5.0, 2.0, 4.0, -3.0]]]))
    layer = oc.DCLSConv1d.from_conv(conv, taps=3)
    assert layer.weight.tolist() == [[[0, -5, 0, 4, -3]]]


def test_gauss_taps_solve_least_squares():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(2, 3, 5, dtype=torch.float64)
    layer = oc.DCLSConv2d.from_conv(conv, taps=7, interpolation="gauss")
    rest = (layer.weight - conv.weight).square().sum()
    slope = torch.autograd.grad(rest, layer.taps)[0]
    assert slope.abs().max() < 1e-12
    assert (
        rest.detach().sqrt() < 1.01 * conv.weight.flatten(2).abs().topk(18, largest=False)[0].norm()
    )


@pytest.mark.parametrize("interpolation", ["bilinear", *BOTH])
@pytest.mark.parametrize(("size", "taps"), [((9, 4), 20), ((2, 5), 3), ((17, 17), None)])
def test_fresh_kernels_have_the_plain_layers_energy(interpolation, size, taps):
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(48, 64, size)
    layer = oc.DCLSConv2d(48, 64, size, taps=taps, interpolation=interpolation)
    ratio = layer.weight.detach().square().sum() / plain.weight.detach().square().sum()
    assert float(ratio) == pytest.approx(1, abs=0.04)


def test_default_taps_are_those_of_a_kernel_three_wide():
    assert oc.DCLSConv2d(1, 1, 17).taps.shape == (1, 1, 9)
    assert oc.DCLSConv3d(1, 1, (7, 2, 1)).taps.shape == (1, 1, 6)


def test_positions_learn_faster_and_do_not_decay():
    layer = oc.DCLSConv2d(1, 1, 5, interpolation="gauss")
    groups = oc.param_groups(layer, 0.1, 0.01)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found[id(layer.position)] == (0.5, 0.0)
    assert found[id(layer.width)] == (0.1, 0.0)
    assert found[id(layer.taps)] == (0.1, 0.01)


def test_half_precision_positions_are_evaluated_in_float32():
    torch.manual_seed(0)
    layer = oc.DCLSConv2d(4, 4, 31, taps=3)
    torch.nn.init.uniform_(layer.position, -15, 15)
    half = layer.to(torch.bfloat16).weight
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, layer.float().weight.to(torch.bfloat16))


def saved_bytes(layer: torch.nn.Module) -> int:
    """What the construction keeps for its backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        layer.kernel()
    return sum(kept.values())


def test_memory_grows_with_the_taps_and_not_with_the_extent():
    def layer(size: int, taps: int) -> torch.nn.Module:
        return oc.DCLSConv2d(16, 16, size, taps=taps)

    assert saved_bytes(layer(33, 8)) == saved_bytes(layer(9, 8))
    assert saved_bytes(layer(9, 16)) == pytest.approx(2 * saved_bytes(layer(9, 8)), rel=0.01)


@pytest.mark.parametrize("interpolation", BOTH)
def test_the_reference_builds_wide_footprints_in_slices(monkeypatch, interpolation):
    monkeypatch.setattr(backend, "_backend", "torch")
    torch.manual_seed(0)
    layer = oc.DCLSConv2d(4, 6, (5, 4), interpolation=interpolation, dtype=torch.float64)
    torch.nn.init.uniform_(layer.width, 0.1, 0.4)
    parameters = [layer.taps, layer.position, layer.width]
    whole, whole_bytes = layer.weight, saved_bytes(layer)
    seed = torch.randn_like(whole)
    expected = torch.autograd.grad(whole, parameters, seed)
    monkeypatch.setattr(construction, "SLICE", 1)
    assert construction.slice_rows(layer.taps.shape, (5, 4)) == 1
    assert saved_bytes(layer) < whole_bytes / 2
    sliced = layer.weight
    assert torch.allclose(sliced, whole, rtol=1e-14)
    for found, right in zip(torch.autograd.grad(sliced, parameters, seed), expected, strict=True):
        assert torch.allclose(found, right, rtol=1e-12)


def test_slices_differentiate_twice_and_transform():
    def function(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * b.exp()).sin()

    def sliced(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return in_slices(function, 2, a, b)

    a, b = waves((5, 3)).requires_grad_(), waves((5, 3), 0.6).requires_grad_()
    assert torch.autograd.gradcheck(sliced, (a, b))
    assert torch.autograd.gradgradcheck(sliced, (a, b))
    total = torch.func.grad(lambda a: sliced(a, b.detach()).sum())(a.detach())
    assert torch.allclose(total, torch.autograd.grad(function(a, b).sum(), a)[0])
    many = torch.func.vmap(sliced)(waves((4, 5, 3)), waves((4, 5, 3), 0.6))
    assert torch.equal(many, function(waves((4, 5, 3)), waves((4, 5, 3), 0.6)))


def test_official_parameters_must_fit():
    layer = oc.DCLSConv2d(4, 6, 5, groups=2, taps=3, interpolation="gauss")
    state = official(layer, 0.5)
    assert set(layer.from_official(state)) == {"taps", "position", "width", "bias"}
    with pytest.raises(ValueError, match="version must be one of 'gauss', got 'v1'"):
        layer.from_official(state, "v1")
    with pytest.raises(ValueError, match="must hold exactly weight, P, SIG, bias"):
        layer.from_official({k: v for k, v in state.items() if k != "SIG"})
    with pytest.raises(ValueError, match=r"P must have shape \(2, 6, 2, 3\)"):
        layer.from_official(state | {"P": state["P"][:1]})
    with pytest.raises(ValueError, match=r"weight must have shape \(6, 2, 3\)"):
        layer.from_official(state | {"weight": state["weight"][:1]})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"taps": torch.ones(2, 3)}, "taps must have 3 axes"),
        ({"taps": torch.ones(2, 2, 3, dtype=torch.long)}, "taps must be a floating-point tensor"),
        ({"position": torch.ones(2, 2, 3)}, r"position must have shape \(2, 2, 6\)"),
        ({"position": None}, "position must be a floating-point tensor"),
        ({"size": 5}, "size must be a sequence of ints"),
        ({"size": (5, 0)}, r"size\[1\] must be an int of at least 1"),
        ({"interpolation": "cubic"}, "interpolation must be one of"),
        ({"width": torch.ones(2, 2, 6)}, "width must be None"),
        ({"interpolation": "gauss"}, "width must be a floating-point tensor"),
        ({"interpolation": "gauss", "width": torch.ones(6)}, "width must have shape"),
    ],
)
def test_bad_arguments_of_the_functional(change, match):
    good = {"taps": torch.ones(2, 2, 3), "position": torch.ones(2, 2, 6), "size": (5, 5)}
    oc.functional.dcls_kernel(**good)
    with pytest.raises((TypeError, ValueError), match=match):
        oc.functional.dcls_kernel(**(good | change))


@pytest.mark.parametrize(
    ("dim", "interpolation"), list(itertools.product((1, 2, 3), ("bilinear", *BOTH)))
)
def test_double_backward_away_from_kinks(dim, interpolation):
    torch.manual_seed(dim)
    size = (3, 4, 2)[:dim]
    taps = torch.randn(1, 2, 2, dtype=torch.float64, requires_grad=True)
    place = torch.rand(1, 2, 2 * dim, dtype=torch.float64) * 0.3 + 0.1
    width = torch.rand(1, 2, 2 * dim, dtype=torch.float64) * 0.2 + 0.05

    def call(taps, place, width):
        own = {} if interpolation == "bilinear" else {"width": width}
        return oc.functional.dcls_kernel(taps, place, size, interpolation, **own)

    arguments = (taps, place.requires_grad_(), width.requires_grad_(interpolation != "bilinear"))
    assert torch.autograd.gradcheck(call, arguments)
    assert torch.autograd.gradgradcheck(call, arguments)
