"""The position-varying kernel against loops written out here, its reference, and as an operator."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import omniconv as oc
from omniconv.analysis import count_flops
from omniconv.kernels import backend
from omniconv.kernels.position_varying import DTYPES, kernel_for, ops, position_varying
from omniconv.kernels.position_varying.flops import position_varying_flops
from omniconv.kernels.position_varying.reference import position_varying_reference

pytestmark = pytest.mark.skipif(
    bool(backend.load("position_varying").reason), reason=backend.load("position_varying").reason
)


@pytest.fixture(autouse=True)
def auto(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(backend, "_backend", "auto")


@dataclass(frozen=True)
class Case:
    """One convolution; ``padding`` has 2D ints."""

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    batch: int = 2
    groups: int = 2
    each: int = 3
    shared: bool = False
    softmax: bool = False

    @property
    def dim(self) -> int:
        return len(self.size)

    @property
    def arguments(self) -> tuple[list[int], list[int], list[int], bool]:
        """What follows the tensors in a call of the operator."""
        ones = [1] * self.dim
        pads = list(self.padding) or [0] * (2 * self.dim)
        return list(self.stride) or ones, pads, list(self.dilation) or ones, self.softmax

    @property
    def output(self) -> tuple[int, ...]:
        stride, pads, dilation, _ = self.arguments
        return tuple(
            (n + pads[2 * a] + pads[2 * a + 1] - dilation[a] * (k - 1) - 1) // stride[a] + 1
            for a, (n, k) in enumerate(zip(self.size, self.kernel, strict=True))
        )

    def draw(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
        """x, weight and a gradient for the output."""
        generator = torch.Generator().manual_seed(math.prod(self.size) + math.prod(self.kernel))
        channels, sets = self.groups * self.each, 1 if self.shared else self.batch
        shapes = (
            (self.batch, channels, *self.size),
            (sets, self.groups, *self.kernel, *self.output),
            (self.batch, channels, *self.output),
        )
        x, weight, grad = (torch.randn(s, generator=generator).to(dtype) for s in shapes)
        return x, weight, grad

    def call(self, x: Tensor, weight: Tensor) -> Tensor:
        stride, pads, dilation, softmax = self.arguments
        pairs = [pads[2 * a : 2 * a + 2] for a in range(self.dim)]
        return position_varying(x, weight, stride, pairs, dilation, softmax)

    def reference(self, x: Tensor, weight: Tensor) -> Tensor:
        return position_varying_reference(x, weight, *self.arguments)


SMALL = (
    Case((7,), (3,), padding=(2, 0), groups=1),
    Case((9,), (4,), stride=(3,), padding=(1, 2), dilation=(2,), shared=True, softmax=True),
    Case((5, 4), (3, 2), padding=(1, 1, 0, 1)),
    Case((7, 6), (2, 3), stride=(2, 1), padding=(0, 2, 3, 1), dilation=(1, 2), softmax=True),
    Case((4, 5), (3, 3), stride=(3, 2), padding=(2, 2, 0, 1), each=1, shared=True),
    Case((2, 2), (3, 5), padding=(2, 1, 2, 3), groups=3, each=2),  # larger than the image
    Case((3, 4, 3), (2, 3, 1), stride=(1, 2, 2), padding=(1, 0, 0, 2, 0, 0), shared=True),
    Case((4, 3, 4), (2, 2, 3), padding=(0, 1, 1, 1, 2, 0), dilation=(2, 1, 1), softmax=True),
)
LARGE = (
    Case((300,), (63,), padding=(31, 31), each=16),
    Case((3000,), (5,), padding=(4, 0), stride=(2,), groups=1, each=1, shared=True),
    Case((1,), (1,), groups=1, each=1),
    Case((14, 15), (7, 7), padding=(3,) * 4, each=16),
    Case((14, 15), (7, 7), padding=(3,) * 4, each=18, shared=True, softmax=True),
    Case((56, 56), (3, 3), padding=(1,) * 4, groups=1, each=8, batch=1),
    Case((33, 70), (3, 5), padding=(1, 1, 2, 2), groups=5, each=1, softmax=True),
    Case((41, 1), (9, 1), padding=(4, 4, 0, 0), each=5),
    Case((1, 41), (1, 9), padding=(0, 0, 4, 4), each=5, softmax=True),
    Case((30, 31), (5, 4), stride=(2, 3), padding=(2, 1, 0, 3), dilation=(3, 2), each=17),
    Case((30, 31), (2, 2), stride=(4, 5), padding=(5, 5, 6, 0), each=4, softmax=True),
    Case((20, 20), (21, 21), padding=(10,) * 4, groups=1, each=2),
    Case((9, 8, 7), (3, 3, 3), padding=(1,) * 6, each=16),
    Case((9, 8, 30), (3, 2, 3), stride=(2, 2, 1), padding=(1, 0, 2, 1, 1, 1), each=4, shared=True),
)


def naive(case: Case, x: Tensor, weight: Tensor) -> Tensor:
    """Position by position and tap by tap; taps outside of the image read nothing."""
    stride, pads, dilation, softmax = case.arguments
    flat = weight.flatten(2, 1 + case.dim)
    if softmax:
        powers = flat.exp()
        weight = (powers / powers.sum(2, keepdim=True)).view_as(weight)
    rows = []
    for p in itertools.product(*map(range, case.output)):
        total = torch.zeros_like(x[(slice(None), slice(None), *[0] * case.dim)])
        for q in itertools.product(*map(range, case.kernel)):
            at = [
                i * s - pads[2 * a] + k * d
                for a, (i, s, k, d) in enumerate(zip(p, stride, q, dilation, strict=True))
            ]
            if all(0 <= i < n for i, n in zip(at, case.size, strict=True)):
                factor = weight[(slice(None), slice(None), *q, *p)].repeat_interleave(case.each, 1)
                total = total + factor * x[(slice(None), slice(None), *at)]
        rows.append(total)
    return torch.stack(rows, -1).unflatten(-1, case.output)


def with_gradients(function, x: Tensor, weight: Tensor, grad: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, weight)]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def assert_near(found: Tensor, right: Tensor, tolerance: float) -> None:
    assert found.shape == right.shape
    scale = right.abs().max().item() if right.numel() else 0.0
    torch.testing.assert_close(
        found.double(), right.double(), rtol=0, atol=tolerance * max(scale, 1.0)
    )


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_equals_the_loops_forward_and_backward(case):
    x, weight, grad = case.draw()
    right = with_gradients(lambda *t: naive(case, *t), x, weight, grad)
    for function in (case.call, case.reference):
        for f, r in zip(with_gradients(function, x, weight, grad), right, strict=True):
            assert_near(f, r, 1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*SMALL, *LARGE], ids=str)
def test_equals_the_reference_in_float64(case, dtype):
    x, weight, grad = case.draw(dtype)
    assert kernel_for("position_varying", x, weight, dtypes=DTYPES)
    found = with_gradients(case.call, x, weight, grad)
    right = with_gradients(case.reference, x.double(), weight.double(), grad.double())
    for f, r in zip(found, right, strict=True):
        assert f.dtype == dtype
        assert_near(f, r, (2 if dtype == torch.bfloat16 else 30) * torch.finfo(dtype).eps)


@pytest.mark.parametrize("case", [SMALL[1], SMALL[3], SMALL[4], SMALL[7]], ids=str)
def test_second_derivatives(case):
    x, weight, grad = (t.requires_grad_() for t in case.draw())
    assert torch.autograd.gradcheck(case.call, (x, weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(case.call, (x, weight), (grad,), fast_mode=True)


@pytest.mark.parametrize("wanted", [0, 1])
def test_only_the_gradient_that_is_needed(wanted):
    case = SMALL[3]
    x, weight, grad = case.draw()
    leaves = [x, weight]
    leaves[wanted].requires_grad_()
    for function in (case.call, case.reference):
        y = function(*leaves)
        (first,) = torch.autograd.grad(y, leaves[wanted], grad.requires_grad_(), create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), grad)
        if function == case.call:
            found = first, second
    assert_near(found[0], first, 1e-14)
    assert_near(found[1], second, 1e-13)


@pytest.mark.parametrize("case", [LARGE[3], LARGE[4], LARGE[9], LARGE[13]], ids=str)
def test_layouts_and_strides(case):
    """Images with the channels last, weights with the taps last, expanded gradients."""
    x, weight, grad = case.draw(torch.float32)
    form = torch.channels_last if case.dim == 2 else torch.channels_last_3d
    taps = weight.flatten(1, 1 + case.dim).movedim(1, -1).contiguous().movedim(-1, 1)
    taps = taps.unflatten(1, weight.shape[1 : 2 + case.dim])
    grad = grad[:1, :1].expand_as(grad)
    expected = with_gradients(case.call, x, weight, grad)
    for ours in (x.to(memory_format=form), x.transpose(-1, -2).contiguous().transpose(-1, -2)):
        for factors in (weight, taps):
            found = with_gradients(case.call, ours, factors, grad)
            for f, e in zip(found, expected, strict=True):
                assert torch.equal(f, e)
            last = ours.is_contiguous(memory_format=form)
            assert found[0].is_contiguous(memory_format=form if last else torch.contiguous_format)
            assert found[1].stride() == ours.stride()
            assert found[2].stride() == factors.stride()


@pytest.mark.parametrize("case", [*SMALL, LARGE[3], LARGE[10]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_is_read_outside_the_inputs_and_all_of_the_output_is_written(case, dtype):
    """Inputs lie between NaN, and torch fills new tensors with it."""

    def banded(tensor: Tensor) -> Tensor:
        whole = torch.full((tensor.numel() + 256,), math.nan, dtype=tensor.dtype)
        whole[128:-128] = tensor.flatten()
        return whole[128:-128].view(tensor.shape)

    x, weight, grad = case.draw(dtype)
    expected = with_gradients(case.call, x, weight, grad)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        found = with_gradients(case.call, banded(x), banded(weight), banded(grad))
    finally:
        torch.use_deterministic_algorithms(False)
    for f, e in zip(found, expected, strict=True):
        assert f.isfinite().all()
        assert torch.equal(f, e)


@pytest.mark.parametrize("case", [LARGE[3], LARGE[4], LARGE[5], LARGE[9]], ids=str)
def test_bits_do_not_depend_on_threads_or_repeats(case):
    x, weight, grad = case.draw(torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(with_gradients(case.call, x, weight, grad))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_under_its_window(value):
    case = Case((9, 9), (3, 3), padding=(1,) * 4, each=2)
    x, weight, _ = case.draw(torch.float32)
    x[1, 2, 4, 5] = value
    y = case.call(x, weight)
    touched = torch.zeros_like(y, dtype=torch.bool)
    touched[1, 2, 3:6, 4:7] = True
    assert torch.equal(~y.isfinite(), touched)


def test_logits_may_be_infinite_below_and_large():
    """A tap of logit -inf has weight 0; a position that is all -inf is NaN, as in torch."""
    case = Case((9,), (4,), padding=(1, 2), softmax=True)
    x, weight, grad = case.draw(torch.float32)
    weight = 300 * weight
    weight[:, :, 1] = -math.inf
    for f, r in zip(
        with_gradients(case.call, x, weight, grad),
        with_gradients(case.reference, x.double(), weight.double(), grad.double()),
        strict=True,
    ):
        assert_near(f, r, 1e-5)
    weight[0, 0, :, 3] = -math.inf
    assert torch.equal(case.call(x, weight).isnan(), case.reference(x, weight).isnan())


@pytest.mark.parametrize("shape", [(0, 6), (2, 0)])
def test_empty_batches_and_no_channels(shape):
    for shared in (False, True):
        x = torch.randn(*shape, 5, 5, requires_grad=True)
        weight = torch.randn(1 if shared else shape[0], 2, 3, 3, 3, 3, requires_grad=True)
        y = position_varying(x, weight)
        assert y.shape == (*shape, 3, 3)
        y.sum().backward()
        assert x.grad.shape == x.shape
        assert weight.grad.eq(0).all()


def test_opcheck():
    case = SMALL[3]
    x, weight, grad = (t.requires_grad_() for t in case.draw())
    torch.library.opcheck(ops.position_varying, (x, weight, *case.arguments))
    arguments = (grad, x, weight, *case.arguments, [True, True])
    torch.library.opcheck(ops.position_varying_backward, arguments)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_compiled_graphs_hold_the_kernel_and_exported_ones_do_not():
    layer = oc.nn.Involution2d(4, 4, 3, padding=1, groups=2).eval()
    x = torch.randn(2, 4, 9, 9)
    graphs = []

    def keep(module, inputs):
        graphs.append(str(module.graph))
        return module.forward

    torch.compiler.reset()
    found = torch.compile(layer, backend=keep, fullgraph=True)(x)
    assert torch.equal(found, layer(x))
    assert "omniconv.position_varying" in graphs[0]
    exported = torch.export.export(layer, (x,))
    traced = torch.jit.trace(layer, x)
    for program in (exported.graph, traced.inlined_graph):
        assert "aten" in str(program)
        assert not re.search(r"omniconv(::|\.)position_varying", str(program))


@pytest.fixture
def calls(monkeypatch) -> Iterator[list[str]]:
    """Which of kernel and reference computed, in order."""
    import omniconv.kernels.position_varying as home

    found: list[str] = []

    def watch(place, name: str, word: str) -> None:
        run = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *a: (found.append(word), run(*a))[1])

    watch(home.ops, "position_varying_direct", "direct")
    watch(home.ops, "position_varying", "kernel")
    watch(home, "position_varying_reference", "reference")
    return found


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap over addcmul_
def test_where_the_reference_computes(calls):
    case = SMALL[2]
    x, weight, _ = case.draw(torch.float32)
    case.call(x, weight)
    assert calls == ["direct"]
    with FakeTensorMode() as mode:
        case.call(mode.from_tensor(x), mode.from_tensor(weight))
    count_flops(oc.nn.Involution1d(4, 4, 3), torch.ones(2, 4, 5))
    assert calls == ["direct", "kernel", "kernel"]
    backend.set_backend("torch")
    case.call(x, weight)
    backend.set_backend("auto")
    case.call(x.to("meta"), weight.to("meta"))
    case.call(x.half(), weight.half())
    torch.func.vmap(case.call)(torch.stack([x, x]), torch.stack([weight, weight]))
    torch.func.jvp(lambda t: case.call(t, weight), (x,), (x,))
    torch.func.grad(lambda t: case.call(t, weight).sum())(x)
    assert calls[3:] == 6 * ["reference"]
    case.call(x, weight)
    assert calls[-1] == "direct"


@pytest.mark.parametrize("case", [SMALL[3], SMALL[4]], ids=str)
def test_direct_calls_are_the_operators(case):
    x, weight, grad = case.draw()
    found = []
    for run in (ops.position_varying_direct, ops.position_varying):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        y = run(*leaves, *case.arguments)
        first = torch.autograd.grad(y, leaves, grad, create_graph=True)
        again = torch.autograd.grad(y, leaves, grad, retain_graph=True)
        assert all(map(torch.equal, again, first))
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        found.append((y, *first, *second))
    for direct, operator in zip(*found, strict=True):
        assert torch.equal(direct, operator)


@pytest.mark.parametrize("case", [*SMALL, Case((5,), (1,), each=1)], ids=str)
def test_flops_are_the_references(case):
    x, weight, _ = case.draw(torch.float32)
    for needed in ((True, True), (True, False), (False, True)):
        counts = []
        for name in ("auto", "torch"):
            backend.set_backend(name)
            leaves = [t.clone().requires_grad_(n) for t, n in zip((x, weight), needed, strict=True)]
            counts.append(count_flops(case.call, *leaves, backward=True))
        kernel, reference = counts
        right = position_varying_flops(x.shape, weight.shape, case.padding, case.softmax, needed)
        assert (kernel.forward, kernel.backward) == (reference.forward, reference.backward) == right
        assert set(kernel.by_op) == {
            "omniconv.position_varying",
            "omniconv.position_varying_backward",
        }
        assert not kernel.unknown


@pytest.mark.parametrize("softmax", [False, True])
def test_memory_is_that_of_the_results(softmax):
    """Beside output and gradients nothing is allocated through torch: x is not padded."""
    case = Case((24, 25), (7, 7), padding=(3,) * 4, each=16, softmax=softmax)
    x, weight, grad = (t.requires_grad_() for t in case.draw(torch.float32))
    with torch.profiler.profile(profile_memory=True) as profile:
        y = case.call(x, weight)
        torch.autograd.grad(y, (x, weight), grad)
    held = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert held <= 1.05 * sum(t.nbytes for t in (x, weight, y))
