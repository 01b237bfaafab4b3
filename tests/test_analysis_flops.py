"""count_flops against loops over taps, and everything around the count."""

from __future__ import annotations

import gc
import itertools
import math
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from omniconv.analysis import FlopCount, count_flops

Array = np.ndarray


class Loops:
    """Convolution and its gradients, tap by tap; 2 for every multiply-add that is carried out."""

    def __init__(
        self, x: Array, w: Array, stride: int, padding: int, dilation: int, groups: int
    ) -> None:
        self.x, self.w, self.stride, self.dilation = x, w, stride, dilation
        self.per_group = w.shape[0] // groups
        pads = [(0, 0), (0, 0), *((padding, padding) for _ in w.shape[2:])]
        self.padded = np.pad(x, pads)
        self.inside = (..., *(slice(padding, padding + n) for n in x.shape[2:]))
        self.sites = tuple(
            (n - dilation * (k - 1) - 1) // stride + 1
            for n, k in zip(self.padded.shape[2:], w.shape[2:], strict=True)
        )

    def terms(self) -> Iterator[tuple[int, int, tuple, tuple]]:
        """(output channel, input channel, index of the weight, slices of the padded input)."""
        for o, i in itertools.product(range(self.w.shape[0]), range(self.w.shape[1])):
            for tap in itertools.product(*map(range, self.w.shape[2:])):
                window = tuple(
                    slice(t * self.dilation, t * self.dilation + (n - 1) * self.stride + 1)
                    for t, n in zip(tap, self.sites, strict=True)
                )
                channel = o // self.per_group * self.w.shape[1] + i
                slices = tuple(slice(s.start, s.stop, self.stride) for s in window)
                yield o, channel, (o, i, *tap), slices

    def forward(self) -> tuple[Array, int]:
        out, flops = np.zeros((len(self.x), len(self.w), *self.sites)), 0
        for o, c, tap, window in self.terms():
            patch = self.padded[(slice(None), c, *window)]
            out[:, o] += patch * self.w[tap]
            flops += 2 * patch.size
        return out, flops

    def backward(self, grad: Array) -> tuple[Array, Array, int]:
        dx, dw, flops = np.zeros_like(self.padded), np.zeros_like(self.w), 0
        for o, c, tap, window in self.terms():
            dx[(slice(None), c, *window)] += grad[:, o] * self.w[tap]
            dw[tap] += (grad[:, o] * self.padded[(slice(None), c, *window)]).sum()
            flops += 4 * grad[:, o].size
        return dx[self.inside], dw, flops


CONVOLUTIONS = [
    pytest.param(dim, arguments, id=f"{dim}d-{name}")
    for dim in (1, 2, 3)
    for name, arguments in {
        "plain": {"out": 3},
        "strided": {"out": 3, "stride": 2, "padding": 1},
        "dilated": {"out": 2, "dilation": 2, "padding": 2},
        "grouped": {"out": 6, "groups": 2},
        "depthwise": {"out": 4, "groups": 4, "padding": 1},
    }.items()
]


@pytest.mark.parametrize(("dim", "arguments"), CONVOLUTIONS)
def test_convolution_equals_the_loops(dim: int, arguments: dict[str, int]) -> None:
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | arguments
    out_channels = options.pop("out")
    convolve = getattr(F, f"conv{dim}d")
    x = torch.randn(2, 4, *(7, 6, 5)[:dim], dtype=torch.float64, requires_grad=True)
    w = torch.randn(
        out_channels, 4 // options["groups"], *(3, 2, 3)[:dim], dtype=torch.float64
    ).requires_grad_()
    loops = Loops(x.detach().numpy(), w.detach().numpy(), **options)

    y = convolve(x, w, **options)
    expected, forward = loops.forward()
    np.testing.assert_allclose(y.detach().numpy(), expected)
    dx, dw, backward = loops.backward(np.ones(y.shape))
    gradients = torch.autograd.grad(y.sum(), (x, w))
    np.testing.assert_allclose(gradients[0].numpy(), dx)
    np.testing.assert_allclose(gradients[1].numpy(), dw)

    counted = count_flops(lambda x: convolve(x, w, **options), x, backward=True)
    assert (counted.forward, counted.backward) == (forward, backward)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_transposed_convolution_equals_the_loops(dim: int, groups: int) -> None:
    """A transposed convolution is the dx of a convolution, so its gradients are the other two."""
    layer = getattr(nn, f"ConvTranspose{dim}d")(4, 8, 3, stride=2, groups=groups, bias=False)
    x = torch.randn(2, 4, *(4, 3, 3)[:dim], requires_grad=True)
    y = layer.double()(x.double())
    adjoint = Loops(y.detach().numpy(), layer.weight.detach().numpy(), 2, 0, 1, groups)
    dx, _, twice = adjoint.backward(x.detach().double().numpy())
    np.testing.assert_allclose(y.detach().numpy(), dx)
    counted = count_flops(layer.float(), x, backward=True)
    assert (counted.forward, counted.backward) == (twice // 2, twice)


def test_depthwise_backward_counts_each_group_for_itself() -> None:
    """96 channels, 7x7, batch 2 of 16x16: forward 2 * 2*96*256 * 49 = 4.8 MFLOP, three times that
    with both gradients; torch's own counter lets dW see all 96 channels."""
    layer = nn.Conv2d(96, 96, 7, padding=3, groups=96, bias=False)
    x = torch.randn(2, 96, 16, 16, requires_grad=True)
    forward = 2 * 2 * 96 * 16 * 16 * 49
    counted = count_flops(layer, x, backward=True)
    assert (counted.forward, counted.backward) == (forward, 2 * forward)
    assert round(counted.total / 1e6, 2) == 14.45
    with FlopCounterMode(display=False) as torch_counter:
        layer(x).sum().backward()
    assert torch_counter.get_total_flops() == forward * (1 + 1 + 96) == 472_055_808


def test_only_the_gradients_asked_for_are_counted() -> None:
    layer = nn.Conv2d(4, 6, 3)
    x = torch.randn(2, 4, 8, 8)
    one, bias = 2 * 2 * 6 * 36 * 4 * 9, 2 * 6 * 36
    assert count_flops(layer, x).backward == 0
    assert count_flops(layer, x, backward=True).backward == one + bias
    assert count_flops(layer, x.requires_grad_(), backward=True).backward == 2 * one + bias
    layer.weight.requires_grad_(False)
    assert count_flops(layer, x, backward=True).backward == one + bias
    layer.bias.requires_grad_(False)
    assert count_flops(layer, x, backward=True).backward == one


class Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.extra = stride, out - channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        short = F.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return (y + short).relu()


def resnet20() -> nn.Sequential:
    widths = (
        [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2), *[(64, 64, 1)] * 2]
    )
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(stem, *(Block(*w) for w in widths), head)


def test_resnet20_adds_up() -> None:
    """40.55 million multiply-adds in its convolutions on a 32x32 image."""
    stem = 2 * 32 * 32 * 16 * 3 * 9
    inner = 2 * 32 * 32 * 16 * 16 * 9
    convolutions = stem + 6 * inner + 2 * (inner // 2 + 5 * inner)
    assert convolutions == 2 * 40_550_400
    counted = count_flops(resnet20(), torch.randn(1, 3, 32, 32), backward=True)
    assert counted.by_op["aten.convolution"] == (convolutions, 0)
    assert counted.by_op["aten.convolution_backward"] == (0, 2 * convolutions - stem)
    assert counted.by_op["aten.addmm"] == (2 * 64 * 10, 0)
    assert counted.unknown == ()
    normalised = rectified = 7 * 16 * 1024 + 6 * 32 * 256 + 6 * 64 * 64
    added, pooled = 3 * (16 * 1024 + 32 * 256 + 64 * 64), 64 * 64
    rest = 5 * normalised + rectified + added + pooled
    assert counted.forward == convolutions + 2 * 64 * 10 + rest


def test_modules_share_the_total() -> None:
    model = resnet20()
    counted = count_flops(model, torch.randn(2, 3, 32, 32), backward=True)
    assert counted.by_module[""] == (counted.forward, counted.backward)
    assert set(counted.by_module) == {path for path, _ in model.named_modules()}
    own = [counted.own(path) for path in counted.by_module]
    assert sum(f for f, _ in own) == counted.forward
    assert sum(b for _, b in own) == counted.backward
    one = 2 * 2 * 16 * 32 * 32 * 16 * 9
    assert counted.own("1.conv1") == counted.by_module["1.conv1"] == (one, 2 * one)
    assert counted.by_module["0.0"] == (one * 3 // 16, one * 3 // 16)
    elements = 2 * 16 * 32 * 32
    assert counted.own("1") == (3 * elements, 2 * elements)
    assert counted.by_module["1.bn1"] == (5 * elements, 9 * elements)
    assert all(n >= 0 for pair in own for n in pair)
    with pytest.raises(ValueError, match="must be the path of a module, got '1conv'"):
        counted.own("1conv")


def test_a_module_called_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8, bias=False)
            self.alias = self.inner

        def forward(self, x: Tensor, *, again: bool) -> Tensor:
            return self.alias(self.inner(x)) if again else self.inner(x)

    x = torch.randn(4, 8, requires_grad=True)
    once = count_flops(Twice(), x, backward=True, again=False)
    twice = count_flops(Twice(), x, backward=True, again=True)
    assert once.by_module["inner"] == (512, 1024)
    assert twice.by_module["inner"] == (1024, 2048)
    assert twice.backward == 2048 + 64


def test_work_after_a_caught_error_belongs_to_the_module_that_caught_it() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError(f"{x.exp()} is of no use")

    class Catches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Fails()

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.inner(x)
            except ValueError:
                return x * 2 + 1

    counted = count_flops(Catches(), torch.ones(100))
    assert counted.own("") == (200, 0)


def test_loss_seed_and_the_graph_before_the_call_are_not_counted() -> None:
    before = torch.randn(4, 8, requires_grad=True)
    counted = count_flops(lambda x: x * 3, (before @ torch.randn(8, 8)).exp(), backward=True)
    assert (counted.forward, counted.backward) == (32, 32)
    assert count_flops(nn.Identity(), before, backward=True).total == 0
    nested = count_flops(
        lambda x: {"a": x["in"][0] * 2, "b": (x["in"][0].exp(), None)},
        {"in": [before]},
        backward=True,
    )
    assert (nested.forward, nested.backward) == (64, 96)


def test_same_count_under_every_mode() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.MaxPool2d(2)),
        *(
            nn.Conv2d(8, 8, 3, groups=4),
            nn.GroupNorm(2, 8),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d((2, 3)),
        ),
        *(nn.Flatten(), nn.Dropout(0.1), nn.Linear(48, 10), nn.LayerNorm(10), nn.Softmax(1)),
    )
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    expected = count_flops(model, x, backward=True)
    assert expected.unknown == ()
    with torch.no_grad():
        assert count_flops(model, x, backward=True) == expected
        assert count_flops(model, x).forward == expected.forward
    with torch.inference_mode():
        assert count_flops(model, x, backward=True) == expected
        assert count_flops(model, x).forward == expected.forward
        inside = count_flops(model, torch.randn(2, 3, 16, 16))
        assert (inside.forward, inside.unknown) == (expected.forward, ())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = count_flops(model, x, backward=True)
        assert low.by_op["aten.convolution"] == expected.by_op["aten.convolution"]
        assert (low.total, low.unknown) == (expected.total, ())
    assert count_flops(model.eval(), x[:0], backward=True).total == 0
    assert count_flops(model.train().to("meta"), x, backward=True) == expected


def test_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    def run() -> FlopCount:
        x = torch.randn(2, 3, 8, 8, requires_grad=True)
        return count_flops(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), x, backward=True)

    with FakeTensorMode():
        fake = run()
    assert fake == run()


def test_checkpointing_counts_the_recomputation() -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    plain = count_flops(inner, x, backward=True)
    again = count_flops(lambda x: checkpoint(inner, x, use_reentrant=False), x, backward=True)
    assert again.forward == plain.forward
    assert again.backward == plain.backward + plain.forward


def test_nothing_is_left_behind() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    model[1].eval()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    gradients = [p.grad for p in model.parameters()]
    model[1].train()
    torch.manual_seed(0)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    count_flops(model, torch.ones(2, 3, 8, 8), backward=True)
    assert torch.equal(torch.rand(1), drawn)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(RuntimeError):
        count_flops(model, torch.ones(2, 5, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_graph_is_freed_at_once() -> None:
    class Token:
        pass

    tokens: list[weakref.ref[Token]] = []

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.token = Token()
            tokens.append(weakref.ref(ctx.token))
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * 2

    gc.disable()
    try:
        x = torch.ones(3, requires_grad=True)
        assert count_flops(Double.apply, x, backward=True).total == 6
        assert tokens[0]() is None
    finally:
        gc.enable()


def test_unknown_operators_are_named_and_a_registered_formula_is_used() -> None:
    @torch.library.custom_op("omniconv_test::cube", mutates_args=())
    def cube(x: Tensor) -> Tensor:
        return x**3

    x = torch.randn(5)
    counted = count_flops(lambda x: cube(x) + torch.linalg.svdvals(x[None]), x)
    assert counted.unknown == ("aten._linalg_svd", "omniconv_test.cube")
    assert counted.by_op == {"aten.add": (5, 0)}
    assert "not counted, no rule: aten._linalg_svd, omniconv_test.cube" in str(counted)
    register_flop_formula(torch.ops.omniconv_test.cube)(
        lambda shape, out_shape=None: 2 * math.prod(shape)
    )
    assert count_flops(cube, x).by_op == {"omniconv_test.cube": (10, 0)}


def test_table() -> None:
    text = str(count_flops(nn.Linear(8, 8, bias=False), torch.randn(4, 8), backward=True))
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["operator", "forward", "backward"]
    assert ["aten.mm", "512", "512"] in lines
    assert lines[-1] == ["total", "512", "512"]


def test_bad_calls() -> None:
    with pytest.raises(TypeError, match="model_or_fn must be a module or a function, got 3"):
        count_flops(3)
    with pytest.raises(TypeError, match="backward must be True or False, got 1"):
        count_flops(nn.Identity(), torch.ones(1), backward=1)
    with pytest.raises(ValueError, match="backward=True needs an output that requires a gradient"):
        count_flops(nn.ReLU(), torch.ones(1), backward=True)
