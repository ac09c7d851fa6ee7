"""Building networks from what files say, with words for what may be missing: a plugin, an input size."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nasdistill.errors import BrokenComponentError, NasdistillError, UnknownComponentError, UsageError
from nasdistill.host import Host
from nasdistill.interfaces import SearchSpace, Transform
from nasdistill.interfaces.transform import Applied
from nasdistill.seeds import seeded
from nasdistill.spec.architecture import Architecture, read_json
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec
from nasdistill.store import read_io, read_transforms

_log = logging.getLogger("nasdistill.library")


def build(
    source: Architecture | Mapping[str, Any] | str | os.PathLike[str],
    *,
    io: IOSpec | Mapping[str, Any] | None = None,
    space_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    host: Host | None = None,
) -> nn.Module:
    """Return the network of an architecture with fresh weights, in eval mode.

    Args:
        source: an :class:`Architecture`, its JSON (text or parsed), a file of it, or the folder of a saved student.
        io: input and output; what the source says by default. ``{"kind": "image", "shape": [1, 8, 8], "outputs": 10}``
            is understood.
        space_options: options of the search space; what the source says by default.
        seed: of the fresh weights.
        host: where the search space comes from.

    Raises:
        ArchitectureError: unreadable, or not a point of its space; every violation is named.
        UsageError: the source does not say what goes in and out, and neither does `io`.
        UnknownComponentError: the plugin with this space is not installed; it is named.
    """
    where, raw = "the architecture", dict[str, Any]()
    if isinstance(source, Architecture):
        arch = source
    else:
        if isinstance(source, Mapping):
            value: Any = dict(source)
        else:
            text = os.fspath(source)
            folder = not text.lstrip().startswith("{") and Path(text).is_dir()
            value, where = read_json(Path(text) / "architecture.json" if folder else text)
        arch = Architecture.from_json(value, where=where)
        raw = value
    if isinstance(io, Mapping):
        io = read_io(io, where="io")
    if io is None:
        if raw.get("io") is None:
            raise UsageError(
                f"{where} does not say what goes into the network and what comes out",
                hint='Give io={"kind": "image", "shape": [1, 8, 8], "outputs": 10}, with the numbers of your data.',
            )
        io = read_io(raw["io"], where=where)
    options = raw.get("space_options") if space_options is None else dict(space_options)
    host = host or Host.load()
    space = open_space(arch.space, options, host)
    arch = Architecture.of(space.id, arch.params, arch.version)  # files may say the bare name
    return build_network(space, arch, io, host, seed=seed, transforms=read_transforms(raw, where=where))


def build_network(
    space: SearchSpace,
    arch: Architecture,
    io: IOSpec,
    host: Host,
    *,
    seed: int = 0,
    recorded: Iterable[Mapping[str, Any]] = (),
    transforms: Sequence[Applied] = (),
) -> nn.Module:
    """Return an architecture's network with fresh weights, in eval mode; the global random state is left as it was.

    Args:
        space: of the architecture.
        arch: what to build.
        io: input and output.
        host: where transforms come from.
        seed: of the fresh weights.
        recorded: the plugins that were there when it was used.
        transforms: what it went through after it was built, repeated without data.

    Raises:
        NasdistillError: as the space or a transform says, with the recorded plugins named that are not here.
    """
    try:
        with seeded(seed, "init", arch.fingerprint):
            network = space.build(arch, io)
            for step in transforms:
                transform: Transform = host.create(Kind.TRANSFORM, step.name, dict(step.options))
                network = transform.rebuild(network, step.config)
            return network.eval()
    except NasdistillError as error:
        absent = absent_plugins(recorded, host)
        if absent is None:
            raise
        raise type(error)(f"{error.message}; it was made with {absent[0]}, not here now", hint=absent[1]) from error


def open_space(
    name: str, options: Mapping[str, Any] | None, host: Host, *, recorded: Iterable[Mapping[str, Any]] = ()
) -> SearchSpace:
    """Return a search space.

    Args:
        name: canonical id.
        options: its options.
        host: where it comes from.
        recorded: the plugins (`plugin`, `distribution`, `version`) that were there when it was used.

    Raises:
        UnknownComponentError: it is not here; the plugin it came from is named with its version.
        ConfigError: its options are wrong.
    """
    try:
        space: SearchSpace = host.create(Kind.SEARCH_SPACE, name, options)
    except (UnknownComponentError, BrokenComponentError) as error:
        plugin = name.partition(":")[0]
        entry = next((p for p in recorded if p.get("plugin") == plugin), {"plugin": plugin})
        if plugin in {p.name for p in host.plugins() if p.state == "loaded"}:
            raise
        known = host.plugin(plugin)
        absent = "was not given" if entry.get("file") else "is not installed here"
        state = absent if known is None else f"is {known.state} here"
        hint = _install([entry]) if known is None else error.hint
        raise UnknownComponentError(
            f"search space {name!r} comes from {_plugin(entry)}, which {state}", hint=hint
        ) from error
    for entry in recorded:
        here = host.plugin(str(entry.get("plugin")))
        if here is not None and here.sha256 is not None and entry.get("sha256") not in (None, here.sha256):
            _log.warning(
                "warning: plugin file %s has changed since this was made: the network may differ", entry.get("file")
            )
    return space


def absent_plugins(recorded: Iterable[Mapping[str, Any]], host: Host) -> tuple[str, str] | None:
    """Return which of the plugins that were recorded are not here, and what to do about it; None when all are."""
    here = {p.name for p in host.plugins() if p.state == "loaded"}
    missing = [entry for entry in recorded if entry.get("plugin") not in here]
    return (" and ".join(map(_plugin, missing)), _install(missing)) if missing else None


def _plugin(entry: Mapping[str, Any]) -> str:
    """Return how messages name a recorded plugin."""
    origin = " ".join(str(entry[key]) for key in ("distribution", "version") if entry.get(key))
    return f"plugin {entry.get('plugin')!r}" + (f" ({origin})" if origin else "")


def _install(entries: Iterable[Mapping[str, Any]]) -> str:
    """Return what to do about missing plugins."""
    entries = list(entries)
    files = [str(entry["file"]) for entry in entries if entry.get("file")]
    if files:
        flags = " ".join(f"--plugin {file}" for file in files)
        return f"Give the path of the file: {flags} (in Python: host=nasdistill.host.Host.load(files={files}))."
    wanted = [
        f"{entry['distribution']}=={entry['version']}" if entry.get("version") else str(entry["distribution"])
        for entry in entries
        if entry.get("distribution") and not str(entry["distribution"]).startswith("(")
    ]
    if wanted:
        return "Install " + " and ".join(repr(item) for item in wanted) + ", or another version of it."
    return "Install the package that provides it; nasdistill plugins list shows what is here."
