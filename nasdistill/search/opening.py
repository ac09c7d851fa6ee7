"""Opening a run's parts: meters, what is frozen at the start and compared later, and a worker's own copy of it all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nasdistill.errors import UsageError
from nasdistill.files import content_hash
from nasdistill.host import Host
from nasdistill.measure import Meter
from nasdistill.search.parts import Components, Parts, create_components, open_parts
from nasdistill.search.work import Workbench
from nasdistill.seeds import derive_seed
from nasdistill.spec.config import RunConfig, parse_config
from nasdistill.spec.measurement import Budget
from nasdistill.store import RunDirectory


def read_config(run: RunDirectory) -> RunConfig:
    """Return a run's configuration.

    Raises:
        UsageError: missing or damaged.
    """
    values = run.read("config.json")
    if values is None:
        raise UsageError(f"{run.path} has no config.json: it ended before anything was decided", hint="Start it anew.")
    return parse_config(values, where=str(run.path / "config.json"))


def latency_budget(config: RunConfig, pairs: int) -> Budget:
    """Return the budget of one latency measurement."""
    latency = config.latency
    return Budget(
        max_seconds=latency.max_seconds,
        min_pairs=min(latency.min_pairs, pairs),
        max_pairs=pairs,
        relative_width=latency.relative_width,
    )


def make_meters(run: RunDirectory, parts: Parts, folder: str = "artefacts") -> dict[str, Meter]:
    """Return a meter per target, in the latency scale of the run where it has one already."""
    config = parts.config
    budget = latency_budget(config, config.latency.max_pairs)
    known: Mapping[str, Any] = run.read("calibration.json") or {}
    return {
        name: Meter(
            target,
            run.path / folder / name.replace(":", "_"),
            budget,
            derive_seed(config.search.seed, name),
            calibration=known.get(name),
            keep_artefacts=False,
        )
        for name, target in parts.components.targets.items()
    }


def open_bench(path: Path, host_arguments: Mapping[str, Any]) -> Workbench:
    """Open a run for working on its candidates, in a process of its own.

    Args:
        path: the run's folder.
        host_arguments: of :meth:`nasdistill.host.Host.load`.
    """
    import torch

    run = RunDirectory.open(path)
    config = read_config(run)
    torch.set_num_threads(config.training.threads)
    parts = open_parts(create_components(config, Host.load(**host_arguments)), config, message=lambda text: None)
    return Workbench(run, parts, make_meters(run, parts, f"artefacts/worker-{os.getpid()}"))


def frozen(config: RunConfig, components: Components) -> dict[str, Any]:
    """Return what must not change while a run goes on: the axes' choices, the plugins' versions, the configuration."""
    host = components.host
    loaded = [plugin for plugin in host.plugins() if plugin.state == "loaded"]
    versions = {plugin.name: f"{plugin.distribution} {plugin.version}" for plugin in loaded}
    # A plugin of one file may be changed on the way: that is told, and its components' axes are compared.
    files = {plugin.name: plugin.origin() for plugin in loaded if plugin.file is not None}
    versions |= {name: str(file["file"]) for name, file in files.items()}
    parts = [*components.spaces.values(), *components.targets.values(), components.task, components.teacher]
    parts += [proxy for proxy, _ in components.proxies.values()] + [components.strategy, components.sampler]
    used = sorted({part.id.split(":", 1)[0] for part in parts})
    # How many workers there are changes nothing about what comes out.
    settings = {key: value for key, value in config.to_json().items() if key != "workers"}
    return {
        "axes": {
            prefix: {axis.name: list(axis.choices) for axis in space.axes()}
            for prefix, space in components.spaces.items()
        },
        "plugins": {name: versions.get(name, "unknown") for name in used},
        "files": files,
        "config_sha256": content_hash(settings),
    }


def check_files(run: RunDirectory, host: Host) -> list[str]:
    """Compare the plugins of one file that a run was started with to those that are here.

    Returns:
        A sentence for each that has changed since.

    Raises:
        UsageError: one is not here; says how it is given.
    """
    files: Mapping[str, Any] = (run.read("frozen.json") or {}).get("files") or {}
    changed = []
    for name, then in files.items():
        here = host.plugin(name)
        if here is None or here.state != "loaded":
            raise UsageError(
                f"{run.path} was started with the plugin file {then['file']}, which "
                + ("was not given now" if here is None else f"is {here.state} now"),
                hint=f"{resume_command(run)}, with the path of each file (in Python: Host.load(files=[...])).",
            )
        if here.sha256 not in (None, then["sha256"]):  # None: an installed plugin of that name, which is compared later
            changed.append(
                f"plugin file {then['file']} has changed since {run.path} was started, so results before and after may "
                "not compare"
            )
    return changed


def check_plugins(run: RunDirectory, host: Host) -> None:
    """Refuse to go on with a run whose plugins are not all here.

    Raises:
        UsageError: naming each with the distribution and version that brought it.
    """
    origins: Mapping[str, str] = (run.read("frozen.json") or {}).get("plugins") or {}  # "nasdistill-acme 1.2"
    gone, wanted = [], []
    for name, origin in origins.items():
        here = host.plugin(name)
        if here is None or here.state != "loaded":
            gone.append(f"plugin {name!r} ({origin}), which is {'not installed' if here is None else here.state} here")
        if here is None:
            wanted.append(repr("==".join(origin.split())))
    if gone:
        hint = f"Install {' and '.join(wanted)}." if wanted else "nasdistill plugins list says more."
        raise UsageError(f"{run.path} was started with {' and '.join(gone)}", hint=hint)


def resume_command(run: RunDirectory) -> str:
    """Return the command that goes on with a run."""
    files: Mapping[str, Any] = (run.read("frozen.json") or {}).get("files") or {}
    return " ".join([f"nasdistill resume {run.path}", *(f"--plugin {then['file']}" for then in files.values())])


def check_frozen(run: RunDirectory, config: RunConfig, components: Components) -> None:
    """Refuse to go on with a run under other circumstances than it began with.

    Raises:
        UsageError: naming every difference.
    """
    then, now = run.read("frozen.json"), frozen(config, components)
    if then is None:
        return
    differences = [
        f"plugin {name}: {version} then, {now['plugins'].get(name, 'not used')} now"
        for name, version in then["plugins"].items()
        if now["plugins"].get(name) != version
    ]
    for space in sorted({*then["axes"], *now["axes"]}):
        old, new = then["axes"].get(space, {}), now["axes"].get(space, {})
        changed = [axis for axis in sorted({*old, *new}) if old.get(axis) != new.get(axis)]
        differences += [f"axis {space}.{axis}: {old.get(axis)} then, {new.get(axis)} now" for axis in changed]
    if not differences and then["config_sha256"] != now["config_sha256"]:
        differences.append("config.json was edited")
    if differences:
        raise UsageError(
            f"{run.path} cannot be resumed, because it was started with something else:\n  " + "\n  ".join(differences),
            hint="Put that back (versions are in environment.json), or start a new run.",
        )
