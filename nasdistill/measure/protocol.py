"""Interleaved paired timing: how one latency is measured so that it can be believed on a shared machine.

Raw wall-clock medians of the same network differ by a third between two moments of a busy machine, and CPU time, free
of pre-emption, still by an eighth (clock changes, shared caches). What does not move is a *ratio* of two networks
timed in the same moment. So, in every round, each network and the references run once in random order; a network's
value is the median over rounds of its time over the references' times, in that round, times the references' own,
calibrated time in milliseconds. References of like duration count most (`reference_weights`): load slows short networks
more than long ones.

The interval of the ratio is a block bootstrap (:mod:`nasdistill.measure.stats`). That of the milliseconds has a second
part, because pairing is not perfect: networks are not slowed by exactly what their references are, for longer than a
measurement lasts. `PAIRING_ERROR` and `PAIRING_SLOPE` were set on re-measurements of six networks on two runtimes of
a shared machine, idle and loaded (four series of 16 to 24 passes): without this part the nominal 95 % intervals held
the median of all passes in 60 to 81 % of cases, with it in 87 to 95 %. Head-to-head ratios within one measurement go
without it.

- *Clock*: CPU time of the process for single-threaded runtimes in this process, wall time otherwise, the target's own
  clock where it has one. A deterministic simulator is asked once.
- *Short calls* are repeated k times in one sample so that it lasts at least half a millisecond (or 100 ticks of the
  clock); k is found per network while warming up. Reading the CPU clock alone costs 0.6 microseconds.
- *Warm-up*: at least 3 samples, up to 13, until the last three agree within 10 %.
- *Stop*: when every interval's half width is below ``relative_width``, or at ``max_pairs`` rounds or ``max_seconds``.
- The garbage collector is off and torch has the target's number of threads while timing; both are put back.

Milliseconds are those of the undisturbed machine: how much slower it was meanwhile stands in a flag
(``reference/calibration=1.4``) and in the raw quantiles.

A result says what is wrong with it: *noisy* (the interval stayed wide), *contended* (wall and CPU time disagree by more
than 15 %: other work on the cores, or threads of our own), *drift* (the intervals of the two halves are apart).
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from nasdistill.interfaces.target import Prepared
from nasdistill.measure.stats import Interval, drift, median_interval, paired_ratios, quantiles, reference_weights
from nasdistill.seeds import derive_seed, torch_threads
from nasdistill.spec.measurement import Budget, Latency

PROTOCOL_VERSION = 1
SAMPLE_NS = 500_000
MAX_CALLS = 10_000
WARMUP_LEAST, WARMUP_MORE, WARMUP_AGREE = 3, 10, 0.10
CONTENDED = 1.15
MOVED = 1.3
PAIRING_ERROR, PAIRING_SLOPE = 0.03, 0.4
COARSE_NS = 50_000

ClockKind = Literal["cpu", "wall", "device", "simulated"]
Verdict = Literal["a<b", "tie", "a>b"]


class Clock(Protocol):
    """Where time comes from; tests bring their own."""

    def wall_ns(self) -> int:
        """Return monotonic nanoseconds."""

    def cpu_ns(self) -> int:
        """Return the nanoseconds of CPU time that this process has used, all threads together."""

    def cpu_tick_ns(self) -> int:
        """Return the smallest step of the CPU clock."""


class SystemClock:
    """The machine's clocks."""

    def wall_ns(self) -> int:
        """Return ``time.perf_counter_ns()``."""
        return time.perf_counter_ns()

    def cpu_ns(self) -> int:
        """Return ``time.process_time_ns()``."""
        return time.process_time_ns()

    def cpu_tick_ns(self) -> int:
        """Watch the clock until it has moved five times, and return its median step.

        What the clock states as its resolution is 1 ns also where it is only moved by a timer interrupt.
        """
        steps = []
        for _ in range(5):
            before = now = time.process_time_ns()
            while now == before:
                now = time.process_time_ns()
            steps.append(now - before)
        return sorted(steps)[2]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two networks timed head to head.

    Attributes:
        verdict: ``"a<b"`` when a is faster, ``"a>b"`` when it is slower, ``"tie"`` when the data cannot tell or the
            difference is below the margin.
        ratio, low, high: time of a over time of b with its interval.
        pairs: rounds measured.
    """

    verdict: Verdict
    ratio: float
    low: float
    high: float
    pairs: int


@dataclass(slots=True)
class _Item:
    """One network being timed."""

    name: str
    prepared: Prepared
    kind: ClockKind
    own_clock: bool = False
    calls: int = 1
    warmups: int = 0
    steady: bool = True
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def sample(self, clock: Clock) -> tuple[float, float, float]:
        """Run `calls` times and return nanoseconds per call: wall, CPU, and by the clock that counts."""
        run, calls, own = self.prepared.run, self.calls, 0
        wall, cpu = clock.wall_ns(), clock.cpu_ns()
        if self.own_clock:
            for _ in range(calls):
                own += self.prepared.elapsed_ns() or 0
        else:
            for _ in range(calls):
                run()
        cpu, wall = clock.cpu_ns() - cpu, clock.wall_ns() - wall
        counts = own if self.own_clock else cpu if self.kind == "cpu" else wall
        # Ratios are taken of it, so never 0: a clock that did not move says less than a hundredth of a nanosecond.
        return wall / calls, cpu / calls, max(0.01, counts / calls)

    def warm_up(self, clock: Clock, least_ns: float) -> None:
        """Find `calls` and run until steady."""
        recent: list[float] = []
        for _ in range(WARMUP_LEAST + WARMUP_MORE):
            self.warmups += self.calls
            recent.append(self.sample(clock)[2])
            # A target with its own clock answers for one call; repeating it would only add up its answers.
            if not self.own_clock:
                self.calls = min(MAX_CALLS, max(1, math.ceil(least_ns / recent[-1])))
            last = recent[-3:]
            if len(recent) >= WARMUP_LEAST and max(last) <= (1 + WARMUP_AGREE) * min(last):
                break
        else:
            self.steady = False

    def record(self, clock: Clock) -> None:
        """Take one sample for the result."""
        wall, cpu, counts = self.sample(clock)
        self.wall.append(wall)
        self.cpu.append(cpu)
        self.times.append(counts)


class Rounds:
    """Raw timings of networks and references that ran in the same rounds, and what follows from them.

    Attributes:
        clock: which clock counts.
        pairs: number of rounds.
        names: of the networks, in the order given.
    """

    def __init__(self, items: Sequence[_Item], references: Sequence[_Item], budget: Budget, seed: int) -> None:
        self._items = {item.name: item for item in items}
        self._references = list(references)
        self._budget = budget
        self._seed = seed
        self.names = tuple(self._items)
        self.clock: ClockKind = items[0].kind if items else references[0].kind

    @property
    def pairs(self) -> int:
        """Number of rounds."""
        return len(next(iter([*self._items.values(), *self._references])).wall)

    @property
    def reference_ms(self) -> tuple[float, ...]:
        """Each reference's median in these rounds, in milliseconds, in the order given."""
        return self.reference_quantile(0.5)

    def reference_quantile(self, share: float) -> tuple[float, ...]:
        """Return a quantile of each reference's times, in milliseconds."""
        return tuple(float(np.quantile(item.times, share)) / 1e6 for item in self._references)

    def weights(self, name: str) -> list[float]:
        """Return how much each reference counts for `name`."""
        return reference_weights(float(np.median(self._items[name].times)) / 1e6, self.reference_ms)

    def calls(self, name: str) -> int:
        """Return how many calls one sample of `name` held."""
        return self._items[name].calls

    def ratios(self, name: str, to: str | None = None) -> NDArray[np.float64]:
        """Return ``(n,)`` paired ratios of `name` to the references, or to another network of these rounds."""
        times = self._items[name].times
        if to is not None:
            return paired_ratios(times, [self._items[to].times])
        return paired_ratios(times, [item.times for item in self._references], self.weights(name))

    def interval(self, name: str, to: str | None = None, *, resamples: int = 1000) -> Interval:
        """Return the median of :meth:`ratios` with its interval."""
        return median_interval(
            self.ratios(name, to),
            confidence=self._budget.confidence,
            seed=derive_seed(self._seed, "bootstrap", name, to or ""),
            resamples=resamples,
        )

    def compare(self, a: str, b: str, *, margin: float = 0.02) -> Comparison:
        """Return the verdict on two networks of these rounds; see :func:`compare`."""
        found = self.interval(a, b)
        verdict: Verdict = "tie"
        if found.high < 1 and found.value < 1 - margin:
            verdict = "a<b"
        elif found.low > 1 and found.value > 1 + margin:
            verdict = "a>b"
        return Comparison(verdict, found.value, found.low, found.high, self.pairs)

    def latency(self, name: str, reference_ms: Sequence[float] | None = None) -> Latency:
        """Return the latency of `name`.

        Args:
            name: which network.
            reference_ms: the calibrated time of each reference; None takes their times in these rounds.
        """
        if not self._references:
            raise ValueError("a latency needs references")
        weights = self.weights(name)
        here = _weighted(self.reference_ms, weights)
        scale = here if reference_ms is None else _weighted(reference_ms, weights)
        item, ratio = self._items[name], self.interval(name)
        flags, quality = self._judge(item, ratio)
        if not 1 / MOVED < here / scale < MOVED:
            flags.append(f"reference/calibration={here / scale:.2f}")
        pairing = math.hypot(PAIRING_ERROR, PAIRING_SLOPE * math.log(here / scale))
        value = ratio.widened(pairing * NormalDist().inv_cdf((1 + self._budget.confidence) / 2) / 1.96).scaled(scale)
        return Latency(
            value_ms=value.value, low_ms=value.low, high_ms=value.high, ratio=ratio.value, reference_ms=scale,
            pairs=self.pairs, warmups=item.warmups, clock=item.kind, wall=quantiles(item.wall),
            cpu=quantiles(item.cpu), quality=quality, flags=tuple(flags),
        )  # fmt: skip

    def _judge(self, item: _Item, ratio: Interval) -> tuple[list[str], Literal["ok", "noisy", "contended", "drift"]]:
        """Return the flags and the worst of them in one word."""
        flags: list[str] = []
        quality: Literal["ok", "noisy", "contended", "drift"] = "ok"
        wall, cpu = sum(item.wall), sum(item.cpu)
        if _threads(item.prepared) == 1 and not item.own_clock and cpu > 0:
            if wall > CONTENDED * cpu:
                flags.append(f"wall/cpu={wall / cpu:.2f}")
                quality = "contended"
            elif cpu > CONTENDED * wall:
                flags.append(f"extra_threads: cpu/wall={cpu / wall:.2f}")
                quality = "contended"
        if ratio.relative_width > self._budget.relative_width:
            flags.append(f"half_width={ratio.relative_width:.1%}")
            quality = "noisy"
        shift = drift(self.ratios(item.name), confidence=self._budget.confidence)
        if abs(shift) > self._budget.relative_width / 2:
            flags.append(f"drift={shift:+.1%}")
            quality = "drift"
        if self.pairs < self._budget.min_pairs:
            flags.append(f"few_pairs={self.pairs}")
        if not item.steady:
            flags.append("unsteady_warmup")
        return flags, quality

    def settled(self) -> bool:
        """Return whether every interval is narrow enough (by a quick bootstrap)."""
        wanted = self._budget.relative_width
        if not self._references:
            return all(
                median_interval(i.times, confidence=self._budget.confidence, resamples=200).relative_width <= wanted
                for i in self._items.values()
            )
        return all(self.interval(name, resamples=200).relative_width <= wanted for name in self.names)


def time_rounds(
    items: Mapping[str, Prepared],
    references: Sequence[Prepared],
    budget: Budget,
    seed: int,
    *,
    clock: Clock | None = None,
    settled: Callable[[Rounds], bool] | None = None,
) -> Rounds:
    """Warm up, then time everything in random order, round by round.

    Args:
        items: networks to time; all by the same clock.
        references: timed in every round too; may be empty for head-to-head comparisons.
        budget: ``max_seconds`` counts once per network.
        seed: of the orders and the bootstrap.
        clock: where time comes from.
        settled: ``settled(rounds) -> bool``, replaces the stop rule on the intervals' width.

    Raises:
        ValueError: nothing to time, or networks that go by different clocks.
    """
    clock = clock or SystemClock()
    tick = clock.cpu_tick_ns()
    timed = [_item(name, prepared, tick) for name, prepared in items.items()]
    paired = [_item(f"reference {i}", reference, tick) for i, reference in enumerate(references)]
    everything = [*timed, *paired]
    kinds = {item.kind for item in everything}
    if len(kinds) != 1 or "simulated" in kinds:
        raise ValueError(f"networks timed together need one real clock, got: {', '.join(sorted(kinds)) or 'nothing'}")
    rng = random.Random(derive_seed(seed, "order"))
    rounds = Rounds(timed, paired, budget, seed)
    enough = settled or Rounds.settled
    with measuring(max(_threads(item.prepared) for item in everything)):
        for item in everything:
            item.warm_up(clock, max(SAMPLE_NS, 100 * tick if item.kind == "cpu" else 0))
        limit = clock.wall_ns() + int(budget.max_seconds * max(1, len(timed)) * 1e9)
        check = budget.min_pairs
        while rounds.pairs < budget.max_pairs:
            rng.shuffle(everything)
            for item in everything:
                item.record(clock)
            if clock.wall_ns() >= limit and rounds.pairs >= 3:
                break
            if rounds.pairs >= check:
                if enough(rounds):
                    break
                check = rounds.pairs + max(10, rounds.pairs // 4)
    return rounds


def measure_together(
    items: Mapping[str, Prepared],
    references: Sequence[Prepared],
    budget: Budget,
    seed: int,
    *,
    reference_ms: Sequence[float] | None = None,
    clock: Clock | None = None,
) -> dict[str, Latency]:
    """Time several networks in the same rounds, so that near neighbours meet head to head.

    Args:
        items: name -> network.
        references: the reference networks, prepared by the same target; unused for simulated targets.
        budget: limits; ``max_seconds`` counts once per network.
        seed: of the orders and the bootstrap.
        reference_ms: the calibrated time of each reference; None takes their times in these rounds.
        clock: where time comes from.

    Returns:
        Name -> latency.

    Raises:
        ValueError: no references, or networks that go by different clocks.
    """
    if items and all(prepared.clock == "simulated" for prepared in items.values()):
        return {name: simulated_latency(prepared) for name, prepared in items.items()}
    rounds = time_rounds(items, references, budget, seed, clock=clock)
    return {name: rounds.latency(name, reference_ms) for name in rounds.names}


def measure_latency(
    prepared: Prepared,
    references: Sequence[Prepared],
    budget: Budget,
    seed: int,
    *,
    reference_ms: Sequence[float] | None = None,
    clock: Clock | None = None,
) -> Latency:
    """Time one network; arguments as in :func:`measure_together`."""
    return measure_together({"": prepared}, references, budget, seed, reference_ms=reference_ms, clock=clock)[""]


def compare(
    a: Prepared,
    b: Prepared,
    budget: Budget | None = None,
    seed: int = 0,
    *,
    margin: float = 0.02,
    clock: Clock | None = None,
) -> Comparison:
    """Time two networks head to head and say which one is faster.

    Resolves smaller differences than two latencies do, because no reference stands between the two.

    Args:
        a: one network.
        b: the other, prepared by the same target.
        budget: limits; stops early when the interval of the ratio excludes 1, or is narrower than the margin.
        seed: of the orders and the bootstrap.
        margin: differences below this share are ties.
        clock: where time comes from.
    """
    budget = budget or Budget()
    if a.clock == b.clock == "simulated":
        x, y = simulated_latency(a).value_ms, simulated_latency(b).value_ms
        ratio = x / y if y else math.inf
        verdict: Verdict = "tie" if abs(ratio - 1) <= margin else "a<b" if ratio < 1 else "a>b"
        return Comparison(verdict, ratio, ratio, ratio, 1)

    def decided(rounds: Rounds) -> bool:
        # Looking again and again at a 95 % interval finds "differences" in noise; a look that may stop needs more.
        found = rounds.interval("a", "b", resamples=300)
        wide = Interval(found.value, found.value - 1.5 * found.half_width, found.value + 1.5 * found.half_width)
        return wide.half_width < margin / 2 or wide.high < 1 - margin or wide.low > 1 + margin

    return time_rounds({"a": a, "b": b}, (), budget, seed, clock=clock, settled=decided).compare(
        "a", "b", margin=margin
    )


def calibrate(
    references: Sequence[Prepared], budget: Budget, seed: int, *, clock: Clock | None = None
) -> tuple[float, ...]:
    """Return each reference's own time, in milliseconds, on the undisturbed machine.

    That is the 10 % quantile over up to 200 rounds. Ratios hold at any time, but what they are multiplied with must be
    found again in the next session: slow phases come and go with other work, the fast state is always the same.
    """
    once = Budget(max_seconds=budget.max_seconds, min_pairs=200, max_pairs=200)
    rounds = time_rounds({}, references, once, derive_seed(seed, "calibrate"), clock=clock)
    return rounds.reference_quantile(0.1)


def simulated_latency(prepared: Prepared) -> Latency:
    """Return what a deterministic simulator says, as a latency without spread (its reference is 1 ms)."""
    elapsed = prepared.elapsed_ns()
    if elapsed is None:
        raise ValueError("a simulated target must give elapsed_ns")
    value = elapsed / 1e6
    return Latency(value, value, value, ratio=value, reference_ms=1.0, pairs=1, warmups=0, clock="simulated")


def _item(name: str, prepared: Prepared, tick_ns: int) -> _Item:
    """Choose the clock: CPU time counts all threads, so it is for one thread only, and must tick finely enough."""
    own = prepared.elapsed_ns() is not None
    kind: ClockKind = prepared.clock
    if kind == "cpu" and not own and (_threads(prepared) > 1 or tick_ns > COARSE_NS):
        kind = "wall"
    return _Item(name, prepared, kind, own_clock=own)


@contextlib.contextmanager
def measuring(threads: int = 1) -> Iterator[None]:
    """Turn the garbage collector off and give torch `threads` threads; both are as found afterwards."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch_threads(threads):
            yield
    finally:
        if collecting:
            gc.enable()


def _weighted(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the weighted geometric mean."""
    return math.exp(sum(weight * math.log(value) for value, weight in zip(values, weights, strict=True)))


def _threads(prepared: Prepared) -> int:
    """Return the threads a prepared network says it uses."""
    return int(prepared.info.get("threads", 1))
