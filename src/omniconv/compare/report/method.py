"""How the numbers came about: statistics in two sentences, and the conditions of the run."""

from __future__ import annotations

from .data import Comparison
from .formats import budget, count, margin, significant
from .headline import SEEDS_NEEDED


def statistics(page: Comparison) -> str:
    """How to read a verdict, in two sentences."""
    seeds = page.plan.get("seeds")
    n = f"n = {len(seeds)}" if isinstance(seeds, list) else "several seeds"
    return (
        f"Rows are compared seed by seed ({n}, paired t-test): brackets are 95 % intervals "
        f"of one row alone, and a difference counts where its p, corrected for the number of rows "
        f"(Holm), is at most 0.05. No relevant difference, or level, is what is shown to be "
        f"smaller than the margin of {margin(page.metric)} that was fixed beforehand; what is "
        f"shown neither way is undecided, and below {count(SEEDS_NEEDED, 'seed')} there is no "
        f"verdict."
    )


def method(page: Comparison) -> list[str]:
    """How the numbers came about, one sentence or two per point; what is unknown is left out."""
    plan, metric, machine = page.plan, page.metric, page.machine
    points = [
        f"The network after the last {page.unit} is scored on the test split, once. Learning "
        "curves and tuning use the validation split; nothing is ever chosen by test data.",
    ]
    optimizer = dict(plan.get("optimizer") or {})
    optimizer.pop("lr", None)
    named = {"budget": budget(plan.get("budget")), "batch size": plan.get("batch_size")}
    settings = [
        f"{key.replace('_', ' ')} {value}"
        for key, value in (named | optimizer).items()
        if value not in (None, "") and key != "name"
    ]
    kinds = [str(kind) for kind in (optimizer.get("name"), plan.get("dtype")) if kind]
    if settings:
        points.append(
            f"Every network trains alike: {', '.join([*kinds, *settings])}. Only learning rates "
            f"differ; they have a table of their own."
        )
    threads = machine.get("threads") or plan.get("threads")
    allocator = f", memory allocator {machine['allocator']}" if machine.get("allocator") else ""
    points.append(
        "Each trial runs in a process of its own, one at a time"
        + (f", threads {threads}" if threads else "")
        + f"{allocator}."
    )
    ran = _kernels(page)
    if ran:
        points.append(ran)
    if metric.chance is not None:
        points.append(
            "A seed that diverges counts as a network that has learned nothing, "
            + f"{significant(metric.chance)} {metric.unit}".rstrip()
            + "."
        )
    if any(row.standing for row in page.rows):
        points.append(
            "The frontier is what plain networks of other widths and kernel sizes reach in the "
            f"same time. An operator is compared with it at its own latency{_batch(page)}."
        )
    folded = ", ".join(dict.fromkeys(row.name for row in page.rows if row.folded))
    points.append(
        "Costs are measured once per row, apart from the training runs. FLOPs count two per "
        "multiply-add, forward, for one sample; step and peak memory are of one training step"
        + (f"; latency is after folding to a plain convolution for {folded}." if folded else ".")
    )
    return points


def _kernels(page: Comparison) -> str:
    """Which compiled kernels ran where; empty where no trial says."""
    groups: dict[tuple[str, ...], dict[str, None]] = {}
    for row in page.rows:
        if row.ran is not None:
            groups.setdefault(row.ran, {})[row.name] = None
    nowhere = groups.pop((), {})
    if groups:
        parts = [f"{' and '.join(names)} in {', '.join(where)}" for names, where in groups.items()]
        parts += [f"none in {', '.join(nowhere)}"] if nowhere else []
        return f"Compiled kernels that ran in training: {'; '.join(parts)}."
    off = ", because the back end is torch" if page.plan.get("backend") == "torch" else ""
    return f"Torch computed everything: no compiled kernel ran{off}." if nowhere else ""


def _batch(page: Comparison) -> str:
    sizes = [row.batch for row in page.rows if row.batch]
    return f", measured at batch {sizes[0]} after folding" if sizes else ""
