"""Measuring: latency protocol and statistics, counting, environment."""

from __future__ import annotations

from nasdistill.measure.counting import Work, count_macs, count_params, count_work
from nasdistill.measure.environment import environment, fingerprint
from nasdistill.measure.meter import Meter
from nasdistill.measure.outputs import deviation, flatten_outputs
from nasdistill.measure.protocol import (
    Clock,
    Comparison,
    Rounds,
    SystemClock,
    calibrate,
    compare,
    measure_latency,
    measure_together,
    measuring,
    time_rounds,
)
from nasdistill.measure.references import REFERENCE_ID, reference_models
from nasdistill.measure.stats import Interval, block_length, drift, median_interval, paired_ratios, quantiles

__all__ = [
    "REFERENCE_ID", "Clock", "Comparison", "Interval", "Meter", "Rounds", "SystemClock", "Work", "block_length",
    "calibrate", "compare", "count_macs", "count_params", "count_work", "deviation", "drift", "environment",
    "fingerprint", "flatten_outputs", "measure_latency", "measure_together", "measuring", "median_interval",
    "paired_ratios", "quantiles", "reference_models", "time_rounds",
]  # fmt: skip
