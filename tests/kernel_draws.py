"""Random calls of compiled kernels: shapes, strides, dtypes and layouts, right and wrong ones."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omniconv.bench.case import in_layout
from omniconv.kernels import backend
from omniconv.kernels.deform import deform
from omniconv.kernels.depthwise import depthwise
from omniconv.kernels.position_varying import position_varying
from omniconv.testing.tolerances import require_near

KERNELS = ("deform", "depthwise", "position_varying")
LONGEST = {1: 70, 2: 20, 3: 8}
WIDEST = {1: 63, 2: 9, 3: 4}


@dataclass
class Draw:
    """One call: ``run(*tensors)``, of which every tensor that is there has a gradient.

    Attributes:
        text: What is called, for messages.
        run: The functional with all arguments that are no tensors.
        tensors: Its tensors; None where an optional one is left out.
        length: Terms of the longest sum.
        wrong: Name of the argument that does not fit; empty where all do.
    """

    text: str
    run: Callable[..., Tensor]
    tensors: list[Tensor | None]
    length: int
    wrong: str = ""

    def check(self) -> None:
        """Right numbers and gradients, or one sentence that names the argument."""
        if self.wrong:
            try:
                self.run(*self.tensors)
            except (TypeError, ValueError) as error:
                message = str(error)
                assert self.wrong in message, f"{self.text}: {message}"
                assert "\n" not in message, f"{self.text}: {message}"
                return
            raise AssertionError(f"{self.text}: a wrong {self.wrong} was taken")
        found, exact = self.results("auto"), self.results("torch", torch.float64)
        for i, (ours, right) in enumerate(zip(found, exact, strict=True)):
            # terms are of size 1, sums may cancel
            scale = max(float(right.abs().amax()), 1.0) if right.numel() else 1.0
            require_near(f"{self.text}, result {i}", ours, right, length=self.length, scale=scale)

    def results(self, name: str, dtype: torch.dtype | None = None) -> list[Tensor]:
        """The output and the gradient of every tensor, with this back end, in this dtype."""
        before = backend.get_backend()
        backend.set_backend(name)
        try:
            given = [t if t is None else t.detach().to(dtype or t.dtype) for t in self.tensors]
            leaves = [t if t is None else t.requires_grad_() for t in given]
            y = self.run(*leaves)
            seed = torch.arange(y.numel()).mul(0.7).cos().view(y.shape).to(self.dtype).to(y.dtype)
            needed = [t for t in leaves if t is not None]
            return [y.detach(), *torch.autograd.grad(y, needed, seed)]
        finally:
            backend.set_backend(before)

    @property
    def dtype(self) -> torch.dtype:
        """The tensors' dtype."""
        assert self.tensors[0] is not None
        return self.tensors[0].dtype


def draw(kernel: str, number: int) -> Draw:
    """The call of this kernel that has this number."""
    return {"deform": _deform, "depthwise": _depthwise, "position_varying": _position_varying}[
        kernel
    ](_Dice(f"{kernel} {number}"))


class _Dice(random.Random):
    """What all three draw alike."""

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self.dim = self.choice((1, 2, 2, 2, 3))
        self.batch = self.choice((0, 1, 1, 2, 3))
        longest = self.choice((3, LONGEST[self.dim]))
        self.size = self.several(1, longest)
        self.kernel = self.several(1, self.choice((3, WIDEST[self.dim])))
        self.stride = self.several(1, self.choice((1, 1, 3)))
        self.dilation = self.several(1, self.choice((1, 1, 3)))
        self.padding = [
            (self.randint(0, reach), self.randint(0, reach))
            for reach in (d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True))
        ]
        if self.random() < 0.3:
            axes = zip(self.dilation, self.kernel, strict=True)
            self.padding = [(d * (k - 1) // 2,) * 2 for d, k in axes]
        self.generator = torch.Generator().manual_seed(self.randrange(2**31))

    def several(self, low: int, high: int) -> tuple[int, ...]:
        """A number for each axis."""
        return tuple(self.randint(low, high) for _ in range(self.dim))

    @property
    def output(self) -> tuple[int, ...]:
        """The output's sizes; below 1 where the kernel is larger than the padded image."""
        axes = zip(self.size, self.padding, self.dilation, self.kernel, self.stride, strict=True)
        return tuple((n + sum(p) - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in axes)

    def enlarge(self) -> None:
        """Let the image be no smaller than the kernel, but for a few draws."""
        if self.random() < 0.03:
            return
        axes = zip(self.size, self.padding, self.dilation, self.kernel, strict=True)
        self.size = tuple(max(n, d * (k - 1) + 1 - sum(p)) for n, p, d, k in axes)

    def tensor(self, dtype: torch.dtype, *shape: int) -> Tensor:
        """Normal numbers in one of the layouts that tensors come in."""
        layout = self.choice(("contiguous", "channels_last", "strided", "shifted", "expanded"))
        drawn = torch.randn(shape, generator=self.generator, dtype=torch.float64).to(dtype)
        if layout == "channels_last":
            return in_layout(drawn, "channels_last") if 3 <= drawn.dim() <= 5 else drawn
        if layout == "strided" and drawn.dim() > 1:
            return drawn.transpose(-1, -2).contiguous().transpose(-1, -2)
        if layout == "shifted":  # starts in the middle of a vector
            return torch.cat([drawn.new_zeros(1), drawn.flatten()])[1:].view(shape)
        if layout == "expanded" and drawn.numel():
            return drawn[:1].expand(shape)
        return drawn

    def text(self, kernel: str, *tensors: Tensor | None) -> str:
        """What is called."""
        shapes = [None if t is None else (*t.shape, str(t.dtype), t.stride()) for t in tensors]
        window = f"stride {self.stride}, padding {self.padding}, dilation {self.dilation}"
        return f"{kernel}({shapes}, {window})"


def _odd(tensor: Tensor) -> Tensor:
    """Odd multiples of 1/128."""
    return (tensor.mul(64).floor() + 0.5) / 64


def _depthwise(dice: _Dice) -> Draw:
    dtype = dice.choice((torch.float32, torch.float32, torch.float64, torch.bfloat16))
    dice.enlarge()
    channels, times = dice.choice((1, 2, 5, 16, 17, 33)), dice.choice((1, 1, 1, 2, 3))
    x = dice.tensor(dtype, dice.batch, channels, *dice.size)
    weight = dice.tensor(dtype, channels * times, 1, *dice.kernel)
    bias = dice.choice((None, dice.tensor(dtype, channels * times)))
    wrong = "kernel" if min(dice.output) < 1 else ""
    if not wrong and dice.random() < 0.03:
        weight, wrong = torch.cat([weight, weight], 1), "weight"
    arguments = (dice.stride, dice.padding, dice.dilation)
    length = max(math.prod(dice.kernel), dice.batch * math.prod(dice.output))
    text = dice.text("depthwise", x, weight, bias)
    return Draw(text, lambda *t: depthwise(*t, *arguments), [x, weight, bias], length, wrong)


def _position_varying(dice: _Dice) -> Draw:
    dtype = dice.choice((torch.float32, torch.float32, torch.float64, torch.bfloat16))
    dice.enlarge()
    groups, each = dice.choice((1, 2, 3)), dice.choice((1, 2, 7, 16))
    x = dice.tensor(dtype, dice.batch, groups * each, *dice.size)
    shared = dice.choice((1, dice.batch))
    out = tuple(max(n, 1) for n in dice.output)
    weight = dice.tensor(dtype, shared, groups, *dice.kernel, *out)
    softmax = dice.random() < 0.4
    wrong = "weight" if min(dice.output) < 1 else ""
    if not wrong and dice.random() < 0.03:
        weight, wrong = torch.cat([weight, weight[..., :1]], -1), "weight"
    arguments = (dice.stride, dice.padding, dice.dilation, softmax)
    length = max(math.prod(dice.kernel), each * max(dice.batch, 1))
    text = dice.text("position_varying", x, weight) + f", softmax {softmax}"
    return Draw(text, lambda *t: position_varying(*t, *arguments), [x, weight], length, wrong)


def _deform(dice: _Dice) -> Draw:
    dtype = dice.choice((torch.float32, torch.float32, torch.float64))
    dice.kernel = tuple(min(k, 3 if dice.dim > 1 else 9) for k in dice.kernel)
    dice.enlarge()
    offset_groups, each = dice.choice((1, 2, 4)), dice.choice((1, 3, 16))
    channels, taps = offset_groups * each, math.prod(dice.kernel)
    x = dice.tensor(dtype, dice.batch, channels, *dice.size)
    out = tuple(max(n, 1) for n in dice.output)
    offset = dice.tensor(dtype, dice.batch, offset_groups * taps * dice.dim, *out)
    # places that no sum rounds: the derivative jumps at whole ones
    offset = dice.choice((torch.zeros_like(offset), *(_odd(offset * f) for f in (0.8, 5.0))))
    mask = dice.choice((None, dice.tensor(dtype, dice.batch, offset_groups * taps, *out)))
    own: dict[str, Any] = {"kernel_size": dice.kernel, "offset_groups": offset_groups}
    weight = bias = None
    if dice.random() < 0.7:
        groups = dice.choice([g for g in (1, 2, channels) if channels % g == 0])
        outputs = groups * dice.choice((1, 2, 5))
        weight = dice.tensor(dtype, outputs, channels // groups, *dice.kernel)
        bias = dice.choice((None, dice.tensor(dtype, outputs)))
        own["groups"] = groups
    wrong = "x of shape" if min(dice.output) < 1 else ""
    if not wrong and dice.random() < 0.03:
        offset, wrong = torch.cat([offset, offset], 1), "offset"
    own |= {"stride": dice.stride, "padding": dice.padding, "dilation": dice.dilation}
    # a place is as exact as its coordinate: as if a sum had that many terms, squared
    length = max(taps * channels, dice.batch * math.prod(dice.output), 4 * max(dice.size) ** 2)
    tensors = [x, offset, mask, weight, bias]
    text = dice.text("deform", *tensors) + f", {own}"
    return Draw(text, lambda *t: deform(*t, **own), tensors, length, wrong)
