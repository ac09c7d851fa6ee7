"""``nasdistill distill``: train a found architecture longer, on other data, or with another teacher."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from nasdistill.distill.stepping import EpochReport
    from nasdistill.host import Host
    from nasdistill.interfaces import TeacherInfo
    from nasdistill.spec.architecture import Architecture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("arch", metavar="ARCH", help="architecture file, student's folder, run (its best), or RUN:ID")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the training data (not with a recipe)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the student; goes on there")
    parser.add_argument("--config", type=Path, metavar="FILE", help="task, teacher, objective, training, as for search")
    parser.add_argument("--teacher", metavar="T", help="teacher, such as timm:resnet18 or builtin:digits")
    parser.add_argument("--task", metavar="NAME", help="task")
    parser.add_argument("--data", metavar="PATH", help="data of the task: a folder, an .npz, a .parquet, or digits")
    parser.add_argument(
        "--loss", action="append", metavar="NAME[=WEIGHT]", help="distillation loss; repeat for several"
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="train in a recipe's stages; options: --set recipe.options.KEY=VALUE",
    )
    parser.add_argument("--init", metavar="STUDENT", help="start from this student's weights: its folder, or RUN:ID")
    parser.add_argument("--seed", type=int, metavar="S", help="root of all randomness (default: the run's, else 0)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any key, such as training.lr=1e-3 (TOML value)"
    )
    parser.add_argument("--json", action="store_true", help="print the result object as the last thing on stdout")


def run(args: argparse.Namespace) -> int:
    """Train, and print what came out."""
    from nasdistill.cli.common import load_host
    from nasdistill.cli.output import info, print_json, say
    from nasdistill.errors import UsageError
    from nasdistill.host.adapting import adapt_config
    from nasdistill.library import load_student
    from nasdistill.library.training import Distillation, distill_architecture
    from nasdistill.spec.config import parse_config

    if args.epochs is not None and args.epochs < 1:
        raise UsageError(f"--epochs must be at least 1, not {args.epochs}")
    host = load_host(args)
    arch, options, base = find_architecture(args.arch, host, lambda: named_teacher(args, host))
    values, where = configuration(args, base)
    values["space"] = [{"name": arch.space, "options": options}]
    config = adapt_config(parse_config(values, where=where), host, where=where)
    if config.recipe is None and args.epochs is None:
        raise UsageError("how long? Give the passes over the training data by --epochs N, or a recipe by --recipe NAME")
    if config.recipe is not None and (args.epochs is not None or args.loss):
        raise UsageError(
            f"recipe {config.recipe.name} has epochs and losses of its own; --epochs and --loss are for one training",
            hint="Set its options, such as --set recipe.options.epochs=5; nasdistill plugins show NAME lists them.",
        )
    request = Distillation(
        arch,
        config,
        args.epochs or 0,
        seed=config.search.seed if args.seed is None else args.seed,
        init=None if args.init is None else load_student(args.init, host=host),
    )

    def on_epoch(report: EpochReport) -> None:
        loss = report.terms.get("total", float("nan"))
        judged = "" if report.evaluation is None else f", validation {report.evaluation.score:.4f}"
        info(f"epoch {report.epoch + 1} of {args.epochs}: loss {loss:.4f}{judged}, {report.seconds:.1f} s")

    name = student_name(args.arch, host) if args.init is None else None
    first = int(os.environ.get("RANK", "0")) == 0  # of several processes one speaks
    if name is not None and first and not (args.out / "distill.json").exists():
        info(f"the student's own weights are left aside; --init {name} goes on from them")
    try:
        result = distill_architecture(request, args.out, host=host, message=info, on_epoch=on_epoch)
    except KeyboardInterrupt as stop:
        if not stop.args and (args.out / "distill.json").exists():
            stop.args = ("the same command goes on",)
        raise
    if not first:
        return 0
    if args.json:
        print_json(result)
        return 0
    test = "" if result["test"] is None else f", test {result['test']['score']:.4f}"
    trained = f"{result['epochs']} epoch{'s' * (result['epochs'] != 1)}"
    if config.recipe is not None:
        stages = [entry["name"] for entry in result["recipe"]["record"] if entry["kind"] == "stage"]
        trained = f"recipe {config.recipe.name} ({len(stages)} stage{'s' * (len(stages) != 1)})"
        if result["architecture"] != arch.to_json():
            trained += " chose another architecture"
    say(
        f"{args.out}: {result['metric']['name']} {result['validation']['score']:.4f} on validation{test}, after "
        f"{trained}, {result['params']:,} params"
    )
    return 0


def named_teacher(args: argparse.Namespace, host: Host) -> TeacherInfo:
    """Return what the teacher of the command line (or of its file) says of itself."""
    from nasdistill.host.adapting import describe_teacher
    from nasdistill.spec.config import parse_config

    values, where = configuration(args, {})
    return describe_teacher(parse_config(values, where=where), host)


def find_architecture(
    text: str, host: Host, teacher: Callable[[], TeacherInfo]
) -> tuple[Architecture, dict[str, Any], dict[str, Any]]:
    """Return an architecture, the options of its space, and the configuration of its run (empty without one).

    Args:
        text: JSON, a file, a student's folder, or ``RUN:ID``.
        host: where spaces come from.
        teacher: what a space adapts to for which no options are given.

    Raises:
        UsageError: there is none; says why.
    """
    from nasdistill.cli.architectures import Spaces, read_architecture
    from nasdistill.files import read_json
    from nasdistill.library import find_student
    from nasdistill.spec.architecture import read_json as read_source

    is_json = text.lstrip().startswith(("{", "["))
    run_or_text = "" if is_json else text.rpartition(":")[0]
    if is_json or not (Path(text).is_dir() or (run_or_text and Path(run_or_text).is_dir())):
        value, where = read_source(text)
        options = value.get("space_options") if isinstance(value, dict) else None
        named = {value["space"]: options} if options and "space" in value else None
        space, arch = read_architecture(Spaces(host, named, None if named else teacher()), value, where)
        return arch, space.options.model_dump(mode="json"), {}
    student = find_student(text, host=host)
    if student.transforms:
        from nasdistill.cli.output import info

        names = ", ".join(step.name for step in student.transforms)
        info(f"{text} went through {names}; what is trained here is the network before that")
    space = student.space()
    space.check(student.architecture)
    folder = Path(text if Path(text).is_dir() else run_or_text).resolve()
    run = next((path for path in (folder, folder.parent.parent) if (path / "run.json").is_file()), None)
    base = {} if run is None else read_json(run / "config.json")
    return student.architecture, space.options.model_dump(mode="json"), base if isinstance(base, dict) else {}


def student_name(text: str, host: Host) -> str | None:
    """Return what `--init` takes for the student that ARCH names; None where ARCH is a bare architecture."""
    from nasdistill.library import find_student

    if text.lstrip().startswith(("{", "[")):
        return None
    folder = Path(text)
    if (folder / "run.json").is_file():  # its best
        return f"{text}:{find_student(text, host=host).id}"
    run = text.rpartition(":")[0]
    return text if folder.is_dir() or (run and (Path(run) / "run.json").is_file()) else None


def configuration(args: argparse.Namespace, base: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the tables to train with: the file's, else the run's, with the options in place; and where they are from.

    Raises:
        UsageError: an option is malformed.
    """
    from nasdistill.cli.common import parse_setting, put
    from nasdistill.errors import UsageError
    from nasdistill.spec.config import parse_config, read_toml

    values, where = (dict(base), "the run's configuration") if base else ({}, "the command line's options")
    if args.config is not None:
        values, where = read_toml(args.config), str(args.config)
    known = parse_config(
        values, where=where
    )  # the file is judged first, so that a mistake in it is not blamed on options
    if args.teacher not in (None, known.teacher.name):
        put(values, "teacher.options", {})
    if args.task not in (None, known.task.name):
        put(values, "task.options", {})
    for item in args.set:
        put(values, *parse_setting(item))
    if args.recipe is not None and known.recipe is not None and args.recipe != known.recipe.name:
        put(values, "recipe.options", {})
    flags = (
        ("teacher", "teacher.name"), ("task", "task.name"), ("data", "task.options.data"), ("recipe", "recipe.name"),
    )  # fmt: skip
    for flag, key in flags:
        if getattr(args, flag) is not None:
            put(values, key, getattr(args, flag))
    if args.loss:
        given = {loss.name: loss.model_dump(mode="json") for loss in known.objective.losses}
        losses = []
        for item in args.loss:
            name, equals, weight = item.partition("=")
            loss = dict(given.get(name, {"name": name}))
            if equals:
                try:
                    loss["weight"] = float(weight)
                except ValueError:
                    raise UsageError(f"--loss {item!r}: the weight must be a number") from None
            losses.append(loss)
        put(values, "objective.losses", losses)
    return values, where
