"""The command line: parses, calls, prints; no logic.

Exit codes: 0 done, 1 done with failures, 2 refused with one clear sentence on stderr.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
except ImportError:  # the library works without the tool's packages
    sys.exit('omniconv: the command line needs its packages: pip install "omniconv[compare]"')

from omniconv.core.table import text_table

app = typer.Typer(
    help="Any convolution, in any PyTorch model: correct, fast, honestly compared.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")]


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False))


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


@app.command("list")
def list_command(
    pattern: Annotated[str, typer.Argument(help="Shell pattern, such as 'd*'.")] = "*",
    role: Annotated[str | None, typer.Option(help="Only operators of this role.")] = None,
    dim: Annotated[int | None, typer.Option(help="Only those for 1, 2 or 3 axes.")] = None,
    folds: Annotated[bool | None, typer.Option(help="Only those that fold, or do not.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the operators."""
    from omniconv.core.registry import card, list_operators

    cards = [card(name) for name in list_operators(pattern, role=role, dim=dim, folds=folds)]
    if as_json:
        _print_json([c.to_json() for c in cards])
        return
    rows = [("name", "role", "dims", "folds", "what it is")]
    for c in cards:
        dims = ",".join(map(str, c.dims))
        rows.append((c.name, c.role, dims, "yes" if c.folds else "no", c.summary))
    print("\n".join(text_table(rows, left=5)))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="An operator's name.")], as_json: AsJson = False
) -> None:
    """Show one operator's card."""
    from omniconv.core.registry import card

    c = card(name)
    if as_json:
        _print_json(c.to_json())
        return
    layers = [*c.classes.values(), *c.transposed.values()]
    facts = {
        "what": c.summary,
        "equation": c.equation,
        "layers": ", ".join(layer.__name__ for layer in layers),
        "own arguments": ", ".join(_own_arguments(layers[0])) or "none",
        "variants": ", ".join(c.variants),
        "folds": "to torch's plain layer" if c.folds else "no",
        "from_conv": c.preserves_note,
        "mixes channels": "yes" if c.mixes_channels else "no",
        "kernel depends on the input": "yes" if c.input_dependent else "no",
        "equivariance": ", ".join(c.equivariance) or "none",
        "ONNX": "yes" if c.onnx else "no",
        "citation": c.citation,
        "the paper's claim": c.claim or "none",
        "official code": f"{c.source} ({c.source_licence})" if c.source else "none",
        "literature rows": ", ".join(map(str, c.rows)),
    }
    print(f"{c.name} ({c.kind}, {c.role})\n")
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"  {key.ljust(width)}  {value}")
    print(f"\n  oc.create({c.name!r}, in_channels, out_channels, kernel_size, ...)")


def _own_arguments(layer: Any) -> list[str]:
    import inspect

    parameters = inspect.signature(layer).parameters
    return [f"{n}={parameters[n].default!r}" for n in layer.own_arguments()]


@app.command()
def literature(
    pattern: Annotated[str, typer.Argument(help="Text in the name or title.")] = "",
    status: Annotated[str | None, typer.Option(help="works, partial or absent.")] = None,
    as_json: AsJson = False,
) -> None:
    """The 352 published systems and what of them is here."""
    from omniconv.core import args
    from omniconv.literature import STATUSES, systems

    rows = [s for s in systems() if pattern.lower() in f"{s.name} {s.title}".lower()]
    if status is not None:
        args.choice("status", status, STATUSES)
        rows = [s for s in rows if s.status == status]
    if as_json:
        from dataclasses import asdict

        _print_json([asdict(s) for s in rows])
        return
    table = [("id", "status", "name", "public names, or what is left")]
    for s in rows:
        what = "; ".join(filter(None, (", ".join(s.names), s.left)))
        table.append((str(s.id), s.status, _shorten(s.name, 32), _shorten(what, 90)))
    print("\n".join(text_table(table, left=4)))
    tally = ", ".join(f"{sum(s.status == k for s in rows)} {k}" for k in STATUSES)
    print(f"{len(rows)} systems: {tally}")


@app.command()
def doctor(
    build: Annotated[
        bool, typer.Option("--build", help="Build the kernels now, not at their first use.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What works on this machine, what does not, and the remedy."""
    from omniconv.doctor import examine

    findings = examine(build)
    if as_json:
        _print_json([f.to_json() for f in findings])
    else:
        rows = [("", "status", "found", "needed for")]
        rows += [(f.name, f.status, _shorten(f.found, 70), f.purpose) for f in findings]
        print("\n".join(text_table(rows, left=4)))
        remedies = [f for f in findings if f.status != "ok"]
        if remedies:
            print("\nRemedies")
        for f in remedies:
            print(f"  {f.name}: {f.remedy}")
    if any(f.status == "broken" for f in findings):
        raise typer.Exit(1)


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help="A backbone's name, such as resnet20.")],
    swap: Annotated[
        str | None, typer.Option(help="Operator to swap in: 'dcls(kernel_size=5, taps=9)'.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Pattern of the layers to swap; default: the body.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images per call.")] = 8,
    size: Annotated[int, typer.Option(help="Height and width of the images, in pixels.")] = 32,
    channels: Annotated[int, typer.Option(help="Channels of the images.")] = 3,
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 10,
    width: Annotated[
        int | None, typer.Option(help="Width of the backbone; default: as published.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Timed repetitions.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Parameters, FLOPs, times and memory of a backbone, plain or swapped."""
    import torch

    from omniconv.analysis import profile as measure
    from omniconv.compare.plan import parse_operator
    from omniconv.core import args
    from omniconv.models import build
    from omniconv.surgery.swap import swap_
    from omniconv.surgery.where import name as named

    shape = [args.positive_int("batch", batch), args.positive_int("channels", channels)]
    shape += [args.positive_int("size", size)] * 2
    network = build(model, in_channels=channels, classes=classes, width=width)
    report = None
    if swap is not None:
        operator, arguments = parse_operator(swap)
        patterns: Any = network.body if where is None else where
        chosen = named(*([patterns] if isinstance(patterns, str) else patterns))
        report = swap_(network, operator, where=chosen, from_weights=False, **arguments)
    result = measure(network, torch.randn(shape), steps=args.positive_int("steps", steps))
    if as_json:
        data = {"model": model, "profile": result.to_json()}
        _print_json(data | {"swap": report.to_json() if report else None})
        return
    if report is not None:
        print(f"{report}\n")
    print(result)


@app.command()
def compare(
    operators: Annotated[
        str | None, typer.Option(help="Rows: 'conv,conv(width=1.5),dcls(kernel_size=5,taps=9)'.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="classify or denoise.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Number of seeds, or a list '0,1,2'.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Length of training: '2epochs', '1000steps' (denoise).")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="mnist5k, cifar10:DIR, idx:DIR, folder:DIR; to denoise: skimage, ..."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="resnet8, vgg11, dncnn9, ...")] = None,
    width: Annotated[int | None, typer.Option(help="Width of the backbone.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of every trial.")] = None,
    backend: Annotated[
        str | None, typer.Option(help="auto, or torch: no compiled kernels.")
    ] = None,
    frontier: Annotated[
        bool, typer.Option(help="Add plain networks of other widths and kernel sizes.")
    ] = True,
    screen: Annotated[
        int | None, typer.Option(help="One run of every operator first; so many go on.")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="Plan file (YAML).")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("omniconv-report"),
    as_json: AsJson = False,
) -> None:
    """The main job: train networks, measure them, judge them, write a report."""
    from omniconv.compare import plan_from_flags, run

    chosen = plan_from_flags(
        plan=plan,
        task=task,
        operators=operators,
        frontier=frontier,
        screen=screen,
        seeds=seeds,
        budget=budget,
        data=data,
        backbone=backbone,
        width=width,
        threads=threads,
        backend=backend,
    )
    code, results = run(chosen, out, progress=not as_json)
    if as_json:
        _print_json(results)
    raise typer.Exit(code)


@app.command()
def report(
    store: Annotated[Path, typer.Argument(help="Folder of a comparison.")] = Path(
        "omniconv-report"
    ),
    as_json: AsJson = False,
) -> None:
    """Write the report of a comparison again, as far as it came."""
    from omniconv.compare import rebuild
    from omniconv.compare.progress import final_table

    code, results = rebuild(store)
    if as_json:
        _print_json(results)
    else:
        print(f"{final_table(results)}\n\nReport: {store / 'report.html'}")
    raise typer.Exit(code)


@app.command()
def bench(
    kernels: Annotated[
        list[str] | None, typer.Argument(metavar="[KERNEL]...", help="Default: all.")
    ] = None,
    suite: Annotated[str, typer.Option(help="Shapes: default, large or odd.")] = "default",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    layout: Annotated[str, typer.Option(help="nchw, channels_last or both.")] = "both",
    threads: Annotated[
        str | None, typer.Option(help="Number, or '1,2': a run each; default: all cores.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Calls of each form, at most.")] = 20,
    compile: Annotated[
        bool, typer.Option("--compile", help="Time torch.compile too; that takes its time.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    store: Annotated[
        Path | None, typer.Option("--save", help="Folder of histories to append to.")
    ] = None,
    retune: Annotated[
        bool, typer.Option("--tune", help="Measure when depthwise uses torch, keep it; no more.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check and time the kernels, against torch's best and the machine's limits."""
    from omniconv.bench.run import run, save, settings, tune
    from omniconv.bench.table import show as shown
    from omniconv.bench.table import show_choice

    asked = settings(
        kernels or (),
        suite=suite,
        dtype=dtype,
        layout=layout,
        threads=threads,
        repeats=repeats,
        compile=compile,
        device=device,
    )
    if retune:
        tuned = tune(asked)
        _print_json(tuned) if as_json else print(show_choice(tuned))
        return
    code, results = run(asked, lambda line: print(line, file=sys.stderr))
    if store is not None:
        save(results, store)
    if as_json:
        _print_json(results)
    else:
        print(shown(results))
    raise typer.Exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        from omniconv import __version__

        print(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Any convolution, in any PyTorch model: correct, fast, honestly compared."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Run the command line; errors end in one sentence and exit code 2."""
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except typer.TyperException as error:
        print(f"omniconv: {error.format_message()}", file=sys.stderr)
        code = 2
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("OMNICONV_DEBUG"):
            raise
        print(f"omniconv: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    sys.exit(code or 0)
