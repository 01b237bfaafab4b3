"""SMPConv beyond the matrix: the released code's numbers, what a point does, transfer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import omniconv as oc


def waves(shape: torch.Size | tuple[int, ...], step: float = 0.37) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.arange(1, count + 1, dtype=torch.float64).mul(step).sin().view(shape)


# Printed by the released code (sangnekim/SMPConv, smp_imagenet/models/SMPConv.py and
# smp/ckconv/nn/ck/smpkernel.py), its grid in float64, followed by torch's convolution with padding
# size // 2, on the same inputs: sum(y), sum(y s), max|y|, sum(dx x), sum|dw|, sum|dp|, sum|dr| with
# s = cos(0.1 i), where i counts the outputs. (input channels, output channels, size, points).
# fmt: off
IMAGENET = {
    (6, 6, 7, 12): (
        18.381635767, -2.944994291, 2.879165367, -2.944994291,
        115.125274655, 133.367475637, 89.79873947,
    ),
    (4, 4, 12, 5): (
        -21.765305736, -3.692303183, 2.177981534, -3.692303183,
        194.918770848, 298.50117995, 147.298181957,
    ),
}
KERNEL = {
    (1, 3, 4, 9, 6): (
        28.417088278, -25.815908553, 4.343772522, -25.815908553,
        165.892889777, 134.618474376, 210.652513138,
    ),
    (2, 3, 4, 7, 10): (
        -5.497850624, 14.205268222, 1.785861898, 14.205268222,
        151.384247827, 472.328145711, 172.00223875,
    ),
}
# fmt: on


def official(dim: int, rows: int, columns: int, sets: int, m: int) -> dict[str, torch.Tensor]:
    """The parameters that the released code was run with."""
    return {
        "weights": waves((rows, columns, m)),
        "weight_coord": 0.9 * waves((sets, m, dim), 0.53),
        "radius": 0.5 + 0.3 * waves((sets, m, *[1] * dim), 0.29),
    }


def run(layer: nn.Module, state: dict[str, torch.Tensor], x: torch.Tensor) -> list[float]:
    layer.load_state_dict(layer.from_official(state), strict=True)
    y = layer(x.requires_grad_())
    seed = torch.arange(y.numel(), dtype=torch.float64).mul(0.1).cos().view_as(y)
    wanted = (x, layer.weights, layer.position, layer.radius)
    dx, *others = torch.autograd.grad((y * seed).sum(), wanted)
    found = [y.sum(), (y * seed).sum(), y.abs().max(), (dx * x).sum()]
    return [float(v.detach()) for v in (*found, *(g.abs().sum() for g in others))]


@pytest.mark.parametrize("case", IMAGENET)
def test_numbers_of_the_released_code(case):
    inputs, outputs, size, m = case
    own = {"groups": inputs, "points": m, "bias": False, "dtype": torch.float64}
    layer = oc.nn.SMPConv2d(inputs, outputs, size, padding=size // 2, **own)
    state = official(2, outputs, 1, 1, m)
    state["weights"] = state["weights"].view(1, outputs, m)
    state["kernel_coord"] = torch.zeros(1, 2, size, size)
    got = run(layer, state, waves((2, inputs, 9, 8)))
    assert got == pytest.approx(IMAGENET[case], rel=1e-9, abs=1e-8)


@pytest.mark.parametrize("case", KERNEL)
def test_numbers_of_the_released_sequence_and_image_kernels(case):
    dim, inputs, outputs, size, m = case
    own = {"points": m, "average": True, "shared": False, "bias": False, "dtype": torch.float64}
    layer = oc.create("smpconv", inputs, outputs, size, dim=dim, padding=size // 2, **own)
    got = run(layer, official(dim, outputs, inputs, outputs, m), waves((2, inputs, *(9, 8)[:dim])))
    # it divides by the count + 1e-6
    assert got == pytest.approx(KERNEL[case], rel=5e-6)


def test_official_parameters_must_fit():
    layer = oc.nn.SMPConv2d(6, 6, 7, groups=6, points=12)
    good = official(2, 6, 1, 1, 12)
    assert not layer.from_official(good)["bias"].any()
    with pytest.raises(ValueError, match="must hold exactly radius, weight_coord, weights, got"):
        layer.from_official({k: v for k, v in good.items() if k != "radius"})
    with pytest.raises(ValueError, match=r"weight_coord must have shape \(1, 12, 2\), got"):
        layer.from_official(good | {"weight_coord": torch.zeros(6, 12, 2)})
    with pytest.raises(ValueError, match=r"radius must have 12 entries, got shape \(1, 6\)"):
        layer.from_official(good | {"radius": torch.zeros(1, 6)})
    for other in (oc.nn.SMPConv2d(6, 6, (7, 5)), oc.nn.SMPConvTranspose2d(6, 6, 7)):
        with pytest.raises(ValueError, match="layer must have one or two axes of one size"):
            other.from_official(good)


def kernel_of(places: list[list[float]], radius: list[float], size: tuple[int, ...], **own):
    """The kernel of points of weight 1."""
    position = torch.tensor(places, dtype=torch.float64).T.reshape(1, -1)
    weights = torch.ones(1, 1, len(radius), dtype=torch.float64)
    reach = torch.tensor([radius], dtype=torch.float64)
    return oc.functional.smp_kernel(weights, position, reach, size, **own)[0, 0]


def near(kernel: torch.Tensor, expected: list) -> bool:
    return torch.allclose(kernel, torch.tensor(expected, dtype=torch.float64), atol=1e-12)


def test_a_point_is_a_hat_of_its_radius():
    assert near(kernel_of([[0.0]], [1.0], (5,)), [0, 0.5, 1, 0.5, 0])
    assert near(kernel_of([[0.25]], [0.5], (5,)), [0, 0, 0.5, 0.5, 0])


def test_distances_are_sums_over_axes_in_steps_of_the_longest_axis():
    hat = [[0, 1 / 3, 0], [1 / 3, 2 / 3, 1 / 3], [2 / 3, 1, 2 / 3], [1 / 3, 2 / 3, 1 / 3]]
    assert near(kernel_of([[0.0, 0.0]], [1.5], (5, 3)), [*hat, hat[0]])


def test_the_average_divides_by_the_points_within_reach():
    places, radius = [[0.0], [0.5]], [1.0, 1.0]
    assert near(kernel_of(places, radius, (5,)), [0, 0.5, 1.5, 1.5, 0.5])
    assert near(kernel_of(places, radius, (5,), average=True), [0, 0.5, 0.75, 0.75, 0.5])


def test_the_sum_is_continuous_and_the_average_jumps():
    still, moved = [[-0.5], [0.5]], [[-0.5], [0.5 - 1e-9]]
    for average, jump in ((False, 0.0), (True, 0.5)):
        a, b = (kernel_of(p, [0.5, 1.0], (5,), average=average) for p in (still, moved))
        assert float((a - b).abs().max()) == pytest.approx(jump, abs=1e-8)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_the_kernel_is_one_function_at_every_resolution(average, shared):
    torch.manual_seed(0)
    own = {"points": 9, "average": average, "shared": shared, "dtype": torch.float64}
    coarse, fine = (oc.nn.SMPConv2d(2, 3, k, **own) for k in ((6, 4), (11, 7)))
    fine.load_state_dict(coarse.state_dict())
    assert torch.allclose(fine.weight[..., ::2, ::2], coarse.weight, atol=1e-12)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_point_per_entry_holds_every_kernel(dim, shared, average):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dim - 1](3, 4, (4, 5, 3)[:dim], dtype=torch.float64)
    own = {"shared": shared, "average": average}
    layer = oc.card("smpconv").layer(dim).from_conv(conv, **own)
    assert torch.allclose(layer.weight, conv.weight, atol=1e-12)
    layer.weight.square().sum().backward()
    assert bool((layer.position.grad != 0).any(-1).all())


def test_fewer_points_keep_the_largest_entries():
    conv = nn.Conv1d(1, 2, 5, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[1.0, -3, 0, 2, -2]], [[1.0, -3, 4, 0, 1]]]))
    together = oc.nn.SMPConv1d.from_conv(conv, points=2)
    assert near(together.weight.double(), [[[0, -3, 0, 0, 0]], [[0, -3, 4, 0, 0]]])
    apart = oc.nn.SMPConv1d.from_conv(conv, points=3, shared=False)
    assert near(apart.weight.double(), [[[0, -3, 0, 2, -2]], [[1, -3, 4, 0, 0]]])


def test_averaged_points_solve_least_squares():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 5, dtype=torch.float64)
    layer = oc.nn.SMPConv2d.from_conv(conv, points=12, average=True)
    rest = (layer.weight - conv.weight).square().sum()
    assert torch.autograd.grad(rest, layer.weights)[0].abs().max() < 1e-12


@pytest.mark.parametrize("average", [False, True])
def test_taken_over_kernels_do_not_jump_when_their_points_start_to_move(average):
    conv = nn.Conv2d(2, 3, 5, dtype=torch.float64)
    layer = oc.nn.SMPConv2d.from_conv(conv, average=average)
    with torch.no_grad():
        layer.position.add_(1e-6)
        assert float((layer.weight - conv.weight).abs().max()) < 1e-4


@pytest.mark.parametrize("own", [{}, {"average": True}, {"shared": False, "average": True}])
@pytest.mark.parametrize(("size", "points"), [((9, 4), 20), ((2, 5), 3), ((31, 31), None)])
def test_fresh_kernels_have_the_plain_layers_energy(size, points, own):
    torch.manual_seed(0)
    plain = nn.Conv2d(24, 32, size)
    layer = oc.nn.SMPConv2d(24, 32, size, points=points, **own)
    ratio = layer.weight.detach().square().sum() / plain.weight.detach().square().sum()
    assert float(ratio) == pytest.approx(1, abs=0.1)


def test_points_and_parameters():
    layer = oc.nn.SMPConv2d(64, 64, 31, groups=64, bias=False)
    assert sum(p.numel() for p in layer.parameters()) == 240 * (64 + 3)
    assert layer.radius.unique().tolist() == pytest.approx([4 / 31])
    assert oc.nn.SMPConv1d(1, 1, 3).weights.shape == (1, 1, 1)
    groups = oc.param_groups(layer, 0.1, 0.01)
    found = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    decays = [found[id(p)] for p in (layer.weights, layer.position, layer.radius)]
    assert decays == [0.01, 0.0, 0.0]


def test_fresh_positions_lie_within_the_kernel():
    torch.manual_seed(0)
    layer = oc.nn.SMPConv3d(1, 1, (31, 4, 1), points=500)
    along, across, flat = layer.position.detach().view(3, 500)
    assert along.std().item() == pytest.approx(0.2, rel=0.1)
    assert across.std().item() == pytest.approx(0.02, rel=0.1)
    assert not flat.any()


def test_radii_stay_positive():
    layer = oc.nn.SMPConv2d(1, 1, 7)
    nn.init.constant_(layer.radius, 1e-3)
    narrow = layer.weight
    nn.init.constant_(layer.radius, -1.0)
    assert torch.equal(layer.weight, narrow)
    oc.constrain_(layer)
    assert layer.radius.unique().tolist() == pytest.approx([1e-3])
    for size, largest in ((7, 1.0), (3, 2.0)):
        layer = oc.nn.SMPConv2d(1, 1, size)
        nn.init.constant_(layer.radius, 9.0)
        oc.constrain_(layer)
        assert layer.radius.unique().tolist() == [largest]


def test_half_precision_points_are_evaluated_in_float32():
    torch.manual_seed(0)
    layer = oc.nn.SMPConv2d(4, 4, 31)
    half = layer.to(torch.bfloat16).weight
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, layer.float().weight.to(torch.bfloat16))


GOOD = {
    "weights": torch.ones(2, 3, 4),
    "position": torch.zeros(1, 8),
    "radius": torch.ones(1, 4),
    "size": (5, 3),
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weights": None}, TypeError, "weights must be a floating-point tensor, got NoneType"),
        ({"weights": torch.ones(2, 4)}, ValueError, r"weights must have 3 axes \(A, B, m\)"),
        ({"position": torch.zeros(1, 4)}, ValueError, r"position must have shape \(1, 8\) or"),
        ({"radius": torch.zeros(3, 4)}, ValueError, r"radius must have shape \(1, 4\) or \(2, 4\)"),
        ({"radius": torch.zeros(2, 4)}, ValueError, "radius must have as many rows as position, 1"),
        ({"size": (5, 0)}, ValueError, r"size\[1\] must be an int of at least 1"),
        ({"size": 5}, TypeError, "size must be a sequence of ints"),
    ],
)
def test_bad_arguments_of_the_functional(change, error, message):
    assert oc.functional.smp_kernel(**GOOD).shape == (2, 3, 5, 3)
    with pytest.raises(error, match=message):
        oc.functional.smp_kernel(**(GOOD | change))
