"""Being asked to stop: the first Ctrl-C or SIGTERM finishes the bookkeeping, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A search ended because it was asked to.

    Args:
        message: what is kept, and how to go on.
        number: the signal.

    Attributes:
        exit_code: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class Stopper:
    """Turns signals into a question that the search asks itself where nothing is half done.

    Outside the main thread, where Python delivers no signals, it changes nothing.

    Args:
        notify: called with one line when the first signal arrives.
    """

    def __init__(self, notify: Callable[[str], None]) -> None:
        self.notify = notify
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Return whether somebody asked to stop."""
        return self.signal is not None

    def __enter__(self) -> Stopper:
        """Take over the signals."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._heard) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise Interrupted("stopped at once; finished trials are kept", number)
        self.signal = number
        self.notify("stopping: finishing the bookkeeping; once more stops at once")
