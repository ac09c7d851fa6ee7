"""Networks timed head to head: in the same rounds, where the ratio of two latencies means most."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from nasdistill.interfaces import Prepared
from nasdistill.measure import Meter
from nasdistill.spec.measurement import Budget, TargetReport

TEACHER = "teacher"
"""Name of the teacher among the models that are timed together."""

Attempt = Callable[[str, Callable[[], None]], bool]


def time_together(
    meter: Meter,
    models: Mapping[str, Callable[[], nn.Module]],
    example: Sequence[Tensor],
    budget: Budget | None,
    *,
    attempt: Attempt | None = None,
) -> dict[str, TargetReport]:
    """Prepare networks and time them in the same rounds as the teacher.

    Args:
        meter: of the target.
        models: name -> function that returns the network, on the CPU; the one called :data:`TEACHER` is what the
            others' ratios refer to, and is prepared first.
        example: positional inputs.
        budget: of each network.
        attempt: does the work of preparing the network of a name, and returns whether that went well; those that did
            not are left out. Without it, whatever preparing raises goes through.

    Returns:
        Name -> report, of all that could be prepared.
    """
    with contextlib.ExitStack() as stack:
        prepared: dict[str, Prepared] = {}

        def prepare(name: str) -> None:
            prepared[name] = meter.prepare(models[name](), example, name)
            stack.callback(prepared[name].close)

        prepare(TEACHER)
        for name in models:
            if name != TEACHER and attempt is None:
                prepare(name)
            elif name != TEACHER and attempt is not None:
                attempt(name, partial(prepare, name))
        return meter.report_prepared(prepared, baseline=TEACHER, budget=budget)
