"""The command line: every command and subcommand as its own parser prints it."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator

from markdown_pieces import block, table

from nasdistill.cli.app import GLOBAL_HELP, Parser
from nasdistill.cli.table import COMMANDS


def parsers() -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Yield (words, summary, parser) of every command, each followed by its subcommands."""
    for name, (target, summary) in COMMANDS.items():
        module = importlib.import_module(target.partition(":")[0])
        parser = Parser(prog=f"nasdistill {name}", description=summary, add_help=False)
        module.add_arguments(parser)
        yield f"nasdistill {name}", summary, parser
        yield from _below(f"nasdistill {name}", parser)


def _below(words: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            said = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, inner in action.choices.items():
                yield f"{words} {name}", said.get(name, ""), inner
                yield from _below(f"{words} {name}", inner)


def commands() -> str:
    """Return the page of commands."""
    every = list(parsers())
    listing = [
        (f"[`{words}`](#{words.replace(' ', '-')})", summary) for words, summary, _ in every if _level(words) == 2
    ]
    parts = [
        table(("command", "what it does"), listing),
        "Plugins may add commands: `nasdistill plugins list --kind command`.\n",
        "## Options of every command\n",
        block(GLOBAL_HELP.partition("\n")[2]),
        "`nasdistill --version` prints the version.\n",
    ]
    for words, summary, parser in every:
        parser.description = parser.epilog = None  # they stand above
        parts += [
            f"{'#' * _level(words)} {words}\n",
            f"{summary[:1].upper()}{summary[1:]}.\n",
            block(parser.format_help()),
        ]
    return "\n".join(parts)


def _level(words: str) -> int:
    return words.count(" ") + 1
