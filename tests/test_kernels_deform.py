"""The deformable kernel against loops written out here, its reference, and as an operator."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import flop_registry

from deform_cases import CASES, KINDS, LOOPED, Case, by_loops
from omniconv.analysis import count_flops
from omniconv.kernels import backend
from omniconv.kernels.deform import deform, kernel_for, ops
from omniconv.kernels.deform.flops import backward_flops, forward_flops
from omniconv.kernels.deform.reference import deform_reference

pytestmark = pytest.mark.skipif(
    bool(backend.load("deform").reason), reason=backend.load("deform").reason
)
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def auto(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(backend, "_backend", "auto")


def with_gradients(function, tensors, window, seed=None) -> list[Tensor]:
    """Output, and gradients of all that is there."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    y = function(*leaves, *window)
    seed = torch.ones_like(y) if seed is None else seed
    needed = [t for t in leaves if t is not None]
    return [y.detach(), *torch.autograd.grad(y, needed, seed, materialize_grads=True)]


def assert_near(found: Tensor, right: Tensor, tolerance: float) -> None:
    scale = max(right.abs().max().item(), 1e-3) if right.numel() else 1
    torch.testing.assert_close(found, right, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("case", [*KINDS.values(), *LOOPED], ids=str)
def test_reference_and_kernel_are_the_equation(case):
    tensors = case.draw()
    right = by_loops(*tensors, *case.window)
    assert_near(deform_reference(*tensors, *case.window), right, 1e-13)
    assert_near(ops.deform(*tensors, *case.window), right, 1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(case, dtype):
    tensors = case.draw(dtype)
    assert kernel_for("deform", *(t for t in tensors if t is not None))
    seed = torch.randn(case.batch, case.outputs or case.channels, *case.out, dtype=dtype)
    found = with_gradients(ops.deform_direct, tensors, case.window, seed)
    right = with_gradients(deform_reference, tensors, case.window, seed)
    for f, r in zip(found, right, strict=True):
        assert f.dtype == dtype
        assert f.shape == r.shape
        assert_near(f, r, 100 * torch.finfo(dtype).eps)


@kinds
def test_gradients_that_are_not_needed_are_left_out(kind):
    case = KINDS[kind]
    tensors = case.draw(torch.float32)
    seed = torch.randn(2, case.outputs or case.channels, *case.out)
    present = [t is not None for t in tensors[:4]]
    everything = ops.deform_backward(seed, *tensors[:4], *case.window, present)
    for needed in itertools.product((False, True), repeat=4):
        if any(n and not p for n, p in zip(needed, present, strict=True)):
            continue
        found = ops.deform_backward(seed, *tensors[:4], *case.window, needed)
        for f, whole, need in zip(found, everything, needed, strict=True):
            assert torch.equal(f, whole if need else torch.empty(0))


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize(("groups", "outputs"), [(1, 6), (2, 6), (4, 8)])
def test_without_offsets_it_is_the_convolution(dim, groups, outputs):
    case = Case(
        (9, 8, 7)[:dim], (3, 2, 3)[:dim], 4, outputs, groups, 2, masked=False, stride=(2,) * dim
    )
    x, offset, _, weight, bias = case.draw(torch.float32)
    found = deform(x, offset.zero_(), None, weight, bias, stride=2, groups=groups, offset_groups=2)
    convolution = (F.conv1d, F.conv2d, F.conv3d)[dim - 1]
    assert_near(found, convolution(x, weight, bias, 2, 0, 1, groups), 1e-6)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("kind", ["sum", "v2", "depthwise"])
def test_first_and_second_derivatives(dim, kind):
    channels, outputs, groups = {"sum": (2, 0, 1), "v2": (2, 2, 1), "depthwise": (2, 2, 2)}[kind]
    size, kernel = (4, 3, 2)[:dim], (2, 1, 1)[:dim]
    case = Case(size, kernel, channels, outputs, groups, 2, padding=(1, 0) * dim, batch=1)
    tensors = list(case.draw())
    offset = tensors[1]
    tensors[1] = offset.floor() + 0.1 + 0.8 * torch.rand_like(offset)  # away from whole places
    leaves = [t.requires_grad_() for t in tensors if t is not None]

    def call(*present: Tensor) -> Tensor:
        full = (*present, None, None)[:5]
        return ops.deform(*full, *case.window)

    fast = dim > 1
    assert torch.autograd.gradcheck(call, leaves, fast_mode=fast)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=fast)


def test_at_whole_places_the_derivative_is_that_of_the_cell_above():
    x = torch.tensor([[[1.0, 4.0, 9.0, 16.0]]], dtype=torch.float64)
    place = torch.tensor([-2.0, -1.5, -1.0, -0.5, 0.0, 1.0, 2.0, 3.0, 3.5, 4.0, 5.0]).double()
    values = [0, 0, 0, 0.5, 1, 4, 9, 16, 8, 0, 0]
    slopes = [0, 0, 1, 1, 3, 5, 7, -16, -16, 0, 0]
    for p, value, slope in zip(place, values, slopes, strict=True):
        for function in (deform_reference, ops.deform):
            leaf = p.expand(1, 1, 4).clone()
            leaf -= torch.arange(4)
            leaf.requires_grad_()
            y = function(x, leaf, None, None, None, [1], [1], [0, 0], [1], 1, 1)
            (found,) = torch.autograd.grad(y.sum(), leaf)
            assert y.tolist() == [[[value] * 4]]
            assert found.tolist() == [[[slope] * 4]]


@kinds
@pytest.mark.parametrize("value", [math.nan, math.inf, -1e30, 3e9])
def test_offsets_far_outside(kind, value):
    case = KINDS[kind]
    tensors = list(case.draw(torch.float32))
    clean = with_gradients(ops.deform_direct, tensors, case.window)
    tensors[1] = tensors[1].clone()
    tensors[1][1, 3, 2, 1] = value
    found = with_gradients(ops.deform_direct, tensors, case.window)
    right = with_gradients(deform_reference, tensors, case.window)
    for f, r in zip(found, right, strict=True):
        assert torch.equal(f.isnan(), r.isnan())
        assert_near(f.nan_to_num(0), r.nan_to_num(0), 1e-5)
    assert torch.equal(found[0][0], clean[0][0])
    elsewhere = torch.ones(case.out, dtype=torch.bool)
    elsewhere[2, 1] = False
    assert torch.equal(found[0][1][:, elsewhere], clean[0][1][:, elsewhere])
    assert found[0][1, :, 2, 1].isnan().any() == math.isnan(value)
    if not math.isnan(value):
        assert all(f.isfinite().all() for f in found)
        assert found[2][1, 3, 2, 1] == 0


@pytest.mark.parametrize("case", [*CASES, *KINDS.values()], ids=str)
def test_nothing_is_read_outside_the_inputs_and_all_of_the_output_is_written(case):
    """Inputs lie between NaN, and torch fills new tensors with it, the kernel's scratch too."""

    def banded(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        whole = torch.full((tensor.numel() + 128,), math.nan)
        whole[64:-64] = tensor.flatten()
        return whole[64:-64].view(tensor.shape)

    plain = case.draw(torch.float32, spread=3)
    seed = torch.randn(case.batch, case.outputs or case.channels, *case.out)
    expected = with_gradients(ops.deform_direct, plain, case.window, seed)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        leaves = [None if t is None else banded(t).requires_grad_() for t in plain]
        y = ops.deform_direct(*leaves, *case.window)
        needed = [t for t in leaves if t is not None]
        found = [y.detach(), *torch.autograd.grad(y, needed, banded(seed))]
    finally:
        torch.use_deterministic_algorithms(False)
    for f, e in zip(found, expected, strict=True):
        assert torch.equal(f, e)


@kinds
def test_values_that_are_not_finite_stay_where_they_are_read(kind):
    """NaN in one channel reaches its own samples, not those of neighbours in memory."""
    case = KINDS[kind]
    tensors = list(case.draw(torch.float32))
    tensors[0] = tensors[0].clone()
    tensors[0][1, 1, 3, 2] = math.nan
    found = with_gradients(ops.deform_direct, tensors, case.window)
    right = with_gradients(deform_reference, tensors, case.window)
    for f, r in zip(found, right, strict=True):
        assert torch.equal(f.isnan(), r.isnan())
        assert_near(f.nan_to_num(0), r.nan_to_num(0), 1e-5)


@kinds
def test_layouts(kind):
    case = KINDS[kind]
    tensors = case.draw(torch.float32)
    seed = torch.randn(2, case.outputs or case.channels, *case.out)
    expected = with_gradients(ops.deform_direct, tensors, case.window, seed)
    last = {"memory_format": torch.channels_last}

    def strided(t: Tensor) -> Tensor:
        wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1]), math.nan)
        wide[..., ::2] = t
        return wide[..., ::2]

    def turned(t: Tensor) -> Tensor:
        return t.movedim(0, -1).contiguous().movedim(-1, 0)

    for change in (lambda t: t.contiguous(**last) if t.dim() == 4 else t, strided, turned):
        changed = [None if t is None else change(t) for t in tensors]
        leaves = [None if t is None else t.requires_grad_() for t in changed]
        y = ops.deform_direct(*leaves, *case.window)
        needed = [t for t in leaves if t is not None]
        found = [y.detach(), *torch.autograd.grad(y, needed, change(seed))]
        assert y.is_contiguous()
        if tensors[4] is not None:  # torch's own sum over the gradient
            assert_near(found.pop(), expected[len(found)], 1e-6)
        assert all(map(torch.equal, found, expected))
    one = torch.ones(1, 1, 1, 1)
    y = ops.deform_direct(*tensors[:1], *leaves[1:], *case.window)
    (found,) = torch.autograd.grad(y, leaves[1], one.expand_as(y), retain_graph=True)
    (right,) = torch.autograd.grad(y, leaves[1], torch.ones_like(y))
    assert torch.equal(found, right)


@pytest.mark.parametrize("batch", [1, 20])
@kinds
def test_bits_do_not_depend_on_threads_or_repeats(kind, batch):
    case = Case(
        *((15, 14), (3, 3)),
        *{"v1": (20, 24, 2, 2), "v2": (20, 24), "sum": (40, 0, 1, 2), "depthwise": (24, 24, 24)}[
            kind
        ],
        masked=kind != "v1",
        batch=batch,
    )
    tensors = case.draw(torch.float32)
    seed = torch.randn(batch, case.outputs or case.channels, *case.out)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(with_gradients(ops.deform_direct, tensors, case.window, seed))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))
    right = with_gradients(deform_reference, tensors, case.window, seed)
    for f, r in zip(results[0], right, strict=True):
        assert_near(f, r, 2e-5)


@kinds
def test_nothing_to_do(kind):
    for change in ({"batch": 0}, {"size": (1, 5)}):
        case = Case(**{**KINDS[kind].__dict__, "padding": (0, 0, 0, 0), **change})
        tensors = case.draw(torch.float32)
        found = with_gradients(ops.deform_direct, tensors, case.window)
        assert found[0].numel() == 0
        for gradient, tensor in zip(found[1:], (t for t in tensors if t is not None), strict=True):
            assert torch.equal(gradient, torch.zeros_like(tensor))


@kinds
def test_opcheck(kind):
    """Tracing second derivatives takes a minute: with OMNICONV_TIER=3 only."""
    case = KINDS[kind]
    tensors = [None if t is None else t.requires_grad_() for t in case.draw()]
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    more = ("test_aot_dispatch_dynamic",) if os.environ.get("OMNICONV_TIER") == "3" else ()
    arguments = (*tensors, *case.window)
    torch.library.opcheck(torch.ops.omniconv.deform.default, arguments, test_utils=(*utils, *more))
    seed = torch.randn(2, case.outputs or case.channels, *case.out, dtype=torch.float64)
    needed = [t is not None for t in tensors[:4]]
    arguments = (seed.requires_grad_(), *tensors[:4], *case.window, needed)
    torch.library.opcheck(
        torch.ops.omniconv.deform_backward.default, arguments, test_utils=(*utils, *more)
    )


@kinds
def test_direct_calls_are_the_operators(kind):
    case = KINDS[kind]
    seed = torch.randn(2, case.outputs or case.channels, *case.out, dtype=torch.float64)
    found = []
    for run in (ops.deform_direct, ops.deform):
        tensors = case.draw()
        leaves = [None if t is None else t.requires_grad_() for t in tensors]
        needed = [t for t in leaves if t is not None]
        y = run(*leaves, *case.window)
        first = torch.autograd.grad(y, needed, seed, create_graph=True)
        again = torch.autograd.grad(y, needed, seed, retain_graph=True)
        assert all(map(torch.equal, again, first))
        second = torch.autograd.grad(
            sum(g.square().sum() for g in first), needed, materialize_grads=True
        )
        found.append((y, *first, *second))
    for direct, operator in zip(*found, strict=True):
        assert torch.equal(direct, operator)


@kinds
def test_flops_are_the_references(kind):
    case = KINDS[kind]
    tensors = case.draw(torch.float32)

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i, t in enumerate(tensors):
                self.register_parameter(f"t{i}", None if t is None else torch.nn.Parameter(t))

        def forward(self, x: Tensor) -> Tensor:
            kernel, stride, padding, dilation, groups, offset_groups = case.window
            pairs = [padding[:2], padding[2:]]
            return deform(
                *(self.t0, self.t1, self.t2, self.t3, self.t4),
                kernel_size=kernel,
                stride=stride,
                padding=pairs,
                dilation=dilation,
                groups=groups,
                offset_groups=offset_groups,
            )

    kernel = count_flops(Layer(), tensors[0], backward=True)
    backend.set_backend("torch")
    reference = count_flops(Layer(), tensors[0], backward=True)
    assert (kernel.forward, kernel.backward) == (reference.forward, reference.backward)
    assert {"omniconv.deform", "omniconv.deform_backward"} <= set(kernel.by_op)
    assert not kernel.unknown
    shapes = [None if t is None else t.shape for t in tensors]
    assert forward_flops(*shapes, case.kernel) == kernel.forward
    needed = [t is not None for t in tensors[:4]]
    by_bias = 0 if tensors[4] is None else 2 * case.outputs * math.prod(case.out)
    assert backward_flops(*shapes[:4], case.kernel, needed) + by_bias == kernel.backward
    assert torch.ops.omniconv.deform in flop_registry


@pytest.fixture
def calls(monkeypatch) -> Iterator[list[str]]:
    """Which of kernel and reference computed, in order."""
    import omniconv.kernels.deform as home

    found: list[str] = []

    def spy(name: str, function):
        return lambda *a: (found.append(name), function(*a))[1]

    monkeypatch.setattr(home.ops, "deform_direct", spy("direct", home.ops.deform_direct))
    monkeypatch.setattr(home.ops, "deform", spy("kernel", home.ops.deform))
    monkeypatch.setattr(home, "deform_reference", spy("reference", home.deform_reference))
    return found


def test_where_the_reference_computes(calls):
    x, offset, mask, weight, bias = KINDS["v2"].draw(torch.float32)
    pads = [(1, 0), (1, 1)]

    def call(x=x, offset=offset, mask=mask, weight=weight):
        return deform(x, offset, mask, weight, bias.to(x), padding=pads)

    expected = call()
    assert calls == ["direct"]
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in (x, offset, mask, weight, bias)]
        assert deform(*fake, padding=pads).shape == expected.shape
    assert calls == ["direct", "kernel"]
    backend.set_backend("torch")
    assert_near(call(), expected, 1e-5)
    backend.set_backend("auto")
    call(*(t.to("meta") for t in (x, offset, mask, weight)))
    half = call(*(t.to(torch.bfloat16) for t in (x, offset, mask, weight)))
    assert half.dtype == torch.bfloat16
    torch.func.vmap(call)(torch.stack([x, x]))
    torch.func.jvp(call, (x,), (x,))
    torch.func.grad(lambda t: call(t).sum())(x)
    assert calls[2:] == 6 * ["reference"]
    four = torch.ones(1, 1, 2, 2, 2, 2)
    deform(four, torch.zeros(1, 4, 2, 2, 2, 2), kernel_size=1)
    assert calls[-1] == "reference"
    call()
    assert calls[-1] == "direct"


def test_compiled_graphs_hold_the_kernel_and_exported_ones_do_not():
    x, offset, mask, weight, bias = KINDS["v2"].draw(torch.float32)

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor, offset: Tensor) -> Tensor:
            return deform(x, offset, mask, weight, bias, padding=((1, 0), (1, 1)))

    graphs = []

    def keep(module, inputs):
        graphs.append(str(module.graph))
        return module.forward

    torch.compiler.reset()
    found = torch.compile(Layer(), backend=keep, fullgraph=True)(x, offset)
    assert torch.equal(found, Layer()(x, offset))
    assert "omniconv.deform" in graphs[0]
    exported = torch.export.export(Layer(), (x, offset))
    assert "aten" in str(exported.graph)
    assert "omniconv" not in str(exported.graph)
    assert_near(exported.module()(x, offset), found, 1e-5)


def test_no_copy_of_all_samples_is_made():
    """Beside inputs, output and gradients there is x as the kernel keeps it, and no more."""
    case = Case((40, 40), (5, 5), 16, 16, padding=(2, 2, 2, 2), batch=8)
    tensors = case.draw(torch.float32)
    leaves = [t.requires_grad_() for t in tensors if t is not None]
    with torch.profiler.profile(profile_memory=True) as profile:
        y = ops.deform_direct(*leaves, *case.window)
        torch.autograd.grad(y, leaves, y.detach())
    held = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    x, results = tensors[0].nbytes, sum(t.nbytes for t in (*leaves, y))
    weights = 8 * tensors[3].nbytes
    assert held <= results + 3 * 1.2 * x + weights + 4096
    assert 25 * x > 3 * results  # what the samples would take
