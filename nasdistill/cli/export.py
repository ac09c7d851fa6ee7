"""``nasdistill export``: a student as a folder for torch, onnxruntime or transformers."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="RUN_OR_STUDENT", help="run directory, student's folder, or RUN:ID")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write; missing or empty")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="hf, onnx, torch, or a plugin's exporter")
    parser.add_argument("--student", metavar="ID", help="id, start of an id, or trial of a run (default: the best)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="option of the exporter, such as opset=18"
    )
    parser.add_argument("--json", action="store_true", help="print what export.json says, and the folder")


def run(args: argparse.Namespace) -> int:
    """Export one student."""
    from nasdistill.cli.common import load_host, parse_setting
    from nasdistill.cli.output import info, print_json, say, warn
    from nasdistill.library import find_student

    options = dict(parse_setting(item) for item in args.set)
    host = load_host(args)
    student = find_student(args.source, args.student, host=host)
    info(f"exporting {student!r}")
    facts = student.export(args.to, args.folder, options=options or None)
    for note in facts.get("notes", ()):
        warn(note)
    if args.json:
        print_json(facts)
        return 0
    files = len(facts["files"])
    say(f"{args.folder}: student {student.id} for {facts['to'].split(':')[-1]}, {files} file{'s' * (files != 1)}")
    if facts.get("opens_with"):
        say(f"Opens with {facts['opens_with']}.")
    parity = facts.get("parity")
    if parity is not None:
        say(f"Largest deviation from torch: {parity['max_abs']:.3g} over {parity['inputs']} inputs.")
    return 0
