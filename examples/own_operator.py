"""An operator of your own in one file: written, judged by the matrix, compared on digits.

    python examples/own_operator.py
    python examples/own_operator.py --seeds 5 --out zero-mean-report    # enough for a verdict

The operator is the zero-mean convolution: the entries of each filter add up to 0, so that a
brighter or darker image gives the same output. Compare needs ``omniconv[compare]``.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import omniconv as oc
import omniconv.compare
import omniconv.testing
from omniconv.core.card import Card
from omniconv.core.layer import new_parameter
from omniconv.math.naive import naive_convolution
from omniconv.operators.static_kernel import StaticKernel

# --- the operator: formula, layer, card ----------------------------------------------------------


def zero_mean_kernel(raw: Tensor) -> Tensor:
    """W[o, i, u] = raw[o, i, u] - mean_v raw[o, i, v], shape (O, I/groups, *kernel_size)."""
    return raw - raw.mean(list(range(2, raw.dim())), keepdim=True)


class _ZeroMeanNd(StaticKernel):
    """Stride, padding, groups, devices and the number of axes are StaticKernel's business."""

    def setup(self, factory: dict[str, Any]) -> None:
        self.raw = new_parameter(*self.kernel_shape, **factory)

    def kernel(self) -> Tensor:
        """The kernel that is applied."""
        return zero_mean_kernel(self.raw)

    def load_kernel_(self, weight: Tensor) -> None:
        """Take over a trained kernel; what is applied is the nearest one with mean 0."""
        with torch.no_grad():
            self.raw.copy_(weight)

    def reset_parameters(self) -> None:
        """Draw ``raw`` so that outputs have the plain layer's variance."""
        entries = math.prod(self.geometry.kernel_size)
        scale = math.sqrt(entries / max(entries - 1, 1))  # the mean takes one of them away
        nn.init.uniform_(self.raw, -scale * self.bound, scale * self.bound)
        self.reset_bias()


class ZeroMeanConv1d(_ZeroMeanNd, nn.Conv1d): ...


class ZeroMeanConv2d(_ZeroMeanNd, nn.Conv2d): ...


class ZeroMeanConv3d(_ZeroMeanNd, nn.Conv3d): ...


def _reference(layer: Any, x: Tensor) -> Tensor:
    """Filter by filter: what the layer is compared with."""
    filters = [[taps - taps.sum() / taps.numel() for taps in row] for row in layer.raw]
    kernel = torch.stack([torch.stack(row) for row in filters])
    return naive_convolution(x, kernel, layer.bias, layer.geometry)


def _flops(layer: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """The plain convolution; per kernel entry, its part in a mean and a subtraction.

    Backward: the negative, its sum and share in the mean, and the two gradients' sum.
    """
    forward, backward = layer.geometry.flops(shape)
    entries = math.prod(layer.kernel_shape)
    return forward + 2 * entries, backward + 4 * entries


card = Card(
    name="zero_mean",
    classes={1: ZeroMeanConv1d, 2: ZeroMeanConv2d, 3: ZeroMeanConv3d},
    equation="y(p) = b + sum_u (w(u) - mean w) x(p+u)",
    summary="Filters whose entries add up to 0: the level of the input does not matter.",
    citation="J. Schlueter, B. Lehner: Zero-Mean Convolutions for Level-Invariant Singing Voice "
    "Detection. ISMIR 2018",
    reference=_reference,
    flops=_flops,
    folds=True,
    preserves_note="Filters of mean 0, exactly; the nearest otherwise is the filter less its mean.",
)

# --- the matrix: what the card promises ----------------------------------------------------------


def judge(tier: int) -> None:
    """Run the conformance matrix, over two axes; a promise that does not hold raises."""
    held, skipped = 0, {}
    for case in omniconv.testing.cases(card, tier):
        reason = case.skip or case.missing
        if case.dim != 2:
            continue
        if reason:
            skipped[case.property] = reason
        else:
            case.run()
            held += 1
    print(f"The matrix: {held} properties hold, {len(skipped)} do not apply")
    for name, reason in skipped.items():
        print(f"  {name}: {reason}")


# --- the comparison: is it any good? -------------------------------------------------------------


def publish(folder: Path) -> str:
    """Make this file known to every process, as installing a package would; returns its name.

    In a package of your own, pyproject.toml does it:

        [project.entry-points."omniconv.operators"]
        zero_mean = "own_operator:card"
    """
    info = folder / "my_operators-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-operators\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[omniconv.operators]\nzero_mean = own_operator:card\n")
    path = [str(folder), str(Path(__file__).resolve().parent)]
    sys.path[:0] = path
    earlier = filter(None, [os.environ.get("PYTHONPATH")])
    os.environ["PYTHONPATH"] = os.pathsep.join([*path, *earlier])
    return "my-operators:zero_mean"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tier", type=int, default=1, help="of the matrix: 1, 2 or 3")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--train", type=int, help="number of training images (default: all)")
    parser.add_argument("--width", type=int, default=8, help="channels of the ResNet-8")
    parser.add_argument("--out", type=Path, default="own-operator-report")
    given = parser.parse_args()

    judge(given.tier)

    torch.manual_seed(0)
    layer = ZeroMeanConv2d(1, 4, 5, padding=2, padding_mode="replicate")
    image = torch.rand(1, 1, 28, 28)
    change = (layer(image + 0.5) - layer(image)).abs().max()
    print(f"A brighter image changes its output by {change:.0e}")

    with tempfile.TemporaryDirectory() as folder:
        name = publish(Path(folder))
        assert name in oc.list_operators("my-operators:*")
        plan = omniconv.compare.parse(
            {
                "rows": ["conv(lr=0.3)", f"{name}(lr=0.3)"],  # without lr: tuned, the same for all
                "width": given.width,
                "seeds": given.seeds,
                "budget": f"{given.epochs}epochs",
                "limit_train": given.train,
                "frontier": None,  # no wider or larger plain networks beside it
                "threads": 1,
            }
        )
        # every trial is a process of its own; stopped and started again, a run goes on
        code, _ = omniconv.compare.run(plan, given.out)
    sys.exit(code)


if __name__ == "__main__":
    main()
