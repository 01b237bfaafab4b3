"""Put another convolution into a model, train it, fold it, deploy it.

    python examples/swap_train_deploy.py
    python examples/swap_train_deploy.py --operator weighted --kernel-size 3 --onnx digits.onnx

Trains on 3,000 handwritten digits that come with ``pip install "omniconv[compare]"``; the last
step needs ``omniconv[onnx]``.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import omniconv as oc
from omniconv.tasks import classify

BATCH = 32


def make_model(width: int) -> nn.Module:
    """The model you have: any module that holds torch's convolutions."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
        nn.BatchNorm2d(4 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


def train(model: nn.Module, data: classify.Dataset, epochs: int, seed: int) -> None:
    # some layers want another learning rate or no weight decay for some of their parameters
    groups = oc.param_groups(model, lr=5e-3, weight_decay=1e-4)
    optimizer = torch.optim.AdamW(groups)
    # some have parameters with bounds: DCLS's positions stay within the kernel
    optimizer.register_step_post_hook(lambda *_: oc.constrain_(model))
    steps = epochs * math.ceil(data.sizes["train"] / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        for images, labels in classify.batches(data, "train", BATCH, generator=generator):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
        loss, accuracy = classify.evaluate(model, data, "validation")
        print(f"epoch {epoch + 1}: validation loss {loss:.3f}, accuracy {accuracy:.1f} %")


def export(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write an ONNX file that takes any number of images."""
    sizes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        model,
        (example,),
        path,
        dynamo=True,
        dynamic_shapes=sizes,
        external_data=False,  # one file
        verbose=False,
    )


class InOnnxruntime(nn.Module):
    """The file, called as a module."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # as torch, for a fair time
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name

    def forward(self, images: Tensor) -> Tensor:
        (logits,) = self.session.run(None, {self.input: images.numpy()})
        return torch.from_numpy(logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--operator", default="dcls", help="see `omniconv list`")
    parser.add_argument("--kernel-size", type=int, default=7)
    parser.add_argument("--width", type=int, default=16, help="channels of the first layer")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--train", type=int, help="number of training images (default: all)")
    parser.add_argument("--batch", type=int, default=64, help="images per timed call")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--onnx", type=Path, help="where to write the ONNX file")
    given = parser.parse_args()

    torch.manual_seed(given.seed)
    data = classify.load("mnist5k", given.train)

    # 1. Swap. With trained weights leave out from_weights=False: they are taken over.
    model = make_model(given.width)
    report = oc.swap_(
        model,
        given.operator,
        where=oc.where.spatial & ~oc.where.name("0"),  # kernels wider than 1, not the first layer
        from_weights=False,
        kernel_size=given.kernel_size,
    )
    print(report)

    # 2. Train as usual.
    train(model, data, given.epochs, given.seed)

    # 3. Fold: layers that compute one kernel become plain nn.Conv2d, with the same output.
    model.eval()
    deployed = oc.fold_(copy.deepcopy(model))
    networks = {"as trained": model, "folded": deployed}

    # 4. Export what is left: plain torch.
    images, _ = classify.examples(data, given.batch)
    with tempfile.TemporaryDirectory() as folder:
        path = given.onnx or Path(folder) / "model.onnx"
        try:
            export(deployed, images[:2], path)
            networks["onnxruntime"] = InOnnxruntime(path)
        except ImportError as error:
            print(f'no ONNX file: {error}; pip install "omniconv[onnx]"')

        times = oc.analysis.time_latencies(list(networks.values()), images)
        with torch.no_grad():
            expected = model(images)
            print(f"\n{'':12}  accuracy  ms for {len(images)} images  largest difference")
            for (name, network), time in zip(networks.items(), times, strict=True):
                accuracy = classify.evaluate(network, data, "test")[1]
                difference = (network(images) - expected).abs().max()
                print(f"{name:12}  {accuracy:6.2f} %  {time.ms:17.2f}  {difference:18.1e}")


if __name__ == "__main__":
    main()
