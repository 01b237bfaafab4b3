"""``omniconv bench``: what it counts, what it refuses, what it prints and keeps. Never a time."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from omniconv.analysis.measure import memory_growth, time_calls
from omniconv.bench import KERNELS, case, gate, job, run
from omniconv.bench.case import LAYOUTS, SUITES, Ask, Case, Pass
from omniconv.bench.ceilings import Ceilings, measure_ceilings
from omniconv.bench.table import digits, show, show_choice
from omniconv.compare import worker
from omniconv.kernels import backend, build
from omniconv.kernels.depthwise.choice import SHIPPED

sys.path.append(str(Path(__file__).parents[1] / "docs" / "_ext"))
speed = import_module("speed")

CEILINGS = Ceilings(
    {"gemm": 1e11, "convolution": 2e11}, {1_000_000: 1e11, 4_000_000: 5e10, 256_000_000: 1e10}
)
ASKS = [
    Ask(suite, dtype, layout)
    for suite, dtype, layout in product(SUITES, (torch.float32, torch.bfloat16), LAYOUTS)
]


def a_pass(ask: Ask) -> Pass:
    """Sums over rows."""
    x = ask.tensor(2, 3, 4, 5)
    return Pass(
        name="forward",
        ours=lambda: x.sum(-1),
        torch={"nchw": lambda: x.contiguous().sum(-1), "matmul": lambda: x @ x.new_ones(5)},
        reference=lambda: x.double().sum(-1),
        flops=2 * x.numel(),
        bytes=case.bytes_of(x),
        length=5,
        peers={"list": lambda: torch.stack([row.sum(-1) for row in x])},
        yardsticks={"product": lambda: x * x},
    )


def a_result(**changes) -> dict:
    ask = Ask()
    found = job.measure(Case("a case", lambda: [a_pass(ask)]), ask, CEILINGS, 3)
    return {"name": "a case", "layout": "nchw"} | found | changes


def results(*cases: dict) -> dict:
    return {
        "omniconv": "1",
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"cpu": "X", "cpu_capability": "Y", "torch": "2", "allocator": "pinned"},
        "settings": {"suite": "default", "dtype": "float32", "device": "cpu"},
        "runs": [
            {
                "kernel": "dcls",
                "threads": 1,
                "reason": None,
                "ceilings": CEILINGS.to_json(),
                "cases": list(cases),
            }
        ],
    }


@pytest.mark.parametrize(
    ("size", "extent", "stride", "padding", "dilation"),
    [(7, 3, 1, 1, 1), (8, 4, 2, (0, 3), 1), (9, 3, 3, 4, 2), (5, 11, 1, 5, 1), (6, 1, 2, 0, 1)],
)
def test_taps_inside_are_those_that_a_convolution_of_ones_adds(
    size, extent, stride, padding, dilation
):
    low, high = (padding, padding) if isinstance(padding, int) else padding
    x = F.pad(torch.ones(1, 1, size), (low, high))
    counted = F.conv1d(x, torch.ones(1, 1, extent), None, stride, 0, dilation).sum()
    assert case.taps_inside(size, extent, stride, padding, dilation) == int(counted)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 5, 4), (2, 3, 5, 4, 6)])
def test_layouts_have_their_strides_and_the_same_numbers(shape):
    plain, last = (Ask(layout=layout).tensor(*shape) for layout in LAYOUTS)
    assert torch.equal(plain, last)
    assert plain.is_contiguous()
    assert last.stride(1) == 1
    assert last.movedim(1, -1).is_contiguous()
    assert torch.equal(case.in_layout(last, "nchw"), plain)


def test_what_is_drawn_depends_on_shape_and_seed_and_is_rounded():
    ask = Ask(dtype=torch.bfloat16)
    assert torch.equal(ask.tensor(2, 3, 4), ask.tensor(2, 3, 4))
    assert not torch.equal(ask.tensor(2, 3, 4), ask.tensor(2, 3, 4, seed=1))
    assert torch.equal(ask.tensor(2, 3, 4), Ask().tensor(2, 3, 4).bfloat16())
    assert case.bytes_of(ask.tensor(2, 3), None, Ask().tensor(5)) == 12 + 20


def test_gradients_and_step_are_autograd_s():
    x, w, grad = (torch.randn(3, 4).requires_grad_(i < 1) for i in range(3))
    calls = 0

    def forward(x: Tensor, w: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x * w

    pull = case.gradients(forward, x, w, grad=grad)
    for _ in range(2):
        (found,) = pull()
        assert torch.equal(found, grad * w)
    assert calls == 1
    output, found = case.step(forward, x, w, grad=grad)()
    assert (torch.equal(output, x * w), torch.equal(found, grad * w)) == (True, True)
    assert not output.requires_grad


def test_calls_with_fewer_repeats_take_turns_spread_over_the_others():
    order: list[str] = []
    often, seldom = time_calls(
        [lambda: order.append("a"), lambda: order.append("b")], [6, 2], warm_up=1
    )
    assert "".join(order) == "ab" + "aaabaaab"
    assert (often.repeats, seldom.repeats) == (6, 2)
    assert 0 <= often.low <= often.ms <= often.high


def test_memory_growth_is_what_a_call_holds_at_its_fullest():
    assert memory_growth(lambda: torch.ones(1000)) == 4000
    assert memory_growth(lambda: torch.ones(1000).sum()) >= 4004
    assert memory_growth(lambda: None) == 0


def test_a_bound_is_the_slower_of_computing_and_moving():
    assert CEILINGS.bound(10**9, 1000) == (1e9 / 2e11, "FLOPs")
    assert CEILINGS.bound(1000, 10**6) == (1e6 / 1e11, "bytes")
    assert CEILINGS.bandwidth(1_000_001) == 5e10
    assert CEILINGS.bandwidth(10**12) == 1e10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ceilings_are_those_of_a_machine(dtype):
    found = measure_ceilings(dtype, scale=64)
    assert set(found.flops) == {"gemm", "convolution"}
    assert all(1e6 < v < 1e15 for v in (*found.flops.values(), *found.copies.values()))
    assert list(found.copies) == sorted(found.copies)
    json.dumps(found.to_json())


def test_a_case_has_every_figure():
    (each,) = a_result()["passes"]
    forms = each["forms"]
    assert list(forms) == ["omniconv", "torch nchw", "torch matmul", "list", "product"]
    kinds = [form["kind"] for form in forms.values()]
    assert kinds == ["form", "form", "form", "peer", "yardstick"]
    best = min(("torch nchw", "torch matmul"), key=lambda name: forms[name]["ms"])
    ours = forms["omniconv"]["ms"]
    assert each["best_torch"] == best
    assert each["times_torch"] == forms[best]["ms"] / ours
    assert (each["flops"], each["bytes"], each["limit"]) == (240, 480, "bytes")
    assert each["bound_ms"] == pytest.approx(1000 * 480 / 1e11)
    assert each["reached"] == each["bound_ms"] / ours
    assert each["memory"]["results"] == each["memory"]["omniconv"] == 2 * 3 * 4 * 4
    assert each["operators"] == []
    assert {form["repeats"] for form in forms.values()} == {3}


@pytest.mark.parametrize("form", ["ours", "torch", "peers", "compiled"])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda x: x * 1.001, "differs by"),
        (lambda x: x * float("nan"), "differs by"),
        (lambda x: x[:1], "has shape"),
        (lambda x: (x, x), "gives 2 tensors, expected 1"),
        (lambda x: x.double(), "where torch.float32 is asked for"),
    ],
)
def test_a_wrong_form_is_named_and_leaves_no_time(form, wrong, said):
    ask = Ask()
    good = a_pass(ask)
    call = lambda: wrong(good.ours())  # noqa: E731
    bad = replace(good, name="gradient", **{form: call if form == "ours" else {"mine": call}})
    found = job.measure(
        Case("a case", lambda: [good, bad]), ask, CEILINGS, 1, compiled=form == "compiled"
    )
    assert list(found) == ["reason"]
    assert found["reason"].startswith("not right: gradient, ")
    assert ("mine" in found["reason"]) == (form != "ours")
    assert said in found["reason"]


def test_an_error_is_a_reason():
    def fail() -> list[Pass]:
        raise ValueError("no\nmemory")

    found = job.measure(Case("a case", fail), Ask(), CEILINGS, 1)
    assert found == {"reason": "ValueError: no memory"}


def test_compiled_forms_run_only_when_asked_for():
    ask = Ask()
    with_one = replace(a_pass(ask), compiled={"sum": a_pass(ask).ours})
    a_case = Case("a case", lambda: [with_one])
    for compiled in (False, True):
        (each,) = job.measure(a_case, ask, CEILINGS, 1, compiled=compiled)["passes"]
        assert ("torch compiled sum" in each["forms"]) == compiled


def test_the_operators_of_a_form_are_ours_or_none():
    assert gate.operators_of(lambda: torch.ones(2) + 1) == []
    if not backend.load("dcls").reason:
        ask = Ask(suite="odd")
        first = next(import_module("omniconv.bench.dcls").cases(ask)).passes()
        assert [gate.operators_of(each.ours) for each in first] == [
            ["dcls"],
            ["dcls_backward"],
            ["dcls", "dcls_backward"],
        ]


@pytest.mark.parametrize("kernel", KERNELS)
def test_cases_have_names_of_their_own_and_no_tensors_yet(kernel):
    cases = import_module(f"omniconv.bench.{kernel}").cases
    assert list(cases(Ask()))
    for ask in ASKS:
        names = [each.name for each in cases(ask)]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_odd_cases_of_a_kernel_pass_the_gate(kernel):
    if kernel in build.KERNELS and (reason := backend.load(kernel).reason):
        pytest.skip(reason)
    cases = import_module(f"omniconv.bench.{kernel}").cases
    for ask in ASKS:
        for each in cases(ask) if ask.suite == "odd" else ():
            found = job.measure(each, ask, CEILINGS, 1)
            assert "reason" not in found, (each.name, ask, found)
            for work in found["passes"]:
                assert work["flops"] > 0
                assert work["bytes"] >= work["memory"]["results"]


def test_the_command_prints_json_and_nothing_else(capsys, monkeypatch, tmp_path):
    if reason := backend.load("dcls").reason:
        pytest.skip(reason)
    code, printed, said = command(
        *("bench", "dcls", "--suite", "odd", "--repeats", "1", "--threads", "1", "--json"),
        *("--save", str(tmp_path)),
        capsys=capsys,
        monkeypatch=monkeypatch,
    )
    assert code == 0, said
    found = json.loads(printed)
    assert found["machine"]["allocator"] == worker.allocator()
    assert found["settings"]["layouts"] == list(LAYOUTS)
    (only,) = found["runs"]
    assert (only["kernel"], only["threads"], only["reason"]) == ("dcls", 1, None)
    wanted = [each.name for each in import_module("omniconv.bench.dcls").cases(Ask(suite="odd"))]
    assert [each["name"] for each in only["cases"]] == wanted
    assert all(each["passes"][0]["forms"]["omniconv"]["ms"] > 0 for each in only["cases"])
    assert run.read(tmp_path / "dcls.json") == [found]


def command(*arguments: str, capsys, monkeypatch) -> tuple[int, str, str]:
    """Exit code, standard output and error of the command line, in this process."""
    from omniconv import cli

    monkeypatch.setattr(sys, "argv", ["omniconv", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("dlcs",), "did you mean 'dcls'?"),
        (("--suite", "small"), "suite must be one of 'default', 'large', 'odd', got 'small'"),
        (("--dtype", "float16"), "dtype must be one of 'float32', 'bfloat16'"),
        (("--layout", "nhwc"), "layout must be one of 'both', 'nchw', 'channels_last'"),
        (("--threads", "0"), "threads must be numbers of at most"),
        (("--threads", "many"), "threads must be numbers of at most"),
        (("--threads", "1,999999"), "got '1,999999'"),
        (("--repeats", "0"), "repeats must be an int of at least 1, got 0"),
        (("--device", "tpu"), "device must be one of 'cpu', 'cuda'"),
    ],
)
def test_refusals_are_one_sentence_and_exit_code_2(arguments, sentence, capsys, monkeypatch):
    monkeypatch.setattr(worker, "run", None)
    code, printed, said = command("bench", *arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert (code, printed, len(said.splitlines())) == (2, "", 1)
    assert said.startswith("omniconv: ")
    assert sentence in said


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch finds no CUDA device"):
        run.settings(device="cuda")


def test_what_is_asked_for_becomes_canonical(monkeypatch):
    monkeypatch.setattr(run, "_cores", lambda: 2)
    asked = run.settings(["dcls", "dcls"], threads="2,1,2", layout="nchw")
    assert (asked.kernels, asked.threads, asked.layouts) == (("dcls",), (2, 1), ("nchw",))
    every = run.settings()
    assert (every.kernels, every.threads, every.layouts) == (KERNELS, (2,), LAYOUTS)


@pytest.mark.parametrize(
    ("events", "code", "reason", "cases"),
    [
        ([{"event": "end"}], 0, None, 0),
        ([{"event": "result", "name": "a", "passes": []}, {"event": "end"}], 0, None, 1),
        ([{"event": "result", "name": "a", "reason": "not right"}, {"event": "end"}], 1, None, 1),
        ([{"event": "failed", "reason": "no compiler"}], 1, "no compiler", 0),
        (
            [{"event": "case", "name": "a", "layout": "nchw"}, {"event": "failed", "reason": "it"}],
            1,
            "it ended before its last case",
            1,
        ),
    ],
)
def test_the_exit_code_says_whether_all_went_right(events, code, reason, cases, monkeypatch):
    asked = []

    def worker_run(name, given, threads):
        asked.append((name, given["kernel"], given["threads"], threads))
        yield from events

    monkeypatch.setattr(worker, "run", worker_run)
    monkeypatch.setattr(run, "_cores", lambda: 1)
    got, found = run.run(run.settings(["dcls"]))
    assert (got, asked) == (code, [("bench.job", "dcls", 1, 1)])
    (only,) = found["runs"]
    assert (only["reason"], len(only["cases"])) == (reason, cases)
    if events[0]["event"] == "case":
        assert only["cases"] == [{"name": "a", "layout": "nchw", "reason": "it"}]


def test_the_table_names_what_failed_and_fits():
    text = show(results(a_result(), {"name": "b", "layout": "nchw", "reason": "not right: x"}))
    assert max(map(len, text.splitlines())) <= 100
    assert "FAILED, no times: not right: x" in text
    row = next(line for line in text.splitlines() if line.startswith("  forward"))
    assert row.split()[:2] == ["forward", "(torch)"]
    assert "no cases of this suite" in show(results())


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.01234, "0.0123"), (0.5, "0.500"), (5, "5.00"), (54.32, "54.3"), (543.2, "543")],
)
def test_times_have_three_digits(value, shown):
    assert digits(value) == shown


def test_a_history_grows_and_nothing_else_is_taken_for_one(tmp_path):
    folder = tmp_path / "new"
    first, second = results(a_result()), results()
    run.save(first, folder)
    (path,) = run.save(second, folder)
    assert path == folder / "dcls.json"
    assert run.read(path) == [first, second]
    assert [p.name for p in folder.iterdir()] == ["dcls.json"]
    for text in ("{", "{}", "[{}]"):
        path.write_text(text)
        with pytest.raises(ValueError, match="is no history of the bench"):
            run.save(second, folder)
        assert path.read_text() == text


def test_the_documentation_shows_the_newest_figures_on_file():
    assert "Not measured yet" in speed.page([])
    old, new = results(a_result(name="old")), results(a_result(name="K = 7 | <b>"))
    large = new | {"settings": new["settings"] | {"suite": "large"}}
    page = speed.page([old, new, large])
    assert "old" not in page
    assert page.count("<figure") == 2
    assert "<b>" not in page
    (each,) = new["runs"][0]["cases"][0]["passes"]
    assert f"| {digits(each['forms']['omniconv']['ms'])}".replace(".", "\\.") in page
    assert f"{100 * each['reached']:.0f} \\%" in page
    drawn = speed.drawing(new["runs"][0])
    assert (drawn.count("v-ours"), drawn.count('class="bound"')) == (1, 1)


def test_tuning_shows_the_table_and_refuses_what_it_cannot(monkeypatch, capsys):
    events = [{"event": "end", "path": "/there", "table": SHIPPED}]
    asked = []

    def worker_run(name, given, threads):
        asked.append((name, given, threads))
        yield from events

    monkeypatch.setattr(worker, "run", worker_run)
    monkeypatch.setattr(run, "_cores", lambda: 2)
    tell = {"capsys": capsys, "monkeypatch": monkeypatch}
    code, printed, _ = command("bench", "--tune", "--threads", "1", **tell)
    assert (code, asked) == (0, [("bench.tune", {"threads": 1}, 1)])
    assert printed == show_choice(events[0]) + "\n"
    assert all(key in printed for key in SHIPPED)
    assert "Kept in /there" in printed
    code, printed, _ = command("bench", "--tune", "--threads", "1", "--json", **tell)
    assert json.loads(printed)["path"] == "/there"
    code, _, said = command("bench", "--tune", "--threads", "1,2", **tell)
    assert (code, said) == (2, "omniconv: threads must be one number to tune for, got [1, 2]\n")
    events[:] = [{"event": "failed", "reason": "no folder"}]
    code, _, said = command("bench", "--tune", **tell)
    assert (code, said) == (2, "omniconv: the choice of depthwise cannot be tuned: no folder\n")
