"""Model to numbers: FLOPs, parameters, time, memory."""

from omniconv.analysis.flops import FlopCount, count_flops
from omniconv.analysis.measure import (
    Timing,
    count_parameters,
    measure_latency,
    measure_step,
    peak_memory,
    time_latencies,
    time_steps,
)
from omniconv.analysis.profile import LayerRow, Profile, profile

__all__ = [
    "FlopCount",
    "LayerRow",
    "Profile",
    "Timing",
    "count_flops",
    "count_parameters",
    "measure_latency",
    "measure_step",
    "peak_memory",
    "profile",
    "time_latencies",
    "time_steps",
]
