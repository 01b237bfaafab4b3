"""Plans: one canonical form, and one clear sentence for everything that cannot be one."""

from __future__ import annotations

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
from omniconv.tasks import classify

DEFAULT_ROWS = [
    "conv",
    "conv(kernel_size=5)",
    "conv(width=1.5)",
    "weighted",
    "dcls(kernel_size=5, taps=9)",
    "involution(kernel_size=3)",
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
    assert (plan.where, plan.epochs, plan.seeds) == ("layer*", 2, (0, 1, 2, 3, 4))
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
    path.write_text("width: 8\nepochs: 7\noptimizer: {momentum: 0.5, weight_decay: 1e-3}\n")
    plan = plan_from_flags(
        plan=path, operators="weighted(lr=1e-2)", seeds="3,1", budget="3epochs", data=data
    )
    assert (plan.width, plan.epochs, plan.seeds, plan.data) == (8, 3, (3, 1), data)
    assert plan.optimizer.momentum == 0.5
    assert plan.optimizer.weight_decay == 1e-3
    assert plan.optimizer.schedule == "cosine"
    assert plan.rows[1].lr == 0.01


@pytest.mark.parametrize(("budget", "epochs"), [("1epoch", 1), (" 20 epochs ", 20)])
def test_a_budget_is_a_number_of_epochs(budget, epochs):
    assert plan_from_flags(budget=budget).epochs == epochs


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


def test_a_row_without_a_learning_rate_takes_the_tuned_one_of_its_nearest_relative():
    shipped = {row.label: row.lr for row in plan_from_flags().rows}
    rows = parse({"rows": [*DEFAULT_ROWS[1:], "dcls(taps=3)", "phc(n=2)"]}).rows
    found = {row.label: row.lr for row in rows}
    assert {label: found[label] for label in DEFAULT_ROWS} == shipped
    assert found["dcls(taps=3)"] == shipped["dcls(kernel_size=5, taps=9)"]
    assert found["phc(n=2)"] == shipped["conv"]


def test_the_points_hold_all_that_numbers_depend_on_and_no_path(data):
    plan = parse(tiny(data))
    first, second = plan.points()
    assert {*first} == {*plan.to_json(), "row"} - {"rows", "data", "seeds", "margin", "limit_train"}
    assert {key for key in first if first[key] != second[key]} == {"row"}
    assert list(plan.trials()) == [(0, 0), (1, 0), (0, 1), (1, 1)]


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
    "budget": (["--budget", "5"], "budget must be epochs such as 2epochs, got '5'"),
    "budget 0": (["--budget", "0epochs"], "budget must be epochs"),
    "budget unit": (["--budget", "5minutes"], "budget must be epochs"),
    "backbone": (["--backbone", "resnet9"], "did you mean 'resnet8'?"),
    "width": (["--width", "0"], "width must be an int of at least 1"),
    "threads": (["--threads", "0"], "threads must be an int of at least 1"),
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
    "task": ("task: segment", "task must be one of 'classify'"),
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
    "epochs": ("epochs: two", "epochs must be an int of at least 1"),
    "epochs true": ("epochs: true", "epochs must be an int"),
    "batch size": ("batch_size: 0", "batch_size must be an int of at least 1"),
    "optimizer": ("optimizer: sgd", "optimizer must be a mapping"),
    "optimizer key": ("optimizer: {momentun: 0.9}", "did you mean 'momentum'?"),
    "optimizer name": ("optimizer: {name: adam}", "optimizer name must be one of 'sgd'"),
    "momentum": ("optimizer: {momentum: 2}", "momentum must be a finite number in [0, 1]"),
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

    path = Path(plan_file.__file__).parent / "plans" / "default.yaml"
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
