"""Floating-point operations of a model or function, forward and backward apart.

Two per multiply-add; what every other operator counts stands in ``omniconv.analysis.flop_rules``.
Nothing is estimated from layer types: the call is run once and each torch operator it reaches is
counted, so functional code, parametrisations and custom layers are included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from omniconv.analysis.flop_rules import count, has_rule
from omniconv.analysis.follow import following
from omniconv.analysis.preserve import leaf, preserved
from omniconv.core import args as parse
from omniconv.core.compat import DispatchMode, map_tensors, tensors_in
from omniconv.core.table import text_table

__all__ = ["FlopCount", "count_flops"]

SAME_FORMULA = {
    "_scaled_dot_product_flash_attention_for_cpu": "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu_backward": (
        "_scaled_dot_product_flash_attention_backward"
    ),
}


@dataclass(frozen=True)
class FlopCount:
    """What ``count_flops`` found.

    Attributes:
        forward: FLOPs of the call.
        backward: FLOPs of its gradient; 0 where it was not asked for.
        by_module: Module path -> (forward, backward), submodules included; ``""`` is the model.
            Gradients added up where paths meet are the model's own. Empty for a plain function.
        by_op: Operator, as ``namespace.name`` -> (forward, backward).
        unknown: Operators that no rule covers. They counted 0.
    """

    forward: int
    backward: int
    by_module: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    by_op: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Forward and backward together."""
        return self.forward + self.backward

    def own(self, path: str) -> tuple[int, int]:
        """(forward, backward) of the module at ``path`` without its submodules."""
        if path not in self.by_module:
            hint = parse.did_you_mean(path, self.by_module)
            raise ValueError(f"path must be the path of a module, got {parse.show(path)}{hint}")
        inner = [n for p, n in self.by_module.items() if p and p.rpartition(".")[0] == path]
        here = self.by_module[path]
        return here[0] - sum(f for f, _ in inner), here[1] - sum(b for _, b in inner)

    def __str__(self) -> str:
        rows = sorted(self.by_op.items(), key=lambda row: -sum(row[1]))
        table = [(op, f"{f:,}", f"{b:,}") for op, (f, b) in rows]
        table += [("total", f"{self.forward:,}", f"{self.backward:,}")]
        lines = text_table([("operator", "forward", "backward"), *table], left=1)
        if self.unknown:
            lines.append(f"not counted, no rule: {', '.join(self.unknown)}")
        return "\n".join(lines)


def count_flops(
    model_or_fn: Callable[..., Any], *inputs: Any, backward: bool = False, **kwargs: Any
) -> FlopCount:
    """Count the floating-point operations of ``model_or_fn(*inputs, **kwargs)``.

    The call is run once, under the caller's grad mode, autocast and module modes, on the tensors'
    own device. On the meta device nothing is computed: a model whose parameters are there takes
    inputs from anywhere. Buffers, gradients, training flags and random state are left as they were.

    ``backward=True`` also counts the gradient of all outputs, seeded with ones, with respect to
    every parameter and input that requires one: give a layer an input that requires a gradient to
    count what it costs inside a network. Adding up ``.grad`` is not counted; recomputation in
    checkpointing is (torch refuses ``use_reentrant=True`` here).

    Args:
        model_or_fn: A module, or any function of tensors.
        *inputs: Positional arguments, tensors or nested containers of tensors.
        backward: Count the gradient too.
        **kwargs: Keyword arguments.

    Returns:
        A ``FlopCount``.

    Raises:
        TypeError: ``model_or_fn`` is not callable.
        ValueError: ``backward=True`` and no output requires a gradient.
    """
    if not callable(model_or_fn):
        raise TypeError(
            f"model_or_fn must be a module or a function, got {parse.show(model_or_fn)}"
        )
    backward = parse.boolean("backward", backward)
    model = model_or_fn if isinstance(model_or_fn, nn.Module) else None
    counter = _Counter()
    with ExitStack() as stack:
        stack.enter_context(preserved(*([] if model is None else [model])))
        stack.callback(counter.release)
        if model is not None:
            stack.enter_context(following(model, counter.enter, counter.leave))
            if any(p.is_meta for p in model.parameters()):
                inputs, kwargs = map_tensors(lambda t: t.to("meta"), (inputs, kwargs))
        if backward:
            stack.enter_context(torch.inference_mode(False))  # this enables gradients too
            inputs, kwargs = map_tensors(leaf, (inputs, kwargs))
        with counter:
            outputs = model_or_fn(*inputs, **kwargs)
        if backward:
            _count_backward(counter, outputs)
    return counter.result(model)


def _count_backward(counter: _Counter, outputs: Any) -> None:
    roots = [t for t in tensors_in(outputs) if t.requires_grad]
    if not roots:
        raise ValueError(
            "backward=True needs an output that requires a gradient, but none of the outputs does"
        )
    seeds = [torch.ones_like(t) for t in roots]
    leaves = counter.claim(roots, "")
    counter.in_backward = True
    if leaves:
        with counter:
            torch.autograd.grad(roots, leaves, seeds, allow_unused=True)


class _Counter(DispatchMode):
    """Counts every operator below autograd and books it on the innermost module.

    In the forward pass that is the top of the stack kept by module hooks. For the backward pass
    the nodes of the autograd graph are claimed at each module boundary: what has been added to the
    graph since belongs to the module that was running.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str, bool]] = Counter()
        self.unknown: set[str] = set()
        self.formulas = FlopCounterMode(display=False).flop_registry
        self.stack = [""]
        self.owner = ""
        self.in_backward = False
        self.nodes: set[Any] = set()
        self.leaves: list[Tensor] = []
        self.handles: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        namespace, _, name = func.name().partition("::")
        name = name.partition(".")[0]
        packet = getattr(getattr(torch.ops, namespace), name)
        if namespace == "aten":
            name = name.removesuffix("_")
            packet = getattr(torch.ops.aten, SAME_FORMULA.get(name, name), packet)
        formula = self.formulas.get(packet)
        if formula is None and namespace != "prim" and not has_rule(name):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        flops = count(name, func, args, kwargs, out, formula)
        label = f"{namespace}.{name}"
        if flops is None:
            self.unknown.add(label)
        elif flops:
            path = self.stack[-1] if len(self.stack) > 1 or not self.in_backward else self.owner
            self.counts[path, label, self.in_backward] += flops
        return out

    def enter(self, path: str, inputs: Any) -> None:
        """A module starts to run."""
        self.claim(tensors_in(inputs), self.stack[-1])
        self.stack.append(path)

    def leave(self, path: str, inputs: Any, outputs: Any) -> None:
        """A module has run."""
        self.claim(tensors_in(outputs), path)
        self.stack.pop()

    def claim(self, tensors: Iterable[Tensor], path: str) -> list[Tensor]:
        """Book the unclaimed graph behind ``tensors`` on ``path``; returns all leaves so far."""
        pending: list[Any] = [t.grad_fn for t in tensors]
        while pending:
            node = pending.pop()
            if node is None or node in self.nodes:
                continue
            self.nodes.add(node)
            if node.name().endswith("AccumulateGrad"):
                self.leaves.append(node.variable)
                continue
            self.handles.append(node.register_prehook(partial(self._own, path)))
            self.handles.append(node.register_hook(partial(self._own, "")))
            pending.extend(following for following, _ in node.next_functions)
        return self.leaves

    def _own(self, path: str, *_: Any) -> None:
        self.owner = path

    def release(self) -> None:
        """Take the hooks off the autograd graph, so that it can be freed."""
        for handle in self.handles:
            handle.remove()
        self.nodes.clear()
        self.leaves.clear()

    def result(self, model: nn.Module | None) -> FlopCount:
        """Everything counted, summed over modules (with their submodules) and operators."""
        modules: dict[str, list[int]] = {}
        if model is not None:
            modules = {path: [0, 0] for path, _ in model.named_modules()}
        operators: dict[str, list[int]] = {}
        total = [0, 0]
        for (path, operator, phase), flops in self.counts.items():
            total[phase] += flops
            operators.setdefault(operator, [0, 0])[phase] += flops
            if model is not None:
                for outer in _ancestry(path):
                    modules[outer][phase] += flops
        return FlopCount(
            forward=total[0],
            backward=total[1],
            by_module={path: (f, b) for path, (f, b) in modules.items()},
            by_op={operator: (f, b) for operator, (f, b) in operators.items()},
            unknown=tuple(sorted(self.unknown)),
        )


def _ancestry(path: str) -> list[str]:
    """``path``, the modules around it, and the model."""
    parts = path.split(".") if path else []
    return [".".join(parts[:depth]) for depth in range(len(parts) + 1)]
