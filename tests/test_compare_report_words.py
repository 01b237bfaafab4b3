"""The sentences of the report: the answer, one verdict a row, numbers."""

from __future__ import annotations

import re
from typing import Any

import pytest

from omniconv.compare.report.formats import budget, quantity, ratio, significant
from omniconv.compare.report.headline import headline
from omniconv.compare.report.method import method, statistics
from omniconv.compare.report.read import read
from omniconv.compare.report.verdicts import sentence
from report_results import make_results

SAME = "a plain network of the same latency"
EQUAL = "no relevant difference"


def judged(*found: str | tuple[str, str], seeds: int = 5) -> dict[str, Any]:
    """Results whose rows have these verdicts, or verdicts and standings; all but one no plain."""
    results = make_results(rows=len(found), seeds=seeds)
    for row, words in zip(results["rows"], found, strict=True):
        verdict, standing = (words, None) if isinstance(words, str) else words
        row.update(verdict=verdict, plain=verdict == "baseline")
        if verdict == "failed":
            row["score"] = row["difference"] = None
        row["frontier"] = standing and {"verdict": standing, **(row["difference"] or {})}
        if standing:
            row["frontier"]["verdict"] = standing
    return results


def answer(*found: str | tuple[str, str], seeds: int = 5) -> tuple[str, str]:
    return headline(read(judged(*found, seeds=seeds)))


def test_headline():
    first = "conv(kernel_size=5)"
    assert answer("baseline", "gain")[0] == f"{first} beats the plain convolution."
    assert answer("baseline", "gain", "gain")[0] == "All two operators beat the plain convolution."
    line, support = answer("baseline", "gain", "loss", "failed")
    assert line == "One of three operators beats the plain convolution."
    assert support.startswith(f"It is {first}: +")
    assert support.endswith("The others: one worse, one failed.")
    line, support = answer("baseline", EQUAL, "loss")
    assert line == "No operator is better than the plain convolution by more than 0.5 points."
    assert support == "Of the operators: one without a relevant difference, one worse."
    line, _ = answer("baseline", EQUAL, "undecided")
    assert line == "No operator is shown to beat the plain convolution."
    line, support = answer("baseline", "too few seeds", "too few seeds", seeds=2)
    assert line == "Too few seeds for a verdict."
    assert support.startswith("Two seeds were run, at least five are needed")
    assert answer("failed", "failed")[0].startswith("No row finished")
    assert answer("failed", "undecided")[0].startswith("The plain convolution did not finish")
    assert answer("baseline")[0].startswith("One row alone")
    assert answer("baseline", "failed")[0] == "Nothing but the plain convolution finished."


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([("gain", "level"), "loss"], "One of two operators beats {}, but not {}."),
        ([("gain", "above"), "loss"], "One of two operators beats {} and {}."),
        (
            [("gain", "undecided"), "loss"],
            "One of two operators beats {}, but is not shown to beat {}.",
        ),
        (
            [("gain", "above"), ("gain", "below")],
            "All two operators beat {}, one of them {} too.",
        ),
        ([("gain", "level"), ("gain", "below")], "All two operators beat {}, but none beats {}."),
        (
            [("gain", "level"), ("gain", "undecided")],
            "All two operators beat {}, but none is shown to beat {}.",
        ),
        ([("gain", "outside"), "loss"], "One of two operators beats {}."),
        ([("undecided", "above"), "loss"], "No operator is shown to beat {}, but one beats {}."),
        ([("undecided", "above")], "conv(kernel_size=5) is not shown to beat {}, but beats {}."),
    ],
)
def test_headline_names_the_frontier(rows: list[Any], line: str):
    assert answer("baseline", *rows)[0] == line.format("the plain convolution", SAME)


def test_a_plain_network_with_the_best_score_is_named():
    results = make_results()
    assert "a plain network, conv(kernel_size=5): 96.0 % [" in headline(read(results))[1]
    results["rows"][1]["score"]["mean"] = 94.0
    results["rows"][2]["score"]["mean"] = 94.0
    assert "plain network," not in headline(read(results))[1]


def test_plain_networks_alone_are_alternatives():
    results = make_results(rows=3)
    assert headline(read(results))[0] == "One of two alternatives beats the plain convolution."


def test_the_largest_gain_is_the_best_one_of_a_score_where_less_is_better():
    results = judged("baseline", "gain", "gain")
    results["metric"].update(name="error", higher_is_better=False)
    for row, mean in zip(results["rows"][1:], (-0.7, -2.0), strict=True):
        row["difference"]["mean"] = mean
    assert "conv(width=1.5): −2.0 points" in headline(read(results))[1]


def said(verdict: str, standing: str | None, **change: Any) -> str:
    """The sentence of dcls with these verdicts."""
    results = make_results()
    row = results["rows"][4]
    difference = {"mean": 1.1, "interval": [0.6, 1.6], "n": 5, "seeds_to_decide": None} | change
    row.update(verdict=verdict, difference=difference, frontier=None)
    if standing:
        row["frontier"] = {**difference, "verdict": standing}
    page = read(results)
    return str(sentence(page.rows[4], page)).replace("\u00a0", " ")


def test_one_plain_sentence_a_row():
    dcls = "dcls(kernel_size=5, taps=9)"
    loss = {"mean": -1.1, "interval": [-1.6, -0.6]}
    small = {"mean": 0.1, "interval": [-0.2, 0.3]}
    open_ = {"mean": 0.3, "interval": [-0.5, 1.1], "seeds_to_decide": 12}
    few = {"mean": 0.3, "interval": [-0.5, 1.1], "n": 2}
    assert said("gain", "above") == (
        f"{dcls}: Gain of 1.1 points [0.6, 1.6] over conv; "
        f"1.1 points better [0.6, 1.6] than {SAME}."
    )
    assert said("loss", "below", **loss) == (
        f"{dcls}: Loss of 1.1 points [0.6, 1.6] to conv; 1.1 points worse [0.6, 1.6] than {SAME}."
    )
    assert said(EQUAL, "level", **small) == (
        f"{dcls}: No relevant difference to conv: +0.1 points [−0.2, +0.3]; "
        f"level with {SAME}: +0.1 points [−0.2, +0.3]."
    )
    would = "+0.3 points [−0.5, +1.1], about 12 seeds in all would decide"
    assert said("undecided", "undecided", **open_) == (
        f"{dcls}: Undecided against conv: {would}; undecided against {SAME}: {would}."
    )
    numbers = "+0.3 points [−0.5, +1.1] to {} (two seeds, no verdict)"
    found = said("too few seeds", "too few seeds", **few)
    assert found == f"{dcls}: {numbers.format('conv')}; {numbers.format(SAME)}."
    assert said("gain", "outside").endswith(
        "; faster than every plain network: none to compare with."
    )
    assert said("gain", None).endswith("over conv.")


def test_a_failed_row_says_why():
    page = read(make_results(failing=1))
    reason = "kernel_size 9 is larger than the input of 7 x 7"
    assert str(sentence(page.rows[5], page)).endswith(f": Failed: RuntimeError: {reason}.")


def test_differences_of_other_metrics_have_their_unit():
    results = make_results(task="denoise")
    page = read(results)
    text = " ".join(str(sentence(row, page)) for row in page.rows[1:])
    assert re.search(r"Gain of 0\.\d\d dB \[0\.\d\d,", text)
    assert "points" not in text
    assert "points" not in " ".join(headline(page)) + statistics(page)
    assert "the margin of 0.1 dB" in statistics(page)


def test_statistics_are_two_sentences_with_n_holm_and_the_margin():
    text = statistics(read(make_results(seeds=7)))
    assert [word for word in ("n = 7", "Holm", "0.5 points", "95 %") if word not in text] == []
    assert text.count(". ") + text.endswith(".") == 2


def test_number_formats():
    assert [quantity(v) for v in (None, 12, 999, 77_754, 999_900, 18.9e6)] == [
        "–",
        "12",
        "999",
        "77.8 k",
        "1.00 M",
        "18.9 M",
    ]
    assert [significant(v) for v in (0, 0.00123, 0.84, 61.04, 119.6, 1234.5)] == [
        "0",
        "0.00123",
        "0.840",
        "61.0",
        "120",
        "1,230",
    ]
    assert [ratio(v) for v in (None, 1.0, 2.307, 12.4)] == ["", "×1.00", "×2.31", "×12"]
    assert [budget(v) for v in (None, "1epochs", "2epochs", "12000steps", "soon")] == [
        "",
        "1 epoch",
        "2 epochs",
        "12,000 steps",
        "soon",
    ]


def _on_kernels(results: dict[str, Any]) -> list[str]:
    return [sentence for sentence in method(read(results)) if "ompiled kernel" in sentence]


def test_the_method_says_which_compiled_kernels_ran():
    results = make_results()
    assert _on_kernels(results) == [
        "Compiled kernels that ran in training: dcls and depthwise in dcls; "
        "position_varying in involution; none in conv, weighted."
    ]
    for row in results["rows"]:
        for trial in row["trials"]:
            trial["kernels"] = []
    assert _on_kernels(results) == ["Torch computed everything: no compiled kernel ran."]
    results["plan"]["backend"] = "torch"
    assert _on_kernels(results) == [
        "Torch computed everything: no compiled kernel ran, because the back end is torch."
    ]
    for row in results["rows"]:  # an older results.json says nothing
        for trial in row["trials"]:
            del trial["kernels"]
    assert _on_kernels(results) == []
