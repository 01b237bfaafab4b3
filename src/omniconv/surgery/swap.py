"""Swap a model's plain convolutions for an operator.

Everything is planned first and then applied at once: an error leaves the model and the optimiser
as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from omniconv.core import args, compat
from omniconv.core.card import Card
from omniconv.core.layer import Convolution, plain_class, transfer
from omniconv.core.registry import card as find_card
from omniconv.surgery.accelerated import plain_type
from omniconv.surgery.modules import check_model, paths, replace
from omniconv.surgery.report import SwapReport, SwapRow, describe
from omniconv.surgery.where import Where
from omniconv.surgery.where import parse as parse_where

__all__ = ["MixerPointwise", "swap_"]

Factory = Callable[[nn.Module], nn.Module | None]
MARK = "omniconv_swapped"  # attribute of composite replacements: a second call leaves them alone


class MixerPointwise(nn.Sequential):
    """A mixer, which leaves channels apart, and the 1-wide convolution that mixes them."""

    def __init__(self, mixer: nn.Module, pointwise: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer
        self.pointwise = pointwise


def swap_(
    model: nn.Module,
    name_or_factory: str | Factory | SwapReport,
    where: Where | Callable[[str, nn.Module], bool] | None = None,
    *,
    from_weights: bool = True,
    optimizer: torch.optim.Optimizer | None = None,
    **operator_arguments: Any,
) -> SwapReport:
    """Replace plain convolutions of a model by an operator, in place.

    A dense convolution takes an operator that mixes channels; for a mixer it becomes
    :class:`MixerPointwise`. A depthwise one takes the mixer alone. Output grids stay: where that
    is impossible the layer is skipped and the report says why. A layer used in several places
    stays shared; a second call changes nothing.

    Args:
        model: Any module; compiled, parallel, scripted and quantised ones are refused by name.
        name_or_factory: An operator's name, a function ``conv -> new module or None``, or a
            report to replay.
        where: Predicate ``(path, module)``, such as ``oc.where.spatial``; default all.
        from_weights: Take over the trained kernels (the same output where the operator can
            represent it, else the nearest); False draws new ones.
        optimizer: Its parameter groups are updated, the replaced parameters' state dropped.
        **operator_arguments: The operator's own arguments; ``kernel_size`` enlarges kernels.

    Returns:
        A :class:`SwapReport`; its ``model`` is the model (a new layer where the model itself was
        swapped).

    Raises:
        TypeError: The model, an argument's type, or an unknown argument.
        ValueError: An unknown operator, or one that is not called as ``layer(x)``.
    """
    check_model(model)
    args.boolean("from_weights", from_weights)
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {args.show(optimizer)}")
    predicate = parse_where(where)
    if isinstance(name_or_factory, SwapReport):
        return _replay(model, name_or_factory, predicate, optimizer, operator_arguments)
    if isinstance(name_or_factory, str):
        operator = name_or_factory
        card = _swappable(operator)
        _check_own(next(iter(card.classes.values())), operator_arguments)

        def build(conv: nn.Module) -> tuple[nn.Module, str]:
            return _build(card, conv, from_weights, operator_arguments)

    elif callable(name_or_factory):
        operator = ""
        if operator_arguments:
            raise TypeError(
                f"operator_arguments must be empty with a factory, got {list(operator_arguments)}"
            )
        factory = name_or_factory

        def build(conv: nn.Module) -> tuple[nn.Module, str]:
            return _from_factory(factory, conv)

    else:
        raise TypeError(
            f"name_or_factory must be an operator's name, a function or a SwapReport, "
            f"got {args.show(name_or_factory)}"
        )
    rows, changes = _plan(model, predicate, build)
    root = replace(model, changes)
    if optimizer is not None:
        _update(optimizer, changes)
    return SwapReport(operator, dict(operator_arguments), tuple(rows), root)


def _swappable(name: str) -> Card:
    card = find_card(name)
    if card.kind != "layer" or card.role not in ("conv", "mixer"):
        raise ValueError(
            f"name_or_factory must be an operator called as layer(x) -> y, but {name!r} has "
            f"role {card.role!r}: use it in the model's code"
        )
    return card


def _check_own(layer: Any, given: Mapping[str, Any]) -> None:
    """Refuse arguments that are not the operator's own, whatever the model holds."""
    own = [*layer.own_arguments(), "kernel_size"]
    for name in given:
        if name not in own:
            hint = args.did_you_mean(name, own)
            raise TypeError(
                f"operator_arguments must be among {', '.join(own)}, got {name!r}{hint}"
            )


def _plan(
    model: nn.Module,
    predicate: Where,
    build: Callable[[nn.Module], tuple[nn.Module, str]],
) -> tuple[list[SwapRow], dict[nn.Module, nn.Module]]:
    """What happens to every convolution that ``predicate`` selects; changes nothing."""
    rows: list[SwapRow] = []
    changes: dict[nn.Module, nn.Module] = {}
    everything = paths(model)
    done = {id(part) for m in everything if getattr(m, MARK, False) for part in m.modules()}
    owners: dict[nn.Parameter, list[nn.Module]] = {}
    for module in everything:
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(module)
    for module, where in everything.items():
        if not isinstance(module, compat.ConvNd) or id(module) in done:
            continue
        if not any(predicate(path, module) for path in where):
            continue
        label = ", ".join(where)
        reason = _obstacle(module, everything, owners)
        if reason:
            rows.append(SwapRow(label, _describe(module), "", "skipped", reason))
            continue
        try:
            new, weights = build(module)
        except ValueError as error:
            rows.append(SwapRow(label, _describe(module), "", "skipped", str(error)))
            continue
        if not isinstance(new, Convolution):
            setattr(new, MARK, True)
        changes[module] = new
        rows.append(SwapRow(label, _describe(module), _describe(new), "swapped", "", weights))
    return rows, changes


def _obstacle(
    module: nn.Module,
    everything: Mapping[nn.Module, list[str]],
    owners: Mapping[nn.Parameter, list[nn.Module]],
) -> str:
    """Why a convolution cannot be replaced, or an empty string."""
    if isinstance(module, Convolution):
        return f"already {type(module).__name__}"
    geometry = (len(module.kernel_size), isinstance(module, compat.ConvTransposeNd))  # type: ignore[arg-type]
    if plain_type(module) is not plain_class(*geometry):
        return f"{type(module).__name__} is not torch's plain layer and may compute differently"
    if compat.has_hooks(module):
        return "hooks on the layer would be lost"
    for parameter in module.parameters(recurse=False):
        others = [m for m in owners[parameter] if m is not module]
        if others:
            return f"shares a parameter with {everything[others[0]][0]!r}"
    return ""


def _build(
    card: Card, conv: Any, from_weights: bool, given: Mapping[str, Any]
) -> tuple[nn.Module, str]:
    """The replacement of one convolution, and what became of its weights."""
    dim = len(conv.kernel_size)
    layer: Any = card.layer(dim, isinstance(conv, compat.ConvTransposeNd))
    own = {**(card.adapt(conv) if card.adapt else {}), **given}
    extent = own.pop("kernel_size", None)
    if card.mixes_channels or (conv.groups == conv.in_channels == conv.out_channels > 1):
        if from_weights:
            new = layer.from_conv(conv, extent, **own)
            return new, _compare(conv, new)
        new = transfer(layer, conv, extent, **own)[0]
        _compare(conv, new)  # refuses another grid
        return new, "new"
    per_channel = plain_class(dim)(
        conv.in_channels,
        conv.in_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.in_channels,
        bias=False,
        padding_mode=conv.padding_mode,
        device="meta",
        dtype=conv.weight.dtype,
    )
    mixer = transfer(layer, per_channel, extent, device=conv.weight.device, **own)[0]
    pointwise = plain_class(dim)(
        conv.in_channels,
        conv.out_channels,
        1,
        groups=conv.groups,
        bias=conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    new = MixerPointwise(mixer, pointwise).requires_grad_(conv.weight.requires_grad)
    return new.train(conv.training), "new"


def _from_factory(factory: Factory, conv: nn.Module) -> tuple[nn.Module, str]:
    new = factory(conv)
    if new is None:
        raise ValueError("the factory returned None")
    if not isinstance(new, nn.Module):
        raise TypeError(f"name_or_factory must return an nn.Module, got {args.show(new)}")
    if new is conv:
        raise ValueError("the factory returned the layer itself")
    return new, _compare(conv, new)


def _compare(conv: Any, new: nn.Module) -> str:
    """``kept`` where both layers agree on a probe, else ``nearest``; draws nothing."""
    if conv.weight.device.type == "meta":
        return "nearest"
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    numbers = [p for p in conv.padding if isinstance(p, int)]
    size = [max(r + 1, *numbers, 1) * 2 + 2 for r in reach]
    shape = (1, conv.in_channels, *size)
    count = torch.Size(shape).numel()
    probe = torch.arange(count, dtype=torch.float64).mul(0.7).sin().view(shape)
    probe = probe.to(conv.weight)
    modes = conv.training, new.training
    conv.eval()
    new.eval()
    try:
        with torch.no_grad():
            old_y, new_y = conv(probe), new(probe)
    finally:
        conv.train(modes[0])
        new.train(modes[1])
    if not isinstance(new_y, Tensor) or new_y.shape != old_y.shape:
        got = tuple(new_y.shape) if isinstance(new_y, Tensor) else type(new_y).__name__
        raise ValueError(f"the output would change from shape {tuple(old_y.shape)} to {got}")
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(old_y.dtype, 5e-2)
    scale = old_y.abs().max().clamp_min(1e-30)
    return "kept" if float((new_y - old_y).abs().max() / scale) <= tolerance else "nearest"


def _describe(module: Any) -> str:
    if isinstance(module, MixerPointwise):
        return f"{_describe(module.mixer)} + 1x1"
    return describe(module)


def _update(optimizer: torch.optim.Optimizer, changes: Mapping[nn.Module, nn.Module]) -> None:
    """Hand the replaced parameters' places in the optimiser to the new ones."""
    for old, new in changes.items():
        gone = {id(p) for p in old.parameters()}
        held = [g for g in optimizer.param_groups if any(id(p) in gone for p in g["params"])]
        if not held:
            continue
        for parameter in old.parameters():
            optimizer.state.pop(parameter, None)
        for group in held:
            group["params"] = [p for p in group["params"] if id(p) not in gone]
        group = held[0]
        for module in new.modules():
            spared = getattr(module, "no_weight_decay", ())
            factors = getattr(module, "lr_factors", {})
            for name, parameter in module.named_parameters(recurse=False):
                if name in spared or name in factors:
                    options = {k: v for k, v in group.items() if k != "params"}
                    options["lr"] = group["lr"] * factors.get(name, 1.0)
                    if name in spared and "weight_decay" in options:
                        options["weight_decay"] = 0.0
                    optimizer.add_param_group({"params": [parameter], **options})
                else:
                    group["params"].append(parameter)


def _replay(
    model: nn.Module,
    report: SwapReport,
    predicate: Where,
    optimizer: torch.optim.Optimizer | None,
    given: Mapping[str, Any],
) -> SwapReport:
    """Do again what a report says, on a fresh model with the same layers."""
    if given or predicate.text != "where.everything":
        raise TypeError("where and operator_arguments must be left out when a report is replayed")
    if not report.operator:
        raise ValueError("name_or_factory must be a report of a named operator, not of a factory")
    wanted = {row.path: row for row in report.layers if row.status == "swapped"}
    labels = {", ".join(where): module for module, where in paths(model).items()}
    for label, row in wanted.items():
        found = _describe(labels[label]) if label in labels else "no such layer"
        if found != row.before:
            raise ValueError(
                f"model must hold {row.before} at {label!r} as the report says, got {found}"
            )
    chosen = {label for full in wanted for label in full.split(", ")}
    return swap_(
        model,
        report.operator,
        Where(lambda path, module: path in chosen, "where.replayed"),
        from_weights=False,
        optimizer=optimizer,
        **report.arguments,
    )
