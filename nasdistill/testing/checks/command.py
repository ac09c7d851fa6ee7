"""Checks of commands: quick to ask for help, and no trouble for the frame around them. They are not run.

A command is a function ``run(args) -> int``; the function ``add_arguments(parser)`` of the same module, if there is
one, declares its arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

from nasdistill.spec.component import Kind
from nasdistill.testing.probing import import_alone
from nasdistill.testing.registry import check, fail, skip
from nasdistill.testing.subject import Subject

FRAME = ("-h", "--help", "-q", "--quiet", "-v", "-vv", "--verbose", "--debug", "--no-plugin", "--plugin")
FRAME_VALUES = ("quiet", "verbose", "debug", "no_plugin", "plugin_files")


def frame(name: str) -> Any:
    """Return a module of the command line, by name: it stands above this package, and need not be there."""
    return importlib.import_module(f"nasdistill.cli.{name}")


def module_of(subject: Subject) -> str:
    """Return the name of the command's module."""
    return subject.spec.target.partition(":")[0]


def declares(subject: Subject) -> bool:
    """Whether the command declares arguments."""
    try:
        return _declare(subject) is not None
    except Exception:  # that it cannot be imported is another check's business
        return False


def parser_of(subject: Subject) -> Any:
    """Return a parser like the frame's, with the command's arguments declared."""
    parser = frame("app").Parser(
        prog=f"nasdistill {subject.spec.name}", description=subject.spec.summary, add_help=False
    )
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    declare = _declare(subject)
    if declare is not None:
        declare(parser)
    return parser


def arguments_of(subject: Subject) -> list[argparse.Action]:
    """Return every argument, those of subcommands included; skip where they cannot be declared."""
    try:
        return [action for action in _walk(parser_of(subject)) if "--help" not in action.option_strings]
    except Exception:
        skip("its arguments cannot be declared, which another check is about")


@check(Kind.COMMAND, gate=True, hint="Write def run(args: argparse.Namespace) -> int.")
def takes_the_arguments(subject: Subject) -> None:
    """The function takes one argument, the parsed namespace, and is an ordinary function."""
    found = subject.load()
    if inspect.iscoroutinefunction(found) or inspect.isgeneratorfunction(found) or isinstance(found, type):
        what = (
            "a class" if isinstance(found, type) else "asynchronous" if inspect.iscoroutinefunction(found) else "lazy"
        )
        fail(f"{subject.spec.target} is {what}: calling it runs nothing")
    try:
        inspect.signature(found).bind(argparse.Namespace())
    except TypeError as error:
        fail(f"{subject.spec.target}{inspect.signature(found)} cannot be called with the parsed arguments: {error}")


@check(Kind.COMMAND, gate=True, hint="Choose another name; nasdistill --help lists those that are taken.")
def name_is_free(subject: Subject) -> None:
    """No built-in command has this name: it would be found first."""
    if subject.spec.name in frame("table").COMMANDS:
        fail(f"nasdistill {subject.spec.name} is a built-in command, so this one can never be called")


@check(Kind.COMMAND, applies=declares, hint="Only add arguments to the parser that is given; keep no parser yourself.")
def arguments_can_be_declared(subject: Subject) -> None:
    """`add_arguments` fills any parser, as often as it is asked."""
    found = []
    for turn in ("the first", "the second"):
        try:
            found.append([(action.option_strings, action.dest) for action in _walk(parser_of(subject))])
        except Exception as error:
            fail(f"for {turn} parser, add_arguments raises {type(error).__name__}: {error}")
    if found[0] != found[1]:
        fail(f"the first parser has {len(found[0])} arguments, the second {len(found[1])}")


@check(Kind.COMMAND, applies=declares, hint="Write %% for a percent sign in a help text.")
def help_is_printed(subject: Subject) -> None:
    """``--help`` prints a help text with every argument and ends with exit code 0."""
    arguments = [action for action in arguments_of(subject) if action.help != argparse.SUPPRESS]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            parser_of(subject).parse_all(["--help"], argparse.Namespace())
    except SystemExit as stop:
        if stop.code not in (0, None):
            fail(f"--help ends with exit code {stop.code}")
    except Exception as error:
        fail(f"--help raises {type(error).__name__}: {error}")
    else:
        fail("--help does not end")
    top = {id(action) for action in parser_of(subject)._actions}
    missing = [
        action.option_strings[-1]
        for action in arguments
        if id(action) in top and action.option_strings and action.option_strings[-1] not in said.getvalue()
    ]
    if missing:
        fail(f"the help text does not mention {', '.join(missing)}")


@check(Kind.COMMAND, applies=declares, hint="Give each add_argument a help=..., and each subcommand one, too.")
def arguments_are_explained(subject: Subject) -> None:
    """Every argument has a help text."""
    silent = [
        "/".join(action.option_strings) or action.dest
        for action in arguments_of(subject)
        if not isinstance(action, argparse._SubParsersAction) and not (action.help or "").strip()
    ]
    if silent:
        fail(f"no help text says what {', '.join(silent)} means")


@check(Kind.COMMAND, applies=declares, hint="Read args.quiet, args.verbose and args.debug, which the frame sets.")
def frames_options_are_left_alone(subject: Subject) -> None:
    """No argument is one of the frame's, which takes them out of the command line before the command sees it."""
    for action in arguments_of(subject):
        taken = [flag for flag in action.option_strings if flag in FRAME]
        if taken or action.dest in FRAME_VALUES:
            fail(f"argument {'/'.join(action.option_strings) or action.dest} is the frame's "
                 f"({', '.join(taken) or 'args.' + action.dest})")  # fmt: skip


@check(Kind.COMMAND, hint="Import torch and the like inside `run`.")
def asks_for_help_quickly(subject: Subject) -> None:
    """Importing the module and declaring the arguments import nothing heavy, print nothing and open no connection."""
    plugin = next(item for item in subject.host.plugins() if item.name == subject.record.plugin)
    module = module_of(subject)
    if plugin.file is not None:
        skip("a plugin of one file holds its components, too")
    subject.load()
    if getattr(sys.modules[module], "__file__", None) is None or module == "__main__":
        skip("its module was made in this process, there is nothing to import")
    seen = import_alone(module, "add_arguments")
    if seen.heavy:
        fail(f"nasdistill {subject.spec.name} --help imports {', '.join(seen.heavy)}")
    if seen.reached:
        fail(f"nasdistill {subject.spec.name} --help connects to {', '.join(seen.reached)}")
    if seen.printed:
        fail(f"nasdistill {subject.spec.name} --help prints {seen.printed.splitlines()[0]!r} first")


# -- details ----------------------------------------------------------------------------------------------------------


def _declare(subject: Subject) -> Callable[[argparse.ArgumentParser], object] | None:
    """Return the function that declares the arguments, None where there is none."""
    subject.load()
    found: Callable[[argparse.ArgumentParser], object] | None = getattr(
        sys.modules[module_of(subject)], "add_arguments", None
    )
    return found


def _walk(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in dict.fromkeys(action.choices.values()):
                yield from _walk(inner)
