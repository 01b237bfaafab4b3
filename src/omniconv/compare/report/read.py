"""From results.json to typed, cleaned values: everything the report shows passes through here.

Missing keys, `null`, NaN and infinities all become `None`; text loses the characters that no
page can show (control characters, lone surrogates, direction overrides).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from .data import (
    COSTS,
    Attention,
    Comparison,
    Estimate,
    Field,
    Grid,
    Kernels,
    Metric,
    Pixel,
    Row,
    Screened,
    Searched,
    Standing,
    Trial,
    Tried,
)

SCHEMA = 2

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST = 2000


def read(results: Mapping[str, Any]) -> Comparison:
    """Read the dictionary that `omniconv compare` writes as results.json.

    Raises:
        ValueError: `results` is not of schema 2.
    """
    if not isinstance(results, Mapping) or results.get("schema") != SCHEMA:
        found = results.get("schema") if isinstance(results, Mapping) else type(results).__name__
        raise ValueError(f"results: schema is {found!r}; this report reads schema {SCHEMA}")
    page = clean(results)
    unit = _text(page.get("unit"))
    return Comparison(
        version=_text(page.get("omniconv")),
        created=_text(page.get("created")),
        command=_text(page.get("command")),
        unit=unit.removesuffix("s") or "epoch",
        metric=_metric(page.get("metric") or {}),
        everything=tuple(_row(row) for row in page.get("rows") or ()),
        plan=page.get("plan") or {},
        tuning=page.get("tuning"),
        screen=page.get("screen"),
        machine=page.get("machine") or {},
        data=page.get("data") or {},
    )


def number(value: Any) -> float | None:
    """`value` as a finite float, else None (booleans and text are not numbers)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def clean(value: Any) -> Any:
    """`value` with strings fit for a page, 2,000 characters at most, and no NaN or infinity."""
    if isinstance(value, str):
        short = value if len(value) <= _LONGEST else value[: _LONGEST - 2] + " …"
        return _UNPRINTABLE.sub("\ufffd", short)
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _integer(value: Any) -> int | None:
    found = number(value)
    return None if found is None else round(found)


def _metric(metric: Mapping[str, Any]) -> Metric:
    unit = _text(metric.get("unit"))
    return Metric(
        name=_text(metric.get("name")) or "score",
        unit=unit,
        points="points" if unit == "%" else unit,
        higher_is_better=metric.get("higher_is_better") is not False,
        chance=number(metric.get("chance")),
        margin=number(metric.get("margin")),
    )


def _estimate(value: Mapping[str, Any] | None) -> Estimate | None:
    mean = number((value or {}).get("mean"))
    if value is None or mean is None:
        return None
    low, high = value.get("interval") or (None, None)
    return Estimate(
        mean=mean,
        low=number(low),
        high=number(high),
        n=_integer(value.get("n")),
        p_holm=number(value.get("p_holm")),
        seeds_to_decide=_integer(value.get("seeds_to_decide")),
    )


def _row(row: Mapping[str, Any]) -> Row:
    cost, pictures = row.get("cost") or {}, row.get("pictures") or {}
    ratio = cost.get("ratio") or {}
    tuning, screened, extras = row.get("tuning"), row.get("screened"), row.get("extras") or {}
    return Row(
        label=_text(row.get("label")),
        plain=row.get("plain") is True,
        verdict=_text(row.get("verdict")) or "failed",
        score=_estimate(row.get("score")),
        difference=_estimate(row.get("difference")),
        standing=_standing(row.get("frontier")),
        cost={name: number(cost.get(name)) for name in COSTS},
        ratio={name: number(ratio.get(name)) for name in COSTS},
        cost_reason=_text(row.get("cost_reason")),
        batch=_integer(cost.get("batch")),
        folded=cost.get("folded") is True,
        lr=number(row.get("lr")),
        tuning=None if tuning is None else tuple(_tried(run) for run in tuning if run),
        screened=screened
        and Screened(number(screened.get("validation_score")), screened.get("kept") is True),
        searched=tuple(_searched(run) for run in row.get("search") or () if run),
        extras={name: number(value) for name, value in extras.items()},
        swap=tuple({k: _text(v) for k, v in layer.items()} for layer in row.get("swap") or ()),
        trials=tuple(_trial(trial) for trial in row.get("trials") or ()),
        kernels=tuple(_kernels(entry) for entry in pictures.get("kernels") or () if entry),
        field=_field(pictures.get("receptive_field")),
        attention=tuple(_attention(item) for item in pictures.get("attention") or () if item),
    )


def _standing(value: Mapping[str, Any] | None) -> Standing | None:
    if not value or not value.get("verdict"):
        return None
    return Standing(
        latency=number(value.get("latency_ms")),
        between=tuple(_text(label) for label in value.get("between") or ()),
        score=number(value.get("score")),
        change=_estimate(value),
        verdict=_text(value["verdict"]),
    )


def _tried(run: Mapping[str, Any]) -> Tried:
    score = number(run.get("validation_score"))
    return Tried(number(run.get("lr")), score, _text(run.get("status")))


def _searched(run: Mapping[str, Any]) -> Searched:
    density = tuple(number(value) or 0.0 for value in run.get("density") or ())
    return Searched(density, number(run.get("validation_score")), _text(run.get("status")))


def _trial(trial: Mapping[str, Any]) -> Trial:
    pairs = (
        (number(point.get("at")), number(point.get("validation_score")))
        for point in trial.get("curve") or ()
    )
    ran = trial.get("kernels")
    return Trial(
        id=_text(trial.get("id")),
        seed=_integer(trial.get("seed")),
        status=_text(trial.get("status")),
        reason=_text(trial.get("reason")),
        score=number(trial.get("score")),
        validation=number(trial.get("validation_score")),
        seconds=number(trial.get("seconds")),
        ran=None if ran is None else tuple(_text(name) for name in ran),
        curve=tuple((x, y) for x, y in pairs if x is not None and y is not None),
    )


def _grid(value: Any) -> Grid:
    return tuple(tuple(number(entry) or 0.0 for entry in line) for line in value or () if line)


def _kernels(entry: Mapping[str, Any]) -> Kernels:
    found = (_grid(kernel) for kernel in entry.get("kernels") or ())
    kernels = tuple(kernel for kernel in found if kernel)
    return Kernels(_text(entry.get("layer")), _text(entry.get("type")), kernels)


def _field(value: Mapping[str, Any] | None) -> Field | None:
    shares = _grid((value or {}).get("map"))
    if value is None or not shares:
        return None
    height, width = _integer(value.get("height")), _integer(value.get("width"))
    return Field(shares, height, width, number(value.get("area")))


def _attention(item: Mapping[str, Any]) -> Attention:
    image = tuple(
        tuple(_pixel(pixel) for pixel in line) for line in item.get("image") or () if line
    )
    label, predicted = _text(item.get("label")), _text(item.get("predicted"))
    return Attention(image, _grid(item.get("map")), label, predicted)


def _pixel(value: Any) -> Pixel:
    if isinstance(value, list):
        red, green, blue = (_byte(channel) for channel in [*value, 0, 0, 0][:3])
        return red, green, blue
    return _byte(value)


def _byte(value: Any) -> int:
    return round(min(max(number(value) or 0.0, 0.0), 255.0))
