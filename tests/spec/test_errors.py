"""Errors in words."""

from __future__ import annotations

import pytest

from nasdistill.errors import DataError, TrialFailure, is_fatal, one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such thing."), "ValueError: no such thing"),
        (ValueError("\n  \x1b[96mfirst\x1b[0m \nsecond"), "ValueError: first"),
        (KeyError("name"), "KeyError: 'name'"),
        (AssertionError(), "AssertionError"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (DataError("the file is empty", hint="Write it again."), "the file is empty"),
        (TrialFailure("nan_loss", "the loss is NaN.\nAt step 3."), "the loss is NaN"),
    ],
)
def test_an_exception_becomes_one_line(error: Exception, line: str):
    assert one_line(error) == line


def test_a_long_one_is_cut():
    line = one_line(ValueError("x" * 1000), 100)
    assert len(line) <= 100
    assert line.startswith("ValueError: xxx")
    assert line.endswith(" ...")


def test_the_machines_errors_are_told_from_a_candidates():
    full = OSError(28, "No space left on device")
    assert is_fatal(full)
    assert is_fatal(OSError(30, "Read-only file system"))
    assert is_fatal(RuntimeError("(sqlite3.OperationalError) database or disk is full"))
    try:
        try:
            raise full
        except OSError as error:
            raise ValueError("wrapped") from error
    except ValueError as wrapped:
        assert is_fatal(wrapped)
    assert not is_fatal(OSError(2, "No such file"))
    assert not is_fatal(ValueError("no"))
    assert not is_fatal(None)
