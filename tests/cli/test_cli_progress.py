"""The display of a search: what stands on a terminal while it runs, and plain lines elsewhere."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from nasdistill.cli.progress import Display
from nasdistill.search.events import Event

EVENTS = [
    Event("plan", "teacher  builtin:digits", facts={"seconds": 500.0}),
    Event("rung", "short: 4 candidates", "short", total=4),
    Event("epoch", "trial 7, epoch 2 of 3"),
    Event("step", "trial 7: 0.95", "short", 1, 4, 7),
    Event("front", "0.97 at 0.4 ms"),
]


def rendered(display: Display) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(display._render())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_screen_shows_rung_trial_best_and_time_left():
    display = Display(live=True)
    assert "no complete student yet" in rendered(display)
    for event in EVENTS:
        display(event)
    shown = rendered(display)
    for part in ("short", "1/4", "trial 7, epoch 2 of 3", "0.97 at 0.4 ms", "s left"):
        assert part in shown


def test_the_clock_moves_without_events(monkeypatch: pytest.MonkeyPatch):
    display = Display(live=True)
    display(Event("plan", facts={"seconds": 500.0}))
    before, now = rendered(display), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 100)
    later = rendered(display)
    assert later != before
    assert "100 s, about 400 s left" in later
    monkeypatch.setattr(time, "monotonic", lambda: now + 600)
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
