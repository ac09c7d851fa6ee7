"""The timing protocol on a clock that only fake networks move."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from measure_fakes import FakeClock, FakePrepared

from nasdistill.measure import SystemClock, calibrate, compare, measure_latency, measure_together, time_rounds
from nasdistill.spec.measurement import Budget

MS = 1e6


def noise(seed: int, size: float):
    """Per-call factors of log-normal noise."""
    draws = np.exp(size * np.random.default_rng(seed).standard_normal(20_000))
    return lambda call: float(draws[call % len(draws)])


def phases(seed: int, size: float):
    """Machine states that change every 3 ms."""
    factor = noise(seed, size)
    return lambda now: factor(int(now / 3e6))


def noisy(cost: float, seed: int, size: float):
    factor = noise(seed, size)
    return lambda call: cost * factor(call)


def test_every_round_runs_everything_once_in_changing_order():
    clock = FakeClock()
    items = {name: FakePrepared(clock, MS, name) for name in "abc"}
    reference = FakePrepared(clock, MS, "r")
    rounds = time_rounds(items, [reference], Budget(min_pairs=12, max_pairs=12), 0, clock=clock)
    timed = clock.log[-12 * 4 :]
    orders = [tuple(timed[i : i + 4]) for i in range(0, len(timed), 4)]
    assert rounds.pairs == 12
    assert all(sorted(order) == ["a", "b", "c", "r"] for order in orders)
    assert len(set(orders)) > 4
    clock.log.clear()
    time_rounds(items, [reference], Budget(min_pairs=12, max_pairs=12), 0, clock=clock)
    assert clock.log[-48:] == timed  # the seed fixes the order


def test_short_calls_are_repeated_and_long_ones_are_not():
    clock = FakeClock()
    items = {"short": FakePrepared(clock, 10_000, "short"), "long": FakePrepared(clock, 2 * MS, "long")}
    rounds = time_rounds(items, [FakePrepared(clock, MS)], Budget(min_pairs=3, max_pairs=3), 0, clock=clock)
    assert rounds.calls("short") == 50  # 0.5 ms
    assert rounds.calls("long") == 1
    assert rounds.latency("short").value_ms == pytest.approx(0.01)
    rounds = clock.log[-3 * (50 + 1 + 1) :]
    assert (rounds.count("short"), rounds.count("long")) == (150, 3)


def test_a_coarser_clock_asks_for_longer_samples():
    clock = FakeClock(tick=20_000)
    rounds = time_rounds({"a": FakePrepared(clock, 10_000)}, [FakePrepared(clock, MS)], Budget(), 0, clock=clock)
    assert (rounds.clock, rounds.calls("a")) == ("cpu", 200)  # 100 ticks


def test_the_machine_state_cancels():
    """Twice as slow for a third of the time, and a slow trend: the value does not move."""

    def slowdown(now: float) -> float:
        return (2.0 if int(now / 7e6) % 3 == 0 else 1.0) * (1 + now / 1e9)

    clock = FakeClock(slowdown)
    references = [FakePrepared(clock, 0.6 * MS), FakePrepared(clock, 0.5 * MS)]
    budget = Budget(min_pairs=60, max_pairs=60)
    found = measure_latency(FakePrepared(clock, 0.9 * MS), references, budget, 0, reference_ms=(0.6, 0.5), clock=clock)
    raw = found.cpu.p50
    assert found.value_ms == pytest.approx(0.9, rel=0.02)
    assert raw > 1.05 * 0.9
    assert found.low_ms <= found.value_ms <= found.high_ms


def test_value_is_ratio_times_reference():
    clock = FakeClock()
    found = measure_latency(
        FakePrepared(clock, 3 * MS), [FakePrepared(clock, MS)], Budget(), 0, reference_ms=(2.0,), clock=clock
    )
    assert found.ratio == pytest.approx(3.0)
    assert (found.reference_ms, found.value_ms) == (2.0, pytest.approx(6.0))
    assert "reference/calibration=0.50" in found.flags
    same_rounds = measure_latency(FakePrepared(clock, 3 * MS), [FakePrepared(clock, MS)], Budget(), 0, clock=clock)
    assert same_rounds.value_ms == pytest.approx(3.0)


def test_the_interval_says_how_far_pairing_is_trusted():
    """Without noise the rest is what pairing may miss: 3 % at rest, more when the references are slowed."""
    clock = FakeClock()

    def once(reference_ms: float, confidence: float = 0.95):
        budget = Budget(confidence=confidence)
        reference = FakePrepared(clock, MS)
        return measure_latency(
            FakePrepared(clock, MS), [reference], budget, 0, reference_ms=(reference_ms,), clock=clock
        )

    rest, slowed = once(1.0), once(0.5)
    assert rest.high_ms / rest.value_ms == pytest.approx(np.exp(0.03), rel=1e-3)
    assert rest.value_ms / rest.low_ms == pytest.approx(np.exp(0.03), rel=1e-3)
    assert slowed.high_ms / slowed.value_ms == pytest.approx(np.exp(np.hypot(0.03, 0.4 * np.log(2))), rel=1e-3)
    assert once(1.0, 0.8).high_ms < rest.high_ms
    assert rest.quality == slowed.quality == "ok"


def test_stops_when_certain():
    clock = FakeClock()
    found = measure_latency(FakePrepared(clock, MS), [FakePrepared(clock, MS)], Budget(), 0, clock=clock)
    assert (found.pairs, found.quality, found.flags) == (Budget().min_pairs, "ok", ())


def test_goes_on_while_uncertain_and_says_so():
    clock = FakeClock()
    budget = Budget(max_seconds=60, min_pairs=20, max_pairs=70, relative_width=0.01)
    found = measure_latency(
        FakePrepared(clock, noisy(MS, 1, 0.3)), [FakePrepared(clock, noisy(MS, 2, 0.3))], budget, 0, clock=clock
    )
    assert found.pairs == 70
    assert found.quality == "noisy"
    assert any(flag.startswith("half_width=") for flag in found.flags)


def test_the_time_limit_counts_once_per_network():
    clock = FakeClock()
    budget = Budget(max_seconds=0.05, min_pairs=20, max_pairs=100)
    one = measure_latency(FakePrepared(clock, 5 * MS), [FakePrepared(clock, 5 * MS)], budget, 0, clock=clock)
    assert one.pairs == 5  # 10 ms a round
    assert "few_pairs=5" in one.flags
    two = measure_together(
        {name: FakePrepared(clock, 5 * MS) for name in "ab"}, [FakePrepared(clock, 5 * MS)], budget, 0, clock=clock
    )
    assert two["a"].pairs == 7  # 100 ms, 15 ms a round


def test_at_least_three_rounds_however_slow():
    clock = FakeClock()
    found = measure_latency(
        FakePrepared(clock, 900 * MS), [FakePrepared(clock, MS)], Budget(max_seconds=0.1), 0, clock=clock
    )
    assert found.pairs == 3


@pytest.mark.parametrize(
    ("wall", "flag"), [(1.6, "wall/cpu=1.60"), (0.5, "extra_threads: cpu/wall=2.00")], ids=["contended", "threads"]
)
def test_clocks_that_disagree_are_flagged(wall, flag):
    clock = FakeClock()
    found = measure_latency(FakePrepared(clock, MS, wall=wall), [FakePrepared(clock, MS)], Budget(), 0, clock=clock)
    assert found.quality == "contended"
    assert flag in found.flags
    assert found.value_ms == pytest.approx(1.0)  # CPU time counts


def test_drift_is_flagged():
    clock = FakeClock()
    slower = FakePrepared(clock, lambda call: MS * (1.0 if call < 33 else 1.2))
    found = measure_latency(
        slower, [FakePrepared(clock, MS)], Budget(min_pairs=60, max_pairs=60, relative_width=0.2), 0, clock=clock
    )
    assert found.quality == "drift"
    assert any(flag.startswith("drift=+") for flag in found.flags)


def test_warm_up_is_discarded_and_ends_when_steady():
    clock = FakeClock()
    cold = FakePrepared(clock, lambda call: MS * [1.7, 1.3, 1.15, 1.05, 1.0][min(call, 4)])
    found = measure_latency(cold, [FakePrepared(clock, MS)], Budget(), 0, clock=clock)
    assert found.warmups == 6  # the first three that agree within 10 % are 1.05, 1.0, 1.0
    assert (found.cpu.n, found.cpu.p99) == (Budget().min_pairs, pytest.approx(1.0))
    wild = FakePrepared(clock, lambda call: MS * (1 + call % 2))
    assert "unsteady_warmup" in measure_latency(wild, [FakePrepared(clock, MS)], Budget(), 0, clock=clock).flags


@pytest.mark.parametrize(("threads", "tick"), [(2, 1), (1, 10_000_000)], ids=["two threads", "a clock of 10 ms"])
def test_wall_time_counts_where_cpu_time_cannot(threads, tick):
    clock = FakeClock(tick=tick)
    item = FakePrepared(clock, MS, wall=2.0, threads=threads)
    found = measure_latency(item, [FakePrepared(clock, MS, threads=threads)], Budget(), 0, clock=clock)
    assert (found.clock, found.value_ms) == ("wall", pytest.approx(2.0))


def test_a_target_with_its_own_clock_is_believed():
    clock = FakeClock()
    device = FakePrepared(clock, 0.25 * MS, kind="device", own=True, wall=40.0)
    found = measure_latency(device, [FakePrepared(clock, 0.5 * MS, kind="device", own=True)], Budget(), 0, clock=clock)
    assert (found.clock, found.value_ms, found.quality) == ("device", pytest.approx(0.25), "ok")


def test_simulators_are_asked_once():
    clock = FakeClock()
    simulated = FakePrepared(clock, 0.125 * MS, kind="simulated", own=True)
    found = measure_latency(simulated, [], Budget(), 0, clock=clock)
    assert (found.value_ms, found.low_ms, found.high_ms, found.pairs) == (0.125, 0.125, 0.125, 1)
    assert (simulated.calls, found.clock, found.quality) == (1, "simulated", "ok")


def test_clocks_are_not_mixed():
    clock = FakeClock()
    with pytest.raises(ValueError, match="one real clock, got: cpu, wall"):
        time_rounds({"a": FakePrepared(clock, MS)}, [FakePrepared(clock, MS, kind="wall")], Budget(), 0, clock=clock)
    with pytest.raises(ValueError, match="nothing"):
        time_rounds({}, [], Budget(), 0, clock=clock)
    with pytest.raises(ValueError, match="references"):
        measure_latency(FakePrepared(clock, MS), [], Budget(), 0, clock=clock)


@pytest.mark.parametrize("enabled", [True, False])
def test_collector_and_threads_are_set_and_put_back(enabled):
    clock = FakeClock()
    item = FakePrepared(clock, MS, threads=3)
    before = torch.get_num_threads()
    gc_before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        measure_latency(item, [FakePrepared(clock, MS, threads=3)], Budget(), 0, clock=clock)
        assert item.states == {(False, 3)}
        assert (gc.isenabled(), torch.get_num_threads()) == (enabled, before)

        def fail(call: int) -> float:
            if call > 5:
                raise RuntimeError("the runtime died")
            return MS

        with pytest.raises(RuntimeError, match="died"):
            measure_latency(FakePrepared(clock, fail, threads=3), [item], Budget(), 0, clock=clock)
        assert (gc.isenabled(), torch.get_num_threads()) == (enabled, before)
    finally:
        (gc.enable if gc_before else gc.disable)()


def test_compare_sees_ten_percent_and_calls_equals_equal():
    budget = Budget(max_seconds=60, max_pairs=100)
    verdicts = []
    for seed in range(20):
        clock = FakeClock(phases(seed, 0.2))
        a, b = (FakePrepared(clock, noisy(MS, 100 * seed + i, 0.05)) for i in (1, 2))
        faster = FakePrepared(clock, noisy(0.9 * MS, 100 * seed + 3, 0.05))
        assert compare(faster, a, budget, seed, clock=clock).verdict == "a<b"
        assert compare(a, faster, budget, seed, clock=clock).verdict == "a>b"
        verdicts.append(compare(a, b, budget, seed, clock=clock).verdict)
    assert verdicts.count("tie") >= 18


def test_compare_stops_early_when_it_is_plain():
    clock = FakeClock()
    found = compare(FakePrepared(clock, MS), FakePrepared(clock, 2 * MS), Budget(), clock=clock)
    assert (found.verdict, found.ratio, found.pairs) == ("a<b", pytest.approx(0.5), Budget().min_pairs)
    within = compare(FakePrepared(clock, MS), FakePrepared(clock, 1.01 * MS), Budget(), clock=clock)
    assert within.verdict == "tie"  # below the margin


def test_head_to_head_ratio_is_of_the_same_rounds():
    clock = FakeClock(phases(3, 0.3))
    items = {"a": FakePrepared(clock, 2 * MS), "b": FakePrepared(clock, 4 * MS)}
    rounds = time_rounds(items, [FakePrepared(clock, MS)], Budget(min_pairs=100, max_pairs=100), 0, clock=clock)
    assert rounds.interval("a", "b").value == pytest.approx(0.5, rel=0.1)
    assert rounds.compare("a", "b").verdict == "a<b"


def test_the_same_seed_gives_the_same_latency():
    def once() -> object:
        clock = FakeClock(phases(1, 0.1))
        return measure_latency(
            FakePrepared(clock, noisy(MS, 2, 0.1)), [FakePrepared(clock, noisy(MS, 3, 0.1))], Budget(), 5, clock=clock
        )

    assert once() == once()


def test_calibration_finds_the_undisturbed_time():
    clock = FakeClock(lambda now: 1.0 if int(now / 5e6) % 4 == 0 else 1.7)
    found = calibrate([FakePrepared(clock, 0.5 * MS), FakePrepared(clock, 0.2 * MS)], Budget(), 0, clock=clock)
    assert found == pytest.approx((0.5, 0.2), rel=0.02)


def test_the_real_clock_moves():
    clock = SystemClock()
    assert clock.cpu_tick_ns() > 0
    wall, cpu = clock.wall_ns(), clock.cpu_ns()
    sum(range(100_000))
    assert clock.wall_ns() > wall
    assert clock.cpu_ns() >= cpu
