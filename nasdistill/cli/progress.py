"""Progress of a search on stderr: one live display on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from nasdistill.search.events import Event

if TYPE_CHECKING:
    from types import TracebackType


_QUIET = 30.0
"""Seconds without a line after which, off a terminal, the running epoch is named."""


class Display:
    """A listener for search events; use it as a context manager.

    On a terminal the last lines show the rung with a bar, the running trial, the best so far and the time left by the
    plan's estimate; elsewhere every finished step is one line.
    """

    def __init__(self, live: bool | None = None) -> None:
        self._live = sys.stderr.isatty() if live is None else live
        self._start = time.monotonic()
        self._said = self._start
        self._estimate: float | None = None
        self._planned_at = self._start
        self._rung = ("", 0, 0)
        self._trial = ""
        self._best = "no complete student yet"
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
        if event.kind == "plan":
            self._estimate = event.facts.get("seconds")
            self._planned_at = time.monotonic()
        elif event.kind == "rung":
            self._rung = (event.rung, 0, event.total)
        elif event.kind == "step":
            self._rung = (event.rung, event.done, event.total)
        elif event.kind == "front":
            self._best = event.text
        if event.kind == "epoch":
            self._trial = event.text
            # Off a terminal a long training would be silent; short ones need no line for every epoch.
            if not self._live and time.monotonic() - self._said >= _QUIET:
                self._say(event.text)
        elif event.text and (event.kind != "rung" or not self._live):
            self._say(event.text)

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

        rung, done, total = self._rung
        row = Table.grid(padding=(0, 1))
        row.add_row(
            Text(rung or "setting up", style="bold"), ProgressBar(total=max(1, total), completed=done, width=30)
        )
        row.add_row(Text("candidates"), Text(f"{done}/{total}" if total else ""))
        row.add_row(Text("training"), Text(self._trial))
        row.add_row(Text("best so far"), Text(self._best))
        row.add_row(Text("time"), Text(self._clock()))
        return Group(row)

    def _clock(self) -> str:
        now = time.monotonic()
        text = f"{now - self._start:.0f} s"
        if self._estimate is not None:
            left = self._estimate - (now - self._planned_at)
            text += f", about {left:.0f} s left" if left > 0 else ", longer than estimated"
        return text
