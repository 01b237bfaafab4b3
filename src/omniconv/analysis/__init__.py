"""Model to numbers and pictures: FLOPs, parameters, time, memory; what an output looks at."""

from omniconv.analysis.flops import FlopCount, count_flops
from omniconv.analysis.grad_cam import grad_cam
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
from omniconv.analysis.receptive_field import area, effective_receptive_field

__all__ = [
    "FlopCount",
    "LayerRow",
    "Profile",
    "Timing",
    "area",
    "count_flops",
    "count_parameters",
    "effective_receptive_field",
    "grad_cam",
    "measure_latency",
    "measure_step",
    "peak_memory",
    "profile",
    "time_latencies",
    "time_steps",
]
