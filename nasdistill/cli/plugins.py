"""``nasdistill plugins``: what is installed, and what one component does, takes and comes from.

``list`` reads specs only and imports neither torch nor any component. ``show`` imports the one component it shows.
"""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nasdistill.host import ComponentRecord, Host, PluginRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="list components, or what is wrong with plugins")
    listing.add_argument("--kind", metavar="K", help="components of one kind only (proxy, loss, search_space ...)")
    listing.add_argument("--problems", action="store_true", help="list the problems of plugins instead")
    listing.add_argument("--json", action="store_true", help="JSON instead of a table")

    show = actions.add_parser("show", help="show one component, or one plugin, in detail")
    show.add_argument("name", metavar="NAME", help="component (synflow, proxies:synflow) or plugin (proxies)")
    show.add_argument("--kind", metavar="K", help="which kind, where several have a component of that name")
    show.add_argument("--json", action="store_true", help="JSON instead of text")

    from nasdistill.cli import plugin_check, plugin_new, plugin_switches

    plugin_new.add_arguments(actions.add_parser("new", help="write a new plugin package with one component"))
    check = actions.add_parser("check", help="run the contract checks of a plugin or a component")
    plugin_check.add_arguments(check)
    plugin_switches.add_arguments(actions.add_parser("disable", help="do not load a plugin any more, for this user"))
    plugin_switches.add_arguments(actions.add_parser("enable", help="load a disabled plugin again"))


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    from nasdistill.cli import plugin_check, plugin_new, plugin_switches

    actions = {
        "list": _list, "show": _show, "new": plugin_new.run, "check": plugin_check.run,
        "disable": plugin_switches.disable, "enable": plugin_switches.enable,
    }  # fmt: skip
    return actions[args.action](args)


def _list(args: argparse.Namespace) -> int:
    from nasdistill.cli import output, plugin_switches
    from nasdistill.cli.common import load_host, quiet_host

    if args.problems:
        return _list_problems(quiet_host(args), as_json=args.json)
    host = load_host(args)
    records = host.specs(kind_name(args.kind))
    if args.json:
        output.print_json([brief(record) for record in records])
        return 0
    rows = [(record.kind.value.replace("_", " "), record.id, record.spec.summary) for record in records]
    output.print_table(("kind", "id", "summary"), rows)
    if args.kind is None:
        plugin_switches.print_plugins(host)
        plugin_switches.tell_leftovers()
    loaded = [plugin.name for plugin in host.plugins() if plugin.state == "loaded"]
    others = [f"{plugin.name} ({plugin.state})" for plugin in host.plugins() if plugin.state != "loaded"]
    output.info(f"{len(records)} components; plugins: {', '.join([*loaded, *others])}")
    return 0


def _list_problems(host: Host, *, as_json: bool) -> int:
    from nasdistill.cli import output

    if as_json:
        output.print_json([problem.to_json() for problem in host.problems])
        return 0
    for problem in host.problems:
        output.say(problem)
    if not host.problems:
        output.info("no problems")
    return 0


def brief(record: ComponentRecord) -> dict[str, Any]:
    """Return the entry of ``plugins list --json``; its keys are a contract."""
    return {
        "id": record.id,
        "kind": record.kind.value,
        "plugin": record.plugin,
        "distribution": record.distribution,
        "version": record.version,
        "summary": record.spec.summary,
        "references": list(record.spec.references),
    }


def kind_name(text: str | None) -> Any:
    """Return the text of ``--kind`` as kinds are written: ``search-spaces`` is understood too."""
    if text is None:
        return None
    name = text.replace("-", "_")
    plural = {"search_spaces": "search_space", "proxies": "proxy", "losses": "loss", "strategies": "strategy"}
    return plural.get(name, name)


def _show(args: argparse.Namespace) -> int:
    from nasdistill.cli import output
    from nasdistill.cli.common import load_host

    host = load_host(args)
    record = choose(host, args.name, kind_name(args.kind))
    if record is None:
        return _show_plugin(host, args.name, as_json=args.json)
    details = describe(host, record)
    if args.json:
        output.print_json(details)
    else:
        _print_component(details)
    return 0


def choose(host: Host, name: str, kind: Any) -> ComponentRecord | None:
    """Return the component that is meant; None when `name` is a plugin.

    Raises:
        UsageError: nothing, or several things, of this name.
    """
    from nasdistill.errors import AmbiguousComponentError, UnknownComponentError, did_you_mean

    if kind is not None:
        return host.record(kind, name)
    fitting = [record for record in host.specs() if name in (record.id, record.name)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        found = ", ".join(f"{record.id} ({record.kind.value})" for record in fitting)
        raise AmbiguousComponentError(
            f"several components are called {name!r}: {found}",
            hint="Write the whole id." if len({record.id for record in fitting}) == len(fitting) else "Add --kind.",
        )
    plugins = [plugin.name for plugin in host.plugins()]
    if name in plugins:
        return None
    known = {*(record.id for record in host.specs()), *(record.name for record in host.specs()), *plugins}
    folder = package_folder(name)
    if folder is not None:
        raise UnknownComponentError(
            f"{folder} holds a package that is not installed here", hint=f"pip install -e {shlex.quote(folder)}"
        )
    close = did_you_mean(name, known)  # everything that is installed would fill the screen
    raise UnknownComponentError(
        f"no component or plugin named {name!r} is installed. {close if close.startswith('Did') else ''}".rstrip(),
        hint="nasdistill plugins list names what is. Plugins are found in installed packages (pip install -e FOLDER); "
        "--plugin FILE.py loads a single file.",
    )


def package_folder(name: str) -> str | None:
    """Return the folder of a plugin's package that `name` stands for, with a leading ``./``: a path, or its name.

    ``foo_bar``, ``nasdistill-foo-bar`` and ``./nasdistill-foo-bar`` all stand for what ``plugins new foo_bar`` wrote.
    """
    from pathlib import Path

    bare = name.replace("_", "-")
    for place in (name, bare, f"nasdistill-{bare}"):
        folder = Path(place)
        if (folder / "pyproject.toml").is_file():
            text = str(folder)
            return text if folder.is_absolute() or text.startswith((".", "~")) else f"./{text}"
    return None


def refuse_disabled(host: Host, name: str) -> None:
    """Refuse to work with a plugin that is disabled.

    Raises:
        UsageError: says what disables it, and how to have it back.
    """
    from nasdistill.errors import UsageError
    from nasdistill.host.manager import how_enabled

    plugin = host.plugin(name)
    if plugin is not None and plugin.state == "disabled":
        raise UsageError(f"plugin {name!r} is disabled", hint=how_enabled(plugin))


def describe(host: Host, record: ComponentRecord) -> dict[str, Any]:
    """Return everything that is known of a component; `problem` says why some of it could not be found out."""
    from dataclasses import asdict

    from nasdistill.errors import NasdistillError

    spec = record.spec
    tags = host.tags(record.kind, record.id)
    details: dict[str, Any] = {
        **brief(record),
        "target": spec.target,
        "since": spec.since,
        "maturity": spec.maturity,
        "left_out": spec.left_out,
        "requires": [{"module": item.module, "extra": item.extra} for item in spec.requires],
        "missing": [item.module for item in host.missing(record.kind, record.id)],
        "tags": asdict(tags) if tags is not None else {},
        "options": None,
        "source": None,
        "problem": None,
    }
    try:
        model = host.options_model(record.kind, record.id)
        details["options"] = describe_options(model) if model is not None else []
        details["source"] = _source(host.load(record.kind, record.id))
    except NasdistillError as error:
        details["problem"] = str(error)
    return details


def describe_options(model: Any) -> list[dict[str, Any]]:
    """Return the options of a pydantic model: name, type, default, bounds, help, and the values a search may try."""
    from nasdistill.spec.options import searchable_axes

    schema = model.model_json_schema()
    searchable = searchable_axes(model)
    return [
        {
            "name": name,
            "type": _type_text(info.annotation),
            "required": info.is_required(),
            "default": schema.get("properties", {}).get(name, {}).get("default"),
            "bounds": _bounds(info.metadata),
            "help": info.description or "",
            "search": list(searchable[name]) if name in searchable else None,
        }
        for name, info in model.model_fields.items()
    ]


def _type_text(annotation: Any) -> str:
    """Return a type as it would be written: ``float | None``, ``'adam' | 'sgd'``."""
    from types import NoneType, UnionType
    from typing import Annotated, Literal, Union, get_args, get_origin

    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is NoneType:
        return "none"
    if origin is Annotated:  # the rest are limits of the items, which an error names
        return _type_text(inner[0])
    if origin is Literal:
        return " | ".join(repr(value) for value in inner)
    if origin in (Union, UnionType):
        return " | ".join(_type_text(part) for part in inner)
    if origin is not None:
        return f"{_type_text(origin)}[{', '.join('...' if part is Ellipsis else _type_text(part) for part in inner)}]"
    return getattr(annotation, "__name__", str(annotation))


_BOUNDS = {
    "ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "multiple of", "min_length": "length >=",
    "max_length": "length <=", "pattern": "matches",
}  # fmt: skip


def _bounds(metadata: list[Any]) -> dict[str, Any]:
    """Return the limits that a field's metadata sets."""
    found: dict[str, Any] = {}
    for item in metadata:
        for name in _BOUNDS:
            value = getattr(item, name, None)
            if value is not None:
                found[name] = value
    return found


def _source(found: Any) -> dict[str, Any] | None:
    """Return file and line of a class or function, None when there is no source."""
    import inspect

    try:
        file = inspect.getsourcefile(found)
        return {"file": file, "line": inspect.getsourcelines(found)[1]} if file else None
    except (OSError, TypeError):
        return None


def _print_component(details: dict[str, Any]) -> None:
    from nasdistill.cli import output

    requires = [f"{item['module']} (pip install '{item['extra']}')" for item in details["requires"]]
    source = details["source"]
    pairs = {
        details["kind"].replace("_", " "): details["id"],
        "summary": details["summary"],
        "from": f"{details['distribution']} {details['version']}, plugin {details['plugin']}",
        "source": f"{source['file']}:{source['line']}" if source else details["target"],
        "references": "\n".join(details["references"]),
        "left out": details["left_out"],
        "requires": "\n".join(requires),
        "missing": ", ".join(details["missing"]),
        "since": f"{details['since']} ({details['maturity']})",
        "tags": "\n".join(f"{name} = {value}" for name, value in details["tags"].items()),
        "problem": details["problem"] or "",
    }
    output.print_pairs({name: value for name, value in pairs.items() if value})
    options = details["options"]
    if not options:
        if options is not None:
            output.say("\nno options")
        return
    rows = []
    for option in options:
        bounds = ", ".join(f"{_BOUNDS[name]} {value}" for name, value in option["bounds"].items())
        default = "required" if option["required"] else _shown(option["default"])
        if option["search"]:
            tried = ", ".join(map(str, option["search"]))
            bounds = f"{bounds}; search: {tried}" if bounds else f"search: {tried}"
        rows.append((option["name"], option["type"], default, bounds, option["help"]))
    output.say()
    output.print_table(("option", "type", "default", "bounds", "meaning"), rows)


def _shown(value: Any) -> str:
    import json

    return json.dumps(value)


def _state_note(plugin: PluginRecord) -> str:
    if plugin.disabled_by:
        return f" by {plugin.disabled_by}"
    return "" if plugin.api is None else f", plugin API {plugin.api}"


def _show_plugin(host: Host, name: str, *, as_json: bool) -> int:
    from dataclasses import asdict

    from nasdistill.cli import output

    plugin = next(item for item in host.plugins() if item.name == name)
    components = [record for record in host.specs() if record.plugin == name]
    problems = [problem for problem in host.problems if problem.plugin == name]
    if as_json:
        output.print_json(
            {
                **asdict(plugin),
                "components": [brief(record) for record in components],
                "problems": [problem.to_json() for problem in problems],
            }
        )
        return 0
    output.print_pairs(
        {
            "plugin": plugin.name,
            "module": plugin.module,
            "from": f"{plugin.distribution} {plugin.version}{' (bundled)' if plugin.bundled else ''}",
            "state": plugin.state + _state_note(plugin),
        }
    )
    for problem in problems:
        output.say(problem)
    if components:
        output.say()
        output.print_table(
            ("kind", "id", "summary"),
            [(record.kind.value.replace("_", " "), record.id, record.spec.summary) for record in components],
        )
    return 0
