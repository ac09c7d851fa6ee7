"""The display of a search: what stands on a terminal while it runs, and plain lines elsewhere."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from nasdistill.cli.progress import Display
from nasdistill.cli.timeleft import TimeLeft
from nasdistill.search.events import FINAL_LATENCY, Event

ROWS = [
    {"rung": "short", "candidates": 4, "seconds": 400.0},
    {"rung": "full", "candidates": 1, "epochs": 5, "seconds": 80.0},
    {"rung": FINAL_LATENCY, "candidates": 1, "seconds": 20.0},
]
EVENTS = [
    Event("plan", "teacher  builtin:digits", facts={"rungs": ROWS, "seconds": 500.0, "timeout": None}),
    Event("rung", "short: 4 candidates", "short", total=4),
    Event("epoch", "trial 7, epoch 2 of 3", "short"),
    Event("step", "trial 7: 0.95", "short", 1, 4, 7),
    Event("front", "0.97 at 0.4 ms"),
    Event("epoch", "trial 8, epoch 1 of 3", "short"),
]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until its only element is changed."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def rendered(display: Display) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(display._render())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_screen_shows_rung_trial_best_and_time_left():
    display = Display(live=True)
    for event in EVENTS:
        display(event)
    shown = rendered(display)
    for part in ("short", "1/4 candidates", "trial 8, epoch 1 of 3", "0.97 at 0.4 ms", " left"):
        assert part in shown
    assert "trial 7" not in shown, "its training is over"
    display(Event("step", "", "short", 2, 4, 8))
    assert "trial 8" not in rendered(display)
    assert "training" not in rendered(display)


def test_no_row_is_empty_and_nothing_is_left_of_the_stage_before(clock):
    display = Display(live=True)
    assert rendered(display).split() == ["starting", "time", "0", "s"]
    display(Event("phase", "opening the data and the teacher"))
    assert "opening the data and the teacher" in rendered(display)
    display(Event("rung", "full: 2 candidates", "full", total=2))
    display(Event("epoch", "trial 9, epoch 2 of 3", "full"))
    display(Event("rung", "timing 3 students", FINAL_LATENCY))
    shown = rendered(display)
    assert FINAL_LATENCY in shown
    assert "trial 9" not in shown
    assert "0/0" not in shown
    display(Event("phase", "final report"))
    assert "final report" in rendered(display)


def test_the_teachers_training_is_shown_with_its_own_time_left(clock):
    display = Display(live=True)
    for epoch in range(1, 13):
        clock[0] += 3.0
        display(Event("epoch", f"builtin:digits: epoch {epoch} of 28", "teacher", epoch, 28))
        if epoch == 1:
            assert "training the teacher: epoch 1/28" in rendered(display)
            assert "left" not in rendered(display), "there is no pace yet"
    assert "training the teacher: epoch 12/28, about 48 s left" in rendered(display)
    clock[0] += 2.0
    assert "epoch 12/28, about 46 s left" in rendered(display)
    display(Event("phase", "evaluating the teacher"))
    assert "training" not in rendered(display)


def test_time_left_follows_what_the_rungs_take_and_is_never_negative(clock):
    left = TimeLeft({"rungs": ROWS, "timeout": None}, 0.0)
    assert left.seconds(0.0) == 500.0
    left.begin("static", 4, 0.0)  # a rung that the plan does not name changes nothing
    left.step("static", 0.0)
    assert left.seconds(0.0) == 500.0
    left.begin("short", 4, 0.0)
    assert left.seconds(60.0) == 440.0, "the clock moves within a candidate"
    assert left.seconds(1000.0) == 400.0, "one slow candidate costs no more than its own share"
    for now in (10.0, 20.0, 30.0):
        left.step("short", now)
    assert left.seconds(30.0) == pytest.approx(10 + 80 + 20), "three of ten seconds outvote the pilot"
    left.step("short", 40.0)
    left.begin("full", 3, 40.0)
    assert left.seconds(40.0) == pytest.approx(3 * 80 + 20), "more than planned are promoted"
    assert left.seconds(60.0) == pytest.approx(3 * 80)
    left.step("full", 120.0)
    left.begin(FINAL_LATENCY, 0, 120.0)
    assert left.seconds(120.0) == pytest.approx(20), "the strategy has ended early"
    assert left.seconds(1e6) == 0.0


def test_rungs_that_get_fewer_than_planned_are_expected_to_go_on_so():
    rows = [
        {"rung": "proxies", "candidates": 40, "seconds": 40.0},
        {"rung": "short", "candidates": 20, "seconds": 20.0},
        {"rung": "full", "candidates": 20, "seconds": 20.0},
    ]
    left = TimeLeft({"rungs": rows, "timeout": None}, 0.0)
    now, estimates = 0.0, []
    for _ in range(4):  # rounds of ten proposals, one of which gets through, where five were planned
        for rung, total in (("proxies", 10), ("short", 1), ("full", 1)):
            left.begin(rung, total, now)
            for _ in range(total):
                now += 1.0
                left.step(rung, now)
        estimates.append(left.seconds(now))
    # 30 proposals of a second each, and about half as many of the others as the plan says.
    assert estimates[0] == pytest.approx(30 + 2 * 20 * 0.75 * (1 + 3) / (5 + 3))
    assert estimates[0] > estimates[1] > estimates[2] > estimates[3]
    assert estimates[3] == pytest.approx(0.0), "no proposal is left"


def test_a_time_limit_bounds_what_comes_before_the_last_promotion():
    left = TimeLeft({"rungs": ROWS, "timeout": 60.0}, 0.0)
    assert left.seconds(0.0) == 60 + 80 + 20
    assert left.seconds(50.0) == 10 + 80 + 20
    assert left.seconds(500.0) == 80 + 20


def test_a_rung_whose_pilot_failed_is_unknown_until_one_candidate_is_through():
    left = TimeLeft({"rungs": [{**ROWS[0], "seconds": 0.0}, ROWS[2]], "timeout": None}, 0.0)
    assert left.seconds(0.0) is None
    left.begin("short", 4, 0.0)
    left.step("short", 7.0)
    assert left.seconds(7.0) == 3 * 7 + 20


def test_without_a_plan_nothing_is_said_about_the_time_left(clock):
    assert TimeLeft({}, 0.0).seconds(3.0) is None
    display = Display(live=True)
    display(Event("plan", facts={"rungs": [], "seconds": 0.0}))
    assert "left" not in rendered(display)


def test_the_clock_moves_without_events(clock):
    display = Display(live=True)
    display(EVENTS[0])
    display(EVENTS[1])
    assert "0 s, about 9 min left" in rendered(display)
    clock[0] = 90.0
    assert "90 s, about 7 min left" in rendered(display)
    display(Event("rung", "timing", FINAL_LATENCY))
    clock[0] = 95.0
    assert "95 s, about 15 s left" in rendered(display)
    clock[0] = 600.0
    assert "longer than estimated" in rendered(display)


def test_a_terminal_gets_a_screen_that_renders_itself_and_is_gone_at_the_end(capsys: pytest.CaptureFixture[str]):
    with Display(live=True) as display:
        assert display._screen.get_renderable().renderables, "drawn by the refresh, not by events"
        for event in EVENTS:
            display(event)
    out, err = capsys.readouterr()
    assert out == ""
    assert "teacher  builtin:digits" in err
    assert "trial 7: 0.95" in err


def test_elsewhere_every_step_is_a_line(capsys: pytest.CaptureFixture[str]):
    with Display(live=False) as display:
        for event in EVENTS:
            display(event)
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line.partition("] ")[2] for line in err.splitlines()]
    assert lines == ["teacher  builtin:digits", "short: 4 candidates", "trial 7: 0.95", "0.97 at 0.4 ms"]
    Display(live=False)(Event("phase", "evaluating the teacher"))
    assert capsys.readouterr().err.endswith("] evaluating the teacher\n")  # it may take a while
    assert "\x1b" not in err


def test_off_a_terminal_a_long_training_is_not_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    display = Display(live=False)
    for epoch in range(10):
        now[0] += 10.0
        display(Event("epoch", f"trial 7: epoch {epoch}"))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("] ")[1] for line in lines] == ["trial 7: epoch 2", "trial 7: epoch 5", "trial 7: epoch 8"]
