"""``nasdistill search``: from a teacher to a Pareto front of distilled, measured students."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from nasdistill.host import Host
    from nasdistill.search.events import Listener
    from nasdistill.spec.config import RunConfig


_CUT = "max_latency_ratio"
"""Strategies' option: slowest student that is trained, relative to the teacher."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml", help="configuration file")
    parser.add_argument("--preset", metavar="NAME", help="start from a bundled preset (default: digits)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="new run directory (default: runs/NAME, next free)")
    parser.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help="architectures to propose; supernet and training_free score many times as many",
    )
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds after which nothing new is proposed")
    parser.add_argument("--seed", type=int, metavar="S", help="root of all randomness")
    parser.add_argument("--space", action="append", metavar="NAME", help="search space; repeat for several")
    parser.add_argument("--teacher", metavar="T", help="teacher, such as timm:resnet18 or builtin:digits")
    parser.add_argument("--task", metavar="NAME", help="what the models do, such as text_classification")
    parser.add_argument("--data", metavar="PATH", help="data of the task: a file, a folder, or digits")
    parser.add_argument("--target", action="append", metavar="T", help="target; the first is the second objective")
    parser.add_argument("--proxy", action="append", metavar="P", help="proxy; repeat for several")
    parser.add_argument("--strategy", metavar="NAME", help="how the budget is spent")
    parser.add_argument("--sampler", metavar="NAME", help="who proposes: tpe, nsga2, gp, qmc, random")
    parser.add_argument("--max-latency-ms", type=float, metavar="X", help="limit on the first target")
    parser.add_argument("--max-params", type=int, metavar="N", help="limit on parameters")
    parser.add_argument("--max-macs", type=int, metavar="N", help="limit on multiply-accumulates")
    parser.add_argument("--workers", type=int, metavar="W", help="isolated processes to work in (default 0: none)")
    parser.add_argument("--no-teacher-cache", action="store_true", help="run the teacher again for every student")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any key, such as training.lr=1e-3 (TOML value)"
    )
    parser.add_argument("--json", action="store_true", help="print the result object as the last thing on stdout")


def run(args: argparse.Namespace) -> int:
    """Run the search."""
    from nasdistill.cli.common import config_values
    from nasdistill.spec.config import parse_config

    values, where = config_values(args)
    text = None if args.config is None else args.config.read_text(encoding="utf-8")
    name = args.config.stem if args.config is not None else args.preset or values.get("task", {}).get("name", "digits")
    name = "digits" if name == "image_classification" else name
    # The file is judged first, so that a mistake in it is not blamed on an option, and the other way round.
    base = parse_config(values, where=where)
    values = override(values, args, base)
    config = parse_config(values, where=f"{where} with the command line's options")
    notes: list[str] = []
    if args.config is None:
        values, notes = without_preset_cut(values, args, base, config)
        values = without_preset_spaces(values, args, base, config)
        config = parse_config(values, where=f"{where} with the command line's options")

    from nasdistill.cli.common import load_host
    from nasdistill.host.configcheck import check_config
    from nasdistill.search.run import run_search
    from nasdistill.store import RunDirectory

    out = args.out if args.out is not None else RunDirectory.next_free(Path("runs") / name)
    host = load_host(args, disable=config.plugins.disable)
    check_config(config, host, where=where if config == base else f"{where} with the command line's options")
    return watch(
        lambda listener: run_search(config, out, host=host, listener=listener, config_text=text, notes=notes),
        out,
        host,
        as_json=args.json,
    )


def watch(search: Callable[[Listener], dict[str, Any]], out: Path, host: Host, *, as_json: bool) -> int:
    """Run a search or go on with one, show what happens, then its front, and write the report.

    Args:
        search: given a listener, does the work and returns the result object.
        out: the run's folder.
        host: where report sections come from.
        as_json: print the result object instead of the table.

    Raises:
        NasdistillError: the search ended without a student.
    """
    from nasdistill.cli.output import is_quiet, print_json, say, warn
    from nasdistill.cli.progress import Display
    from nasdistill.cli.report import report_after
    from nasdistill.errors import NasdistillError
    from nasdistill.search.events import silent
    from nasdistill.search.proxyhealth import failure_line
    from nasdistill.search.reasons import nothing_finished

    if is_quiet():
        result = search(silent)
    else:
        with Display() as display:
            result = search(display)
    if as_json:
        for entry in result.get("proxy_failures", ()):
            warn(failure_line(entry))
        print_json(result)
    else:
        print_front(result)
        for line in closing_lines(result):
            say(line)
    report_after(out, host)
    if not result["front"]:
        # A search without a student did not do its work.
        message, hint = nothing_finished(result)
        raise NasdistillError(message, hint=hint)
    return 0


def print_front(result: dict[str, Any]) -> None:
    """Print teacher and front as a table that fits the terminal; elsewhere everything."""
    from nasdistill.cli.output import print_lines, terminal_width
    from nasdistill.search.summary import summary_lines

    name = result["teacher"].get("name") or "teacher"
    print_lines([f"Teacher: {name}. Latencies are for one sample, ratios to the teacher."])
    print_lines(summary_lines(result, terminal_width()), head=2)


def override(values: dict[str, Any], args: argparse.Namespace, base: RunConfig) -> dict[str, Any]:
    """Return the configuration with the command line's values in place: file, then ``--set``, then other options.

    Args:
        values: the file's tables.
        args: the parsed options.
        base: the validated form of `values`.
    """
    from nasdistill.cli.common import named_setting, parse_setting, put

    values = {**values}

    settings = [parse_setting(item) for item in args.set]
    said = dict(settings)
    # Options belong to the component that the file names; another one starts from its own defaults.
    for flagged, key, before, options in (
        (args.strategy, "search.strategy", base.search.strategy, "search.strategy_options"),
        (args.sampler, "search.sampler", base.search.sampler, "search.sampler_options"),
        (args.teacher, "teacher.name", base.teacher.name, "teacher.options"),
        (args.task, "task.name", base.task.name, "task.options"),
    ):
        if (flagged or said.get(key)) not in (None, before):
            put(values, options, {})
    for key, value in settings:
        if not named_setting(key):
            put(values, key, value)
    for flag, path in (
        ("trials", "search.trials"),
        ("timeout", "search.timeout"),
        ("seed", "search.seed"),
        ("strategy", "search.strategy"),
        ("sampler", "search.sampler"),
        ("teacher", "teacher.name"),
        ("task", "task.name"),
        ("data", "task.options.data"),
        ("max_latency_ms", "constraints.max_latency_ms"),
        ("max_params", "constraints.max_params"),
        ("max_macs", "constraints.max_macs"),
        ("workers", "workers.count"),
    ):
        if getattr(args, flag) is not None:
            put(values, path, getattr(args, flag))
    if args.no_teacher_cache:
        put(values, "training.teacher_cache", False)
    for flag in ("space", "target", "proxy"):
        names = getattr(args, flag)
        if names:
            known = {entry["name"]: entry for entry in values.get(flag, [])}
            values[flag] = [known.get(name, {"name": name}) for name in names]
    for key, value in settings:  # options of what is asked for by now
        if named_setting(key):
            put(values, key, value)
    return values


def without_preset_cut(
    values: dict[str, Any], args: argparse.Namespace, base: RunConfig, config: RunConfig
) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration without the preset's latency cut where that does not hold, and what to say about it.

    A preset's ``max_latency_ratio`` was chosen for its own teacher, data, spaces and first target; with another one of
    these it may cut off every student. An explicit limit in milliseconds takes its place.

    Args:
        values: the preset with the command line's values.
        args: the parsed options; a cut given with ``--set`` is the user's own and stays.
        base: the preset.
        config: the validated form of `values`.
    """
    search = values.get("search", {})
    options = dict(search.get("strategy_options", {}))
    keys = {item.partition("=")[0].strip() for item in args.set}
    own = bool(keys & {"search.strategy_options", f"search.strategy_options.{_CUT}"})
    changed = [
        what
        for what, differs in (
            ("another teacher", config.teacher != base.teacher),
            ("another task or other data", config.task != base.task),
            ("other search spaces", config.space != base.space),
            ("another first target", config.target[0] != base.target[0]),
            ("a latency limit in milliseconds", config.constraints.max_latency_ms is not None),
        )
        if differs
    ]
    if own or not changed or _CUT not in options:
        return values, []
    value = options.pop(_CUT)
    note = f"the preset's {_CUT} = {value:g} is left out: the command line asks for {' and '.join(changed)}"
    return {**values, "search": {**search, "strategy_options": options}}, [note]


def without_preset_spaces(
    values: dict[str, Any], args: argparse.Namespace, base: RunConfig, config: RunConfig
) -> dict[str, Any]:
    """Return the configuration without the default preset's spaces where another teacher is named.

    They were chosen for the preset's teacher; the task may suggest one whose students are cut from the teacher at hand.
    A preset or spaces that were asked for by name stay.
    """
    said = {item.partition("=")[0].strip().partition(".")[0] for item in args.set}
    if args.preset is not None or args.space or "space" in said or config.teacher.name == base.teacher.name:
        return values
    return {key: value for key, value in values.items() if key != "space"}


def closing_lines(result: dict[str, Any]) -> list[str]:
    """Return what to say under the table: trials, where the run is, how the proxies did."""
    from nasdistill.search.proxyhealth import failure_line

    trials = result["trials"]
    running = trials.get("running", 0)
    unfinished = f", {running} unfinished" if running else ""
    lines = [
        f"{trials['complete']} distilled in full, {trials['pruned']} pruned, {trials['failed']} failed{unfinished}; "
        f"{sum(result['seconds'].values()):.0f} s of work.",
    ]
    ranks = [
        f"{name} {quality['spearman']:+.2f}"
        for name, quality in result["proxies"].items()
        if quality.get("spearman") is not None
    ]
    if ranks:
        n = max(quality["n"] for quality in result["proxies"].values())
        lines.append(f"Proxies against distilled scores (Spearman, n={n}): {', '.join(ranks)}.")
    lines += [f"{line[0].upper()}{line[1:]}." for line in map(failure_line, result.get("proxy_failures", ()))]
    if result["front"] and result["front"][0].get("test_score") is None:
        lines.append(
            "No test scores: the test split has no labels."
            if result.get("state") == "finished"
            else "Test scores are not known yet: the run did not reach its final report."
        )
    lines.append(f"Run: {result['run']} (nasdistill show {result['run']})")
    return lines
