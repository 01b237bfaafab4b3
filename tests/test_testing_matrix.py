"""Every property of the matrix can fail: each defect is found by exactly the right ones."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

import broken_calls
import broken_state
import omniconv as oc
from broken_operators import BROKEN, Broken, Layer
from omniconv import testing
from omniconv.core.card import Card
from omniconv.testing import PROPERTIES, Case
from omniconv.testing.tolerances import require_near

WEIGHTED = oc.card("weighted")
DEFINED_IN = (broken_calls, broken_state)


def _failing(broken: Broken) -> set[str]:
    """The properties that fail; of the slower ones only those that must are tried."""
    failing = set()
    for case in testing.cases(broken.card, tier=2):
        slow = case.tier > 1 and case.property not in broken.fails
        if slow or case.skip or case.missing:
            continue
        try:
            case.run()
        except Exception:
            failing.add(case.property)
    return failing


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_defect_fails_exactly_the_right_properties(broken: Broken):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert _failing(broken) == broken.fails


def test_every_property_has_a_defect_that_it_finds():
    found = set().union(*(broken.fails for broken in BROKEN.values()))
    # inductor runs the same check as aot_eager
    assert found == set(PROPERTIES) - {"compile_inductor"}
    assert {broken.card.classes[2].__module__ for broken in BROKEN.values()} == {
        module.__name__ for module in DEFINED_IN
    }


def _case(name: str, card: Card = WEIGHTED) -> Case:
    return next(case for case in testing.cases(card) if case.property == name)


def test_a_failure_says_in_which_configuration():
    case = _case("flops", dataclasses.replace(WEIGHTED, flops=lambda layer, shape: (1, 2)))
    with pytest.raises(
        AssertionError, match=r"the card says \(1, 2\) FLOPs, counted are"
    ) as failure:
        case.run()
    (note,) = failure.value.__notes__
    assert note.startswith(
        "WeightedConv1d(in_channels=2, out_channels=3, kernel_size=3, padding=1)"
    )
    assert note.endswith(
        "(basic): The card's FLOP formulas, forward and backward, equal what is counted."
    )


def test_a_case_leaves_the_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    _case("reference").run()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_first_tier_has_every_form():
    forms = Counter((c.variant, c.dim, c.transposed) for c in testing.cases("weighted", 1))
    assert set(forms) == {
        (variant, dim, transposed)
        for variant in ("default", "trainable")
        for dim in (1, 2, 3)
        for transposed in (False, True)
    }
    assert len(set(forms.values())) == 1
    assert {case.tier for case in testing.cases("weighted", 1)} == {1}


def test_the_second_tier_adds_one_form_and_the_third_more():
    def forms(tier: int) -> Counter[str]:
        return Counter(c.property for c in testing.cases("weighted", tier))

    assert {forms(2)[name] for name, p in PROPERTIES.items() if p.tier == 2} == {1}
    assert {c.dim for c in testing.cases("weighted", 2) if c.tier == 2} == {2}
    assert forms(2)["compile_inductor"] == 0
    # default arguments in three dimensions, transposed too, and the other variant in 2-D
    assert {forms(3)[name] for name, p in PROPERTIES.items() if p.tier > 1} == {7}


def test_rows_of_a_role_belong_to_that_role():
    masks = {name for name, p in PROPERTIES.items() if p.roles == ("masked",)}
    assert masks
    assert not masks & {case.property for case in testing.cases("weighted")}
    assert masks <= {case.property for case in testing.cases("partial")}


def test_skips_have_reasons_from_the_cards_flags():
    plain = dict.fromkeys(("folds", "double_backward", "onnx"), False)
    card = dataclasses.replace(WEIGHTED, **plain, dtypes=("float64", "float32"), equivariance=())
    skips = {
        c.property: c.skip
        for c in testing.cases(card, 2)
        if c.skip and c.dim == 2 and c.variant == "default"
    }
    assert skips == {
        "gradgradcheck": "the card says double_backward=False",
        "bfloat16": "the card's dtypes lack bfloat16",
        "float16": "the card's dtypes lack float16",
        "autocast": "the card's dtypes lack bfloat16",
        "fold": "the card says folds=False",
        "equivariance": "the card claims no equivariance",
        "onnx": "the card says onnx=False",
    }


def test_an_unknown_operator_role_or_tier_is_refused():
    with pytest.raises(ValueError, match=r"name must be one of .*did you mean 'weighted'"):
        list(testing.cases("weigthed"))
    with pytest.raises(ValueError, match="tier must be an int of at least 1 and at most 3, got 4"):
        list(testing.cases("weighted", 4))
    with pytest.raises(ValueError, match=r"role must be one of 'conv'.*got 'graph'"):
        list(testing.cases(dataclasses.replace(WEIGHTED, role="graph")))


def test_one_line_gives_an_operator_the_matrix(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import omniconv.testing
        test_mine = omniconv.testing.matrix("weighted", tier=1)
        """
    )
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "-k", "default-2d-")
    counts = result.parseoutcomes()
    wanted = [c for c in testing.cases("weighted", 1) if str(c).startswith("weighted-default-2d-")]
    assert counts["passed"] == sum(not case.skip for case in wanted)
    assert counts.get("skipped", 0) == sum(bool(case.skip) for case in wanted)


def test_a_case_that_lacks_a_package_says_so(monkeypatch: pytest.MonkeyPatch):
    onnx = PROPERTIES["onnx"]
    missing = dataclasses.replace(onnx, needs=("torch", "no_such_package"))
    assert missing.missing() == "needs no_such_package, not installed here"
    assert dataclasses.replace(onnx, needs=("torch",)).missing() == ""


@pytest.mark.parametrize("dtype", testing.TABLE, ids=str)
def test_tolerances_grow_with_the_length_of_sums(dtype: torch.dtype):
    assert testing.tolerance(dtype, 1) > 2 * torch.finfo(dtype).eps
    assert testing.tolerance(dtype, 10**6) > testing.tolerance(dtype, 1)
    assert testing.tolerance(dtype, 100) < 6 * torch.finfo(dtype).eps + 1e-5


def test_near_means_the_tables_tolerance_of_the_largest_entry():
    expected = torch.tensor([1000.0, 0.0], dtype=torch.float64)
    limit = testing.tolerance(torch.float64, 4) * 1000

    def compare(error: float) -> None:
        actual = expected + torch.tensor([0.0, error], dtype=torch.float64)
        require_near("it", actual, expected, length=4)

    compare(0.9 * limit)
    with pytest.raises(AssertionError, match="it differs by"):
        compare(1.1 * limit)
    with pytest.raises(AssertionError, match="it differs by nan"):
        compare(float("nan"))
    with pytest.raises(AssertionError, match=r"it has shape \(2,\), expected \(1, 2\)"):
        require_near("it", expected, expected[None], length=1)
    require_near("nothing", expected[:0], expected[:0], length=1)


def test_the_library_needs_pytest_only_for_the_one_line():
    source = Path(testing.__file__).parent
    importers = [f.name for f in source.rglob("*.py") if "import pytest" in f.read_text("utf-8")]
    assert importers == ["case.py"]
    assert "pytest" not in vars(testing)


def test_the_common_samples_are_awkward():
    subject = testing.Subject(WEIGHTED, dim=2)
    arguments = [sample.arguments for sample in subject.samples.values()]
    kernels = {a["kernel_size"] for a in arguments}
    assert any(isinstance(k, tuple) and len(set(k)) > 1 for k in kernels)
    assert any(k == 2 for k in kernels)
    modes = {a.get("padding_mode", "zeros") for a in arguments}
    assert modes == {"zeros", "reflect", "replicate", "circular"}
    assert {"same", "valid"} <= {a["padding"] for a in arguments if "padding" in a}
    assert any(a["in_channels"] == a.get("groups") for a in arguments)
    assert any(sample.batch is None for sample in subject.samples.values())
    assert {1, 2, 3} <= {sample.batch for sample in subject.samples.values()}
    assert subject.layer is Layer
