"""A clock that only moves when a fake network runs, and such networks: timing tests without time."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor

from nasdistill.interfaces import Prepared


class FakeClock:
    """Nanoseconds that networks advance; `slowdown(wall_ns)` is the machine's state at a moment."""

    def __init__(self, slowdown: Callable[[float], float] = lambda now: 1.0, tick: int = 1) -> None:
        self.wall = 0.0
        self.cpu = 0.0
        self.slowdown = slowdown
        self.tick = tick
        self.log: list[str] = []

    def wall_ns(self) -> int:
        return round(self.wall)

    def cpu_ns(self) -> int:
        return round(self.cpu)

    def cpu_tick_ns(self) -> int:
        return self.tick


class FakePrepared(Prepared):
    """Takes `cost(call number)` nanoseconds of CPU time, `wall` times as much wall time."""

    def __init__(
        self,
        clock: FakeClock,
        cost: float | Callable[[int], float],
        name: str = "",
        *,
        wall: float = 1.0,
        kind: str = "cpu",
        own: bool = False,
        threads: int = 1,
    ) -> None:
        super().__init__()
        self.clock = kind
        self.info["threads"] = threads
        self.source = clock
        self.cost = cost if callable(cost) else lambda call: cost
        self.name = name
        self.factor = wall
        self.own = own
        self.calls = 0
        self.closed = False
        self.states: set[tuple[bool, int]] = set()

    def advance(self) -> float:
        spent = self.cost(self.calls) * self.source.slowdown(self.source.wall)
        self.calls += 1
        self.source.cpu += spent
        self.source.wall += spent * self.factor
        self.source.log.append(self.name)
        self.states.add((gc.isenabled(), torch.get_num_threads()))
        return spent

    def run(self) -> None:
        self.advance()

    def outputs(self) -> list[Tensor]:
        return []

    def elapsed_ns(self) -> int | None:
        return round(self.advance()) if self.own else None

    def close(self) -> None:
        self.closed = True
