"""``nasdistill papers``: the published systems that the toolkit is to cover, and which components realise each.

Reads specs only and imports neither torch nor any component.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nasdistill.spec.systems import Realisation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from nasdistill.spec.systems import STATES

    parser.add_argument(
        "words", nargs="*", metavar="WORD",
        help="number (33), arXiv id, or words of title, components or parts: the systems that have all of them",
    )  # fmt: skip
    parser.add_argument("--state", choices=STATES, help="systems in this state only")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Print the systems that were asked for; one alone in detail."""
    from nasdistill.cli import output
    from nasdistill.cli.common import load_host
    from nasdistill.spec.systems import STATES, realise, systems

    host = load_host(args)
    components = [(record.id, record.spec) for record in host.specs()]
    every = [realise(system, components) for system in systems()]
    found = [item for item in choose(every, args.words) if args.state in (None, item.state)]
    if args.json:
        output.print_json([entry(item) for item in found])
        return 0
    if len(found) == 1 and args.words:
        _print_one(found[0])
        return 0
    if found:
        output.print_table(
            ("no", "state", "arXiv", "title", "components"),
            [
                (item.system.number, item.state, item.system.arxiv, item.system.title, ", ".join(_ids(item)))
                for item in found
            ],
            right=("no",),
        )
    counts = ", ".join(f"{sum(item.state == state for item in found)} {state}" for state in STATES)
    output.info(f"{len(found)} of {len(every)} systems: {counts}" if found else _nothing(args, every))
    return 0


def entry(item: Realisation) -> dict[str, Any]:
    """Return the entry of ``papers --json``; its keys are a contract."""
    return {
        "number": item.system.number,
        "title": item.system.title,
        "arxiv": item.system.arxiv,
        "components": _ids(item),
        "state": item.state,
        "left_out": item.left_out,
    }


def choose(every: Sequence[Realisation], words: Sequence[str]) -> list[Realisation]:
    """Return the systems that all `words` fit; numbers alone are a list of systems.

    What a system still needs counts only where no title, id or component has the words, and as whole words: ``minilm``
    finds one system, ``router`` all that are to have one.

    Raises:
        UsageError: a number that no system has.
    """
    if words and all(word.isdecimal() for word in words):
        from nasdistill.errors import UsageError

        wanted = {int(word) for word in words}
        unknown = sorted(wanted - {item.system.number for item in every})
        if unknown:
            raise UsageError(
                f"no system has the number {unknown[0]}; they go from 1 to {len(every)}",
                hint="nasdistill papers lists them.",
            )
        return [item for item in every if item.system.number in wanted]
    lowered = [word.lower().removeprefix("arxiv:") for word in words]
    exact = [item for item in every if _has(lowered, _names(item))]
    return exact or [item for item in every if _has(lowered, [*_names(item), *_parts(item)], begin=True)]


def _has(words: Sequence[str], texts: Iterable[str], *, begin: bool = False) -> bool:
    """Return whether the texts have all words; with `begin` where a word begins: ``zen`` is not in ``frozen``."""
    text = "\n".join(texts).lower()
    edge = r"(?<!\w)" if begin else ""
    return all(re.search(edge + re.escape(word), text) for word in words)


def _names(item: Realisation) -> list[str]:
    return [item.system.title, item.system.arxiv or "", *item.system.also, *_ids(item)]


def _parts(item: Realisation) -> list[str]:
    return [f"{kind.value} {kind.value.replace('_', ' ')} {text}" for kind, text in item.system.parts.items()]


def _ids(item: Realisation) -> list[str]:
    return list(dict.fromkeys(name for name, _ in item.components))


def _nothing(args: argparse.Namespace, every: Sequence[Realisation]) -> str:
    """Return why nothing was printed."""
    from nasdistill.errors import did_you_mean

    if not args.words:
        return f"no system is in the state {args.state!r}"
    text = " ".join(args.words)
    known = {word.lower() for item in every for word in re.findall(r"\w[\w-]{3,}", item.system.title)}
    state = f" in the state {args.state!r}" if args.state else ""
    missing = [word for word in args.words if not any(_has([word.lower()], _names(item)) for item in every)]
    close = did_you_mean(missing[0].lower(), known) if missing else ""
    return f"no system{state} fits {text!r}. {close if close.startswith('Did') else ''}".rstrip()


def _print_one(item: Realisation) -> None:
    """Print one system: what it needs, what is there, what is left out."""
    from nasdistill.cli import output

    system = item.system
    sources = [text for text in (system.arxiv, *system.also) if text]
    output.print_pairs(
        {
            "system": f"{system.number}  {system.title}",
            "source": "\n".join(f"https://arxiv.org/abs/{text}" if text[0].isdigit() else text for text in sources),
            "state": item.state,
        }
    )
    kinds = list(dict.fromkeys([*system.parts, *(spec.kind for _, spec in item.components)]))
    rows = []
    for kind in kinds:
        there = ", ".join(name for name, _ in item.of(kind))
        partly = " (in part)" if there and kind in item.missing else ""
        rows.append((kind.value.replace("_", " "), f"{there}{partly}" if there else "-", system.parts.get(kind, "")))
    output.say()
    output.print_table(("kind", "there", "needed"), rows)
    left_out = {name: spec.left_out for name, spec in item.components if spec.left_out}
    if left_out:
        output.say("\nleft out")
        output.print_pairs(left_out)
