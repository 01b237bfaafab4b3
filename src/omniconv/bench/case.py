"""What a kernel hands to the bench: cases, each of some passes, each in several forms.

``omniconv.bench.<kernel>`` has one public function::

    def cases(ask: Ask) -> Iterator[Case]:
        \"\"\"The shapes of the suite ``ask.suite``.\"\"\"
        for size in {"default": (7, 31), "large": (63,), "odd": (1, 4)}[ask.suite]:
            yield Case(f"8 x 64 x 56 x 56, K = {size}", partial(_passes, ask, size))


    def _passes(ask: Ask, size: int) -> list[Pass]:
        x = ask.tensor(8, 64, 56, 56)
        weight = ask.tensor(64, 1, size, size)
        exact = x.double(), weight.double()

        def torch_in(layout: str) -> Call:
            given, kernel = in_layout(x, layout), in_layout(weight, layout)
            return lambda: F.conv2d(given, kernel, None, 1, size // 2, 1, 64)

        return [
            Pass(
                name="forward",
                ours=lambda: depthwise(x, weight, None, 1, size // 2),
                torch={
                    "nchw": torch_in("nchw"),
                    "channels_last": torch_in("channels_last"),
                    "fft": lambda: fft_depthwise(x, weight),
                },
                compiled={"nchw": torch.compile(torch_in("nchw"))},
                reference=lambda: F.conv2d(*exact, None, 1, size // 2, 1, 64),
                flops=2 * 8 * 64 * taps_inside(56, size, 1, size // 2) ** 2,
                bytes=bytes_of(x, weight, x),
                length=size * size,
            ),
            ...
        ]

A case makes its tensors when ``passes`` is called, and the bench drops them before the next one.
Passes are called, in this order and as far as they exist: ``forward``, ``input gradient``,
``weight gradient`` (``offset gradient``, ``mask gradient``), ``gradients`` (all at once), ``step``
(forward and all gradients, through autograd).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "LAYOUTS",
    "SUITES",
    "Ask",
    "Call",
    "Case",
    "Pass",
    "bytes_of",
    "gradients",
    "in_layout",
    "lazily",
    "step",
    "taps_inside",
]

Call = Callable[[], Any]
"""One piece of work, without arguments; gives a tensor or a tuple of tensors."""

SUITES = ("default", "large", "odd")
"""The shapes whose figures the documentation names; large ones; ones with odd sizes, strides,
dilations, paddings and axes."""

LAYOUTS = ("nchw", "channels_last")
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Ask:
    """What is asked of a kernel's module.

    Attributes:
        suite: One of ``SUITES``.
        dtype: Of all tensors.
        layout: One of ``LAYOUTS``: of what is given to our form.
        device: Where the tensors lie.
    """

    suite: str = "default"
    dtype: torch.dtype = torch.float32
    layout: str = "nchw"
    device: str = "cpu"

    def tensor(self, *shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
        """Normal numbers times ``scale``: rounded to the dtype, in the layout, on the device."""
        generator = torch.Generator().manual_seed(seed + math.prod(shape))
        drawn = torch.randn(shape, generator=generator) * scale
        return in_layout(drawn.to(self.device, self.dtype), self.layout)


@dataclass(frozen=True)
class Pass:
    """The same work in several forms.

    Attributes:
        name: Such as ``"forward"``.
        ours: omniconv's form, as a user calls it: it chooses for itself what computes.
        torch: The best that a torch user can write, in every way worth a try: both layouts,
            ``torch.fft``. Their fastest is what ours is compared with.
        reference: The right results in float64, from the same rounded inputs; a quick form of it.
        flops: The least floating-point operations: two per tap that falls inside the image.
        bytes: The least bytes that move: every tensor once (see :func:`bytes_of`).
        length: Terms of the longest sum behind a result; the tolerance grows with it.
        compiled: Torch forms that ``torch.compile`` made; they run only when asked for, since the
            first call takes long. They count as torch's.
        peers: Other packages' forms, under the packages' names, where these can be imported.
        yardsticks: Other work to be timed beside, such as a plain convolution of these channels.
            Not compared with the reference. Those whose name begins with ``free`` are networks
            without what the kernel does: the share of torch's time over the fastest of them that
            ours gains is shown.
    """

    name: str
    ours: Call
    torch: Mapping[str, Call]
    reference: Call
    flops: int
    bytes: int
    length: int
    compiled: Mapping[str, Call] = field(default_factory=dict)
    peers: Mapping[str, Call] = field(default_factory=dict)
    yardsticks: Mapping[str, Call] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One shape of a kernel.

    Attributes:
        name: Tells it from the kernel's others and says what it is: ``"8 x 64 x 56 x 56, K = 7"``.
        passes: Makes tensors and passes, when the case is run.
    """

    name: str
    passes: Callable[[], Sequence[Pass]]


def in_layout(tensor: Tensor, layout: str) -> Tensor:
    """The tensor with its channels outermost (``"nchw"``) or innermost, for 1 to 3 axes."""
    if layout == "nchw":
        return tensor.contiguous()
    if tensor.dim() in FORMATS:
        return tensor.contiguous(memory_format=FORMATS[tensor.dim()])
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if tensor.dim() > 2 else tensor


def bytes_of(*tensors: Tensor | None) -> int:
    """The bytes of the tensors' elements."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def taps_inside(
    size: int, extent: int, stride: int = 1, padding: int | tuple[int, int] = 0, dilation: int = 1
) -> int:
    """How often a tap of a kernel falls inside the image, along one axis.

    Of several axes it is their product; a convolution's FLOPs are twice that, per pair of
    channels that meet and per image.
    """
    low, high = (padding, padding) if isinstance(padding, int) else padding
    outputs = (size + low + high - dilation * (extent - 1) - 1) // stride + 1
    starts = [position * stride - low for position in range(outputs)]
    return sum(0 <= s + tap * dilation < size for s in starts for tap in range(extent))


def lazily(make: Callable[[], Call]) -> Call:
    """A call that is made at its first run, as one that has to compile something should be."""
    made = cache(make)
    return lambda: made()()


def gradients(forward: Callable[..., Tensor], *inputs: Tensor, grad: Tensor) -> Call:
    """A call that pulls ``grad`` back through ``forward(*inputs)``, which has run already.

    Args:
        forward: Of all inputs; those that require a gradient are differentiated.
        inputs: Tensors; leaves.
        grad: The gradient of the output.
    """
    output = forward(*inputs)
    leaves = [t for t in inputs if t.requires_grad]
    return lambda: torch.autograd.grad(output, leaves, grad, retain_graph=True)


def step(forward: Callable[..., Tensor], *inputs: Tensor, grad: Tensor) -> Call:
    """A call that runs ``forward(*inputs)`` and gives its output and its gradients."""
    leaves = [t for t in inputs if t.requires_grad]

    def run() -> tuple[Tensor, ...]:
        output = forward(*inputs)
        return (output.detach(), *torch.autograd.grad(output, leaves, grad))

    return run
