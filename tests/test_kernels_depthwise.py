"""Depthwise convolution: the kernel and the other ways against sums of shifted images."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from omniconv.analysis import count_flops
from omniconv.kernels import backend
from omniconv.kernels.depthwise import DTYPES, choice, depthwise, ops
from omniconv.kernels.depthwise.choice import in_layout, layout_of
from omniconv.kernels.depthwise.flops import depthwise_flops
from omniconv.kernels.depthwise.reference import depthwise_reference

pytestmark = pytest.mark.skipif(
    bool(backend.load("depthwise").reason), reason=backend.load("depthwise").reason
)

LAYOUTS = ("contiguous", "channels_last")


@dataclass(frozen=True)
class Case:
    batch: int
    channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    padding: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    multiple: int = 1

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int]]:
        ones = (1,) * len(self.size)
        padding = self.padding or [k // 2 for k in self.kernel for _ in range(2)]
        return list(self.stride or ones), list(padding), list(self.dilation or ones)

    def draw(self, dtype: torch.dtype = torch.float64, layout: str = "contiguous") -> list[Tensor]:
        """x, weight, bias and a gradient of y, the same numbers in every dtype."""
        generator = torch.Generator().manual_seed(math.prod((*self.size, *self.kernel)))

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).bfloat16().to(dtype)

        outputs = self.channels * self.multiple
        x = in_layout(normal(self.batch, self.channels, *self.size), layout)
        weight = normal(outputs, 1, *self.kernel)
        size = ops.output_size(self.size, self.kernel, *self.geometry)
        grad = in_layout(normal(self.batch, outputs, *size), layout)
        return [x, weight, normal(outputs), grad]


CASES = (
    Case(2, 16, (9, 11), (3, 3)),
    Case(1, 17, (12, 30), (7, 7)),
    Case(3, 5, (7, 7), (5, 4), (2, 1, 3, 0)),
    Case(2, 33, (20, 19), (13, 13)),
    Case(1, 4, (6, 5), (19, 13)),  # larger than the image
    Case(1, 16, (30, 40), (17, 31)),
    Case(1, 3, (4, 70), (7, 63)),
    Case(2, 16, (20, 50), (1, 21)),
    Case(2, 16, (50, 20), (21, 1)),
    Case(2, 8, (14, 15), (3, 3), stride=(2, 2)),
    Case(1, 19, (23, 17), (5, 7), stride=(3, 2), dilation=(1, 2)),
    Case(2, 6, (23, 31), (4, 5), (5, 0, 3, 9), (2, 3), (3, 2)),
    Case(2, 6, (9, 40), (3, 3), (0, 0, 6, 6), dilation=(1, 6), stride=(1, 4)),
    Case(2, 3, (9, 8), (3, 3), multiple=3),
    Case(1, 24, (9, 8), (3, 5), multiple=2, stride=(1, 2)),
    Case(1, 2, (1, 1), (1, 1)),
    Case(1, 16, (1, 9), (3, 3)),
    Case(1, 3, (3, 3), (3, 3), (0, 0, 0, 0)),
    Case(5, 7, (4, 4), (2, 2), (7, 5, 3, 9)),  # beyond the kernel's reach
    Case(2, 16, (60,), (9,)),
    Case(3, 7, (33,), (4,), (5, 0), (3,), (2,), 2),
    Case(1, 16, (20000,), (5,)),  # in several bands
    Case(1, 16, (150, 120), (3, 5)),
    Case(2, 16, (6, 7, 9), (3, 3, 3)),
    Case(1, 5, (5, 8, 6), (4, 1, 3), (1, 2, 0, 0, 3, 1), (2, 1, 2), (1, 2, 1)),
    Case(1, 2, (9, 3, 3), (7, 1, 1)),
    Case(1, 16, (30, 20, 24), (3, 3, 2)),
    Case(0, 4, (8, 8), (3, 3)),
)


@pytest.fixture(autouse=True)
def auto(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(backend, "_backend", "auto")
    monkeypatch.setattr(choice, "find", lambda name: None)
    table = choice.table
    table.cache_clear()
    yield
    table.cache_clear()


def by_shifts(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any
) -> Tensor:
    """Tap by tap, each times a shifted image between zeros."""
    size = ops.output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    pads = pairs(padding)
    wide = [n + lo + hi for n, (lo, hi) in zip(x.shape[2:], pads, strict=True)]
    around = x.new_zeros(*x.shape[:2], *wide)
    inner = tuple(slice(lo, lo + n) for n, (lo, _) in zip(x.shape[2:], pads, strict=True))
    around[(..., *inner)] = x
    around = around.repeat_interleave(len(weight) // x.shape[1], 1)
    y = x.new_zeros(len(x), len(weight), *size)
    for tap in itertools.product(*map(range, weight.shape[2:])):
        axes = zip(tap, dilation, stride, size, strict=True)
        under = tuple(slice(v * d, v * d + s * (n - 1) + 1, s) for v, d, s, n in axes)
        factor = weight[(slice(None), 0, *tap)]
        y = y + factor.view(-1, *[1] * len(size)) * around[(..., *under)]
    return y if bias is None else y + bias.view(-1, *[1] * len(size))


def with_gradients(function: Any, tensors: list[Tensor], *geometry: Any) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors[:3]]
    y = function(*leaves, *geometry)
    return [y.detach(), *torch.autograd.grad(y, leaves, tensors[3])]


def pairs(padding: Any) -> list[tuple[int, int]]:
    return list(zip(padding[::2], padding[1::2], strict=True))


def of_pairs(function: Any) -> Any:
    """A form with the operators' padding as one with the functional's."""
    return lambda x, w, b, s, p, d: function(x, w, b, s, pairs(p), d)


@cache
def right_of(case: Case) -> list[Tensor]:
    return with_gradients(by_shifts, case.draw(), *case.geometry)


def assert_near(found: Tensor, right: Tensor, tolerance: float) -> None:
    assert found.shape == right.shape
    if right.numel():
        error = (found.double() - right).abs().max().item()
        assert error <= tolerance * max(1.0, right.abs().max().item())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(case, dtype, layout):
    tensors = case.draw(dtype, layout)
    right = right_of(case)
    found = with_gradients(of_pairs(depthwise), tensors, *case.geometry)
    assert backend.used().count("depthwise") == 1
    assert layout_of(found[0]) == layout_of(tensors[3])
    for f, r in zip(found, right, strict=True):
        assert f.dtype == dtype
        assert_near(f, r, {torch.bfloat16: 2}.get(dtype, 50) * torch.finfo(dtype).eps)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference(case):
    tensors = case.draw()
    right = [*right_of(case)]
    found = with_gradients(depthwise_reference, tensors, *case.geometry)
    x, weight, _, grad = (t.detach() for t in tensors)
    for ways in choice.BY_TORCH.values():
        if ways is choice.BY_TORCH["fft"]:
            continue
        by_x = ways.input(grad, weight, case.size, *case.geometry)
        found.append(by_x.unflatten(1, (case.channels, -1)).sum(2))
        right.append(right[1])
        found.append(ways.weight(grad, x, case.kernel, *case.geometry))
        right.append(right[2])
    for f, r in zip(found, right, strict=True):
        assert_near(f, r, 1e-13)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", choice.BY_TORCH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_other_ways(name, layout, dtype):
    ways = choice.BY_TORCH[name]
    for case in CASES:
        stride, padding, dilation = case.geometry
        reach = [k - 1 for k in case.kernel for _ in range(2)]
        plain = max(*stride, *dilation, case.multiple) == 1 and case.batch
        if not plain or any(p > r for p, r in zip(padding, reach, strict=True)):
            continue
        if math.prod(case.size) > 4000 or math.prod(case.kernel) > 60:
            continue
        x, weight, bias, grad = case.draw(dtype, layout)
        found = [
            ways.forward(x, weight, bias, *case.geometry),
            ways.input(grad, weight, case.size, *case.geometry),
            ways.weight(grad, x, case.kernel, *case.geometry),
        ]
        assert layout_of(found[0]) == layout_of(grad)
        assert layout_of(found[1]) == layout_of(grad)
        for f, r in zip(found, right_of(case), strict=False):
            assert f.dtype == dtype
            assert_near(f, r, 100 * torch.finfo(dtype).eps)


SMALL = (
    Case(2, 3, (5,), (3,), (1, 2), multiple=2),
    Case(1, 2, (5, 4), (2, 3), (1, 0, 2, 1), (2, 1), (1, 2)),
    Case(1, 2, (3, 2, 3), (2, 1, 2)),
)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_second_derivatives(case):
    x, weight, bias, grad = (t.requires_grad_() for t in case.draw())
    call = of_pairs(depthwise)
    assert torch.autograd.gradcheck(call, (x, weight, bias, *case.geometry))
    assert torch.autograd.gradgradcheck(call, (x, weight, bias, *case.geometry), (grad,))


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_opcheck(case):
    x, weight, bias, grad = (t.requires_grad_() for t in case.draw())
    check = torch.library.opcheck
    check(ops.depthwise, (x, weight, bias, *case.geometry))
    check(ops.depthwise, (in_layout(x, "channels_last").detach(), weight, None, *case.geometry))
    check(ops.depthwise_input, (grad, weight, list(case.size), *case.geometry))
    check(ops.depthwise_weight, (grad, x, list(case.kernel), *case.geometry))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [c for c in CASES if math.prod(c.size) < 2000], ids=str)
def test_nothing_is_read_outside_the_inputs_and_all_of_the_output_is_written(case, layout):
    """Inputs lie between NaN, and torch fills new tensors with it."""

    def banded(tensor: Tensor) -> Tensor:
        whole = torch.full((tensor.numel() + 128,), math.nan, dtype=tensor.dtype)
        found = whole[64:-64].as_strided(tensor.shape, tensor.stride(), 64)
        return found.copy_(tensor)

    plain = case.draw(torch.float32, layout)
    expected = with_gradients(of_pairs(depthwise), plain, *case.geometry)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        found = with_gradients(of_pairs(depthwise), [banded(t) for t in plain], *case.geometry)
    finally:
        torch.use_deterministic_algorithms(False)
    for f, e in zip(found, expected, strict=True):
        assert torch.equal(f, e)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [3, 16, 40])
def test_bits_do_not_depend_on_threads_or_repeats(channels, layout):
    case = Case(5, channels, (33, 40), (7, 5))
    tensors = case.draw(torch.float32, layout)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(with_gradients(of_pairs(depthwise), tensors, *case.geometry)[:3])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


def test_strided_and_expanded_arguments():
    case = Case(2, 6, (9, 8), (3, 3))
    x, weight, bias, grad = case.draw(torch.float32)
    expected = with_gradients(of_pairs(depthwise), [x, weight, bias, grad], *case.geometry)
    turned = [t.mT.contiguous().mT if t.dim() > 1 else t for t in (x, weight, bias, grad)]
    turned[2] = bias.repeat_interleave(2)[::2]
    assert not turned[0].is_contiguous()
    for f, e in zip(
        with_gradients(of_pairs(depthwise), turned, *case.geometry), expected, strict=True
    ):
        assert torch.equal(f, e)
    one = [x, weight, bias, torch.ones(1, 1, 1, 1).expand(grad.shape)]
    full = [x, weight, bias, torch.ones(grad.shape)]
    for f, e in zip(
        with_gradients(of_pairs(depthwise), one, *case.geometry),
        with_gradients(of_pairs(depthwise), full, *case.geometry),
        strict=True,
    ):
        assert torch.equal(f, e)


def test_layouts_may_be_mixed():
    case = Case(2, 20, (9, 8), (5, 3))
    x, weight, bias, grad = case.draw()
    right = with_gradients(by_shifts, [x, weight, bias, grad], *case.geometry)
    for mixed in (
        [x, weight, bias, in_layout(grad, "channels_last")],
        [in_layout(x, "channels_last"), weight, bias, grad],
        [x, in_layout(weight, "channels_last"), bias, grad],
    ):
        for f, r in zip(
            with_gradients(of_pairs(depthwise), mixed, *case.geometry), right, strict=True
        ):
            assert_near(f, r, 1e-13)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_plane(value):
    case = Case(3, 5, (9, 8), (3, 3))
    x, weight, _, _ = case.draw(torch.float32)
    clean = depthwise(x, weight, None, 1, 1)
    x[1, 2, 4, 4] = value
    found = depthwise(x, weight, None, 1, 1)
    changed = (found != clean).flatten(2).any(-1).nonzero().tolist()
    assert changed == [[1, 2]]
    assert torch.equal(
        found[1, 2].isfinite(),
        depthwise_reference(x, weight, None, [1, 1], [1] * 4, [1, 1])[1, 2].isfinite(),
    )


@pytest.fixture
def calls(monkeypatch) -> Iterator[list[str]]:
    """Which of kernel and reference computed, in order."""
    import omniconv.kernels.depthwise as home

    found: list[str] = []

    def noting(name: str, function: Any) -> Any:
        return lambda *a: (found.append(name), function(*a))[1]

    monkeypatch.setattr(home.ops, "depthwise_direct", noting("direct", ops.depthwise_direct))
    monkeypatch.setattr(home.ops, "depthwise", noting("kernel", ops.depthwise))
    monkeypatch.setattr(home, "depthwise_reference", noting("reference", home.depthwise_reference))
    return found


def test_where_the_reference_computes(calls):
    x, weight = torch.randn(2, 3, 6, 5), torch.randn(3, 1, 3, 3)

    def call(x: Tensor = x, weight: Tensor = weight) -> Tensor:
        return depthwise(x, weight, padding=1)

    call()
    with FakeTensorMode() as mode:
        call(mode.from_tensor(x), mode.from_tensor(weight))
    assert calls == ["direct", "kernel"]
    backend.set_backend("torch")
    call()
    backend.set_backend("auto")
    call(x.to("meta"), weight.to("meta"))
    call(x.half(), weight.half())
    torch.func.vmap(call)(torch.stack([x, x]))
    torch.func.jvp(call, (x,), (x,))
    torch.func.grad(lambda t: call(t).sum())(x)
    assert calls[2:] == 6 * ["reference"]
    call()
    assert calls[-1] == "direct"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_direct_calls_are_the_operators(layout):
    case = Case(2, 3, (6, 5), (3, 3), multiple=2)
    tensors = case.draw(layout=layout)
    found = []
    for run in (ops.depthwise_direct, ops.depthwise):
        leaves = [t.detach().clone().requires_grad_() for t in tensors[:3]]
        y = run(*leaves, *case.geometry)
        first = torch.autograd.grad(y, leaves, tensors[3], create_graph=True)
        again = torch.autograd.grad(y, leaves, tensors[3], retain_graph=True)
        assert all(map(torch.equal, again, first))
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves[:2])
        found.append((y, *first, *second))
    for direct, operator in zip(*found, strict=True):
        assert torch.equal(direct, operator)


def test_compiled_graphs_hold_the_kernel_and_exported_ones_do_not():
    class Layer(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return depthwise(x, weight, None, 1, 1)

    x, weight = torch.randn(2, 4, 9, 9), torch.randn(4, 1, 3, 3)
    graphs = []

    def keep(module, inputs):
        graphs.append(str(module.graph))
        return module.forward

    torch.compiler.reset()
    found = torch.compile(Layer(), backend=keep, fullgraph=True)(x, weight)
    assert torch.equal(found, depthwise(x, weight, None, 1, 1))
    assert "omniconv.depthwise" in graphs[0]
    exported = torch.export.export(Layer(), (x, weight))
    assert "aten" in str(exported.graph)
    assert "omniconv" not in str(exported.graph)


def test_autocast_computes_in_its_dtype(calls):
    x, weight, bias = torch.randn(2, 16, 9, 9), torch.randn(16, 1, 3, 3), torch.randn(16)
    with torch.autocast("cpu", torch.bfloat16):
        found = depthwise(x, weight, bias, 1, 1)
    assert found.dtype == torch.bfloat16
    assert calls == ["direct"]
    exact = depthwise(*(t.bfloat16() for t in (x, weight, bias)), 1, 1)
    assert torch.equal(found, exact)


def test_flops():
    case = Case(2, 6, (9, 8), (3, 5), multiple=2)
    x, weight, bias, grad = case.draw(torch.float32)
    x.requires_grad_()
    weight.requires_grad_()

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return depthwise(x, weight, bias, 1, [1, 2])

    found = count_flops(run, x, weight, backward=True)
    each = depthwise_flops(grad.shape, weight.shape[2:])
    assert each == 2 * 2 * 12 * 9 * 8 * 15
    assert found.by_op["omniconv.depthwise"] == (each, 0)
    assert found.by_op["omniconv.depthwise_input"] == (0, each)
    assert found.by_op["omniconv.depthwise_weight"] == (0, each)
    assert not found.unknown


def test_taps_inside():
    assert choice.taps_inside((56,), (1,), (0, 0)) == 1
    image = torch.ones(1, 1, 9, 6)
    for kernel, padding in (((3, 3), (1, 1, 1, 1)), ((12, 5), (7, 9, 0, 3))):
        counted = depthwise_reference(
            image, torch.ones(1, 1, *kernel), None, [1, 1], padding, [1, 1]
        )
        assert choice.taps_inside((9, 6), kernel, padding) == pytest.approx(counted.mean().item())


def test_the_table_chooses(monkeypatch):
    steps = [[0, "channels_last"], [20, "kernel"], [200, "fft"]]
    monkeypatch.setattr(choice, "table", lambda: dict.fromkeys(choice.SHIPPED, steps))
    x = torch.randn(1, 16, 30, 30)

    def way(extent: int, x: Tensor = x, outputs: int = 16, pad: int | None = None, step: int = 1):
        around = [extent // 2 if pad is None else pad] * 4
        kernel = (extent, extent)
        return choice.way("forward", x, outputs, (30, 30), kernel, [step] * 2, around, [1, 1])

    assert [way(3), way(7), way(25)] == ["channels_last", "kernel", "fft"]
    assert way(3, x.double()) == way(3, x[:, :8], 8) == way(3, outputs=32) == "kernel"
    assert way(3, step=2) == way(19, pad=19) == "kernel"
    for extent in (3, 25):
        weight = torch.randn(16, 1, extent, extent)
        geometry = ([1, 1], [extent // 2] * 4, [1, 1])
        found = with_gradients(of_pairs(depthwise), [x, weight, torch.randn(16), x], *geometry)
        right = with_gradients(depthwise_reference, [x, weight, torch.randn(16), x], *geometry)
        for f, r in zip(found[1:3], right[1:3], strict=True):
            assert_near(f, r, 1e-5)


def test_what_is_shipped_names_known_ways():
    for key, steps in choice.SHIPPED.items():
        name, layout, images = key.split()
        assert name in choice.PASSES
        assert images in choice.SIZES
        assert layout in choice.LAYOUTS
        assert steps[0][0] == 0
        assert [t for t, _ in steps] == sorted(t for t, _ in steps)
        assert {w for _, w in steps} <= set(choice.WAYS)


def test_a_table_that_was_measured_takes_the_place(monkeypatch, tmp_path):
    from omniconv.kernels import cache

    home = tmp_path / "cache"
    monkeypatch.setenv("OMNICONV_CACHE", str(home))
    monkeypatch.setattr(choice, "find", cache.find)
    monkeypatch.setattr(choice, "EXTENTS", (1, 3))
    monkeypatch.setattr(choice, "SIZES", {"small": (16, 5), "large": (16, 9)})
    assert choice.table() == choice.SHIPPED
    path = choice.tune(ops.KERNEL, 0.0)
    assert path.parent == home
    found = json.loads(path.read_text())
    assert found.keys() == choice.SHIPPED.keys()
    assert choice.table() == found
    assert choice.tune(ops.KERNEL, 0.0) == path
    for broken in ("{", "[]", '{"forward contiguous": [[0, "abacus"]]}'):
        path.write_text(broken)
        choice.table.cache_clear()
        assert choice.table() == choice.SHIPPED
