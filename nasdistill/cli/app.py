"""The frame of the command line: global options, the choice of a command, errors and exit codes.

Only the standard library is imported here. Everything else is imported by the command that is run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from nasdistill._version import __version__
from nasdistill.cli.table import COMMANDS
from nasdistill.errors import BrokenComponentError, NasdistillError, UsageError, did_you_mean, one_line

if TYPE_CHECKING:
    from nasdistill.host import Host

Runner = Callable[[argparse.Namespace], int]
Declare = Callable[[argparse.ArgumentParser], None]

GLOBAL_HELP = """\
options for every command:
  -h, --help            show this help
  -q, --quiet           results and errors only
  -v, --verbose         say more (-vv: say everything)
  --debug               show the traceback of an error
  --no-plugin NAME      leave a plugin out (repeatable)
  --plugin FILE.py      load a plugin that is one Python file (repeatable)
"""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises :class:`UsageError`, with close matches for unknown options.

    Options cannot be abbreviated: a script would break when a new option makes an abbreviation ambiguous.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("epilog", GLOBAL_HELP)
        helps = kwargs.pop("add_help", True)
        kwargs["add_help"] = False
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        if helps:
            self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)  # GLOBAL_HELP names it

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise UsageError(f"{self.prog}: {message}", hint=f"{self.prog} --help shows how it is called.")

    def parse_all(self, words: Sequence[str], namespace: argparse.Namespace) -> argparse.Namespace:
        """Parse every word into `namespace`.

        Raises:
            UsageError: a word is unknown; for an option the nearest known one is named.
        """
        _, rest = self.parse_known_args(words, namespace)
        if rest:
            options = [word for word in rest if word.startswith("-")] or rest
            flag = options[0].partition("=")[0]
            hint = f". {did_you_mean(flag, self._flags(namespace))}" if flag.startswith("--") else ""
            self.error(f"unknown argument{'s' if len(options) > 1 else ''} {' '.join(options)}{hint}")
        return namespace

    def _flags(self, values: argparse.Namespace) -> list[str]:
        """Return the long options of this parser and of the subparsers that were chosen."""
        flags: list[str] = []
        for action in self._actions:
            flags += [flag for flag in action.option_strings if flag.startswith("--")]
            if isinstance(action.choices, Mapping):
                chosen = getattr(values, action.dest, None)
                for name, parser in action.choices.items():
                    if isinstance(parser, Parser) and chosen in (None, name):
                        flags += parser._flags(values)
        return flags


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; see :func:`nasdistill.cli.main`."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        try:
            code = _dispatch(words)
            sys.stdout.flush()
        except SystemExit as stop:  # argparse prints help and exits
            sys.stdout.flush()
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return code
    except KeyboardInterrupt as stop:
        # Whoever was interrupted may have said what is kept.
        _complain("; ".join(["interrupted", *map(str, stop.args)]), debug=debug)
        return getattr(stop, "exit_code", 130)  # 143 after SIGTERM
    except BrokenPipeError:
        # The reader of our output is gone (`| head`). Python would complain once more when it flushes at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except NasdistillError as error:
        _complain(f"error: {error}", debug=debug)
        return error.exit_code
    except OSError as error:
        if error.errno is None:
            return _bug(error, debug=debug)
        where = f": {error.filename}" if error.filename else ""
        _complain(f"error: {os.strerror(error.errno)}{where}", debug=debug)
        return 1
    except MemoryError:
        _complain("error: out of memory\n  Smaller batches or fewer parallel trials need less.", debug=debug)
        return 1
    except Exception as error:
        return _bug(error, debug=debug)


def _bug(error: BaseException, *, debug: bool) -> int:
    """Report an exception that nobody foresaw."""
    more = "" if debug else "\n  The same command with --debug shows the traceback."
    _complain(f"error: this is a bug in nasdistill: {one_line(error)}{more}", debug=debug)
    return 1


def _complain(text: str, *, debug: bool) -> None:
    """Print to stderr; with `debug` after the traceback of the current exception."""
    with contextlib.suppress(OSError, ValueError):  # stdout may be broken, or stderr closed
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        if debug:
            import traceback

            traceback.print_exc(file=sys.stderr)
        print(text, file=sys.stderr, flush=True)


def _dispatch(words: list[str]) -> int:
    """Choose and run a command."""
    common, words = split_common(words)
    if words and words[0] in ("-h", "--help"):
        print(help_text(), end="")
        return 0
    if words and words[0] == "--version":
        print(f"nasdistill {__version__}")
        return 0
    if not words:
        print(help_text(), end="", file=sys.stderr)
        return 2
    name, *rest = words
    if name.startswith("-"):
        flags = ["--help", "--version", "--quiet", "--verbose", "--debug", "--no-plugin", "--plugin"]
        raise UsageError(f"unknown option {name}. {did_you_mean(name, flags)}", hint="nasdistill --help lists them.")
    declare, command, summary = _find(name, common)
    parser = Parser(prog=f"nasdistill {name}", description=summary)
    declare(parser)
    args = parser.parse_all(rest, common)

    from nasdistill.cli import output

    output.configure(quiet=args.quiet, verbose=args.verbose)
    if name not in COMMANDS:  # a plugin's: it prints its result, and exits, as it likes
        code: int = command(args)
        return code
    try:
        with output.results_only():
            return command(args)
    except SystemExit as stop:  # no command of ours exits that way: a component does
        raise NasdistillError(
            f"a component ended the command: {one_line(stop)}{_where(stop)}",
            hint="A component must raise an exception instead; --debug shows the traceback.",
        ) from stop


def _where(error: BaseException) -> str:
    """Return where an exception was raised: file and line."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def split_common(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Take the options that every command understands out of a command line, wherever they stand before ``--``.

    Returns:
        A namespace with `quiet`, `verbose`, `debug`, `no_plugin` and `plugin_files`; the other words in their order.

    Raises:
        UsageError: ``--no-plugin`` without a name, or ``--plugin`` without a file.
    """
    common = argparse.Namespace(quiet=False, verbose=0, debug=False, no_plugin=[], plugin_files=[])
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word == "--":
            rest += [word, *queue]
            break
        if word in ("-q", "--quiet"):
            common.quiet = True
        elif word in ("-v", "--verbose", "-vv"):
            common.verbose += word.count("v") if word != "--verbose" else 1
        elif word == "--debug":
            common.debug = True
        elif word.partition("=")[0] in ("--no-plugin", "--plugin"):
            flag, equals, value = word.partition("=")
            if not equals:
                value = queue.pop(0) if queue else ""
            missing = not value or value.startswith("-")
            if missing and flag == "--no-plugin":
                raise UsageError("--no-plugin needs the name of a plugin", hint="nasdistill plugins list names them.")
            if missing:
                raise UsageError("--plugin needs a Python file", hint="Write --plugin FILE.py.")
            (common.no_plugin if flag == "--no-plugin" else common.plugin_files).append(value)
        else:
            rest.append(word)
    return common, rest


def help_text() -> str:
    """Return what ``nasdistill --help`` prints, from the table alone."""
    width = max(map(len, COMMANDS))
    lines = [
        "usage: nasdistill COMMAND [OPTIONS]",
        "",
        "Find the student: architecture search with distillation, latency measured on the target.",
        "",
        "commands:",
        *(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()),
        "",
        GLOBAL_HELP.rstrip(),
        "  --version             print the version",
        "",
        "nasdistill COMMAND --help shows a command's options. Plugins may add commands:",
        "nasdistill plugins list --kind command.",
    ]
    return "\n".join(lines) + "\n"


def _find(name: str, common: argparse.Namespace) -> tuple[Declare, Runner, str]:
    """Return (declare arguments, run, summary) of a command, built-in or from a plugin.

    Raises:
        UsageError: no such command; close matches are named.
        BrokenComponentError: a plugin's command cannot be loaded.
    """
    if name in COMMANDS:
        target, summary = COMMANDS[name]
        module_name, _, function = target.partition(":")
        module = importlib.import_module(module_name)
        return module.add_arguments, getattr(module, function), summary
    return _find_in_plugins(name, common)


def _find_in_plugins(name: str, common: argparse.Namespace) -> tuple[Declare, Runner, str]:
    from nasdistill.cli.common import load_host
    from nasdistill.errors import UnknownComponentError
    from nasdistill.spec.component import Kind

    host: Host = load_host(common)
    try:
        record = host.record(Kind.COMMAND, name)
    except UnknownComponentError:
        names = [*COMMANDS, *(item.name for item in host.specs(Kind.COMMAND))]
        raise UsageError(
            f"no command {name!r}. {did_you_mean(name, names)}", hint="nasdistill --help lists the commands."
        ) from None
    function = host.load(Kind.COMMAND, record.id)
    module = sys.modules[record.spec.target.partition(":")[0]]
    origin = f"command {record.id!r} ({record.distribution} {record.version})"

    def guarded(action: Callable[..., object]) -> Callable[..., object]:
        """Name the plugin in front of anything its code did not foresee."""

        def call(argument: object) -> object:
            try:
                return action(argument)
            except (NasdistillError, OSError, MemoryError):
                raise
            except Exception as error:
                raise BrokenComponentError(f"{origin} failed: {one_line(error)}") from error

        return call

    declare = guarded(getattr(module, "add_arguments", lambda _: None))
    command = guarded(function)
    return lambda parser: (declare(parser), None)[1], lambda args: _exit_code(command(args)), record.spec.summary


def _exit_code(value: object) -> int:
    """Return what a plugin's command returned as an exit code; nothing means done."""
    return value if isinstance(value, int) else 0
