"""The DCLS kernel against formulas written out here, against its reference, and as an operator."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.data import DataLoader, Dataset

import omniconv as oc
from omniconv.analysis import count_flops
from omniconv.kernels import backend
from omniconv.kernels.dcls import INTERPOLATIONS, dcls, kernel_for, ops
from omniconv.kernels.dcls.flops import dcls_flops
from omniconv.kernels.dcls.reference import dcls_reference
from omniconv.math.taps import slice_rows

SIZES = (
    *((1,), (2,), (3,), (5,), (33,), (100,)),
    *((3, 3), (2, 5), (8, 9), (17, 17), (1, 7), (70, 1)),
    *((1, 1, 1), (3, 3, 3), (3, 4, 2), (6, 5, 7), (2, 1, 40)),
)
SHAPES = ((3, 7, 4), (5, 1, 1), (16, 2, 3), (1, 17, 20))
NONE = ((0, 3, 2), (2, 3, 0), (2, 0, 1))

pytestmark = pytest.mark.skipif(
    bool(backend.load("dcls").reason), reason=backend.load("dcls").reason
)


@pytest.fixture(autouse=True)
def auto(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(backend, "_backend", "auto")


def draw(
    shape: tuple[int, int, int],
    size: tuple[int, ...],
    interpolation: str,
    dtype: torch.dtype = torch.float64,
    margin: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Taps; positions on entries, between them, on the border and outside; widths of any sign.

    With a margin, positions and widths keep away from everything where a derivative jumps.
    """
    generator = torch.Generator().manual_seed(math.prod(size) + sum(shape))
    coordinates = (*shape[:2], len(size) * shape[2])

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    limit = torch.tensor([(s - 1) / 2 for s in size], dtype=torch.float64)
    limit = limit.repeat_interleave(shape[2])
    position, width = 0.7 * limit * normal(coordinates), 0.7 * normal(coordinates)
    if margin:
        offset = limit % 1
        cell = (position.clamp(-limit, limit) - offset).floor().clamp(max=(limit - offset - 1))
        part = torch.rand(coordinates, generator=generator, dtype=torch.float64)
        position = cell + offset + margin + (0.5 - 2 * margin) * part
        width = 0.4 + 0.05 * torch.rand(coordinates, generator=generator, dtype=torch.float64)
    else:
        kind = torch.randint(0, 4, coordinates, generator=generator)
        position = torch.where(kind == 0, (position - limit).round() + limit, position)
        position = torch.where(kind == 1, limit.copysign(position), position)
        width = torch.where(kind == 2, 0.0, width)
    chosen = None if interpolation == "bilinear" else width.to(dtype)
    return normal(shape).to(dtype), position.to(dtype), chosen


def by_loops(
    taps: Tensor, position: Tensor, width: Tensor | None, size: tuple[int, ...], interpolation: str
) -> Tensor:
    """Entry by entry, from the module's equation, in Python's floats."""
    rows, columns, count = taps.shape
    kernel = torch.zeros(rows, columns, *size, dtype=torch.float64)
    for o, i, k in itertools.product(range(rows), range(columns), range(count)):
        profiles = []
        for axis, s in enumerate(size):
            limit = (s - 1) / 2
            p = min(max(position[o, i, axis * count + k].item(), -limit), limit)
            x = [u - limit - p for u in range(s)]
            if width is None:
                profile = [max(1 - abs(v), 0.0) for v in x]
            else:
                spread = abs(width[o, i, axis * count + k].item())
                if interpolation == "gauss":
                    profile = [math.exp(-0.5 * (v / (0.27 + spread)) ** 2) for v in x]
                else:
                    profile = [max(1 + spread - abs(v), 0.0) for v in x]
                profile = [v / math.fsum(profile) for v in profile]
            profiles.append(profile)
        for place in itertools.product(*map(range, size)):
            factors = [profile[u] for profile, u in zip(profiles, place, strict=True)]
            kernel[(o, i, *place)] += taps[o, i, k].item() * math.prod(factors)
    return kernel


def with_gradients(function, tensors, size, interpolation, seed) -> list[Tensor]:
    leaves = [t if t is None else t.detach().clone().requires_grad_() for t in tensors]
    kernel = function(*leaves, size, interpolation)
    needed = [t for t in leaves if t is not None]
    return [kernel.detach(), *torch.autograd.grad(kernel, needed, seed)]


def assert_near(found: Tensor, right: Tensor, tolerance: float) -> None:
    assert found.shape == right.shape
    scale = right.abs().max().item() if right.numel() else 0.0
    torch.testing.assert_close(found, right, rtol=0, atol=tolerance * max(scale, 1.0))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(6,), (1,), (4, 5), (9, 8), (3, 1, 4)], ids=str)
def test_equals_the_formula_entry_by_entry(size, interpolation):
    tensors = draw((2, 3, 3), size, interpolation)
    assert_near(dcls(*tensors, size, interpolation), by_loops(*tensors, size, interpolation), 1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_reference_forward_and_backward(size, interpolation, dtype):
    for shape in (*SHAPES, *NONE):
        tensors = draw(shape, size, interpolation, dtype)
        assert kernel_for("dcls", *(t for t in tensors if t is not None))
        seed = torch.randn(*shape[:2], *size, dtype=dtype)
        found = with_gradients(dcls, tensors, size, interpolation, seed)
        right = with_gradients(dcls_reference, tensors, size, interpolation, seed)
        for f, r in zip(found, right, strict=True):
            assert f.dtype == dtype
            # gradients for gauss positions and widths are differences of sums over the axis
            assert_near(f, r, 200 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(5,), (3, 4), (10, 9), (2, 3, 4)], ids=str)
def test_second_derivatives(size, interpolation):
    tensors = [t for t in draw((1, 2, 2), size, interpolation, margin=0.05) if t is not None]
    leaves = [t.requires_grad_() for t in tensors]

    def call(taps: Tensor, position: Tensor, width: Tensor | None = None) -> Tensor:
        return dcls(taps, position, width, size, interpolation)

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


def test_third_derivatives():
    taps, position, width = draw((1, 2, 2), (4, 3), "gauss", margin=0.05)

    def third(function) -> Tensor:
        p = position.clone().requires_grad_()
        value = function(taps, p, width, (4, 3), "gauss").sin().sum()
        for _ in range(3):
            (slope,) = torch.autograd.grad(value, p, create_graph=True)
            value = slope.square().sum()
        return slope.detach()

    torch.testing.assert_close(third(dcls), third(dcls_reference), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("end", [-1, 1])
def test_derivatives_at_kinks_are_those_that_are_stated(interpolation, end):
    """On every entry of the axis, on its borders, half-way, at s = 0."""
    for size in ((4,), (5,), (80,)):
        limit = (size[0] - 1) / 2
        place = torch.arange(-limit, limit + 0.1, 0.5, dtype=torch.float64) * -end
        tensors = (torch.ones(1, len(place), 1).double(), place.view(1, -1, 1))
        width = None if interpolation == "bilinear" else torch.zeros_like(tensors[1])
        seed = torch.randn(1, len(place), *size, dtype=torch.float64)
        found = with_gradients(dcls, (*tensors, width), size, interpolation, seed)
        right = with_gradients(dcls_reference, (*tensors, width), size, interpolation, seed)
        for f, r in zip(found, right, strict=True):
            assert_near(f, r, 1e-13)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_seen_and_stays_in_its_pair(interpolation, which, value):
    if interpolation == "bilinear" and which == 2:
        return
    for size in ((5,), (3, 3), (9, 9), (1, 4), (5, 4, 5)):
        tensors = draw((2, 9, 2), size, interpolation, torch.float32)
        clean = dcls(*tensors, size, interpolation)
        tensors[which][1, 4, 0] = value
        found = dcls(*tensors, size, interpolation)
        seen = (found != clean).flatten(2).any(-1)
        if math.isnan(value):
            assert found[1, 4].isnan().any()
        assert seen.nonzero().tolist() in ([], [[1, 4]])
        right = dcls_reference(*tensors, size, interpolation)
        assert torch.equal(found[1, 4].isfinite().all(), right[1, 4].isfinite().all())


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(5,), (3, 3), (10, 10), (5, 1, 70)], ids=str)
def test_nothing_is_read_outside_the_inputs_and_all_of_the_output_is_written(size, interpolation):
    """Inputs lie between NaN, and torch fills new tensors with it."""

    def banded(tensor: Tensor) -> Tensor:
        whole = torch.full((tensor.numel() + 128,), math.nan, dtype=tensor.dtype)
        whole[64:-64] = tensor.flatten()
        return whole[64:-64].view(tensor.shape)

    shape = (3, 7, 3)
    plain = draw(shape, size, interpolation, torch.float32)
    seed = torch.randn(*shape[:2], *size)
    expected = with_gradients(dcls, plain, size, interpolation, seed)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        leaves = [None if t is None else banded(t).requires_grad_() for t in plain]
        kernel = dcls(*leaves, size, interpolation)
        needed = [t for t in leaves if t is not None]
        found = [kernel, *torch.autograd.grad(kernel, needed, banded(seed))]
    finally:
        torch.use_deterministic_algorithms(False)
    for f, e in zip(found, expected, strict=True):
        assert torch.equal(f, e)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_strided_and_expanded_arguments(interpolation):
    taps, position, width = draw((4, 6, 3), (4, 5), interpolation, torch.float32)
    expected = dcls(taps, position, width, (4, 5), interpolation)
    turned = [
        None if t is None else t.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        for t in (taps, position, width)
    ]
    assert torch.equal(dcls(*turned, (4, 5), interpolation), expected)
    leaf = position.clone().requires_grad_()
    one = torch.ones(1, 1, 1, 1)
    kernel = dcls(taps, leaf, width, (4, 5), interpolation)
    (found,) = torch.autograd.grad(kernel, leaf, one.expand_as(kernel))
    kernel = dcls(taps, leaf, width, (4, 5), interpolation)
    (right,) = torch.autograd.grad(kernel, leaf, torch.ones_like(kernel))
    assert torch.equal(found, right)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(3, 3), (17, 17)], ids=str)
def test_bits_do_not_depend_on_threads_or_repeats(size, interpolation):
    tensors = draw((67, 31, 9), size, interpolation, torch.float32)
    seed = torch.randn(67, 31, *size)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(with_gradients(dcls, tensors, size, interpolation, seed))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@pytest.mark.parametrize(("size", "interpolation"), [((9, 9), "bilinear"), ((3,), "triangle")])
def test_opcheck(size, interpolation):
    tensors = [
        None if t is None else t.requires_grad_()
        for t in draw((2, 3, 2), size, interpolation, margin=0.05)
    ]
    arguments = (*tensors, list(size), interpolation)
    torch.library.opcheck(torch.ops.omniconv.dcls.default, arguments)
    seed = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(torch.ops.omniconv.dcls_backward.default, (seed, *arguments))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_compiled_graphs_hold_the_kernel_and_exported_ones_do_not():
    layer = oc.DCLSConv2d(4, 4, 5, interpolation="gauss")
    x = torch.randn(2, 4, 9, 9)
    graphs = []

    def keep(module, inputs):
        graphs.append(str(module.graph))
        return module.forward

    torch.compiler.reset()
    found = torch.compile(layer, backend=keep, fullgraph=True)(x)
    assert torch.equal(found, layer(x))
    assert "omniconv.dcls" in graphs[0]
    exported = torch.export.export(layer, (x,))
    taps, position, width = draw((2, 3, 2), (4, 5), "gauss")
    traced = torch.jit.trace(lambda t: dcls(t, position, width, (4, 5), "gauss"), taps)
    for program in (exported, traced):
        assert "aten" in str(program.graph)
        assert not re.search(r"omniconv(::|\.)dcls", str(program.graph))


@pytest.fixture
def calls(monkeypatch) -> Iterator[list[str]]:
    """Which of kernel and reference computed, in order."""
    import omniconv.kernels.dcls as home

    found: list[str] = []
    direct, kernel, reference = home.ops.dcls_direct, home.ops.dcls, home.dcls_reference
    monkeypatch.setattr(home.ops, "dcls_direct", lambda *a: (found.append("direct"), direct(*a))[1])
    monkeypatch.setattr(home.ops, "dcls", lambda *a: (found.append("kernel"), kernel(*a))[1])
    monkeypatch.setattr(
        home, "dcls_reference", lambda *a: (found.append("reference"), reference(*a))[1]
    )
    return found


def test_where_the_reference_computes(calls, monkeypatch):
    taps, position, width = draw((2, 3, 2), (4, 5), "gauss", torch.float32)

    def call(taps=taps, position=position, width=width):
        return dcls(taps, position, width, (4, 5), "gauss")

    call()
    assert calls == ["direct"]
    with FakeTensorMode() as mode:
        call(*(mode.from_tensor(t) for t in (taps, position, width)))
    count_flops(oc.DCLSConv1d(1, 1, 3), torch.ones(1, 1, 3))
    assert calls == ["direct", "kernel", "kernel"]
    backend.set_backend("torch")
    call()
    backend.set_backend("auto")
    call(*(t.to("meta") for t in (taps, position, width)))
    call(*(t.to(torch.bfloat16) for t in (taps, position, width)))
    torch.func.vmap(call)(torch.stack([taps, taps]))
    torch.func.jvp(call, (taps,), (taps,))
    torch.func.grad(lambda t: call(t).sum())(taps)
    with torch.autograd.forward_ad.dual_level():
        call(torch.autograd.forward_ad.make_dual(taps, taps))
    assert calls[3:] == 7 * ["reference"]
    dcls(torch.ones(1, 1, 1), torch.zeros(1, 1, 4), None, (2, 2, 2, 2), "bilinear")
    assert calls[-1] == "reference"
    call()
    assert calls[-1] == "direct"


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_direct_calls_are_the_operators(interpolation):
    tensors = [t for t in draw((3, 7, 4), (5, 4), interpolation, margin=0.05) if t is not None]
    seed = torch.randn(3, 7, 5, 4, dtype=torch.float64)
    found = []
    for run in (ops.dcls_direct, ops.dcls):
        leaves = [t.clone().requires_grad_() for t in tensors]
        width = leaves[2] if len(leaves) > 2 else None
        kernel = run(leaves[0], leaves[1], width, [5, 4], interpolation)
        first = torch.autograd.grad(kernel, leaves, seed, create_graph=True)
        again = torch.autograd.grad(kernel, leaves, seed, retain_graph=True)
        assert all(map(torch.equal, again, first))
        batched = torch.autograd.grad(
            kernel, leaves, torch.stack([seed, -seed]), is_grads_batched=True, retain_graph=True
        )
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        found.append((kernel, *first, *second, *batched))
    for direct, operator in zip(*found, strict=True):
        assert torch.equal(direct, operator)


def test_transforms_and_tangents_are_those_of_the_reference():
    taps, position, width = draw((2, 3, 2), (4, 5), "gauss", margin=0.05)

    def call(p: Tensor) -> Tensor:
        return dcls(taps, p, width, (4, 5), "gauss")

    tangent = torch.randn_like(position)
    _, forward = torch.func.jvp(call, (position,), (tangent,))
    leaf = position.clone().requires_grad_()
    kernel = call(leaf)
    seed = torch.randn_like(kernel)
    (backward,) = torch.autograd.grad(kernel, leaf, seed)
    assert (forward * seed).sum().item() == pytest.approx((backward * tangent).sum().item())
    many = torch.func.vmap(call)(torch.stack([position, -position]))
    torch.testing.assert_close(many, torch.stack([call(position), call(-position)]))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("sliced", [False, True])
def test_flops_are_the_references(interpolation, sliced, monkeypatch):
    if sliced:
        monkeypatch.setattr("omniconv.math.taps.SLICE", 1)
        assert slice_rows((4, 3, 5), (4, 3)) == 1
    layer = oc.DCLSConv2d(3, 4, (4, 3), taps=5, interpolation=interpolation)
    kernel = count_flops(layer.kernel, backward=True)
    backend.set_backend("torch")
    reference = count_flops(layer.kernel, backward=True)
    assert (kernel.forward, kernel.backward) == (reference.forward, reference.backward)
    assert (kernel.forward, kernel.backward) == dcls_flops((4, 3, 5), (4, 3), interpolation)
    assert set(kernel.by_op) == {"omniconv.dcls", "omniconv.dcls_backward"}
    assert not kernel.unknown


class Kernels(Dataset):
    """Kernels that are built in a loader's worker."""

    def __init__(self, arguments) -> None:
        self.arguments = arguments

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return dcls(*self.arguments)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single core
def test_forked_workers_use_the_kernel_that_is_loaded():
    arguments = (*draw((33, 5, 4), (17, 17), "gauss", torch.float32), (17, 17), "gauss")
    expected = dcls(*arguments)
    loader = DataLoader(
        Kernels(arguments), num_workers=2, multiprocessing_context="fork", timeout=60
    )
    assert all(torch.equal(batch[0], expected) for batch in loader)


def test_memory_is_linear_in_taps_and_entries():
    """Beside kernel and gradients nothing is allocated through torch."""
    taps, position, width = draw((8, 8, 50), (31, 31), "gauss", torch.float32)
    leaves = [t.requires_grad_() for t in (taps, position, width)]
    with torch.profiler.profile(profile_memory=True) as profile:
        kernel = dcls(*leaves, (31, 31), "gauss")
        torch.autograd.grad(kernel, leaves, kernel.detach())
    held = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert held <= 1.05 * sum(t.nbytes for t in (*leaves, kernel))
