"""Calls of the Triton forms, and what the references give for them.

    TRITON_INTERPRET=1 python tests/triton_cases.py KERNEL

runs a kernel's small cases on CPU tensors and prints one JSON list per case: its text, its dtype,
and the largest error of every result over its largest entry. Triton decides at its import whether
it interprets.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from omniconv.core.geometry import output_size
from omniconv.kernels.deform.reference import deform_reference
from omniconv.kernels.depthwise.reference import depthwise_reference
from omniconv.kernels.position_varying.reference import position_varying_reference

TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Of errors over the largest entry: the last rounding, and sums of some tens of terms."""


@dataclass(frozen=True)
class Case:
    """One forward call and all its gradients; ``padding`` has a pair per axis.

    Attributes:
        more: m; groups, shared, softmax; out, groups, offset_groups, masked.
        last: Whether tensors are channels-last.
        wide: Whether offsets take 64 bits.
    """

    kernel: str
    shape: tuple[int, ...]
    taps: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    more: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    last: bool = False
    wide: bool = False

    @property
    def size(self) -> list[int]:
        """S'."""
        window = (self.taps, self.stride, self.padding, self.dilation)
        return output_size(self.shape[2:], *window)

    def of(self, **changes: Any) -> Case:
        return replace(self, **changes)


F16, B16 = torch.float16, torch.bfloat16
SMALL = (
    Case("depthwise", (2, 3, 5, 6), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), {"m": 1}),
    Case("depthwise", (2, 3, 5, 6), (3, 2), (2, 1), (1, 0, 2, 1), (1, 2), {"m": 2}, B16, last=True),
    Case("depthwise", (2, 2, 9), (5,), (2,), (1, 3), (2,), {"m": 2}, wide=True),
    Case("depthwise", (2, 2, 30), (7,), (1,), (3, 3), (1,), {"m": 2}, F16, last=True),
    Case("depthwise", (1, 2, 9, 10), (3, 9), (1, 1), (1, 1, 4, 3), (1, 1), {"m": 1}),
    Case("depthwise", (1, 2, 9, 5), (9, 2), (1, 2), (4, 2, 1, 1), (1, 1), {"m": 1}, wide=True),
    Case("depthwise", (1, 1, 3, 40), (1, 35), (1, 1), (0, 0, 17, 17), (1, 1), {"m": 2}),
    Case(
        "depthwise", (1, 2, 3, 4, 5), (3, 2, 1), (2, 1, 1), (1, 1, 1, 0, 0, 1), (1, 1, 2), {"m": 1}
    ),
    Case(
        "depthwise", (1, 1, 3, 8, 4), (2, 7, 1), (2, 1, 1), (1, 1, 3, 3, 0, 1), (1, 1, 2), {"m": 1}
    ),
    Case("depthwise", (0, 2, 5, 6), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), {"m": 1}),
    Case("position_varying", (2, 4, 3, 4), (2, 3), (1, 1), (1, 0, 1, 1), (1, 1), {"groups": 2}),
    Case(
        *("position_varying", (2, 2, 5, 4), (2, 2), (2, 1), (1, 0, 2, 1), (1, 2)),
        {"groups": 2, "shared": True, "softmax": True},
        wide=True,
    ),
    Case(
        *("position_varying", (2, 4, 3, 4), (2, 2), (1, 1), (0, 1, 1, 0), (1, 1)),
        {"groups": 2, "softmax": True},
        B16,
        last=True,
    ),
    Case(
        "position_varying", (2, 6, 9), (5,), (2,), (1, 3), (2,), {"groups": 2, "softmax": True}, F16
    ),
    Case(
        *("position_varying", (1, 2, 2, 3, 4), (2, 1, 2), (1, 2, 1), (1, 0, 0, 0, 0, 1), (1, 1, 2)),
        {"groups": 1, "shared": True},
    ),
    Case("position_varying", (0, 2, 5), (3,), (1,), (1, 1), (1,), {"groups": 1, "shared": True}),
    Case("deform", (2, 4, 3, 4), (2, 2), (1, 1), (1, 1, 0, 1), (1, 1), {"out": 3}),
    Case(
        "deform",
        (1, 4, 4, 3),
        (2, 1),
        (1, 1),
        (0, 1, 1, 0),
        (2, 1),
        {"offset_groups": 2},
        wide=True,
    ),
    Case(
        *("deform", (1, 4, 4, 3), (1, 2), (2, 1), (1, 1, 0, 1), (1, 2)),
        {"out": 8, "groups": 4, "offset_groups": 2},
        last=True,
    ),
    Case(
        *("deform", (1, 6, 3, 3), (1, 2), (1, 1), (0, 0, 1, 0), (1, 1)),
        {"out": 4, "groups": 2, "offset_groups": 3, "masked": False},
        F16,
        wide=True,
    ),
    Case("deform", (2, 3, 6), (3,), (2,), (1, 2), (1,), {"masked": False}, B16),
    Case("deform", (1, 4, 6), (2,), (1,), (1, 0), (1,), {"out": 2, "offset_groups": 2}),
    Case(
        *("deform", (1, 2, 2, 3, 3), (1, 2, 1), (1, 1, 2), (0, 0, 1, 0, 0, 1), (1, 1, 1)),
        {"out": 2},
    ),
    Case(
        *("deform", (1, 2, 2, 2, 3), (1, 1, 2), (1, 1, 1), (0, 0, 0, 0, 1, 0), (1, 1, 1)),
        {"out": 2, "groups": 2, "offset_groups": 2},
    ),
    Case("deform", (0, 2, 5), (3,), (1,), (1, 1), (1,), {"out": 2}),
)
"""Tiny shapes, which the interpreter can take."""

MODERATE = (
    *(
        Case(
            "depthwise",
            (4, 24, 37, 41),
            (k, k),
            (1, 1),
            (k // 2,) * 4,
            (1, 1),
            {"m": 1},
            dtype,
            last,
        )
        for k in (3, 7, 31)
        for dtype in TOLERANCES
        for last in (False, True)
    ),
    Case("depthwise", (3, 20, 50, 44), (5, 3), (2, 3), (2, 1, 0, 4), (2, 1), {"m": 3}),
    Case("depthwise", (3, 20, 900), (51,), (1,), (25, 25), (1,), {"m": 2}),
    Case(
        "depthwise",
        (2, 12, 9, 20, 22),
        (3, 9, 3),
        (2, 1, 1),
        (1, 1, 4, 4, 0, 1),
        (1, 1, 1),
        {"m": 1},
    ),
    *(
        Case(
            *("position_varying", (4, 24, 29, 31), (7, 7), (1, 1), (3, 3, 3, 3), (1, 1)),
            {"groups": groups, "shared": groups == 24, "softmax": softmax},
            *(dtype, last),
        )
        for groups, softmax, last in ((4, False, False), (2, True, True), (24, True, False))
        for dtype in TOLERANCES
    ),
    Case(
        *(
            "position_varying",
            (2, 6, 9, 14, 12),
            (3, 2, 3),
            (2, 1, 1),
            (1, 1, 1, 0, 1, 1),
            (1, 1, 1),
        ),
        {"groups": 3},
    ),
    *(
        Case("deform", (4, 32, 29, 31), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), more, dtype, last)
        for more, last in (
            ({"out": 64}, False),
            ({"out": 48, "groups": 2, "offset_groups": 4}, True),
            ({"out": 64, "groups": 32}, False),
            ({"offset_groups": 4}, True),
        )
        for dtype in TOLERANCES
    ),
    Case(
        *("deform", (2, 16, 9, 14, 12), (3, 2, 3), (2, 1, 1), (1, 1, 1, 0, 1, 1), (1, 1, 1)),
        {"out": 16},
    ),
)
"""Shapes with partial tiles and several programs, for a GPU."""

COMPILED = (
    *(
        Case("depthwise", (8, 64, 56, 56), (k, k), (1, 1), (k // 2,) * 4, (1, 1), {"m": 1}, dtype)
        for k in (3, 31)
        for dtype in (torch.float32, B16)
    ),
    *(
        Case(
            "position_varying",
            (8, 64, 56, 56),
            (7, 7),
            (1, 1),
            (3, 3, 3, 3),
            (1, 1),
            {"groups": 4, "softmax": True},
            dtype,
            wide=dtype == B16,
        )
        for dtype in TOLERANCES
    ),
    Case("deform", (8, 64, 56, 56), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), {"out": 64}),
    Case("deform", (8, 64, 56, 56), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), {"out": 64}, B16, True),
    Case(
        "deform",
        (8, 64, 56, 56),
        (3, 3),
        (1, 1),
        (1, 1, 1, 1),
        (1, 1),
        {"offset_groups": 4, "out": 64, "groups": 64},
        F16,
    ),
)
"""Cases that launch every kernel; the tests compile what they launch."""


def module(kernel: str) -> Any:
    """A kernel's Triton form."""
    return importlib.import_module(f"omniconv.kernels.{kernel}.triton")


def draw(case: Case, device: str = "cpu") -> list[Tensor | None]:
    """The operator's tensors, then the gradient for its result."""
    generator = torch.Generator().manual_seed(sum(case.shape) + math.prod(case.taps))
    more, channels = case.more, case.shape[1]
    taps, dim, out = math.prod(case.taps), len(case.taps), tuple(case.size)

    def tensor(*shape: int, scale: float = 1.0) -> Tensor:
        if device == "meta":
            found = torch.empty(shape, dtype=case.dtype, device=device)
        else:
            found = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
            found = found.to(case.dtype).to(device)
        return (
            found.movedim(1, -1).contiguous().movedim(-1, 1)
            if case.last and len(shape) > 2
            else found
        )

    x = tensor(*case.shape)
    rest: list[Tensor | None]
    if case.kernel == "depthwise":
        channels *= more["m"]
        rest = [tensor(channels, 1, *case.taps).contiguous(), tensor(channels)]
    elif case.kernel == "position_varying":
        batch = 1 if more.get("shared") else case.shape[0]
        rest = [tensor(batch, more["groups"], *case.taps, *out).contiguous()]
    else:
        groups, count = more.get("offset_groups", 1), more.get("out", 0)
        rest = [tensor(case.shape[0], groups * taps * dim, *out, scale=1.5), None, None, None]
        if more.get("masked", True):
            rest[1] = tensor(case.shape[0], groups * taps, *out)
        if count:
            rest[2] = tensor(count, channels // more.get("groups", 1), *case.taps)
            rest[3] = tensor(count)
            channels = count
    return [x, *rest, tensor(case.shape[0], channels, *out)]


def _arguments(case: Case) -> tuple[Any, ...]:
    """What follows the tensors."""
    window = (list(case.stride), list(case.padding), list(case.dilation))
    if case.kernel == "depthwise":
        return window
    if case.kernel == "position_varying":
        return (*window, bool(case.more.get("softmax")))
    groups = (case.more.get("groups", 1), case.more.get("offset_groups", 1))
    return (list(case.taps), *window, *groups)


def found(case: Case, tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """The result and the gradients for all tensors but a bias, by the Triton form."""
    form, rest = module(case.kernel), _arguments(case)
    gpu = importlib.import_module("omniconv.kernels.gpu")
    narrow = gpu.NARROW
    gpu.NARROW = 0 if case.wide else narrow
    try:
        *inputs, grad = tensors
        if case.kernel == "depthwise":
            x, weight, _ = inputs
            by_x = form.depthwise_input(grad, weight, list(case.shape[2:]), *rest)
            by_x = by_x.unflatten(1, (x.shape[1], -1)).sum(2)
            by_weight = form.depthwise_weight(grad, x, list(case.taps), *rest)
            return [form.depthwise(*inputs, *rest), by_x, by_weight]
        if case.kernel == "position_varying":
            needed = [True, True]
            gradients = form.position_varying_backward(grad, *inputs, *rest, needed)
            return [form.position_varying(*inputs, *rest), *gradients]
        needed = [t is not None for t in inputs[:4]]
        gradients = form.deform_backward(grad, *inputs[:4], *rest, needed)
        kept = [g for g, need in zip(gradients, needed, strict=True) if need]
        return [form.deform(*inputs, *rest), *kept]
    finally:
        gpu.NARROW = narrow


def right(case: Case, tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """The same from the reference, in float64 on the CPU."""
    reference = {
        "depthwise": depthwise_reference,
        "position_varying": position_varying_reference,
        "deform": deform_reference,
    }[case.kernel]
    *inputs, grad = [t if t is None else t.cpu().double() for t in tensors]
    leaves = [t if t is None else t.requires_grad_() for t in inputs]
    y = reference(*leaves, *_arguments(case))
    biased = {"depthwise": 2, "position_varying": 2, "deform": 4}[case.kernel]
    wanted = [t for t in leaves[:biased] if t is not None]
    return [y.detach(), *torch.autograd.grad(y, wanted, grad)]


def errors(case: Case, tensors: Sequence[Tensor | None]) -> list[float]:
    """Per result, its largest error over its largest entry."""
    result = []
    for ours, theirs in zip(found(case, tensors), right(case, tensors), strict=True):
        assert ours.shape == theirs.shape, f"{case}: {ours.shape}, {theirs.shape}"
        assert ours.dtype == case.dtype
        if theirs.numel():
            error = (ours.cpu().double() - theirs).abs().max() / theirs.abs().max().clamp(min=1e-3)
            result.append(float(error))
        else:
            result.append(0.0)
    return result


def far_offsets() -> float:
    """Whether offsets that are NaN, infinite or far give what the reference gives; 0 if they do."""
    case = next(c for c in SMALL if c.kernel == "deform" and c.shape[0] and len(c.taps) == 2)
    tensors = draw(case)
    offset = tensors[1]
    assert offset is not None
    strange = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1.0, 3.0])
    offset.view(-1)[: 4 * len(strange) : 4] = strange
    ours, theirs = found(case, tensors)[0].double(), right(case, tensors)[0]
    assert theirs.isnan().any()
    assert not theirs.isnan().all()
    return 0.0 if torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5, equal_nan=True) else 1.0


def main() -> None:
    """Print a kernel's errors."""
    for case in SMALL:
        if case.kernel == sys.argv[1]:
            print(json.dumps([str(case), str(case.dtype), errors(case, draw(case))]), flush=True)
    if sys.argv[1] == "deform":
        print(json.dumps(["far offsets", "torch.float32", [far_offsets()]]))


if __name__ == "__main__":
    main()
