"""``nasdistill diagnose``: look at a teacher, at students and at data with a diagnostic."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nasdistill.interfaces import Finding
    from nasdistill.spec.config import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="DIAGNOSTIC", help="such as attention_similarity")
    parser.add_argument(
        "students", nargs="*", metavar="STUDENT", help="students to look at beside the teacher: folders, or RUN:ID"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="take task and teacher from there")
    parser.add_argument("--preset", metavar="NAME", help="the same from a bundled preset (default: digits)")
    parser.add_argument("--teacher", metavar="T", help="teacher, such as hf:./my-bert or builtin:digits")
    parser.add_argument("--task", metavar="NAME", help="task")
    parser.add_argument("--data", metavar="PATH", help="data of the task")
    parser.add_argument("--batches", type=int, default=2, metavar="N", help="training batches to look at (default: 2)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="option of the diagnostic, such as threshold=0.8 (TOML value)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write finding.json and a page per figure there")
    parser.add_argument("--json", action="store_true", help="print the finding as JSON")


def run(args: argparse.Namespace) -> int:
    """Open, look, and print."""
    from nasdistill.cli.common import load_host, parse_setting
    from nasdistill.cli.output import info, print_json
    from nasdistill.errors import UsageError
    from nasdistill.host.adapting import adapt_config
    from nasdistill.interfaces import Diagnostic
    from nasdistill.library import find_student
    from nasdistill.search.parts import create_components, open_parts
    from nasdistill.seeds import seeded
    from nasdistill.spec.component import Kind
    from nasdistill.trace import make_tracer

    if args.batches < 1:
        raise UsageError(f"--batches must be at least 1, not {args.batches}")
    config = _config(args)
    host = load_host(args, disable=config.plugins.disable)
    diagnostic: Diagnostic = host.create(Kind.DIAGNOSTIC, args.name, dict(map(parse_setting, args.set)))
    diagnostic.check()
    config = adapt_config(config, host)
    # Like the check, found before the teacher is opened: a typing error should not wait for a training.
    students = {text: find_student(text, host=host) for text in args.students}
    parts = open_parts(create_components(config, host), config, message=info)
    models = {"teacher": parts.teacher.model}
    models |= {text: student.model().to(parts.device) for text, student in students.items()}
    found = parts.task.batches("train", batch_size=config.training.batch_size)
    batches = [batch.to(parts.device) for batch, _ in zip(found, range(args.batches), strict=False)]
    info(f"{diagnostic.id}: looking at {', '.join(models)}")
    with seeded(config.search.seed, "diagnose", diagnostic.id):
        finding = diagnostic.examine(models, parts.task, batches, make_tracer(parts.task.forward))
    if args.out is not None:
        _write(args.out, diagnostic.id, finding)
        info(f"written: {args.out}")
    if args.json:
        print_json(_json(diagnostic.id, finding))
    else:
        _print(finding)
    return 0


def _config(args: argparse.Namespace) -> RunConfig:
    """Return the configuration with the command line's task, teacher and data in place; spaces play no part."""
    from nasdistill.cli.common import config_values
    from nasdistill.spec.config import parse_config

    values, where = config_values(args)
    for table, name in (("task", args.task), ("teacher", args.teacher)):
        if name is not None and name != values.get(table, {}).get("name"):
            values[table] = {"name": name}
    if args.data is not None:
        task = values.get("task", {})
        values["task"] = {**task, "options": {**task.get("options", {}), "data": args.data}}
    return parse_config(values, where=where)


def _json(name: str, finding: Finding) -> dict[str, Any]:
    return {
        "diagnostic": name,
        "values": dict(finding.values),
        "tables": {key: [dict(row) for row in rows] for key, rows in finding.tables.items()},
        "figures": {key: dict(figure) for key, figure in finding.figures.items()},
        "text": finding.text,
    }


def _write(folder: Path, name: str, finding: Finding) -> None:
    """Write the finding, and each figure as a page that needs nothing from elsewhere."""
    import re

    from nasdistill.files import write_json, write_text

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "finding.json", _json(name, finding))
    if finding.figures:
        import plotly.graph_objects
        import plotly.io

        for key, figure in finding.figures.items():
            page = plotly.io.to_html(plotly.graph_objects.Figure(figure), include_plotlyjs=True)
            write_text(folder / f"{re.sub(r'[^A-Za-z0-9_-]+', '_', key)}.html", page)


def _print(finding: Finding) -> None:
    """Print values, tables and what they mean."""
    from nasdistill.cli.output import print_pairs, print_table, say

    if finding.values:
        print_pairs({name: _shown(value) for name, value in finding.values.items()})
    for title, rows in finding.tables.items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines = [[_shown(row.get(column)) for column in columns] for row in rows]
        print_table(columns, lines, title=title)
    if finding.text:
        say(finding.text)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
