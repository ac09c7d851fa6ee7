"""``nasdistill spaces``: which search spaces there are, what their axes are, and points drawn from them.

``list`` reads specs only and imports no torch. ``show`` and ``sample`` create the space they are asked about.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nasdistill.interfaces import SearchSpace, SubSpace
    from nasdistill.spec.architecture import Architecture
    from nasdistill.spec.io import IOSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="list search spaces")
    listing.add_argument("--json", action="store_true", help="JSON instead of a table")

    show = actions.add_parser("show", help="show the axes of a space, or one of its architectures layer by layer")
    _common(show)
    show.add_argument("--arch", metavar="A", help="architecture to show: a file, JSON (all axes or some), or 'default'")

    sample = actions.add_parser("sample", help="draw random architectures")
    _common(sample)
    sample.add_argument("-n", "--count", type=int, default=5, metavar="N", help="how many different ones (default: 5)")
    sample.add_argument("--seed", type=int, default=0, metavar="S", help="root of the randomness (default: 0)")
    sample.add_argument("--subspace", metavar="NAME", help="only points of this named part of the space")
    sample.add_argument("--out", type=Path, metavar="DIR", help="also write each as DIR/ID.json")


def _common(parser: argparse.ArgumentParser) -> None:
    """Declare what ``show`` and ``sample`` share."""
    parser.add_argument("space", metavar="SPACE", help="search space (conv_vit, spaces:conv_vit)")
    parser.add_argument("--options", default="{}", metavar="JSON", help="options, such as '{\"depth\": [1, 2]}'")
    parser.add_argument(
        "--io", default="1x8x8:10", metavar="CxHxW:N", help="image shape and classes, for costs (default: 1x8x8:10)"
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    return {"list": _list, "show": _show, "sample": _sample}[args.action](args)


def _list(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from nasdistill.cli import output
    from nasdistill.cli.common import load_host
    from nasdistill.spec.component import Kind

    host = load_host(args)
    records = host.specs(Kind.SEARCH_SPACE)
    if args.json:
        output.print_json(
            [
                {
                    "id": record.id,
                    "summary": record.spec.summary,
                    "references": list(record.spec.references),
                    "tags": asdict(host.tags(record.kind, record.id)),
                }
                for record in records
            ]
        )
        return 0
    rows = []
    for record in records:
        tags = host.tags(record.kind, record.id)
        offers = [name for name, has in (("inherits", tags.inherits), ("supernet", tags.supernet)) if has]
        rows.append((record.id, tags.family, ", ".join(offers), record.spec.summary))
    output.print_table(("space", "family", "offers", "summary"), rows)
    return 0


def _show(args: argparse.Namespace) -> int:
    from nasdistill.cli import output

    space, io = _create(args), _parse_io(args.io)
    if args.arch is not None:
        return _show_architecture(args, io)
    axes, parts = space.axes(), space.subspaces()
    if args.json:
        output.print_json(
            {
                "id": space.id,
                "version": space.version,
                "size": space.size(),
                "axes": [
                    {
                        "name": axis.name,
                        "choices": list(axis.choices),
                        "default": axis.default,
                        "ordered": axis.ordered,
                        "conditional": axis.active is not None,
                        "help": axis.help,
                    }
                    for axis in axes
                ],
                "subspaces": [
                    {"name": part.name, "choices": {k: list(v) for k, v in part.choices.items()},
                     "summary": part.summary}
                    for part in parts
                ],
                "default": space.default().to_json(),
                "problem": space.accepts(io),
            }
        )  # fmt: skip
        return 0
    rows = []
    for axis in axes:
        when = "" if axis.active is None else "sometimes inactive"
        rows.append((axis.name, ", ".join(map(str, axis.choices)), axis.default, when, axis.help))
    output.print_pairs({"space": space.id, "version": space.version, "architectures": f"{space.size():,}"})
    for part in parts:
        output.say(f"part: {part.name}, {part.summary}")
    output.say()
    output.print_table(("axis", "choices", "default", "", "meaning"), rows)
    return 0


def _show_architecture(args: argparse.Namespace, io: IOSpec) -> int:
    """Show one architecture: its axes, its cost, its layers."""
    from nasdistill.cli import output
    from nasdistill.cli.architectures import Spaces, read_architectures
    from nasdistill.cli.common import load_host
    from nasdistill.errors import UsageError

    spaces = Spaces(load_host(args), {args.space: _parse_options(args.options)})
    found = read_architectures(spaces, [args.arch], [args.space])
    if len(found) != 1:
        raise UsageError(f"--arch has {len(found)} architectures; one can be shown at a time")
    space, arch = found[0]
    graph = space.graph(arch, io)
    if args.json:
        nodes = [{"name": name, **data, "shape": list(data["shape"])} for name, data in graph.nodes(data=True)]
        output.print_json({**_entry(space, arch, io), "layers": nodes, "edges": [list(edge) for edge in graph.edges]})
        return 0
    cost = space.cost(arch, io)
    pairs = {"architecture": arch.id, "space": space.id, "input": str(io)}
    pairs |= {"parameters": f"{cost.params:,}", "MACs": f"{cost.macs:,}"}
    output.print_pairs(pairs | {name: str(value) for name, value in space.features(arch).items()})
    output.say()
    rows = []
    for name, data in graph.nodes(data=True):
        shape = " x ".join(map(str, data["shape"]))
        rows.append((name, data["label"], shape, f"{data['params']:,}" if data["params"] else ""))
    output.print_table(("layer", "what", "output", "params"), rows, right=("params",))
    return 0


def _sample(args: argparse.Namespace) -> int:
    import random

    from nasdistill.cli import output
    from nasdistill.errors import UsageError
    from nasdistill.seeds import derive_seed

    if args.count < 1:
        raise UsageError("-n must be at least 1")
    space, io = _create(args), _parse_io(args.io)
    part = _part(space, args.subspace)
    found = _draw(space, part, args.count, random.Random(derive_seed(args.seed, "spaces sample")))
    if len(found) < args.count:
        output.warn(f"found only {len(found)} different architectures")
    entries = [_entry(space, arch, io) for arch in found]
    if args.out is not None:
        if args.out.exists() and not args.out.is_dir():
            raise UsageError(f"--out {args.out} is a file", hint="Give the name of a folder.")
        args.out.mkdir(parents=True, exist_ok=True)
        for arch in found:
            arch.save(args.out / f"{arch.id}.json")
    if args.json:
        output.print_json(entries)
        return 0
    rows = []
    for arch, entry in zip(found, entries, strict=True):
        features = " ".join(f"{name}={value}" for name, value in space.features(arch).items())
        rows.append((arch.id, f"{entry['params']:,}", f"{entry['macs']:,}", features))
    output.print_table(("id", "params", "MACs", "active axes"), rows, right=("params", "MACs"))
    return 0


def _create(args: argparse.Namespace) -> SearchSpace:
    from nasdistill.cli.common import load_host
    from nasdistill.spec.component import Kind

    space: SearchSpace = load_host(args).create(Kind.SEARCH_SPACE, args.space, _parse_options(args.options))
    return space


def _parse_options(text: str) -> dict[str, Any]:
    """Read the JSON of ``--options``; the space's own model checks keys and values."""
    import json

    from nasdistill.errors import UsageError

    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--options: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UsageError(f"--options: expected a JSON object, got {type(value).__name__}")
    return value


def _parse_io(text: str) -> IOSpec:
    """Read ``1x8x8:10``."""
    from nasdistill.errors import UsageError
    from nasdistill.spec.io import IOSpec

    shape, _, outputs = text.partition(":")
    try:
        sizes = tuple(int(part) for part in shape.split("x"))
        classes = int(outputs)
    except ValueError:
        sizes, classes = (), 0
    if len(sizes) != 3 or min(sizes) < 1 or classes < 1:
        raise UsageError(f"--io {text!r} is not a shape and a number of classes", hint="Write 3x32x32:10.")
    return IOSpec("image", sizes, classes)


def _part(space: SearchSpace, name: str | None) -> SubSpace | None:
    """Return the named part of the space."""
    from nasdistill.errors import UsageError, did_you_mean

    if name is None:
        return None
    parts = {part.name: part for part in space.subspaces()}
    if name not in parts:
        raise UsageError(f"space {space.id} has no part {name!r}. {did_you_mean(name, parts)}")
    return parts[name]


def _draw(space: SearchSpace, part: SubSpace | None, count: int, rng: Any) -> list[Architecture]:
    """Return up to `count` different points, giving up when new ones no longer turn up."""
    found: dict[Architecture, None] = {}
    choices = {} if part is None else part.choices
    for _ in range(1_000 * count):
        arch = space.sample(rng)
        if all(arch.params[name] in allowed for name, allowed in choices.items()):
            found.setdefault(arch)
        if len(found) == min(count, space.size()):
            break
    return list(found)


def _entry(space: SearchSpace, arch: Architecture, io: IOSpec) -> dict[str, Any]:
    """Return the JSON of a point: the architecture as other commands take it, what is active, and its cost."""
    cost = space.cost(arch, io)
    return {
        "architecture": arch.to_json(),
        "features": space.features(arch),
        "io": io.to_json(),
        "params": cost.params,
        "macs": cost.macs,
    }
