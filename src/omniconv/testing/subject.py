"""One form of an operator, and the calls that the properties make on it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from omniconv.core.card import Card, Sample
from omniconv.core.layer import plain_class
from omniconv.testing.samples import common_samples
from omniconv.testing.tolerances import require, require_equal, require_near

__all__ = ["Evaluation", "Subject", "evaluate", "seeded", "tensors"]


@dataclass(frozen=True)
class Subject:
    """One form of an operator: a variant over ``dim`` axes, plain or transposed."""

    card: Card
    variant: str = "default"
    dim: int = 2
    transposed: bool = False

    @property
    def layer(self) -> type[nn.Module]:
        """The class under test."""
        return self.card.layer(self.dim, self.transposed)

    @property
    def plain(self) -> type[nn.Module]:
        """torch's layer of the same form."""
        return plain_class(self.dim, self.transposed)

    @property
    def own(self) -> Mapping[str, Any]:
        """The variant's own arguments."""
        return self.card.variants[self.variant]

    @property
    def masked(self) -> bool:
        """Whether the layer takes and returns a mask beside its features."""
        return self.card.role == "masked"

    @cached_property
    def samples(self) -> dict[str, Sample]:
        """Name -> configuration: the common ones of the role, then the card's."""
        found = common_samples(self.card, self.own, self.dim, self.transposed)
        for number, sample in enumerate(self.card.samples(self.dim), 1):
            found[f"own {number}"] = sample
        return found

    def named(self, *names: str) -> dict[str, Sample]:
        """The samples of these names ("own" stands for all of the card's); default: all."""
        return {
            name: sample
            for name, sample in self.samples.items()
            if not names or name in names or (name.startswith("own ") and "own" in names)
        }

    def build(self, sample: Sample, **overrides: Any) -> Any:
        """The layer in a sample's configuration (float64 unless overridden), freshly drawn."""
        arguments = {**self.own, **sample.arguments, "dtype": torch.float64, **overrides}
        return self.layer(**arguments)

    @property
    def modes(self) -> tuple[bool, ...]:
        """Training flags that numbers are checked under: both where they differ."""
        return (False, True) if self.card.batch_statistics else (True,)

    def trained(self, sample: Sample, **overrides: Any) -> Any:
        """The layer as a few steps might leave it: no parameter or statistic has its first value.

        Layers that normalise over the batch are in evaluation mode.
        """
        layer = self.build(sample, **overrides)
        with torch.no_grad():
            for p in layer.parameters():
                p.add_(torch.randn(p.shape, dtype=torch.float64).to(p), alpha=0.1)
            if self.card.batch_statistics:
                g = layer.geometry
                size = tuple(
                    n + d * (k - 1)
                    for n, d, k in zip(sample.size, g.dilation, g.kernel_size, strict=True)
                )
                layer(*self.draw(sample, next(layer.parameters()).dtype, batch=4, size=size))
                layer.eval()
        return layer

    def build_plain(self, sample: Sample, **overrides: Any) -> Any:
        """The torch layer that this one replaces: depthwise where it does not mix channels."""
        known = inspect.signature(self.plain).parameters
        arguments = {k: v for k, v in sample.arguments.items() if k in known}
        if not self.card.mixes_channels:
            arguments["groups"] = arguments["in_channels"]
        return self.plain(**{**arguments, "dtype": torch.float64, **overrides})

    def own_arguments(self, sample: Sample) -> dict[str, Any]:
        """What the layer is given besides torch's arguments."""
        known = inspect.signature(self.plain).parameters
        return {k: v for k, v in {**self.own, **sample.arguments}.items() if k not in known}

    def rates(self, sample: Sample) -> tuple[tuple[int, int], ...]:
        """(down, up) per axis: inputs in a cell, outputs of a position (see the card)."""
        return self.card.rates(self.own_arguments(sample), self.dim)

    def draw(
        self,
        sample: Sample,
        dtype: torch.dtype = torch.float64,
        *,
        batch: int | str | None = "sample",
        size: tuple[int, ...] | None = None,
    ) -> tuple[Tensor, ...]:
        """Random inputs of the role's call: features, and a mask for masked layers."""
        count = sample.batch if batch == "sample" else batch
        head = () if count is None else (int(count),)
        size = sample.size if size is None else size
        x = torch.randn(*head, sample.arguments["in_channels"], *size, dtype=torch.float64)
        inputs = [x]
        if self.masked:
            inputs.append(torch.rand(*head, 1, *size, dtype=torch.float64) > 0.4)
        return tuple(t.to(dtype) for t in inputs)

    def length(self, layer: Any, *inputs: Tensor) -> int:
        """Terms of the longest sum in a forward and backward pass over ``inputs``."""
        taps = layer.geometry.in_channels
        for k in layer.geometry.kernel_size:
            taps *= k
        return taps * max(1, inputs[0].numel())


def tensors(result: Any) -> tuple[Tensor, ...]:
    """A layer's outputs as a tuple."""
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


@dataclass(frozen=True)
class Evaluation:
    """Outputs of a call, and the gradients of their product with the cotangents."""

    outputs: tuple[Tensor, ...]
    gradients: dict[str, Tensor]
    cotangents: tuple[Tensor, ...]

    def require_near(
        self, other: Evaluation, *, length: int, dtype: torch.dtype | None = None, case: str = ""
    ) -> None:
        """Fail unless this evaluation agrees with a right one (see ``tolerances``).

        A gradient is measured against the largest entry of all of them: the sum behind a small one
        may cancel.
        """
        for i, (output, right) in enumerate(zip(self.outputs, other.outputs, strict=True)):
            require_near(f"output {i}{case}", output, right, length=length, dtype=dtype)
        scale = max(
            (float(g.abs().max()) for g in other.gradients.values() if g.numel()), default=0.0
        )
        for name, right in other.gradients.items():
            what = f"the gradient of {name}{case}"
            given = self.gradients[name]
            require_near(what, given, right, length=length, dtype=dtype, scale=scale)

    def require_equal(self, other: Evaluation, case: str = "") -> None:
        """Fail unless this evaluation agrees with another one to the last bit."""
        for i, (output, right) in enumerate(zip(self.outputs, other.outputs, strict=True)):
            require_equal(f"output {i}{case}", output, right)
        for name, right in other.gradients.items():
            require_equal(f"the gradient of {name}{case}", self.gradients[name], right)


def evaluate(
    call: Callable[..., Any],
    layer: nn.Module,
    inputs: tuple[Tensor, ...],
    cotangents: tuple[Tensor, ...] | None = None,
) -> Evaluation:
    """Call ``call(*inputs)`` and differentiate with respect to the features and all parameters.

    Only the first input is differentiated: the others are masks or indices. Without
    ``cotangents`` they are drawn from a fixed seed, so that two evaluations see the same.
    """
    x = inputs[0].detach().requires_grad_()
    outputs = tensors(call(x, *inputs[1:]))
    wanted = {"input": x} | {n: p for n, p in layer.named_parameters() if p.requires_grad}
    roots = [output for output in outputs if output.requires_grad]
    require(bool(roots), "no output depends on the input or on a parameter")
    if cotangents is None:
        generator = torch.Generator().manual_seed(len(roots))
        cotangents = tuple(
            torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r) for r in roots
        )
    found = torch.autograd.grad(roots, list(wanted.values()), cotangents, allow_unused=True)
    gradients = {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(wanted.items(), found, strict=True)
    }
    return Evaluation(tuple(o.detach() for o in outputs), gradients, cotangents)


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Run with a fixed seed and leave the caller's random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
