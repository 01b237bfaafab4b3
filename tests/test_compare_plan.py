"""Plans: one canonical form, and one clear sentence for everything that cannot be one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from compare_tiny import install_faulty, tiny, write_idx
from omniconv import cli
from omniconv.compare import Refused, comparison, grammar, parse, plan_from_flags
from omniconv.compare.prepare import prepare
from omniconv.kernels import backend
from omniconv.tasks import classify

DEFAULT_ROWS = [
    "conv",
    "conv(kernel_size=5)",
    "conv(width=1.5)",
    "weighted",
    "dcls(kernel_size=5, taps=9)",
    "involution(group_channels=8, kernel_size=3)",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_idx(tmp_path_factory.mktemp("data"))


def test_the_shipped_plan_is_the_documented_one():
    plan = plan_from_flags()
    assert [row.label for row in plan.rows] == DEFAULT_ROWS
    assert (plan.task, plan.data, plan.backbone, plan.width) == (
        "classify",
        "mnist5k",
        "resnet8",
        16,
    )
    assert (plan.where, str(plan.budget), plan.seeds) == ("body", "2epochs", (0, 1, 2, 3, 4))
    assert (plan.optimizer.name, plan.optimizer.schedule) == ("sgd", "cosine")
    assert plan.optimizer.weight_decay == 5e-4


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("conv", ("conv", {})),
        (" conv ( ) ", ("conv", {})),
        ("dcls(kernel_size=5,taps=9)", ("dcls", {"kernel_size": 5, "taps": 9})),
        ("package:name(a=-1.5e-3)", ("package:name", {"a": -0.0015})),
        ("my-package.x:name", ("my-package.x:name", {})),
        (
            "f(a='x,)y', b=[1, (2, 3)], c=None, d=True)",
            ("f", {"a": "x,)y", "b": (1, (2, 3)), "c": None, "d": True}),
        ),
    ],
)
def test_an_operator_is_read_and_written(text, found):
    assert grammar.parse_operator(text) == found
    assert grammar.parse_operator(grammar.write(*found)) == found


def test_a_list_is_cut_at_its_own_commas_only():
    assert grammar.split("a, b(c=1, d=[2,3]),e(f='(,')") == ["a", " b(c=1, d=[2,3])", "e(f='(,')"]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab(),=[]{}'\"\\ #\n1.e*:-+_é\x00\ud800"), max_size=40))
def test_any_text_is_an_operator_or_refused(text):
    for item in grammar.split(text):
        try:
            name, arguments = grammar.parse_operator(item)
        except ValueError:
            continue
        assert grammar.parse_operator(grammar.write(name, arguments)) == (name, arguments)


def test_plans_that_mean_the_same_are_equal_and_hash_equally(data):
    one = parse(tiny(data, rows=["conv", "dcls(taps=9, kernel_size=5)"], seeds=2))
    other = parse(
        tiny(
            data,
            rows=[{"operator": "dcls", "arguments": {"kernel_size": 5, "taps": 9}, "width": 1}],
            seeds=[0, 1],
        )
    )
    assert one == other
    assert len({one, other}) == 1
    assert parse(one.to_json()) == one


def test_flags_replace_what_the_plan_file_says(tmp_path, data):
    path = tmp_path / "plan.yaml"
    path.write_text("width: 8\nbudget: 7epochs\noptimizer: {momentum: 0.5, weight_decay: 1e-3}\n")
    plan = plan_from_flags(
        plan=path, operators="weighted(lr=1e-2)", seeds="3,1", budget="3epochs", data=data
    )
    assert (plan.width, str(plan.budget), plan.seeds, plan.data) == (8, "3epochs", (3, 1), data)
    assert plan.optimizer.momentum == 0.5
    assert plan.optimizer.weight_decay == 1e-3
    assert plan.optimizer.schedule == "cosine"
    assert plan.rows[1].lr == 0.01


def test_the_back_end_is_the_process_s_where_the_plan_does_not_say(data, monkeypatch):
    assert parse(tiny(data)).backend == plan_from_flags().backend == "auto"
    assert plan_from_flags(backend="torch").backend == "torch"
    monkeypatch.setattr(backend, "_backend", "torch")
    plan = parse(tiny(data, rows=["conv", "dcls"]))
    assert plan.backend == "torch"
    assert prepare(plan).environment["operators"]["dcls"][1] == []
    assert plan_from_flags(backend="auto").backend == "auto"


@pytest.mark.parametrize(
    ("task", "budget", "amount", "legs"),
    [
        ("classify", "1epoch", 1, (1,)),
        ("classify", " 020 epochs ", 20, tuple(range(1, 21))),
        ("denoise", "1000steps", 1000, tuple(range(100, 1001, 100))),
        ("denoise", "3 steps", 3, (1, 2, 3)),
        ("denoise", "25step", 25, (2, 5, 7, 10, 12, 15, 17, 20, 22, 25)),
    ],
)
def test_a_budget_is_a_number_of_what_the_task_counts(task, budget, amount, legs):
    found = plan_from_flags(task=task, budget=budget).budget
    assert (found.amount, found.legs) == (amount, legs)
    assert plan_from_flags(task=task, budget=str(found)).budget == found


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        (["weighted"], ["conv", "weighted"]),
        (["weighted", "conv"], ["conv", "weighted"]),
        (["conv(width=2)"], ["conv", "conv(width=2.0)"]),
        (["weighted(lr=1)", "weighted(lr=2)"], ["conv", "weighted(lr=1.0)", "weighted(lr=2.0)"]),
    ],
)
def test_the_plain_layer_is_the_first_row_and_labels_differ(rows, labels):
    assert [row.label for row in parse({"rows": rows}).rows] == labels


def test_a_row_of_the_shipped_plan_has_its_learning_rate_and_another_is_tuned():
    shipped = {row.label: row.lr for row in plan_from_flags().rows}
    rows = parse({"rows": [*DEFAULT_ROWS[1:], "dcls(taps=3)", "phc(n=2)"]}).rows
    found = {row.label: row.lr for row in rows}
    assert None not in shipped.values()
    assert {label: found[label] for label in DEFAULT_ROWS} == shipped
    assert found["dcls(taps=3)"] is found["phc(n=2)"] is None
    for other in ({"width": 8}, {"backbone": "resnet20"}, {"batch_size": 64}):
        rows = parse({"rows": DEFAULT_ROWS, **other}).rows
        assert {row.lr for row in rows} == {None}, other


def test_a_point_holds_all_that_numbers_depend_on_and_no_path(data):
    plan = parse(tiny(data))
    first, second = (plan.point(row) for row in plan.rows)
    beside = {"data", "seeds", "margin", "limit_train", "rows", "frontier", "tuning", "screen"}
    assert {*first} == ({*plan.to_json(), "row"} - beside) - {"time_limit"}
    assert {key for key in first if first[key] != second[key]} == {"row"}


def test_the_frontier_adds_plain_rows_where_they_are_missing(data):
    rows = ["conv", "dcls(kernel_size=5)", "involution(kernel_size=7)", "conv(width=2)", "weighted"]
    frontier = {"widths": [1, 0.75, 2], "extents": True, "depthwise": True}
    prepared = prepare(parse(tiny(data, rows=rows, frontier=frontier)))
    labels = [row.label for row in prepared.plan.rows]
    assert labels[5:] == ["conv(width=0.75)", "conv(kernel_size=5)", "depthwise(kernel_size=7)"]
    assert prepared.plan.rows[-1].pointwise is True
    assert prepared.swaps[-1][0]["after"] == "Conv2d 4->4 7x7 + 1x1"
    assert prepare(parse(prepared.plan.to_json())).plan == prepared.plan
    assert len(prepare(parse(tiny(data, rows=rows))).plan.rows) == 5


def test_a_plain_row_that_the_shipped_plan_has_brings_its_learning_rate():
    found = prepare(parse({"rows": ["dcls(kernel_size=5)"]})).plan
    rates = {row.label: row.lr for row in found.rows}
    shipped = {row.label: row.lr for row in plan_from_flags().rows}
    assert rates == {
        "dcls(kernel_size=5)": None,
        **{name: shipped[name] for name in ("conv", "conv(width=1.5)", "conv(kernel_size=5)")},
    }
    assert prepare(parse(found.to_json())).plan == found


def test_what_a_store_keeps_of_a_plan_comes_back(data):
    prepared = prepare(parse(tiny(data, rows=["dcls(kernel_size=5)"])))
    found = prepared.from_json(json.loads(json.dumps(prepared.to_json())))
    assert found.to_json() == prepared.to_json()
    assert (found.plan, found.metric) == (prepared.plan, prepared.metric)
    assert found.extents == prepared.extents == ({(3, 3)}, {(5, 5)})


def test_preparing_tries_every_row_on_the_real_layers(data):
    rows = ["conv(kernel_size=5)", "conv(width=1.5)", "weighted(kernel_size=5)"]
    prepared = prepare(parse(tiny(data, rows=rows, margin=0.25)))
    plain, larger, wider, weighted = prepared.swaps
    assert plain == wider == []
    assert [layer["status"] for layer in larger] == ["swapped"] * 6
    assert {layer["weights"] for layer in (*larger, *weighted)} == {"new"}
    assert weighted[0]["before"] == "Conv2d 4->4 3x3"
    assert weighted[0]["after"] == "WeightedConv2d 4->4 5x5"
    assert [row.pointwise for row in prepared.plan.rows] == [False] * 4
    assert prepared.metric.margin == 0.25
    assert prepared.dataset.sizes == {"train": 54, "validation": 6, "test": 30}


def test_preparing_needs_no_compiler(data):
    code = (
        "import sys; from omniconv.compare import parse; from omniconv.compare.prepare import "
        "prepare; prepare(parse({'data': sys.argv[1]})); print('torch._dynamo' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, data], capture_output=True, text=True)
    assert run.stdout == "False\n", run.stderr


def test_a_mixer_on_dense_layers_gets_a_pointwise_layer(data):
    for text in ("involution", "involution(pointwise=True)"):
        prepared = prepare(parse(tiny(data, rows=[text])))
        assert prepared.plan.rows[1].pointwise is True
        assert prepared.swaps[1][0]["after"].endswith("+ 1x1")


def test_data_of_ones_own_needs_no_path(data):
    dataset = classify.load(data)
    assert prepare(parse(tiny("idx:/nowhere")), dataset).dataset is dataset


def test_a_plugin_is_a_row(tmp_path, data, monkeypatch):
    install_faulty(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    from omniconv.core import registry

    registry._plugins.cache_clear()
    try:
        assert prepare(parse(tiny(data, rows=["faulty:raises"]))).swaps[1]
    finally:
        registry._plugins.cache_clear()
        registry._cards.pop("faulty:raises", None)


BAD_FLAGS = {
    "unknown operator": (["--operators", "dlcs"], "row dlcs: operator must be one of conv, "),
    "did you mean": (["--operators", "weihgted"], "did you mean 'weighted'?"),
    "unknown argument": (["--operators", "weighted(densty=1)"], "did you mean 'density'?"),
    "unknown plain argument": (["--operators", "conv(kernelsize=5)"], "did you mean 'kernel_size'"),
    "argument of another type": (["--operators", "weighted(density='x')"], "density must be"),
    "argument out of range": (["--operators", "weighted(kernel_size=-1)"], "extent must be"),
    "nothing to replace": (["--operators", "conv(kernel_size=4)"], "no layer can be replaced"),
    "kernel too large": (["--operators", "conv(kernel_size=100001)"], "GB of memory"),
    "masked operator": (["--operators", "partial"], "role 'masked'"),
    "pointwise of a dense operator": (
        ["--operators", "weighted(pointwise=True)"],
        "pointwise must",
    ),
    "positional argument": (["--operators", "weighted(3)"], "written argument=value, got '3'"),
    "star star": (["--operators", "weighted(**{'a': 1})"], "written argument=value, got '**'"),
    "argument twice": (["--operators", "conv(width=1,width=2)"], "given once"),
    "expression": (["--operators", "weighted(density=1+1)"], "plain value"),
    "call": (["--operators", "weighted(density=__import__('os'))"], "plain value"),
    "dictionary": (["--operators", "weighted(density={})"], "plain value"),
    "infinite": (["--operators", "weighted(density=1e999)"], "plain value"),
    "two calls": (["--operators", "conv(width=1)(width=2)"], "operators must list"),
    "open bracket": (["--operators", "conv("], "operators must list"),
    "empty": (["--operators", ""], "an empty item"),
    "empty item": (["--operators", "conv,,weighted"], "an empty item"),
    "too long": (["--operators", "conv," * 3000], "at most 10000 characters"),
    "row twice": (["--operators", "weighted,weighted"], "rows must differ, got weighted"),
    "learning rate": (["--operators", "conv(lr=0)"], "lr of 'conv' must be a finite number"),
    "learning rate text": (["--operators", "conv(lr='a')"], "lr of 'conv' must be"),
    "width factor": (["--operators", "conv(width=0)"], "width of 'conv' must be"),
    "pointwise text": (["--operators", "weighted(pointwise=1)"], "pointwise of 'weighted' must be"),
    "seeds 0": (["--seeds", "0"], "seeds must be an int of at least 1"),
    "seeds text": (["--seeds", "many"], "seeds must be a number of seeds or a list"),
    "seeds twice": (["--seeds", "1,1"], "seeds must be different ones"),
    "seeds too many": (["--seeds", "1000000000"], "at most 1000"),
    "budget": (["--budget", "5"], "budget must be a text such as 2epochs, got '5'"),
    "budget 0": (["--budget", "0epochs"], "budget must be a text such as 2epochs"),
    "budget unit": (["--budget", "5minutes"], "budget must be a text such as 2epochs"),
    "budget of another task": (["--budget", "5steps"], "this task counts epochs"),
    "screen": (["--screen", "0"], "screen keep must be an int of at least 1"),
    "task": (["--task", "segment"], "task must be one of 'classify', 'denoise'"),
    "backbone of another task": (["--backbone", "dncnn9"], "backbone must be one for the task"),
    "search": (["--operators", "dcls(search=3)"], "search must be left out but for weighted"),
    "search and density": (["--operators", "weighted(search=3,density=1)"], "search must be left"),
    "tuning seed": (["--seeds", "1000,1"], "tuning seed must be none of the seeds"),
    "backbone": (["--backbone", "resnet9"], "did you mean 'resnet8'?"),
    "width": (["--width", "0"], "width must be an int of at least 1"),
    "threads": (["--threads", "0"], "threads must be an int of at least 1"),
    "back end": (["--backend", "cuda"], "backend must be one of 'auto', 'torch', got 'cuda'"),
    "data": (["--data", "mnits5k"], "did you mean 'mnist5k'?"),
    "data folder": (["--data", "idx:/nowhere"], "must be a folder, but there is none"),
    "plan missing": (["--plan", "/nowhere.yaml"], "plan '/nowhere.yaml' must be a readable YAML"),
    "plan folder": (["--plan", "/"], "must be a readable YAML file"),
    "plan endless": (["--plan", "/dev/zero"], "at most 1000000 bytes"),
}

BAD_FILES = {
    "broken": ("rows: [conv\nseeds: 3", "must be YAML"),
    "no mapping": ("- conv", "YAML mapping"),
    "empty file": ("", "YAML mapping"),
    "tag": ("data: !!python/object/apply:os.system [ls]", "must be YAML"),
    "key twice": ("seeds: 1\nseeds: 2", "every key once, got 'seeds' twice"),
    "unknown key": ("sedes: 3", "did you mean 'seeds'?"),
    "number as key": ("1: 3", "no keys but"),
    "task": ("task: [1]", "task must be one of 'classify'"),
    "data number": ("data: 3", "data must be text"),
    "where": ("where: nothing*", "selects none"),
    "where empty": ("where: ''", "where must be text"),
    "rows text": ("rows: conv", "rows must be a list"),
    "rows empty": ("rows: []", "rows must be a list"),
    "row number": ("rows: [3]", "rows[0] must be text such as"),
    "row without operator": ("rows: [{arguments: {}}]", "rows[0] must be text such as"),
    "row key": ("rows: [{operator: conv, with: 2}]", "did you mean 'width'?"),
    "row arguments": ("rows: [{operator: conv, arguments: [1]}]", "must be a mapping"),
    "row argument key": ("rows: [{operator: conv, arguments: {1: 2}}]", "must have names"),
    "row argument date": (
        "rows: [{operator: conv, arguments: {kernel_size: 2020-01-01}}]",
        "plain",
    ),
    "row nesting": (
        "rows: [{operator: conv, arguments: {kernel_size: [[[[[1]]]]]}}]",
        "plain value",
    ),
    "seeds float": ("seeds: 2.5", "seeds must be an int"),
    "seeds list empty": ("seeds: []", "seeds must be 1 to 1000"),
    "seed negative": ("seeds: [-1]", "seeds[0] must be an int of at least 0"),
    "budget": ("budget: two", "budget must be a text such as 2epochs"),
    "budget number": ("budget: 2", "budget must be a text such as 2epochs, got 2 (int)"),
    "tuning": ("tuning: 3", "tuning must be a mapping"),
    "tuning key": ("tuning: {factor: [1]}", "did you mean 'factors'?"),
    "tuning factors": ("tuning: {factors: []}", "tuning factors must be a list of numbers"),
    "tuning factor": ("tuning: {factors: [0]}", "tuning factors[0] must be a finite number"),
    "tuning budget": ("tuning: {budget: 3steps}", "tuning budget must be a text such as 2epochs"),
    "frontier": ("frontier: [1]", "frontier must be a mapping"),
    "frontier widths": ("frontier: {widths: 2}", "frontier widths must be a list"),
    "frontier width": ("frontier: {widths: [0]}", "frontier widths[0] must be a finite number"),
    "frontier extents": ("frontier: {extents: 1}", "frontier extents must be True or False"),
    "screen seed": ("screen: {seed: 2}", "screen seed must be none of the seeds"),
    "time limit": ("time_limit: 0", "time_limit must be a finite number"),
    "learning rate": ("optimizer: {lr: 0}", "optimizer lr must be a finite number"),
    "batch size": ("batch_size: 0", "batch_size must be an int of at least 1"),
    "optimizer": ("optimizer: sgd", "optimizer must be a mapping"),
    "optimizer key": ("optimizer: {momentun: 0.9}", "did you mean 'momentum'?"),
    "optimizer name": ("optimizer: {name: adan}", "optimizer name must be one of 'sgd', 'adam'"),
    "momentum": ("optimizer: {momentum: 2}", "momentum must be a finite number in [0, 0.9999]"),
    "weight decay": ("optimizer: {weight_decay: -1e-3}", "weight_decay must be"),
    "schedule": ("optimizer: {schedule: step}", "schedule must be one of 'cosine'"),
    "limit_train": ("limit_train: 1", "limit_train"),
    "dtype": ("dtype: int8", "dtype must be one of 'float32'"),
    "margin": ("margin: -1", "margin must be a finite number"),
    "margin nan": ("margin: .nan", "margin must be a finite number"),
}


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """Run the command line; it must end in exit code 2 with one sentence, and nothing written."""

    def call(*flags: str) -> str:
        out = tmp_path / "out"
        monkeypatch.setattr(sys, "argv", ["omniconv", "compare", "--out", str(out), *flags])
        monkeypatch.setattr(comparison, "Store", None)  # nothing trains if nothing is refused
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        line, *rest = captured.err.splitlines()
        assert line.startswith("omniconv: ")
        assert (end.value.code, captured.out, rest) == (2, "", [])
        assert not out.exists()
        return line

    return call


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flags_are_refused_in_one_sentence(case, refused, data):
    flags, sentence = BAD_FLAGS[case]
    assert sentence in refused("--data", data, *flags)


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_plan_files_are_refused_in_one_sentence(case, refused, tmp_path, data):
    text, sentence = BAD_FILES[case]
    path = tmp_path / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    flags = [] if text.startswith("data:") else ["--data", data]
    assert sentence in refused("--plan", str(path), *flags)


def test_a_plan_file_of_other_bytes_is_refused(refused, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "must be text in UTF-8" in refused("--plan", str(path))


def test_a_plan_that_is_no_mapping_is_refused():
    with pytest.raises(Refused, match="plan must be a mapping"):
        parse([])


def test_the_shipped_plan_file_is_plain_yaml():
    from omniconv.compare import plan_file

    path = Path(plan_file.__file__).parent / "plans" / "classify.yaml"
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [row.split("(")[0] for row in found["rows"]] == [
        "conv",
        "conv",
        "conv",
        "weighted",
        "dcls",
        "involution",
    ]
    assert all("lr=" in row for row in found["rows"])
