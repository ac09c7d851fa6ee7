"""``nasdistill score``: score architectures with training-free proxies, without a search."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nasdistill.host import Host
    from nasdistill.interfaces import Proxy, SearchSpace, Task
    from nasdistill.spec.architecture import Architecture
    from nasdistill.spec.component import ProxyTags
    from nasdistill.spec.config import RunConfig

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--space", action="append", metavar="S", help="search space; repeat for several")
    parser.add_argument(
        "--arch",
        action="append",
        default=[],
        metavar="A",
        help="architectures: a file, JSON, a student's folder, or RUN:ID; repeatable",
    )
    parser.add_argument("--sample", type=int, metavar="N", help="N random architectures of every space")
    parser.add_argument("--proxy", action="append", metavar="P", help="proxy; repeat for several")
    parser.add_argument("--teacher", metavar="T", help="teacher, for proxies that compare with one")
    parser.add_argument("--task", metavar="NAME", help="what the models do, such as text_classification")
    parser.add_argument("--data", metavar="PATH", help="data of the task: a file, a folder, or digits")
    parser.add_argument("--config", type=Path, metavar="FILE", help="take task, teacher, spaces and proxies from there")
    parser.add_argument("--preset", metavar="NAME", help="the same from a bundled preset (default: digits)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="any key of the configuration, or an option: proxy.NAME.KEY=VALUE (TOML value)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="N", help="seed of initial weights, samples and proxies")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Score and print; a proxy that fails is a null with a problem, not an error."""
    from nasdistill.errors import UsageError

    if not args.arch and args.sample is None:
        raise UsageError("nothing to score", hint="Give --arch JSON_OR_FILE, or --sample N for random architectures.")
    if args.sample is not None and args.sample < 1:
        raise UsageError(f"--sample must be at least 1, not {args.sample}")
    config = _config(args)

    from nasdistill.cli import output
    from nasdistill.cli.common import load_host
    from nasdistill.host.adapting import adapt_config

    host = load_host(args, disable=config.plugins.disable)
    config = adapt_config(config, host)
    proxies = _proxies(host, config, args.proxy)
    points = _points(host, config, args)
    rows = _score(host, config, points, proxies)
    if args.json:
        keep = ("architecture", "scores", "problems", "seconds")
        output.print_json([{key: row[key] for key in keep} for row in rows])
    else:
        _print_table(rows, list(proxies))
    return 0


def _config(args: argparse.Namespace) -> RunConfig:
    """The configuration with the command line's values in place."""
    from nasdistill.cli.common import config_values, named_setting, parse_setting, put
    from nasdistill.spec.config import parse_config

    values, where = config_values(args)
    settings = [parse_setting(item) for item in args.set]
    for key, value in settings:
        if not named_setting(key):
            put(values, key, value)
    if args.task not in (None, values.get("task", {}).get("name")):
        values["task"] = {"name": args.task}
    for table, key, value in (("search", "seed", args.seed), ("teacher", "name", args.teacher)):
        if value is not None:
            values[table] = {**values.get(table, {}), key: value}
    if args.data is not None:
        task = values.get("task", {})
        values["task"] = {**task, "options": {**task.get("options", {}), "data": args.data}}
    for flag in ("space", "proxy"):
        # What is named on the command line takes the options that the configuration has for it.
        known = {str(entry["name"]).rpartition(":")[2] for entry in values.get(flag, [])}
        names = dict.fromkeys(getattr(args, flag) or ())
        added = [{"name": name} for name in names if name.rpartition(":")[2] not in known]
        if added:  # else what the configuration leaves out takes its default, or what the task suggests
            values[flag] = [*values.get(flag, []), *added]
    for key, value in settings:
        if named_setting(key):
            put(values, key, value)
    return parse_config(values, where=where)


def _proxies(host: Host, config: RunConfig, names: list[str] | None) -> dict[str, tuple[Proxy, ProxyTags]]:
    """Name as it was given -> proxy, with the options that the configuration has for it."""
    from nasdistill.errors import UsageError
    from nasdistill.spec.component import Kind

    known = {host.canonical(Kind.PROXY, item.name): item.options for item in config.proxy}
    wanted = list(dict.fromkeys(names if names is not None else [item.name for item in config.proxy]))
    if not wanted:
        raise UsageError("no proxy to score with", hint="Give --proxy NAME; nasdistill plugins list --kind proxy.")
    return {
        name: (
            host.create(Kind.PROXY, name, known.get(host.canonical(Kind.PROXY, name))),
            host.tags(Kind.PROXY, name),
        )
        for name in wanted
    }


def _points(host: Host, config: RunConfig, args: argparse.Namespace) -> list[tuple[SearchSpace, Architecture]]:
    """The architectures given, then those sampled from the spaces named, else from those of the configuration."""
    import random

    from nasdistill.cli.architectures import Spaces, read_architectures
    from nasdistill.seeds import derive_seed

    options = {item.name: item.options for item in config.space}
    spaces = Spaces(host, options)
    named = list(dict.fromkeys(args.space or ()))
    points = read_architectures(spaces, args.arch, named)
    for space in map(spaces.get, named or options) if args.sample is not None else ():
        rng = random.Random(derive_seed(config.search.seed, "score", "sample", space.id))
        points += [(space, space.sample(rng)) for _ in range(args.sample)]
    return points


def _score(
    host: Host,
    config: RunConfig,
    points: Sequence[tuple[SearchSpace, Architecture]],
    proxies: dict[str, tuple[Proxy, ProxyTags]],
) -> list[Row]:
    """One row per architecture."""
    import torch

    from nasdistill.cli import output
    from nasdistill.errors import MismatchError
    from nasdistill.files import cache_folder
    from nasdistill.measure.proxies import pool_values, run_proxy
    from nasdistill.search.parts import choose_device
    from nasdistill.seeds import derive_seed, seeded
    from nasdistill.spec.component import Kind

    needs_teacher = any(tags.needs_teacher for _, tags in proxies.values())
    seed, device = config.search.seed, choose_device(config.training.device)
    task: Task = host.create(Kind.TASK, config.task.name, config.task.options)
    teacher_name, locator = host.locate(Kind.TEACHER, config.teacher.name) if needs_teacher else ("", "")
    provider = host.create(Kind.TEACHER, teacher_name, config.teacher.options) if needs_teacher else None
    threads = torch.get_num_threads()
    torch.set_num_threads(config.training.threads)
    try:
        task.prepare(cache_folder(), output.info)
        for space in {space.id: space for space, _ in points}.values():
            reason = space.accepts(task.io)
            if reason is not None:
                raise MismatchError(f"space {space.id} does not fit the task ({task.io}): {reason}")
        teacher = None
        if provider is not None:
            session = provider.open(locator, task, cache_dir=cache_folder(), device=device, progress=output.info)
            teacher = session.model
            task.check(teacher, f"teacher {config.teacher.name}")
        needed = max(proxy.batches_needed() for proxy, _ in proxies.values())
        size = config.training.batch_size
        batches = tuple(b for b, _ in zip(task.batches("train", batch_size=size), range(needed), strict=False))
        rows: list[Row] = []
        found = []
        for space, arch in points:
            cost = space.cost(arch, task.io)
            with seeded(seed, "init", arch.fingerprint):
                model = space.build(arch, task.io).to(device)
            outcomes = {
                name: run_proxy(
                    proxy,
                    tags,
                    model=model,
                    teacher=teacher,
                    batches=batches,
                    forward=task.forward,
                    loss=task.loss,
                    io=task.io,
                    cost=cost,
                    seed=derive_seed(seed, "proxy", proxy.id),
                )
                for name, (proxy, tags) in proxies.items()
            }
            found.append(outcomes)
            rows.append(
                {
                    "architecture": arch.to_json(),
                    "scores": {name: outcome.value for name, outcome in outcomes.items()},
                    "problems": {name: outcome.problem for name, outcome in outcomes.items() if outcome.problem},
                    "seconds": {name: outcome.seconds for name, outcome in outcomes.items()},
                    "label": f"{space.id.split(':', 1)[-1]} {arch.id}",
                    "features": " ".join(f"{axis}={value}" for axis, value in space.features(arch).items()),
                    "cost": cost,
                }
            )
            output.detail(f"scored {rows[-1]['label']}")
        for name, (proxy, tags) in proxies.items():
            if tags.pool:
                pooled = pool_values({i: outcomes[name] for i, outcomes in enumerate(found)}, proxy)
                for i, value in pooled.items():
                    rows[i]["scores"][name] = value
    finally:
        torch.set_num_threads(threads)
    return rows


def _print_table(rows: Sequence[Row], proxies: Sequence[str]) -> None:
    """A table with size beside every score, then what went wrong, each text once."""
    from nasdistill.cli import output

    others = [name for name in proxies if name.rpartition(":")[2] not in ("params", "macs")]
    numbers = ("params", "macs", *others)
    cells = []
    for row in rows:
        features = row["features"] if len(row["features"]) <= 60 else row["features"][:57] + "..."
        scores = [row["scores"][name] for name in others]
        cells.append(
            [
                row["label"],
                f"{row['cost'].params:,}",
                f"{row['cost'].macs:,}",
                *("-" if score is None else f"{score:.6g}" for score in scores),
                features,
            ]
        )
    output.print_table(("architecture", *numbers, "parameters of the space"), cells, right=numbers)
    seen: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, problem in row["problems"].items():
            seen.setdefault((name, problem), []).append(row["label"])
    for (name, problem), labels in seen.items():
        where = labels[0] if len(labels) == 1 else f"{len(labels)} architectures"
        output.warn(f"{name}, {where}: {problem}")
