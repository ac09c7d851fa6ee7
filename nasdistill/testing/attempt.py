"""One check at work: whatever a component does to it is the component's failure, and its prints stay off stdout."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable

from nasdistill.errors import ISOLATED, NasdistillError, one_line
from nasdistill.host.timelimit import TimeLimitReached, time_limit
from nasdistill.testing.registry import CheckFailed, CheckSkipped
from nasdistill.testing.results import Status


def attempt(function: Callable[[], None], who: str, *, seconds: float = 0.0) -> tuple[Status, str]:
    """Run a check and return what came of it.

    Standard output goes to standard error meanwhile: the results stand on the one, and whoever looks for a fault by
    printing finds the lines on the other.

    Args:
        function: the check, bound to what it looks at.
        who: begins the message of a failure.
        seconds: after which it has failed (0: never), where :mod:`nasdistill.host.timelimit` can interrupt it.

    Returns:
        The status and, unless passed, the message. Only an interrupt from the keyboard is raised.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr), time_limit(seconds):
            function()
    except CheckSkipped as reason:
        return "skipped", str(reason)
    except CheckFailed as failure:
        return "failed", f"{who}: {failure}"
    except TimeLimitReached:
        return "failed", f"{who}: no end within {seconds:g} s"
    except ISOLATED as error:
        return "failed", f"{who}: {_told(error)}"
    return "passed", ""


def _told(error: BaseException) -> str:
    """Return an unforeseen exception as one line, with the place where it was raised."""
    text = str(error) if isinstance(error, NasdistillError) else one_line(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (raised at {frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{text}{where}" if isinstance(error, SystemExit) else f"it raised {text}{where}"
