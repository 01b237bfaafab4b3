"""What the site takes from the code: every operator's page is whole, true and found."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import pytest
import torch

import omniconv as oc
from test_compare_report_browser import BROWSER, chromium

DOCS = Path(__file__).parents[1] / "docs"
sys.path.append(str(DOCS / "_ext"))
docstrings, evidence, families, gallery, generate, markup, operators, pictures = map(
    import_module,
    (
        "docstrings",
        "evidence",
        "families",
        "gallery",
        "generate",
        "markup",
        "operators",
        "pictures",
    ),
)

GROUPS = families.families()
CARDS = [card for group in GROUPS.values() for card in group]
HEADINGS = (
    "Definition",
    "On an image",
    "How to call it",
    "Cost",
    "Claimed and measured",
    "The official code",
    "Arguments",
    "Source",
)
LINK = re.compile(r"(?<!\\)\]\(([^)#\s]+)")
HOSTILE = "# *a* _b_ `c` [d](e) <script>f</script> | $g$ {{h}} ![i](j) \\ ::: k\n- l &lt; 1. m"
TALE = """Headline: of an operator.

.. math::
    y = x

Shapes: any.

More on it.

Cost: none.

Source: somebody.

The official code adds 1."""


@pytest.fixture(scope="module")
def site() -> dict[str, str | bytes]:
    """Everything that a build generates."""
    pytest.importorskip("skimage", reason="pictures need the [compare] extra")
    return generate.pages(DOCS)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_the_page_of_an_operator_has_every_part(card, site):
    page = site[f"operators/{card.name}.md"]
    parts = docstrings.sections(card)
    assert re.findall(r"^## (.+)$", page, re.M) == list(HEADINGS)
    for said in (parts.definition, parts.shapes, parts.details, parts.cost, parts.source):
        assert said in page
    for said in (card.claim, card.citation, card.source_licence, card.preserves_note):
        assert markup.text(said) in page
    assert f"](../pictures/{card.name}-kernel.png)" in page
    assert parts.official in page
    assert card.source or "No released code is known." in page
    first = card.layer(2).__name__
    assert f".. autoclass:: omniconv.nn.{first}\n" in page
    others = {layer.__name__ for layer in (*card.classes.values(), *card.transposed.values())}
    assert all(f"`{name}`" in page for name in others - {first})


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_the_code_on_the_page_of_an_operator_runs(card):
    exec(compile(operators.example(card), card.name, "exec"), {})


@pytest.mark.parametrize(
    ("part", "missing"),
    [
        (".. math::", "an equation (.. math::) before its shapes"),
        ("Shapes: any.", 'a paragraph "Shapes: ..."'),
        ("Cost: none.", 'a paragraph "Cost: ..."'),
        ("Source: somebody.", 'a paragraph "Source: ..."'),
        ("The official code adds 1.", 'a paragraph "The official code ..."'),
    ],
)
def test_a_docstring_that_lacks_a_part_is_refused_with_its_name(part: str, missing: str):
    docstrings.parse(TALE, "mine", True)
    with pytest.raises(ValueError, match=f"'mine' needs .*{re.escape(missing)}"):
        docstrings.parse(TALE.replace(part, ""), "mine", True)


def test_a_docstring_comes_apart_at_its_paragraphs():
    found = docstrings.parse(TALE.replace("Cost: none.", "Cost: none\nand more."), "mine", True)
    assert found == docstrings.Sections(
        headline="Headline: of an operator.",
        definition=".. math::\n    y = x",
        shapes="any.",
        details="More on it.",
        cost="none\nand more.",
        source="somebody.",
        official="The official code adds 1.",
    )
    assert docstrings.parse(TALE.rpartition("\n\n")[0], "mine", False).official == ""


def test_links_and_pictures_lead_to_something(site):
    generated = {f"generated/{name}" for name in site}
    count = 0
    for name, page in site.items():
        if isinstance(page, bytes):
            continue
        # the gallery is part of the front page
        home = PurePosixPath("." if name == "gallery.md" else f"generated/{name}").parent
        for target in LINK.findall(page):
            if "://" not in target:
                parts: list[str] = []
                for part in (home / target).parts:
                    parts = parts[:-1] if part == ".." else [*parts, part]
                path = "/".join(parts)
                assert path in generated or (DOCS / path).is_file(), f"{name} links to {target}"
                count += 1
    assert count > 4 * len(CARDS)


def test_pictures_are_small_and_said_in_words(site):
    pages = "".join(page for page in site.values() if isinstance(page, str))
    for name, content in site.items():
        if name.startswith("pictures/"):
            assert content.startswith(b"\x89PNG"), name
            assert len(content) < 30_000, name
            assert f"{name})" in pages, name
    alts = re.findall(r"!\[(.*?)\]\(", pages)
    assert len(alts) >= 2 * len(CARDS)
    assert min(map(len, alts)) > 10


@pytest.mark.parametrize("name", ["dcls", "spd", "partial"])
def test_pictures_of_kernels_are_true(name: str, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("skimage", reason="pictures need the [compare] extra")
    drawn = []
    monkeypatch.setattr(pictures, "_kernels", lambda found: drawn.append(found) or KERNELS)
    KERNELS = pictures.Kernels("", "", (((1.0,),),))
    card = oc.card(name)
    pictures.kernel(card)
    layer = pictures._fresh(card, pictures.CHANNELS)
    found = drawn[0].unflatten(0, (4, 8))
    if name == "dcls":
        torch.testing.assert_close(found, layer.weight[:4, :8].detach())
    elif name == "partial":
        kernel = layer.weight[0].detach()
        torch.testing.assert_close(found[0], kernel)
        seen = torch.tensor([1.0, 1, 0])
        torch.testing.assert_close(found[1], kernel * seen * 9 / 6)
        torch.testing.assert_close(found[2], kernel * seen[:, None] * 9 / 6)
        torch.testing.assert_close(found[3], kernel * torch.tensor([[0.0], [1], [0]]) * 9 / 3)
    else:
        taps = layer.weight[:4].detach().unflatten(1, (8, 2, 2)).permute(0, 1, 4, 2, 5, 3)
        torch.testing.assert_close(found, taps.flatten(4, 5).flatten(2, 3))


def test_pictures_say_whether_a_filter_is_kept(site):
    for card in CARDS:
        page = site[f"operators/{card.name}.md"]
        if card.preserves_function and card.role != "masked":
            assert "the same output" in page, card.name
    assert "off by 43" in site["operators/separable_kernel.md"]
    assert "pictures/partial-mask.png" in site["operators/partial.md"]


def test_text_is_shown_as_it_is():
    markdown_it = pytest.importorskip("markdown_it", reason="needs the [compare] extra")
    show = markdown_it.MarkdownIt("commonmark").enable("table").render
    plain = html.escape(" ".join(HOSTILE.split()), quote=True)
    assert show(markup.text(HOSTILE)) == f"<p>{plain}</p>\n"
    assert f"<td>{plain}</td>" in show(markup.table(["x"], [[HOSTILE]]))
    assert show(markup.prose("a `b` *c*")) == "<p>a <code>b</code> *c*</p>\n"


def test_text_of_a_card_is_escaped_wherever_it_goes():
    fields = ("summary", "claim", "citation", "source_licence", "preserves_note")
    card = dataclasses.replace(oc.card("dcls"), **dict.fromkeys(fields, HOSTILE))
    nothing = evidence.Evidence(Path("nowhere"))
    shown = [
        operators.page(card, nothing, None, []),
        families.page("standard", [card], nothing, Path("nowhere")),
        gallery.gallery({"standard": [card]}, {"dcls": None}),
    ]
    for page in shown:
        assert markup.text(HOSTILE) in page
        assert "<script>" not in page
        assert "[d](e)" not in page


def test_the_gallery_and_the_families_have_every_operator(site):
    for card in CARDS:
        family = families.family_of(card)
        entry = f"[{markup.text(card.name)}](generated/operators/{card.name}.md)"
        assert site["gallery.md"].count(entry) == 1
        assert markup.text(card.summary) in site["gallery.md"]
        for page in (site[f"families/{family}.md"], site["operators/index.md"]):
            assert f"{card.name}.md)" in page
        assert f"../operators/{card.name}\n" in site[f"families/{family}.md"]
    assert {card.name for card in CARDS} == {n for n in oc.list_operators() if ":" not in n}


def test_a_family_has_a_page_before_it_has_a_text(tmp_path: Path):
    nothing = evidence.Evidence(tmp_path)
    bare = families.page("dynamic", GROUPS["dynamic"], nothing, tmp_path)
    assert bare.startswith("# Dynamic\n\nConvolutions whose kernel is generated")
    assert "[involution](../operators/involution.md)" in bare
    assert "not measured yet" in bare
    text = tmp_path / "families" / "dynamic.md"
    text.parent.mkdir()
    text.write_text("# Chosen\n\n[x](../a.md) [y](gated.md)\n\n{{operators}}\n\nlast\n")
    page = families.page("dynamic", GROUPS["dynamic"], nothing, tmp_path)
    assert page.startswith("# Chosen\n\n[x](../../a.md) [y](gated.md)\n\n| ")
    assert page.index("involution") < page.index("last")
    assert "{{" not in page


def test_costs_and_studies_are_those_on_file(tmp_path: Path):
    nothing = evidence.Evidence(tmp_path)
    assert nothing.cost("dcls") == "Time and memory: not measured yet."
    assert nothing.found("dcls").startswith("**Here.** No study")
    (tmp_path / "benchmarks").mkdir()
    row = {"arguments": {"taps": 9}, "input": [8, 64, 56, 56], "step": 1.25, "latency": None}
    costs = {"machine": {"cpu": "<cpu>", "threads": 2}, "operators": {"dcls": row}}
    (tmp_path / "benchmarks" / "operators.json").write_text(json.dumps(costs))
    study = tmp_path / "studies" / "digits"
    study.mkdir(parents=True)
    shutil.copy(DOCS / "studies" / "digits" / "results.json", study)
    found = evidence.Evidence(tmp_path)
    assert found.ratios("dcls") == {"training step": "×1.25"}
    assert "8 x 64 x 56 x 56" in found.cost("dcls")
    assert "\\<cpu\\>" in found.cost("dcls")
    assert found.cost("weighted") == nothing.cost("weighted")
    results = json.loads((study / "results.json").read_text())
    for row in results["rows"]:
        if row["operator"] == "conv":
            continue
        lines = found.found(row["operator"])
        assert markup.text(row["label"]) in lines
        assert f"{row['difference']['mean']:+.1f}".lstrip("+-").replace(".", "\\.") in lines
        assert f"| {row['verdict']} |" in lines
    assert not found.studies.keys() & {"conv"}
    (tmp_path / "studies" / "digits.md").write_text("# Digits\n")
    again = evidence.Evidence(tmp_path).found("dcls")
    assert "[Digits](../../studies/digits.md)" in again


def test_the_folder_holds_what_was_generated_and_nothing_else(tmp_path: Path):
    generate.write(tmp_path, {"a/b.md": "old", "c.png": b"same", "operators.md": "gone"})
    before = (tmp_path / "c.png").stat().st_mtime_ns
    generate.write(tmp_path, {"a/b.md": "new", "c.png": b"same"})
    assert (tmp_path / "a" / "b.md").read_text() == "new"
    assert (tmp_path / "c.png").stat().st_mtime_ns == before
    assert not (tmp_path / "operators.md").exists()


def test_formulas_become_mathml():
    pytest.importorskip("docutils", reason="needs the [docs] extra")
    mathematics = import_module("mathematics")
    mathml = mathematics.mathml
    assert mathml(r"\Big(x\Big)_+, \dots", True).startswith('<math xmlns="http://www.w3.org')
    assert mathematics.parts(r"a = 1, \qquad b = \frac{c}{d}") == ["a = 1, ", r" b = \frac{c}{d}"]
    assert len(mathematics.parts(r"\begin{cases} a \qquad b \end{cases}")) == 1
    for card in CARDS:
        parts = docstrings.sections(card)
        for block in re.findall(r"\.\. math::\n((?:    .*\n?)+)", parts.definition):
            assert all('display="block"' in mathml(part, True) for part in mathematics.parts(block))


PROBE = """<pre id="found"></pre><script type="module">
const box = document.querySelector(".gallery-bar input");
const menu = document.querySelector(".gallery-bar select");
const buttons = [...document.querySelectorAll(".gallery-bar button")];
const names = () => [...document.querySelectorAll(".gallery li")]
  .filter((item) => item.checkVisibility()).map((item) => item.querySelector("a").textContent);
const type = (value) => { box.value = value; box.dispatchEvent(new Event("input")); };
const found = { all: names() };
type("KERNEL genErated"); found.words = names();
found.count = document.querySelector("output").value;
type("no such"); found.none = names();
found.said = document.querySelector("output").value;
box.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" })); found.escaped = names();
const folds = buttons.find((button) => button.textContent === "folds");
folds.click(); found.folds = names(); found.pressed = folds.getAttribute("aria-pressed");
menu.value = "Standard"; menu.dispatchEvent(new Event("change")); found.both = names();
folds.click(); found.family = names();
found.reachable = [box, menu, ...buttons].every((part) => part.tabIndex === 0);
found.nameless = [box, menu].filter((part) => !part.ariaLabel).length;
found.resources = performance.getEntriesByType("resource").map((entry) => entry.name)
  .filter((name) => !name.startsWith("file:"));
document.querySelector("#found").textContent = JSON.stringify(found);
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_typing_filters_the_gallery(tmp_path: Path):
    for package in ("sphinx", "myst_parser"):
        if find_spec(package) is None:
            pytest.skip(f"needs {package} of the [docs] extra")
    page = gallery.gallery(GROUPS, dict.fromkeys(card.name for card in CARDS))
    (tmp_path / "index.md").write_text(f"# Front\n\n## Which\n\n{page}", encoding="utf-8")
    (tmp_path / "static").mkdir()
    for name in ("gallery.js", "site.css"):
        shutil.copy(DOCS / "_static" / name, tmp_path / "static")
    settings = (DOCS / "conf.py").read_text(encoding="utf-8")
    lines = re.findall(r"^(?:myst_enable|html_css|html_js)\w+ = .*$", settings, re.M)
    assert len(lines) == 3
    lines += ['extensions = ["myst_parser"]', 'html_static_path = ["static"]']
    (tmp_path / "conf.py").write_text("\n".join(lines), encoding="utf-8")
    build = [sys.executable, "-m", "sphinx", "-Q", str(tmp_path), str(tmp_path / "site")]
    subprocess.run(build, check=True, timeout=120)
    built = tmp_path / "site" / "index.html"
    source = built.read_text(encoding="utf-8")
    assert "gallery-bar" not in source, "without a script there is no box"
    built.write_text(source.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    done = chromium(tmp_path, "--virtual-time-budget=4000", "--dump-dom", built.as_uri())
    answer = re.search(r'<pre id="found">(.+?)</pre>', done.stdout)
    assert answer, done.stderr[-2000:]
    found = json.loads(html.unescape(answer[1]))
    everything = [card.name for card in CARDS]
    folding = [card.name for card in CARDS if card.folds]
    standard = [card.name for card in GROUPS["standard"]]
    assert found["all"] == found["escaped"] == everything
    assert found["words"] == ["involution", "ls_conv", "tvconv"]
    assert found["count"] == f"3 of {len(CARDS)} operators"
    assert found["none"] == []
    assert found["said"].startswith("No operator")
    assert found["folds"] == folding
    assert found["pressed"] == "true"
    assert found["both"] == [name for name in standard if name in folding]
    assert found["family"] == standard
    assert found["reachable"]
    assert found["nameless"] == 0
    assert found["resources"] == []
