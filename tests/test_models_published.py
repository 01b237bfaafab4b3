"""Networks that people use: swapped, trained, folded, saved, replayed on a fresh one, loaded."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import omniconv as oc
from omniconv.operators.static_kernel import StaticKernel
from omniconv.surgery.swap import MixerPointwise

pytestmark = pytest.mark.usefixtures("published")

CLASSES = 5
NOT_STRIDED = "stride must be above 1: SPD-Conv replaces strided convolutions"


def resnet18() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(weights=None, num_classes=CLASSES)


def mobilenet() -> nn.Module:
    from torchvision.models import mobilenet_v3_small

    return mobilenet_v3_small(weights=None, num_classes=CLASSES)


def timm_model(name: str, **arguments: Any) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=CLASSES, **arguments)


def convnext() -> nn.Module:
    # at the usual 1e-6 of an untrained network a block hardly counts, and no error in it would show
    return timm_model("convnext_tiny", ls_init_value=1.0)


def timm_mobilenet() -> nn.Module:
    return timm_model("mobilenetv3_small_100")


def images(size: int) -> Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Swap:
    """A swap, and what its report has to say."""

    make: Callable[[], nn.Module]
    operator: str
    where: Any
    layer: str  # one of the layers that are swapped, and what it is then
    kind: str
    weights: set[str]
    swapped: int
    skipped: int = 0
    reasons: set[str] = field(default_factory=set)
    own: dict[str, Any] = field(default_factory=dict)
    size: int = 64

    def __str__(self) -> str:
        return f"{self.make.__name__}-{self.operator}"


def started(model: nn.Module, x: Tensor) -> nn.Module:
    """The network with running statistics of ``x``: a fresh one's outputs may be as small as 1e-11,
    and no difference between them would be seen."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    return model.eval()


def distance(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def stage(pattern: str) -> Any:
    return oc.where.spatial & oc.where.name(pattern)


SPATIAL, DEPTHWISE = oc.where.spatial, oc.where.depthwise
SWAPS = (
    Swap(resnet18, "weighted", SPATIAL, "layer1.0.conv1", "WeightedConv2d", {"kept"}, 17),
    Swap(resnet18, "involution", stage("layer4.*"), "layer4.0.conv1", "MixerPointwise", {"new"}, 4),
    Swap(resnet18, "condconv", stage("layer1.*"), "layer1.0.conv1", "CondConv2d", {"kept"}, 4),
    Swap(resnet18, "spd", None, "conv1", "SPDConv2d", {"kept"}, 7, 13, {NOT_STRIDED}),
    Swap(
        convnext,
        "dcls",
        DEPTHWISE,
        "stages.0.blocks.0.conv_dw",
        "DCLSConv2d",
        {"nearest"},
        18,
        own={"kernel_size": 9, "taps": 20},
        size=32,
    ),
    Swap(
        convnext,
        "inception_dw",
        DEPTHWISE,
        "stages.0.blocks.0.conv_dw",
        "InceptionDWConv2d",
        {"nearest"},
        18,
        size=32,
    ),
    Swap(
        convnext,
        "gnconv",
        DEPTHWISE & oc.where.name("stages.[01].*"),
        "stages.0.blocks.0.conv_dw",
        "GnConv2d",
        {"kept"},
        6,
        size=32,
    ),
    Swap(
        timm_mobilenet,
        "smpconv",
        DEPTHWISE,
        "blocks.0.0.conv_dw",
        "SMPConv2d",
        {"kept"},
        11,
        own={"kernel_size": [7, 7]},
    ),
    Swap(timm_mobilenet, "pconv", DEPTHWISE, "blocks.0.0.conv_dw", "PConv2d", {"nearest"}, 11),
    Swap(mobilenet, "condconv", DEPTHWISE, "features.1.block.0.0", "CondConv2d", {"kept"}, 11),
    Swap(mobilenet, "phc", None, "features.0.0", "PHConv2d", {"kept", "nearest"}, 52),
)


def train(model: nn.Module, x: Tensor, steps: int = 2) -> float:
    """Steps of SGD on one batch, and the last loss.

    Two, because a layer that starts as a trained one may have a factor that is still 0 in the
    first: what stands before it learns from the second on.
    """
    optimizer = torch.optim.SGD(oc.param_groups(model, lr=0.01, weight_decay=1e-4))
    labels = torch.arange(len(x)) % CLASSES
    model.train()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return loss.item()


@pytest.mark.parametrize("swap", SWAPS, ids=str)
@torch.no_grad()
def test_a_published_network_goes_the_whole_way(swap: Swap, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    x = images(swap.size)
    model = started(swap.make(), x)
    names, before = set(dict(model.named_modules())), model(x)
    report = oc.swap_(model, swap.operator, swap.where, **swap.own)

    done = {row.path: model.get_submodule(row.path) for row in report.swapped}
    assert (len(done), len(report.layers) - len(done)) == (swap.swapped, swap.skipped)
    assert {row.weights for row in report.swapped} == swap.weights
    assert {row.reason for row in report.layers} - {""} == swap.reasons
    assert type(done[swap.layer]).__name__ == swap.kind
    assert str(report).endswith(f"\n{swap.swapped} swapped, {swap.skipped} skipped")
    assert (distance(model(x), before) < 1e-3) is (swap.weights == {"kept"})

    start = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with torch.enable_grad():
        loss = train(model, x)
    assert torch.tensor(loss).isfinite()
    still = {name for name, p in model.named_parameters() if torch.equal(p, start[name])}
    assert still == set()

    trained = model(x)
    assert trained.isfinite().all()
    save_file(model.state_dict(), tmp_path / "trained.safetensors")
    (tmp_path / "swap.json").write_text(json.dumps(report.to_json()), encoding="utf-8")

    fresh = swap.make().eval()
    saved = json.loads((tmp_path / "swap.json").read_text(encoding="utf-8"))
    assert oc.swap_(fresh, oc.SwapReport.from_json(saved)).layers  # drawn anew
    assert distance(fresh(x), trained) > 0.1
    fresh.load_state_dict(load_file(tmp_path / "trained.safetensors"))
    assert torch.equal(fresh(x), trained)

    assert oc.fold_(model) is model
    assert distance(model(x), trained) < 1e-5
    for path, layer in done.items():
        parts = [("mixer", layer.mixer)] if isinstance(layer, MixerPointwise) else [("", layer)]
        for name, part in parts:
            folded = model.get_submodule(".".join(filter(None, [path, name])))
            folds = isinstance(part, StaticKernel)
            assert type(folded) is (nn.Conv2d if folds else type(part))
    if oc.card(swap.operator).folds:
        assert set(dict(model.named_modules())) == names
        assert not any(type(m).__module__.startswith("omniconv") for m in model.modules())


def test_a_folded_checkpoint_fits_the_published_network(tmp_path: Path):
    torch.manual_seed(0)
    x = images(64)
    model = started(timm_mobilenet(), x)
    oc.swap_(model, "weighted", oc.where.spatial)
    train(model, x)
    torch.save(oc.fold_(model).state_dict(), tmp_path / "folded.pt")
    published = timm_mobilenet().eval()
    published.load_state_dict(torch.load(tmp_path / "folded.pt", weights_only=True))
    assert torch.equal(published(x), model(x))


FILTERS = {
    "all": (None, 20, 22, 53),
    "spatial": (oc.where.spatial, 17, 22, 12),
    "dense": (oc.where.dense, 20, 4, 42),
    "depthwise": (oc.where.depthwise, 0, 18, 11),
    "transposed": (oc.where.transposed, 0, 0, 0),
    "wide and dense": (oc.where.spatial & oc.where.dense, 17, 4, 1),
    "by name": (oc.where.name("layer1.*", "stages.0.*", "blocks.0.*"), 4, 3, 4),
    "not the stem": (oc.where.spatial & ~oc.where.name("conv1", "stem.*", "conv_stem"), 16, 21, 11),
}


@pytest.mark.parametrize("index", range(3), ids=["resnet18", "convnext", "timm_mobilenet"])
def test_filters_select_the_layers_that_they_name(index: int):
    with torch.device("meta"):
        network = (resnet18, convnext, timm_mobilenet)[index]()
    found = {}
    for name, (where, *_) in FILTERS.items():
        rows = oc.swap_(copy.deepcopy(network), "weighted", where, from_weights=False).layers
        assert all(row.status == "swapped" for row in rows)
        found[name] = len(rows)
    assert found == {name: counts[index] for name, (_, *counts) in FILTERS.items()}


def test_layers_that_pad_by_themselves_are_left_alone_and_the_report_says_so():
    with torch.device("meta"):
        model = timm_model("tf_mobilenetv3_small_100")
    report = oc.swap_(model, "weighted", oc.where.depthwise)
    skipped = {row.path: row.reason for row in report.layers if row.status == "skipped"}
    assert set(skipped) == {f"blocks.{path}.conv_dw" for path in ("0.0", "1.0", "2.0", "4.0")}
    assert set(skipped.values()) == {
        "Conv2dSame is not torch's plain layer and may compute differently"
    }
    assert len(report.swapped) == 7
    assert "skipped: Conv2dSame is not torch's plain layer" in str(report)


def test_two_swaps_in_one_network_are_replayed_one_after_the_other():
    torch.manual_seed(0)
    x = images(64)
    model = started(mobilenet(), x)
    first = oc.swap_(model, "involution", oc.where.depthwise & oc.where.name("features.1.*"))
    second = oc.swap_(model, "weighted", oc.where.spatial, density=0.5)
    assert [(len(r.swapped), len(r.layers)) for r in (first, second)] == [(1, 1), (11, 11)]
    train(model, x)
    fresh = mobilenet()
    for report in (first, second):
        oc.swap_(fresh, oc.SwapReport.from_json(report.to_json()))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(x), model(x))
