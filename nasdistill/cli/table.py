"""The built-in commands: what ``nasdistill --help`` prints, without importing any of them.

A command is ``"module:function"``. The function, ``run(args: argparse.Namespace) -> int``, returns the exit code; the
function ``add_arguments(parser: argparse.ArgumentParser) -> None`` of the same module declares its arguments. A command
module imports nothing heavy at module level, so that ``nasdistill COMMAND --help`` is quick too. The options
``-h``, ``-q``, ``-v``, ``--debug``, ``--no-plugin`` and ``--plugin`` are the frame's and reach every command in `args`.
"""

from __future__ import annotations

COMMANDS: dict[str, tuple[str, str]] = {
    "search": (
        "nasdistill.cli.search:run",
        "search students for a teacher: propose, filter, distil, measure, keep the Pareto front",
    ),
    "resume": ("nasdistill.cli.resume:run", "go on with a run that was interrupted or killed"),
    "show": ("nasdistill.cli.show:run", "show a run: its front, its trials, what each proxy was worth"),
    "report": ("nasdistill.cli.report:run", "write a run's report: one HTML file that needs nothing else"),
    "compare": ("nasdistill.cli.compare:run", "compare runs and saved students under one protocol"),
    "export": ("nasdistill.cli.export:run", "write a student for torch, onnxruntime or transformers"),
    "distill": ("nasdistill.cli.distill:run", "train a found architecture longer, or on other data"),
    "score": ("nasdistill.cli.score:run", "score architectures with proxies"),
    "measure": ("nasdistill.cli.measure:run", "measure the latency of architectures on targets"),
    "diagnose": ("nasdistill.cli.diagnose:run", "look at a teacher, students and data with a diagnostic"),
    "spaces": ("nasdistill.cli.spaces:run", "list, show and sample search spaces"),
    "plugins": ("nasdistill.cli.plugins:run", "list plugins and their components, show or check one, disable one"),
    "papers": ("nasdistill.cli.papers:run", "list the published systems and the components that realise each"),
    "config": ("nasdistill.cli.config:run", "write, check and show configurations"),
    "doctor": ("nasdistill.cli.doctor:run", "say what this machine has, what is missing, and how to get it"),
}
"""Name -> ("module:function", summary), in the order of the help."""
