"""The command line: every command and subcommand as its own parser prints it."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator

from markdown_pieces import block

from nasdistill.cli.app import GLOBAL_HELP, Parser, help_text
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
    parts = [block(help_text()), "These options are taken by every command:\n", block(GLOBAL_HELP)]
    for words, summary, parser in parsers():
        level = "##" if words.count(" ") == 1 else "###"
        parts += [f"{level} {words}\n", f"{summary[:1].upper()}{summary[1:]}.\n", block(parser.format_help())]
    return "\n".join(parts)
