"""Progress of a search on stderr: one live display on a terminal, plain lines otherwise."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Any

from nasdistill.cli.timeleft import TimeLeft
from nasdistill.search.events import Event

if TYPE_CHECKING:
    from types import TracebackType


_QUIET = 30.0
"""Seconds without a line after which, off a terminal, the running epoch is named."""


class Display:
    """A listener for search events; use it as a context manager.

    On a terminal the last lines show what goes on (a rung with a bar, the teacher's training, a phase of the set-up),
    the running training, the best so far and the time left; elsewhere every phase and every finished step is one line.
    """

    def __init__(self, live: bool | None = None) -> None:
        self._live = sys.stderr.isatty() if live is None else live
        self._start = time.monotonic()
        self._said = self._start
        self._left: TimeLeft | None = None
        self._stage = "starting"
        self._done, self._total = 0, 0
        self._unit = "candidates"
        self._trial = ""
        self._best = ""
        self._teaching: Pace | None = None
        self._screen: Any = None

    def __enter__(self) -> Display:
        if self._live:
            from rich.console import Console
            from rich.live import Live

            # Rendered anew four times a second, so that the clock moves while a step takes long.
            self._screen = Live(
                get_renderable=self._render, console=Console(stderr=True), refresh_per_second=4, transient=True
            )
            self._screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._screen is not None:
            self._screen.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        now = time.monotonic()
        if event.kind == "plan":
            self._left = TimeLeft(event.facts, now)
        elif event.kind in ("phase", "rung"):
            self._enter(event.rung or event.text, event.total)
            if self._left is not None and event.kind == "rung":
                self._left.begin(event.rung, event.total, now)
        elif event.kind == "step":
            # The training that was shown is over with its candidate.
            self._done, self._total, self._trial = event.done, event.total, ""
            if self._left is not None:
                self._left.step(event.rung, now)
        elif event.kind == "front":
            self._best = event.text
        elif event.kind == "epoch" and event.rung == "teacher":
            if self._teaching is None:
                self._enter("training the teacher", event.total, "epoch")
                self._teaching = Pace(event.done, now)
            self._teaching.note(event.done, now)
            self._done = event.done
        elif event.kind == "epoch":
            self._trial = event.text
        if event.kind == "epoch":
            # Off a terminal a long training would be silent; short ones need no line for every epoch.
            if not self._live and now - self._said >= _QUIET:
                self._say(event.text)
        elif event.text and (event.kind not in ("phase", "rung") or not self._live):
            self._say(event.text)

    def _enter(self, stage: str, total: int, unit: str = "candidates") -> None:
        """Begin another stage; nothing of the one before stays on the screen."""
        self._stage, self._done, self._total, self._unit = stage, 0, total, unit
        self._trial = ""
        self._teaching = None

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        stamp = f"[{time.monotonic() - self._start:6.1f} s] "
        lines = [stamp + line for line in text.splitlines()]
        if self._screen is not None:
            for line in lines:
                self._screen.console.print(line, markup=False, highlight=False)
        else:
            print("\n".join(lines), file=sys.stderr, flush=True)

    def _render(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now = time.monotonic()
        stage = Table.grid(padding=(0, 1))
        cells: list[Any] = [Text(self._stage + (f": {self._counted(now)}" if self._total else ""), style="bold")]
        if self._total:
            cells.append(ProgressBar(total=self._total, completed=self._done, width=20))
        stage.add_row(*cells)
        rows = Table.grid(padding=(0, 1))
        for name, text in (("training", self._trial), ("best so far", self._best), ("time", self._clock(now))):
            if text:
                rows.add_row(Text(name), Text(text, no_wrap=True, overflow="ellipsis"))
        return Group(stage, rows)

    def _counted(self, now: float) -> str:
        """Return how far the stage is: ``3/12 candidates``, or ``epoch 12/28, about 40 s left``."""
        share = f"{self._done}/{self._total}"
        if self._teaching is None:
            return f"{share} {self._unit}"
        left = self._teaching.left(self._total, now)
        return f"{self._unit} {share}" + ("" if left is None else f", {_left(left)}")

    def _clock(self, now: float) -> str:
        text = f"{now - self._start:.0f} s"
        left = None if self._left is None else self._left.seconds(now)
        return text if left is None else f"{text}, {_left(left)}"


class Pace:
    """The pace of counted steps, from when the first was told to when the last was.

    Args:
        done: steps done at the time `now`.
        now: seconds on a clock that does not jump.
    """

    def __init__(self, done: int, now: float) -> None:
        self._first = self._last = (done, now)

    def note(self, done: int, now: float) -> None:
        """So many steps are done."""
        self._last = (done, now)

    def left(self, total: int, now: float) -> float | None:
        """Return the seconds until `total` steps are done, None before there is a pace."""
        (first, begin), (done, told) = self._first, self._last
        if done == first:
            return None
        return max(0.0, (told - begin) / (done - first) * (total - done) - (now - told))


def _left(seconds: float) -> str:
    if seconds <= 0:
        return "a little longer than estimated"
    return f"about {math.ceil(seconds)} s left" if seconds < 120 else f"about {math.ceil(seconds / 60)} min left"
