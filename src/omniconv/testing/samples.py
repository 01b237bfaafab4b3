"""The configurations that every operator is run in, by role.

Sizes are tiny, because the reference is a loop over positions and often over taps, and awkward on
purpose: odd and even, a different one per axis, channels that no vector width divides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omniconv.core.card import Card, Sample

__all__ = ["common_samples"]

Size = tuple[int, ...]


def common_samples(
    card: Card, own: Mapping[str, Any], dim: int, transposed: bool = False
) -> dict[str, Sample]:
    """Name -> sample, for an operator whose own arguments are ``own``."""
    multiple = card.channel_multiple(own)
    down = [cell for cell, _ in card.rates(own, dim)]
    build = _Builder(dim, multiple, card.sample_width, equal=card.role == "mixer", down=down)
    samples = _transposed(build) if transposed else _plain(build)
    if multiple == 1:
        padding = (1, 0, 0)
        three = dict.fromkeys(("in_channels", "out_channels", "groups"), 3 * card.sample_width)
        samples["depthwise"] = build((3, 2, 2), (4, 3), (3, 2, 3), padding=padding, **three)
    if multiple == card.sample_width == 1:
        one = {"in_channels": 1, "out_channels": 1}
        samples["one channel, batch 1"] = build((3, 3, 2), (5, 4), (4, 3, 2), batch=1, **one)
    return samples


def _plain(build: _Builder) -> dict[str, Sample]:
    """Values are per axis and cut to the number of axes; 3-D sizes are smaller."""
    return {
        "basic": build(3, (6, 4), (3, 2, 1), padding=1),
        "even kernel": build(2, (5, 6), (3, 2, 3)),
        "uneven kernel": build((2, 5, 1), (4, 5), (2, 2, 1), padding=(1, 2, 0)),
        "kernel 1, no bias, stride 2": build(1, (5, 4), (5, 4, 3), stride=2, bias=False),
        "stride": build((3, 3, 2), (7, 6), (4, 4, 2), stride=(2, 3, 1), padding=(1, 1, 0)),
        "dilation": build((3, 2, 2), (7, 5), (4, 3, 3), dilation=(2, 3, 2), padding=(1, 2, 0)),
        "groups": build((3, 2, 2), (5, 4), (3, 2, 1), groups=2, padding=(1, 0, 1)),
        "reflect": build((3, 2, 1), (4, 3), (3, 2, 2), padding=(2, 1, 0), padding_mode="reflect"),
        "replicate": build(
            (3, 2, 1), (4, 3), (2, 2, 2), padding=(3, 1, 0), padding_mode="replicate"
        ),
        "circular": build((3, 2, 1), (4, 3), (3, 2, 2), padding=(2, 1, 0), padding_mode="circular"),
        "same": build((4, 2, 1), (5, 4), (3, 2, 2), padding="same", dilation=(1, 3, 1)),
        "same, reflect": build(
            (4, 3, 1), (5, 4), (3, 2, 2), padding="same", padding_mode="reflect"
        ),
        "valid": build((3, 2, 2), (4, 4), (3, 3, 2), padding="valid"),
        "kernel as large as the input": build((4, 3, 2), (4, 3), (4, 3, 2)),
        "unbatched": build((3, 2, 2), (5, 4), (3, 2, 2), batch=None, padding=(1, 0, 0)),
        "everything": build(
            (3, 2, 1),
            (8, 6),
            (5, 4, 2),
            batch=3,
            stride=(2, 1, 2),
            dilation=(2, 3, 1),
            padding=(2, 1, 0),
            groups=2,
            bias=False,
            padding_mode="replicate",
        ),
    }


def _transposed(build: _Builder) -> dict[str, Sample]:
    uneven: dict[str, Any] = {"kernel_size": (3, 2, 2), "size": (4, 3), "size3": (3, 2, 2)}
    return {
        "basic": build(3, (5, 3), (3, 2, 1), padding=1),
        "even kernel": build(2, (4, 3), (3, 2, 2)),
        "uneven kernel": build((2, 5, 1), (4, 3), (2, 2, 2), padding=(1, 2, 0)),
        "kernel 1, no bias, stride 2": build(1, (4, 3), (3, 2, 2), stride=2, bias=False),
        "stride": build(
            (3, 3, 2),
            (4, 3),
            (3, 2, 2),
            stride=(2, 3, 1),
            padding=(1, 1, 0),
            output_padding=(1, 2, 0),
        ),
        "dilation": build(
            **uneven, dilation=(2, 3, 2), padding=(1, 1, 0), output_padding=(1, 0, 1)
        ),
        "groups": build(**uneven, groups=2, padding=(1, 0, 1)),
        "unbatched": build(**uneven, batch=None),
        "everything": build(
            (3, 2, 1),
            (4, 3),
            (3, 2, 2),
            batch=3,
            stride=(2, 1, 2),
            dilation=(2, 3, 1),
            padding=(2, 1, 0),
            output_padding=(1, 0, 1),
            groups=2,
            bias=False,
        ),
    }


class _Builder:
    """Cuts per-axis values to the number of axes and chooses channels that the operator takes.

    Sizes are counted in cells of ``down`` inputs.
    """

    def __init__(
        self, dim: int, multiple: int, width: int, equal: bool, down: Sequence[int]
    ) -> None:
        self.dim, self.multiple, self.width, self.equal, self.down = (
            dim,
            multiple,
            width,
            equal,
            down,
        )

    def __call__(
        self,
        kernel_size: int | Size,
        size: Size,
        size3: Size,
        batch: int | None = 2,
        **arguments: Any,
    ) -> Sample:
        groups = arguments.get("groups", 1)
        # a mixer's own grouping must agree with ``groups``
        twice = 1 if self.equal and self.multiple > 1 < groups else 2
        each = self.width * self.multiple * groups
        inputs = twice * each
        outputs = inputs if self.equal else 3 * each
        arguments = {
            "in_channels": inputs,
            "out_channels": outputs,
            "kernel_size": kernel_size,
            **arguments,
        }
        cut = {k: v[: self.dim] if isinstance(v, tuple) else v for k, v in arguments.items()}
        spatial = size3 if self.dim == 3 else size[: self.dim]
        inputs_of_cells = tuple(n * cell for n, cell in zip(spatial, self.down, strict=True))
        return Sample(arguments=cut, size=inputs_of_cells, batch=batch)
