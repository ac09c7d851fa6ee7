"""``nasdistill measure``: latency of architectures (with random weights) and of a teacher, head to head on targets."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nasdistill.host import Host
    from nasdistill.interfaces import Target, Task
    from nasdistill.spec.config import RunConfig
    from nasdistill.spec.measurement import Budget


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--arch", action="append", default=[], metavar="A",
                        help="architecture: a file, JSON, a student's folder, RUN:ID, or default")  # fmt: skip
    parser.add_argument("--space", metavar="NAME", help="space of the architectures (alone: its default point)")
    parser.add_argument("--teacher", metavar="T", help="a teacher, such as timm:resnet18; measured first")
    parser.add_argument("--target", action="append", metavar="T", help="where to measure; repeat for several")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration that names task and targets")
    parser.add_argument("--preset", metavar="NAME", help="a bundled preset instead (default: digits)")
    parser.add_argument("--task", metavar="NAME", help="task that gives input and output")
    parser.add_argument("--data", metavar="PATH", help="data of the task")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="samples per forward (default: 1)")
    parser.add_argument("--pairs", type=int, metavar="N", help="exactly N interleaved rounds (default: until certain)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of weights and orders (default: 0)")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Measure, print, and return 1 when a network failed on a target."""
    from nasdistill.cli import output
    from nasdistill.cli.common import load_host
    from nasdistill.errors import UsageError
    from nasdistill.files import cache_folder
    from nasdistill.host.adapting import adapt_config
    from nasdistill.spec.component import Kind

    if not args.arch and args.teacher is None and args.space is None:
        raise UsageError("nothing to measure", hint="Give --space NAME, --arch JSON_OR_FILE or --teacher T.")
    for name in ("batch", "pairs"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UsageError(f"--{name} must be at least 1")
    config = _config(args)
    host = load_host(args, disable=config.plugins.disable)
    config = adapt_config(config, host)
    known = {item.name: item.options for item in config.target}
    targets = [host.create(Kind.TARGET, name, known.get(name)) for name in dict.fromkeys(args.target or [*known])]
    task = host.create(Kind.TASK, config.task.name, config.task.options)
    task.prepare(cache_folder(), output.info)
    models, facts = _models(args, config, host, task)
    example = task.example(args.batch)
    for name, model in models.items():
        facts[name] |= _size(model, example)
    rows = []
    for target in targets:
        output.info(f"measuring {len(models)} network{'s' * (len(models) != 1)} on {target.id}")
        rows += _measure(target, models, example, _budget(args, config), args.seed)
    rows = [{"name": row["name"], **facts[row["name"]], **row} for row in rows]
    if args.json:
        output.print_json(rows)
    else:
        _print(rows, next(iter(models)))
    return 1 if any(row["problem"] for row in rows) else 0


def _config(args: argparse.Namespace) -> RunConfig:
    """Return the configuration with --task and --data in place."""
    from nasdistill.cli.common import config_values
    from nasdistill.spec.config import parse_config

    values, where = config_values(args)
    task = dict(values.get("task", {}))
    if args.task is not None and args.task != task.get("name"):
        task = {"name": args.task}
    if args.data is not None:
        task["options"] = {**task.get("options", {}), "data": args.data}
    values = {**values, "task": task}
    if args.teacher not in (None, values.get("teacher", {}).get("name")):
        values["teacher"] = {"name": args.teacher}
    return parse_config(values, where=where)


def _models(
    args: argparse.Namespace, config: RunConfig, host: Host, task: Task
) -> tuple[dict[str, nn.Module], dict[str, dict[str, Any]]]:
    """Build what is to be measured: name -> network in eval mode, and name -> facts for the record."""
    from nasdistill.cli import output
    from nasdistill.cli.architectures import Spaces, read_architectures
    from nasdistill.errors import MismatchError
    from nasdistill.files import cache_folder
    from nasdistill.host.adapting import describe_teacher
    from nasdistill.seeds import seeded
    from nasdistill.spec.component import Kind

    models: dict[str, nn.Module] = {}
    facts: dict[str, dict[str, Any]] = {}
    texts = args.arch or (["default"] if args.space is not None else [])
    # Read before the teacher is opened: a typing error should not wait for a training.
    spaces = Spaces(host, {item.name: item.options for item in config.space}, describe_teacher(config, host))
    architectures = read_architectures(spaces, texts, [] if args.space is None else [args.space])
    if args.teacher is not None:
        component, locator = host.locate(Kind.TEACHER, args.teacher)
        teacher = host.create(Kind.TEACHER, component, config.teacher.options)
        session = teacher.open(locator, task, cache_dir=cache_folder(), progress=output.info)
        models["teacher"] = session.model
        facts["teacher"] = {"teacher": session.label, "architecture": None}
    for space, arch in architectures:
        reason = space.accepts(task.io)
        if reason is not None:
            raise MismatchError(f"space {space.id} does not fit the task ({task.io}): {reason}")
        copies = sum(name.partition("#")[0] == arch.id for name in models)
        name = f"{arch.id}#{copies + 1}" if copies else arch.id
        with seeded(args.seed, arch.fingerprint):
            models[name] = space.build(arch, task.io).eval()
        facts[name] = {"teacher": None, "architecture": arch.to_json()}
    return models, facts


def _size(model: nn.Module, example: tuple[Tensor, ...]) -> dict[str, int]:
    """Return parameters and MACs of one forward."""
    from nasdistill.measure import count_macs, count_params

    return {"params": count_params(model), "macs": count_macs(model, example)}


def _budget(args: argparse.Namespace, config: RunConfig) -> Budget:
    """Return the limits: the configuration's for a final measurement, or exactly --pairs rounds."""
    from nasdistill.spec.measurement import Budget

    latency = config.latency
    if args.pairs is not None:
        return Budget(max_seconds=600.0, min_pairs=args.pairs, max_pairs=args.pairs, relative_width=1e-9)
    return Budget(
        max_seconds=latency.max_seconds,
        min_pairs=min(latency.min_pairs, latency.final_pairs),
        max_pairs=latency.final_pairs,
        relative_width=latency.relative_width,
    )


def _measure(
    target: Target, models: dict[str, nn.Module], example: tuple[Tensor, ...], budget: Budget, seed: int
) -> list[dict[str, Any]]:
    """Measure all networks on one target; one that cannot be prepared is a row with its problem."""
    from nasdistill.errors import TrialFailure
    from nasdistill.measure import Meter
    from nasdistill.spec.measurement import TargetReport

    reports: dict[str, TargetReport] = {}
    problems: dict[str, str] = {}
    prepared = {}
    with tempfile.TemporaryDirectory() as folder, Meter(target, Path(folder), budget, seed) as meter:
        try:
            for number, (name, model) in enumerate(models.items()):
                try:
                    prepared[name] = meter.prepare(model, example, f"model{number}")
                except TrialFailure as failure:
                    problems[name] = f"{failure.reason}: {failure.message}"
            if prepared:
                reports = meter.report_prepared(prepared, baseline=next(iter(prepared)))
        finally:
            for item in prepared.values():
                item.close()
    rows = []
    for name in models:
        row: dict[str, Any] = {"name": name, "target": target.id, "latency_ms": None, "ratio": None, "report": None}
        if name in reports:
            report = reports[name]
            row |= {"latency_ms": report.latency.brief(), "ratio": report.info["ratio"], "report": report.to_json()}
        rows.append({**row, "problem": problems.get(name)})
    return rows


def _print(rows: list[dict[str, Any]], first: str) -> None:
    """Print the table, and problems below it."""
    from nasdistill.cli import output

    columns = ["network", "target", "ms", "low", "high", f"ratio to {first}", "params", "MACs", "artefact kB",
               "parity", "rounds", "quality"]  # fmt: skip
    cells = []
    for row in rows:
        head = [row["name"], row["target"]]
        size = [f"{row['params']:,}", f"{row['macs']:,}"]
        if row["report"] is None:
            cells.append([*head, "failed", "", "", "", *size, "", "", "", ""])
            continue
        latency, ratio, report = row["latency_ms"], row["ratio"], row["report"]
        share = f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]" if ratio["to"] == first else "-"
        kilobytes = "" if report["artefact_bytes"] is None else f"{report['artefact_bytes'] / 1000:.1f}"
        cells.append([
            *head, *(f"{latency[key]:.4f}" for key in ("value", "low", "high")), share, *size, kilobytes,
            f"{report['max_rel_error']:.1e}", report["latency"]["pairs"],
            " ".join([report["latency"]["quality"], *report["latency"]["flags"]]),
        ])  # fmt: skip
    output.print_table(columns, cells, right=[name for name in columns if name not in ("network", "target", "quality")])
    for row in rows:
        if row["problem"]:
            output.say(f"{row['name']} on {row['target']}: {row['problem']}")
