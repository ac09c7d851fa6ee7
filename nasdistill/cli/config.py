"""``nasdistill config``: write a commented configuration, check one, show it complete, print the schema."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nasdistill.spec.config import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    init = actions.add_parser("init", help="write a preset as a commented TOML file to start from")
    init.add_argument("--preset", default="digits", metavar="NAME", help="which preset (default: digits)")
    init.add_argument("--out", type=Path, metavar="FILE", help="new file (default: standard output)")

    validate = actions.add_parser("validate", help="check a file: keys, values, components, their options")
    validate.add_argument("file", type=Path, metavar="FILE")

    show = actions.add_parser("show", help="print the complete configuration, defaults included")
    show.add_argument("file", nargs="?", type=Path, metavar="FILE")
    show.add_argument("--preset", metavar="NAME", help="a preset instead of a file (default: digits)")
    show.add_argument("--json", action="store_true", help="JSON instead of TOML")

    actions.add_parser("schema", help="print the JSON schema of the file format, for editors")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    return {"init": _init, "validate": _validate, "show": _show, "schema": _schema}[args.action](args)


def _init(args: argparse.Namespace) -> int:
    from nasdistill.cli import output
    from nasdistill.errors import UsageError
    from nasdistill.files import write_text
    from nasdistill.spec.config import preset_text

    text = preset_text(args.preset)
    if args.out is None:
        output.say(text, end="")
        return 0
    if args.out.exists():
        raise UsageError(f"{args.out} exists already; nothing was written", hint="Choose another name with --out.")
    write_text(args.out, text)
    output.info(f"wrote {args.out}; nasdistill search {args.out} runs it")
    return 0


def _validate(args: argparse.Namespace) -> int:
    from nasdistill.cli import output
    from nasdistill.cli.common import load_host
    from nasdistill.host.configcheck import check_config, named_components
    from nasdistill.spec.config import load_config

    config = load_config(args.file)
    host = load_host(args, disable=config.plugins.disable)
    check_config(config, host, where=str(args.file))
    output.say(f"{args.file} is valid: {sum(1 for _ in named_components(config))} components, all of them installed")
    return 0


def _show(args: argparse.Namespace) -> int:
    from nasdistill.cli import output
    from nasdistill.errors import UsageError

    if args.file is not None and args.preset is not None:
        raise UsageError("a file and --preset were given; one of them is enough")
    config = _load(args)
    if args.json:
        output.print_json(config.to_json())
    else:
        output.say(to_toml(config.to_json()), end="")
    return 0


def _load(args: argparse.Namespace) -> RunConfig:
    from nasdistill.spec.config import load_config, load_preset

    return load_config(args.file) if args.file is not None else load_preset(args.preset or "digits")


def _schema(args: argparse.Namespace) -> int:
    from nasdistill.cli import output
    from nasdistill.spec.config import RunConfig

    schema = RunConfig.model_json_schema()
    output.print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
    return 0


def to_toml(values: dict[str, Any]) -> str:
    """Return a configuration as TOML that reads back equal; keys without a value (None) are left out."""
    import tomli_w

    return tomli_w.dumps(_without_none(values))


def _without_none(value: Any) -> Any:
    """TOML has no null: a key that is absent takes its default, which is None for all that may be None."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
