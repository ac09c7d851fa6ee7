"""Errors that a person is meant to read: one sentence that says what is wrong, one that says what to do next.

Everything the package raises on purpose is a :class:`NasdistillError`. The command line prints its text without a
traceback and exits with :attr:`NasdistillError.exit_code`.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable
from typing import ClassVar


class NasdistillError(Exception):
    """Something failed for a reason that can be said in words.

    Args:
        message: what is wrong, with the names and the values concerned.
        hint: what to do next (a command, a key, an extra to install). Optional.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(NasdistillError):
    """The call, the configuration or an input file is wrong; nothing was started."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key or value is wrong; the message names the key and the file."""


class UnknownComponentError(UsageError):
    """No component has this name; close matches are named."""


class AmbiguousComponentError(UsageError):
    """A bare name fits components of several plugins; the message lists the canonical ids."""


class BrokenComponentError(NasdistillError):
    """A component exists but cannot be loaded; the cause is chained."""


class MissingExtraError(NasdistillError):
    """A component needs a package that is not installed; the message names the extra."""


class ArchitectureError(UsageError):
    """An architecture is not a valid point of its space; the message lists every violation."""


class MismatchError(UsageError):
    """Two parts do not fit (teacher and task, loss and pair of models); both shapes are named."""


class DataError(UsageError):
    """Data cannot be read or has the wrong shape."""


class TargetUnavailableError(NasdistillError):
    """A target's runtime or device is not here; the message says which extra brings it."""


class TrialFailure(NasdistillError):
    """One candidate failed; the search records the reason and goes on.

    Args:
        reason: a short machine-readable word, such as ``"nan_loss"``, ``"export_failed"``, ``"parity"``.
        message: the sentence for people.
    """

    def __init__(self, reason: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


ISOLATED = (Exception, SystemExit)
"""What a component's code may raise to its own harm and to nothing else's.

Some code calls ``sys.exit()`` when something it wants is missing; an interrupt from the keyboard is the user's and goes
through.
"""

_FATAL_ERRNO = frozenset({errno.ENOSPC, errno.EROFS, errno.EDQUOT})


def is_fatal(error: BaseException | None) -> bool:
    """Return whether an error, or what caused it, is the machine's: no space, read-only file system, quota exceeded.

    Nothing more can be written then, so whoever records results has to end; no candidate is to blame. Libraries that
    wrap the system's error are known by its text.
    """
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, OSError) and error.errno in _FATAL_ERRNO:
            return True
        if "No space left on device" in str(error) or "database or disk is full" in str(error):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return any exception as one line, for a message that says more than the exception itself.

    It is the type and the first non-empty line of the text, without terminal colours and closing full stop; the errors
    of this module are made to be read and come without their type, and a :class:`SystemExit` is told as what caused it.

    Args:
        error: what was raised.
        limit: how many characters at most.
    """
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    text = error.message if isinstance(error, NasdistillError) else str(error)
    lines = [line.strip() for line in _COLOUR.sub("", text).splitlines() if line.strip()]
    first = lines[0].rstrip(".") if lines else ""
    name = type(error).__name__
    if not first:
        return name
    shown = first if isinstance(error, NasdistillError) else f"{name}: {first}"
    return shown if len(shown) <= limit else shown[: limit - 4].rstrip() + " ..."


def did_you_mean(name: str, known: Iterable[str], *, limit: int = 3) -> str:
    """Return a sentence with the names in `known` closest to `name`, or all of a short list.

    Args:
        name: what was typed.
        known: what exists.
        limit: how many suggestions at most.
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.5)
    if close:
        return "Did you mean " + " or ".join(repr(match) for match in close) + "?"
    if not names:
        return "None is available."
    shown = ", ".join(names[:20])
    return f"Known: {shown}{' ...' if len(names) > 20 else ''}."
