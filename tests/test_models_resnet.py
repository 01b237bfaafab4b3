"""The CIFAR ResNet: the paper's sizes, published weights, shapes, export, bad names."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from omniconv.models import ResNet, build, resnet
from omniconv.tasks.classify import load

DATA = Path(os.environ.get("OMNICONV_DATA", Path(__file__).parents[2] / "shared" / "data"))
WEIGHTS = DATA / "weights" / "resnet20_cifar10.safetensors"


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_parameters_are_those_of_the_paper_s_table(depth: int, millions: float) -> None:
    assert parameters(resnet(depth)) / 1e6 == pytest.approx(millions, rel=0.02)


def test_resnet20_parameters_and_multiply_adds() -> None:
    model = resnet(20)
    assert parameters(model) == 269_722
    stem = 3 * 16 * 9 * 32**2
    stages = sum(
        (before * width + 5 * width * width) * 9 * side**2
        for before, width, side in ((16, 16, 32), (16, 32, 16), (32, 64, 8))
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * (stem + stages + 64 * 10) == 2 * 40_551_040


def test_keys_are_the_published_ones() -> None:
    keys = set(resnet(20).state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "linear.weight", "linear.bias"} | {f"bn1.{key}" for key in norm}
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            for i in (1, 2):
                prefix = f"layer{stage}.{block}"
                expected.add(f"{prefix}.conv{i}.weight")
                expected |= {f"{prefix}.bn{i}.{key}" for key in norm}
    assert keys == expected


def naive_forward(state: dict[str, Tensor], x: Tensor, blocks: int) -> Tensor:
    """The eval-mode network of the paper, written out on its weights."""

    def conv_norm(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        y = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        weight, bias = state[f"{norm}.weight"], state[f"{norm}.bias"]
        scale = weight / (var + 1e-5).sqrt()
        return y * scale[:, None, None] + (bias - mean * scale)[:, None, None]

    x = conv_norm(x, "conv1", "bn1").relu()
    for stage in (1, 2, 3):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = conv_norm(x, f"{name}.conv1", f"{name}.bn1", stride).relu()
            y = conv_norm(y, f"{name}.conv2", f"{name}.bn2")
            if stride == 2:
                half = x[:, :, ::2, ::2]
                front = (y.shape[1] - x.shape[1]) // 2
                x = torch.zeros_like(y)
                x[:, front : front + half.shape[1]] = half
            x = (y + x).relu()
    return (
        x.sum((2, 3)) / (x.shape[2] * x.shape[3]) @ state["linear.weight"].T + state["linear.bias"]
    )


@pytest.mark.parametrize(
    ("depth", "channels", "width", "size"),
    [(8, 3, 16, (32, 32)), (14, 1, 5, (28, 28)), (8, 2, 3, (11, 7)), (8, 1, 24, (5, 6))],
)
def test_forward_is_the_paper_s_network(
    depth: int, channels: int, width: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model = resnet(depth, in_channels=channels, classes=7, width=width).double()
    model(torch.randn(4, channels, *size, dtype=torch.float64))  # moves the running statistics
    model.eval()
    x = torch.randn(3, channels, *size, dtype=torch.float64)
    expected = naive_forward(model.state_dict(), x, (depth - 2) // 6)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    assert model(x).shape == (3, 7)


def test_convolutions_start_from_kaiming_s_distribution() -> None:
    torch.manual_seed(0)
    for module in resnet(14, width=32).modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 3:
            assert module.bias is None
            assert module.weight.std().item() == pytest.approx(
                (2 / (9 * module.in_channels)) ** 0.5, rel=0.03
            )


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own, in its exporter
@pytest.mark.parametrize("size", [32, 28])
def test_onnx_export_has_equal_numbers_at_any_batch(size: int) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = resnet(8, width=4).eval()
    program = torch.onnx.export(
        model,
        (torch.randn(2, 3, size, size),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        verbose=False,
    )
    assert program is not None
    file = io.BytesIO()
    program.save(file)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    x = torch.randn(5, 3, size, size)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_build_makes_the_named_network() -> None:
    model = build("resnet14", in_channels=1, classes=3, width=5)
    assert isinstance(model, ResNet)
    assert len(model.layer2) == 2
    assert model.conv1.weight.shape == (5, 1, 3, 3)
    assert model.linear.weight.shape == (3, 20)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", r"depth 6 n \+ 2 \(8, 14, 20, .*got 'resnet18' \(did you mean 'resnet20'\?\)"),
        ("resnet2", r"did you mean 'resnet8'"),
        ("resnet999998", r"did you mean 'resnet1202'"),
        ("resnt20", r"got 'resnt20' \(did you mean 'resnet20'\?\)"),
        ("ResNet-56", r"did you mean 'resnet56'"),
        ("resnet", r"did you mean 'resnet20'"),
        ("transformer", r"backbone must be 'resnet<depth>' .*got 'transformer'$"),
        ("", r"got ''$"),
        pytest.param("resnet" + "9" * 9999, r"backbone must be", id="long"),
    ],
)
def test_bad_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"depth": 18}, ValueError, r"depth must be 6 n \+ 2 .*got 18 \(nearest: 20\)"),
        ({"depth": 2}, ValueError, r"got 2 \(nearest: 8\)"),
        ({"depth": 20.0}, TypeError, "depth must be an int"),
        ({"width": 0}, ValueError, "width must be an int of at least 1, got 0"),
        ({"width": 1.5}, TypeError, "width must be an int"),
        ({"classes": -1}, ValueError, "classes must be an int of at least 1, got -1"),
        ({"in_channels": None}, TypeError, "in_channels must be an int of at least 1, got None"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        resnet(**{"depth": 8, **arguments})  # type: ignore[arg-type]


def test_backbone_name_of_another_type() -> None:
    with pytest.raises(TypeError, match=r"backbone must be .*got 20 \(int\)"):
        build(20)  # type: ignore[arg-type]


@pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"no published weights in {WEIGHTS.parent}")
def test_published_resnet20_scores_as_its_data_says() -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = build("resnet20").eval()
    model.load_state_dict(safetensors.load_file(WEIGHTS))
    images, labels = load(f"cifar10:{DATA / 'cifar10'}").test
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    correct = 0
    with torch.no_grad():
        for batch, expected in zip(images.split(500), labels.split(500), strict=True):
            logits = model((batch.float() / 255 - mean) / std)
            correct += int((logits.argmax(1) == expected).sum())
    assert len(labels) == 10_000
    assert correct == 8103
