"""accelerate_: the same layers, parameters, keys, outputs and gradients, on another kernel."""

from __future__ import annotations

import copy
import io
import json
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import omniconv as oc
from omniconv.kernels import backend, convolve
from omniconv.surgery.accelerated import AcceleratedConv2d


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the kernels that the functional of the depthwise kernel is called with."""
    found: list[tuple[int, ...]] = []
    original = convolve.depthwise

    def spied(x: Tensor, weight: Tensor, *rest: object) -> Tensor:
        found.append(tuple(weight.shape))
        return original(x, weight, *rest)

    monkeypatch.setattr(convolve, "depthwise", spied)
    return found


class Residual(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.inside = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inside(x)


def convnext() -> nn.Module:
    """Two blocks as ConvNeXt's: 7x7 depthwise, then two 1-wide layers."""
    torch.manual_seed(0)
    blocks = [
        Residual(
            nn.Conv2d(8, 8, 7, padding=3, groups=8),
            nn.GroupNorm(1, 8),
            nn.Conv2d(8, 32, 1),
            nn.GELU(),
            nn.Conv2d(32, 8, 1),
        )
        for _ in range(2)
    ]
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def convmixer() -> nn.Module:
    """As ConvMixer: the same 9x9 "same" depthwise layer with batch norm, then a 1-wide one."""
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Conv2d(3, 8, 2, stride=2), nn.GELU(), nn.BatchNorm2d(8)]
    for _ in range(2):
        depthwise = nn.Conv2d(8, 8, 9, groups=8, padding="same")
        parts += [Residual(depthwise, nn.GELU(), nn.BatchNorm2d(8))]
        parts += [nn.Conv2d(8, 8, 1), nn.GELU(), nn.BatchNorm2d(8)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def images(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images()), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("build", [convnext, convmixer])
def test_training_steps_are_the_same(build, calls):
    plain, fast = build(), build()
    report = oc.accelerate_(fast)
    assert len(report.accelerated) == 2
    assert report.model is fast
    models = plain, fast
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in models]
    for _ in range(3):
        first, second = (step(*pair) for pair in zip(models, optimizers, strict=True))
        assert second == pytest.approx(first, rel=1e-5)
    for (name, a), (other, b) in zip(
        plain.named_parameters(), fast.named_parameters(), strict=True
    ):
        assert name == other
        # what Adam makes of a gradient's rounding is bounded by its step
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-5)
    assert len(calls) == 6
    torch.testing.assert_close(fast.eval()(images()), plain.eval()(images()), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": 1},
        {"padding": "same"},
        {"padding": "valid", "stride": 2},
        {"padding": 2, "padding_mode": "reflect"},
        {"padding": "same", "padding_mode": "circular", "bias": False},
        {"padding": 2, "dilation": 2, "out_channels": 12},
        {"kernel_size": 4, "padding": "same", "dilation": 3},
    ],
    ids=str,
)
def test_every_argument_means_what_it_meant(dim, arguments, calls):
    own = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "groups": 4, **arguments}
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dim - 1](**own, dtype=torch.float64)
    x = torch.randn(2, 4, *(11, 10, 9)[:dim], dtype=torch.float64)
    for sample in (x, x[0]):
        a, b = (sample.clone().requires_grad_() for _ in range(2))
        y = oc.unaccelerate_(layer)(a)
        found = oc.accelerate_(layer).model(b)
        assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        torch.testing.assert_close(found, y)
        grad = torch.randn_like(y)
        names, parameters = zip(*layer.named_parameters(), strict=True)
        wanted = torch.autograd.grad(y, (a, *parameters), grad)
        for name, one, other in zip(
            ("input", *names),
            torch.autograd.grad(found, (b, *parameters), grad),
            wanted,
            strict=True,
        ):
            torch.testing.assert_close(one, other, msg=name)
    assert len(calls) == 2


def test_the_optimizer_goes_on():
    plain, fast = convnext(), convnext()
    models = plain, fast
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        step(model, optimizer)
    before = dict(fast.named_parameters())
    oc.accelerate_(fast)
    assert all(parameter is before[name] for name, parameter in fast.named_parameters())
    for _ in range(2):
        losses = [step(*pair) for pair in zip(models, optimizers, strict=True)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    oc.unaccelerate_(fast)
    assert [type(m) for m in fast.modules()] == [type(m) for m in plain.modules()]
    assert all(parameter is before[name] for name, parameter in fast.named_parameters())


def test_keys_copies_pickles_and_checkpoints(tmp_path):
    plain, fast = convnext(), convnext()
    oc.accelerate_(fast)
    assert list(fast.state_dict()) == list(plain.state_dict())
    y = fast(images())
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert [type(m) for m in other.modules()] == [type(m) for m in fast.modules()]
        torch.testing.assert_close(other(images()), y, rtol=0, atol=0)
    torch.save(fast.state_dict(), tmp_path / "fast.pt")
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    plain.load_state_dict(torch.load(tmp_path / "fast.pt", weights_only=True))
    torch.testing.assert_close(plain(images()), y)


def test_everything_else_about_a_layer_stays():
    conv = nn.Conv2d(4, 4, 3, groups=4, padding_mode="replicate", padding=1).eval()
    conv.requires_grad_(False)
    conv.note = "kept"
    seen = []
    conv.register_forward_hook(lambda *a: seen.append("forward"))
    conv.register_forward_pre_hook(lambda *a: seen.append("before"))
    model = nn.Sequential(conv, nn.ReLU(), conv)
    wanted = model(images()[:, [0, 1, 2, 0]])
    seen.clear()
    report = oc.accelerate_(model)
    assert [row.path for row in report.layers] == ["0, 2"]
    assert model[0] is conv
    assert model[2] is conv
    assert conv.note == "kept"
    assert not conv.training
    assert not conv.weight.requires_grad
    torch.testing.assert_close(model(images()[:, [0, 1, 2, 0]]), wanted)
    assert seen == ["before", "forward"] * 2
    assert "AcceleratedConv2d(4, 4, kernel_size=(3, 3)" in repr(model)


def test_tied_parameters_stay_tied(calls):
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3, groups=3) for _ in range(2)))
    model[1].weight = model[0].weight
    oc.accelerate_(model)
    assert model[1].weight is model[0].weight
    model(images()).sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("first", ["norm", "accelerate"])
def test_parametrised_layers_keep_their_parametrisation(first, calls):
    conv = nn.Conv2d(3, 3, 3, groups=3)
    conv.weight.data.mul_(3)
    wanted = conv(images())
    if first == "norm":
        parametrizations.weight_norm(conv)
        oc.accelerate_(conv)
    else:
        oc.accelerate_(conv)
        parametrizations.weight_norm(conv)
    assert isinstance(conv, AcceleratedConv2d)
    torch.testing.assert_close(conv(images()), wanted)
    torch.testing.assert_close(copy.deepcopy(conv)(images()), wanted)
    assert len(calls) == 2
    assert set(conv.state_dict()) == {
        "bias",
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    }
    again = oc.accelerate_(conv)
    assert [row.reason for row in again.layers] == ["already accelerated"]
    oc.unaccelerate_(conv)
    assert not isinstance(conv, AcceleratedConv2d)
    torch.testing.assert_close(conv(images()), wanted)
    oc.accelerate_(conv)
    parametrize.remove_parametrizations(conv, "weight")
    assert type(conv) is AcceleratedConv2d
    torch.testing.assert_close(conv(images()), wanted)


def test_a_weight_that_a_hook_computes_is_used(calls):
    conv = torch.nn.utils.spectral_norm(nn.Conv2d(3, 3, 3, groups=3)).eval()
    wanted = conv(images())
    oc.accelerate_(conv)
    torch.testing.assert_close(conv(images()), wanted)
    assert len(calls) == 1


def test_a_second_call_changes_nothing():
    model = convnext()
    oc.accelerate_(model)
    kinds = [type(m) for m in model.modules()]
    again = oc.accelerate_(model)
    assert not again.accelerated
    assert {row.reason for row in again.layers} == {"already accelerated"}
    assert [type(m) for m in model.modules()] == kinds


def test_what_is_skipped_and_why():
    class OwnConv(nn.Conv2d):
        pass

    replaced = nn.Conv2d(4, 4, 3, groups=4)
    replaced.forward = replaced.forward
    model = nn.Sequential(
        OwnConv(4, 4, 3, groups=4),
        replaced,
        nn.ConvTranspose2d(4, 4, 3, groups=4),
        oc.WeightedConv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 1, 3),
        nn.Conv2d(1, 4, 3),
        nn.Conv2d(4, 4, 3, groups=4),
    )
    kinds = [type(m) for m in model]
    reasons = [row.reason for row in oc.accelerate_(model, oc.where.everything).layers]
    assert reasons == [
        "OwnConv is not torch's plain layer and may compute differently",
        "its forward was replaced",
        "there is no kernel for transposed convolutions",
        "WeightedConv2d chooses its kernels by itself",
        "it is not depthwise, and torch's own is as fast",
        "it is not depthwise, and torch's own is as fast",
        "",
    ]
    assert [type(m) for m in model] == [*kinds[:-1], AcceleratedConv2d]


def test_where_selects():
    model = convnext()
    report = oc.accelerate_(model, oc.where.depthwise & ~oc.where.name("1.*"))
    assert [row.path for row in report.layers] == ["2.inside.0"]
    with pytest.raises(TypeError, match="where must be a predicate"):
        oc.accelerate_(model, "2")


def test_the_report_is_a_table_and_plain_data():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=4, stride=2), nn.ConvTranspose2d(8, 8, 2, groups=8)
    )
    report = oc.accelerate_(model)
    assert str(report).splitlines() == [
        "path  layer                     result",
        "0     Conv2d 4->8 3x3 /2        accelerated",
        "1     ConvTranspose2d 8->8 2x2  skipped: there is no kernel for transposed convolutions",
        "1 accelerated, 1 skipped",
    ]
    data = json.loads(json.dumps(report.to_json()))
    assert data["layers"][0]["status"] == "accelerated"
    assert str(oc.accelerate_(nn.Linear(2, 2))) == "0 accelerated, 0 skipped"


def test_the_report_says_when_kernels_are_turned_off():
    before = backend.get_backend()
    backend.set_backend("torch")
    try:
        report = oc.accelerate_(convnext())
        assert "the back end is torch" in str(report).splitlines()[-1]
    finally:
        backend.set_backend(before)


def test_models_that_are_not_plain_are_refused_and_stay():
    model = convnext()
    for wrapped, word in (
        (torch.compile(model), "compiled"),
        (nn.Sequential(nn.DataParallel(model)), "DataParallel"),
    ):
        for surgery in (oc.accelerate_, oc.unaccelerate_):
            with pytest.raises(TypeError, match=word):
                surgery(wrapped)
    with pytest.raises(TypeError, match=r"model must be an nn\.Module"):
        oc.accelerate_([model])
    assert not any(isinstance(m, AcceleratedConv2d) for m in model.modules())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_models_are_refused():
    scripted = torch.jit.trace(nn.Conv2d(3, 3, 3, groups=3), torch.randn(1, 3, 8, 8))
    with pytest.raises(TypeError, match="it is scripted"):
        oc.accelerate_(scripted)


def test_sharded_models_are_refused():
    class FSDPModule(nn.Module):
        pass

    FSDPModule.__module__ = "torch.distributed.fsdp"
    with pytest.raises(TypeError, match="sharded by fully_shard"):
        oc.accelerate_(nn.Sequential(FSDPModule()))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantised_models_are_refused():
    from torch.ao.nn.quantized import Conv2d

    model = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), Conv2d(3, 3, 3))
    with pytest.raises(TypeError, match=r"it is quantised \(Conv2d at '1'\)"):
        oc.accelerate_(model)
    assert type(model[0]) is nn.Conv2d


def test_a_swapped_accelerated_layer_is_as_a_swapped_plain_one():
    plain, fast = convnext(), convnext()
    oc.accelerate_(fast)
    reports = [
        oc.swap_(model, "weighted", where=oc.where.depthwise, kernel_size=9)
        for model in (plain, fast)
    ]
    assert reports[0] == reports[1]
    assert len(reports[1].swapped) == 2
    assert isinstance(fast[1].inside[0], oc.WeightedConv2d)
    torch.testing.assert_close(fast(images()), plain(images()))


def test_folding_gives_exactly_torchs_layers():
    model = convnext()
    oc.swap_(model, "weighted", where=oc.where.name("1.inside.0"))
    report = oc.accelerate_(model)
    assert [row.status for row in report.layers] == ["skipped", "accelerated"]
    y = model(images())
    oc.fold_(model)
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert kinds == {nn.Conv2d}
    assert len(oc.accelerate_(model).accelerated) == 2
    torch.testing.assert_close(model(images()), y, rtol=1e-4, atol=1e-5)


def test_autocast_gives_the_dtype_that_torch_gives():
    conv = nn.Conv2d(3, 6, 5, groups=3)
    x = images().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = conv(x)
        found = oc.accelerate_(conv).model(x)
    assert found.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
    found.sum().backward()
    assert x.grad.dtype == conv.weight.grad.dtype == torch.float32


def test_channels_last_models_stay_channels_last():
    model = nn.Sequential(nn.Conv2d(4, 4, 7, padding=3, groups=4))
    x = torch.randn(2, 4, 9, 9)
    wanted = model(x)
    oc.accelerate_(model)
    model.to(memory_format=torch.channels_last)
    y = model(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, wanted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_exported_programs_hold_operators_of_torch_only():
    model = convnext().eval()
    wanted = model(images())
    oc.accelerate_(model)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in names if not name.startswith("aten.")]
    torch.testing.assert_close(program.module()(images(3)), wanted[:3])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_exports_to_onnx_with_equal_numbers():
    onnxruntime = pytest.importorskip("onnxruntime", exc_type=ImportError)
    pytest.importorskip("onnxscript", exc_type=ImportError)
    model = convmixer().eval()
    oc.accelerate_(model)
    buffer = io.BytesIO()
    torch.onnx.export(model, (images(),), dynamo=True, verbose=False).save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue())
    (y,) = session.run(None, {session.get_inputs()[0].name: images().numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(images()), rtol=1e-4, atol=1e-5)


def test_compiles_without_graph_breaks():
    model = convnext()
    oc.accelerate_(model)
    wanted = model(images())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y = compiled(images())
    torch.testing.assert_close(y, wanted)
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_symbolic_traces_hold_the_call():
    model = convnext().eval()
    wanted = model(images())
    oc.accelerate_(model)
    traced = torch.fx.symbolic_trace(model)
    called = [str(node.target) for node in traced.graph.nodes if node.op == "call_function"]
    assert sum("convolution" in name for name in called) == 2
    torch.testing.assert_close(traced(images()), wanted)


def test_transforms_of_functions_work():
    conv = nn.Conv2d(3, 3, 3, groups=3)
    x = images()
    wanted = conv(x)
    oc.accelerate_(conv)
    parameters = dict(conv.named_parameters())

    def one(sample: Tensor) -> Tensor:
        return torch.func.functional_call(conv, parameters, (sample,))

    torch.testing.assert_close(torch.vmap(one)(x), wanted)
    torch.testing.assert_close(torch.func.jvp(one, (x,), (x,))[1], conv(x) - conv(0 * x))
