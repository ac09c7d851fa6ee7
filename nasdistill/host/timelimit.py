"""A limit on the time that loading a plugin may take, so that one that hangs costs seconds and not the day.

It works in the main thread where the system has interval timers (POSIX): a signal interrupts Python code, sleeping,
and waiting for the network. Elsewhere, and in compiled code that never returns, there is no limit.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

ENV_TIMEOUT = "NASDISTILL_PLUGIN_TIMEOUT"
DEFAULT_SECONDS = 15.0

_NOT_HALFWAY = ("torch", "numpy")
"""Cannot be imported again once an import was cut short: that is awaited, and the time for it does not count."""


class TimeLimitReached(BaseException):
    """The time is up. No :class:`Exception`, so that a plugin's own ``except Exception`` lets it through."""


def load_seconds() -> tuple[float, str]:
    """Return the seconds that a plugin may take to load (0: as long as it likes), and what is wrong with the setting.

    ``NASDISTILL_PLUGIN_TIMEOUT`` says it; 15 seconds without.
    """
    text = os.environ.get(ENV_TIMEOUT, "").strip()
    if not text:
        return DEFAULT_SECONDS, ""
    try:
        seconds = float(text)
        if not math.isfinite(seconds) or seconds < 0:
            raise ValueError
    except ValueError:
        return DEFAULT_SECONDS, (
            f"{ENV_TIMEOUT} is {text!r}, not a number of seconds (0: no limit); {DEFAULT_SECONDS:g} are taken"
        )
    return seconds, ""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[Callable[[], None]]:
    """Interrupt the body when it takes longer; handler and timer of before are back afterwards.

    Yields:
        A function to call between two steps of the body: it raises where the first swallowed its interruption.

    Raises:
        TimeLimitReached: it did, also where the body swallowed the interruption.
    """
    usable = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if seconds <= 0 or not usable:
        yield lambda: None
        return
    start = time.monotonic()
    deadline = start + seconds
    running = True
    reached = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal reached, deadline
        now = time.monotonic()
        if any(_is_importing(name) for name in _NOT_HALFWAY):
            deadline = now + seconds
        elif running and now >= deadline:
            reached = True
            raise TimeLimitReached

    def check() -> None:
        if reached:
            raise TimeLimitReached

    handler = signal.signal(signal.SIGALRM, interrupt)
    # It comes again and again: somebody's `except:` may eat one.
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield check
    finally:
        running = False
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if remaining > 0:
            signal.setitimer(signal.ITIMER_REAL, max(remaining - (time.monotonic() - start), 1e-3), interval)
    check()


def _is_importing(name: str) -> bool:
    """Return whether a module's first import is going on."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))
