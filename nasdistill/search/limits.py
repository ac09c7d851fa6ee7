"""The limits that a run sets: by how much a candidate is over them."""

from __future__ import annotations

from nasdistill.spec.config import ConstraintsConfig
from nasdistill.spec.io import Cost
from nasdistill.spec.measurement import Latency


class Limits:
    """Violations as a share of the limit: 0.1 is 10 % over, what is not positive is feasible.

    Args:
        limits: the configuration's table.
    """

    def __init__(self, limits: ConstraintsConfig) -> None:
        self._limits = limits

    @property
    def on_size(self) -> bool:
        """Whether there is a limit that the analytic cost decides."""
        return self._limits.max_params is not None or self._limits.max_macs is not None

    def size(self, cost: Cost) -> dict[str, float]:
        """Return by how much a cost is over each limit on it."""
        limits, found = self._limits, {}
        if limits.max_params is not None:
            found["params"] = cost.params / limits.max_params - 1
        if limits.max_macs is not None:
            found["macs"] = cost.macs / limits.max_macs - 1
        return found

    def latency(self, latency: Latency) -> dict[str, float]:
        """Return by how much the upper end of a latency's interval is over the limit, where there is one."""
        limit = self._limits.max_latency_ms
        return {} if limit is None else {"latency_ms": latency.high_ms / limit - 1}
