"""Denoise photographs with two convolutions in the same network, and see which is better.

    python examples/denoise.py
    python examples/denoise.py --operator "weighted" --kernel-size 5 --steps 2000 --width 32

Trains a DnCNN on grey photographs that come with scikit-image (``omniconv[compare]``), noise of
deviation 25 of 255, once with plain convolutions and once with another operator; then says how far
each brings the noisy test images, in dB. One seed is an impression, not a verdict: for that there
is ``omniconv compare --task denoise``.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import omniconv as oc
from omniconv.tasks import denoise


def make_network(operator: str, kernel_size: int, depth: int, width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = oc.models.dncnn(depth, width=width)
    if operator != "conv":
        # the layers between the first and the last, which change the number of channels
        body = oc.where.name(*network.body)
        report = oc.swap_(network, operator, body, from_weights=False, kernel_size=kernel_size)
        print(report)
    return network


def train(
    network: nn.Module, data: denoise.Images, steps: int, batch: int, lr: float, seed: int
) -> None:
    optimizer = torch.optim.Adam(oc.param_groups(network, lr=lr))
    optimizer.register_step_post_hook(lambda *_: oc.constrain_(network))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    # the same seed gives every network the same patches and the same noise
    generator = torch.Generator().manual_seed(seed)
    batches = denoise.batches(data, "train", batch, generator=generator, steps=steps)
    for step, (noisy, clean) in enumerate(batches, 1):
        optimizer.zero_grad()
        loss = denoise.loss(network(noisy), clean)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 4) == 0:
            print(f"  step {step}: mean squared error {loss.item():.5f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--operator", default="dcls", help="see `omniconv list`")
    parser.add_argument("--kernel-size", type=int, default=5)
    parser.add_argument("--depth", type=int, default=5, help="convolutions of the network")
    parser.add_argument("--width", type=int, default=16, help="its channels")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8, help="patches in a step")
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--data", default="skimage", help="or images:DIR, bsd:DIR")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    data = denoise.load(given.data)
    networks = {}
    for name in ("conv", given.operator):
        print(f"{name}:")
        network = make_network(name, given.kernel_size, given.depth, given.width, given.seed)
        train(network, data, given.steps, given.batch, given.lr, given.seed)
        networks[name] = network

    # medians of interleaved repeats
    patches = torch.rand(given.batch, data.channels, 40, 40)
    times = oc.analysis.time_steps(list(networks.values()), patches)

    noisy = denoise.evaluate(nn.Identity(), data, "test")[1]
    print(f"\n{'':14}  PSNR, dB    gain  parameters, folded  training step, ms")
    print(f"{'noisy images':14}  {noisy:8.2f}")
    for (name, network), time in zip(networks.items(), times, strict=True):
        oc.fold_(network)  # what is deployed
        score = denoise.evaluate(network, data, "test")[1]
        size = oc.analysis.count_parameters(network)
        print(f"{name:14}  {score:8.2f}  {score - noisy:+6.2f}  {size:18,}  {time.ms:17.1f}")


if __name__ == "__main__":
    main()
