"""The card: what an operator declares about itself.

Tests, docs, CLI lists and report tables are generated from cards, so a flag here is a promise that
the conformance matrix checks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from omniconv.core import args

__all__ = ["KINDS", "ROLES", "Card", "ErrorInput", "Sample"]

KINDS = (
    "layer",
    "functional",
    "init",
    "constraint",
    "regulariser",
    "transform",
    "search",
    "analysis",
    "block",
    "model",
)
ROLES = (
    "conv",
    "mixer",
    "resampler",
    "masked",
    "conditional",
    "sequence",
    "graph",
    "points",
    "mesh",
    "sphere",
    "se3",
    "flow",
    "binary",
    "quantised",
    "spiking",
    "pair",
)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One configuration that the matrix runs: constructor arguments and a spatial input size."""

    arguments: Mapping[str, Any]
    size: tuple[int, ...]
    batch: int | None = 2


@dataclass(frozen=True, kw_only=True)
class ErrorInput:
    """Constructor arguments that must be refused, and a regular expression for the message."""

    arguments: Mapping[str, Any]
    match: str
    error: type[Exception] = ValueError


def _no_samples(dim: int) -> tuple[Sample, ...]:
    return ()


def _no_errors(dim: int) -> tuple[ErrorInput, ...]:
    return ()


def _none_pass(layer: Any) -> tuple[int, ...]:
    return ()


def _same_grid(own: Mapping[str, Any], dim: int) -> tuple[tuple[int, int], ...]:
    return ((1, 1),) * dim


def _any_channels(own: Mapping[str, Any]) -> int:
    return 1


@dataclass(frozen=True, kw_only=True)
class Card:
    """An operator's declaration.

    Attributes:
        name: Short name used by ``create``, ``swap_`` and the command line.
        kind: One of ``KINDS``.
        role: One of ``ROLES``: how a layer is called.
        classes: Number of spatial axes -> class.
        transposed: The same for transposed forms, where they exist.
        variants: Name -> the operator's own keyword arguments; the matrix runs each.
        equation: The definition, one line of plain text.
        summary: One sentence for lists.
        citation: Authors, title, venue, year.
        claim: What the paper itself reports: data set, network, figures, where they stand. Not
            checked here.
        source: Repository of the official code, empty where there is none.
        source_licence: Licence of that code (facts were taken from it, never text).
        rows: Ids of the systems in the literature table that it realises.
        reference: ``reference(layer, *inputs)``: an independent, naive, differentiable evaluation
            of the layer (loops or a dense matrix).
        flops: ``flops(layer, input_shape)`` -> (forward, backward), 2 per multiply-add.
        folds: ``fold()`` gives the plain torch convolution with the same output.
        mixes_channels: Every output channel sees every input channel (of its group).
        input_dependent: The kernel depends on the input.
        batch_statistics: In training mode the output depends on the whole batch and updates
            running statistics; else both modes are the same and a call changes no state.
        preserves_function: ``from_conv`` with default arguments keeps a trained layer's output;
            else it gives the nearest that the operator can represent.
        preserves_note: Which layers it keeps and what "nearest" means here.
        passing: ``passing(layer)`` -> output channels that repeat an input channel: a fresh layer
            has the plain layer's output variance in the others.
        rates: ``rates(own, dim)`` -> (down, up) per axis: torch's arguments describe a convolution
            over cells of ``down`` inputs (the last one may be incomplete), of whose positions each
            becomes ``up`` outputs. (1, 1) for all but layers that change the grid by themselves.
        equivariance: Transformations that commute with the layer.
        double_backward: Second derivatives are right.
        dtypes: Floating-point types it runs in.
        onnx: Exports to ONNX.
        default_extent: Kernel extent that the paper uses.
        kernels: Names of the compiled kernels (``omniconv.kernels``) that it may run on.
        channel_multiple: Own arguments -> number that must divide the channels.
        sample_width: Factor on the channels of the matrix's common configurations, for layers that
            are ill-conditioned with few (a layer norm over two channels).
        samples: Number of axes -> further configurations for the matrix.
        error_inputs: Number of axes -> constructor arguments that must be refused.
        adapt: ``adapt(conv)`` -> own arguments that suit a given convolution, used by surgery.
    """

    name: str
    kind: str = "layer"
    role: str = "conv"
    classes: Mapping[int, type[nn.Module]]
    transposed: Mapping[int, type[nn.Module]] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"default": {}})
    equation: str
    summary: str
    citation: str
    claim: str = ""
    source: str = ""
    source_licence: str = ""
    rows: tuple[int, ...] = ()
    reference: Callable[..., Any]
    flops: Callable[[Any, tuple[int, ...]], tuple[int, int]]
    folds: bool = False
    mixes_channels: bool = True
    input_dependent: bool = False
    batch_statistics: bool = False
    preserves_function: bool = False
    preserves_note: str = ""
    passing: Callable[[Any], Collection[int]] = _none_pass
    rates: Callable[[Mapping[str, Any], int], tuple[tuple[int, int], ...]] = _same_grid
    equivariance: tuple[str, ...] = ("translation",)
    double_backward: bool = True
    dtypes: tuple[str, ...] = ("float64", "float32", "bfloat16", "float16")
    onnx: bool = True
    default_extent: int = 3
    kernels: tuple[str, ...] = ()
    channel_multiple: Callable[[Mapping[str, Any]], int] = _any_channels
    sample_width: int = 1
    samples: Callable[[int], tuple[Sample, ...]] = _no_samples
    error_inputs: Callable[[int], tuple[ErrorInput, ...]] = _no_errors
    adapt: Callable[[Any], Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        args.choice("kind", self.kind, KINDS)
        args.choice("role", self.role, ROLES)
        if not self.name.isidentifier():
            raise ValueError(f"name must be an identifier, got {self.name!r}")
        if not self.classes:
            raise ValueError(f"classes must name at least one class, got {self.classes!r}")
        if "default" not in self.variants:
            raise ValueError(f"variants must contain 'default', got {list(self.variants)}")

    @property
    def dims(self) -> tuple[int, ...]:
        """Numbers of spatial axes that the operator exists for."""
        return tuple(sorted(self.classes))

    @property
    def no_weight_decay(self) -> tuple[str, ...]:
        """Own parameters that weight decay must not touch."""
        return tuple(getattr(next(iter(self.classes.values())), "no_weight_decay", ()))

    @property
    def lr_factors(self) -> dict[str, float]:
        """Learning-rate factors of own parameters."""
        return dict(getattr(next(iter(self.classes.values())), "lr_factors", {}))

    def layer(self, dim: int, transposed: bool = False) -> type[nn.Module]:
        """The class over ``dim`` axes."""
        table = self.transposed if transposed else self.classes
        form = "transposed form" if transposed else "form"
        if dim not in table:
            raise ValueError(
                f"dim must be one of {sorted(table)} for the {form} of {self.name!r}, "
                f"got {args.show(dim)}"
            )
        return table[dim]

    def to_json(self) -> dict[str, Any]:
        """Every declared fact as plain JSON; functions appear by their qualified name."""

        def plain(value: Any) -> Any:
            if isinstance(value, type):
                return f"omniconv.nn.{value.__name__}" if _is_ours(value) else _qualified(value)
            if isinstance(value, Mapping):
                return {str(k): plain(v) for k, v in value.items()}
            if isinstance(value, (tuple, list)):
                return [plain(v) for v in value]
            return _qualified(value) if callable(value) else value

        data = {f.name: plain(getattr(self, f.name)) for f in fields(self)}
        data |= {
            "dims": list(self.dims),
            "no_weight_decay": list(self.no_weight_decay),
            "lr_factors": self.lr_factors,
        }
        return data


def _is_ours(value: Any) -> bool:
    return str(value.__module__).startswith("omniconv.")


def _qualified(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
