"""Reads the code blocks of a page, and runs them: a small interpreter for what the documentation shows.

A block whose first line is a comment with a file's name (``# nasdistill_acme/zen.py``) is written to that file. Other
Python runs in this process, ``nasdistill ...`` through the command line's entry point, ``pip install -e`` puts the
package on the path with its entry points as its metadata, any other shell line runs in bash.
``<!-- not run: REASON -->`` above a block leaves it out, and so does the README's ``<!-- command ONE -->``, which the
continuous check installs from; both are counted by a test.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from fake_distributions import write_distribution

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

_BLOCK = re.compile(
    r"^(?:<!-- (?:not run: )?(?P<reason>[^>]+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(r"^# ([\w./-]+\.(?:py|toml))\n")
_SHELL = re.compile(r"[|<>&;$`]|\bdone\b")

IMAGES = "--set task.options.validation_shift=0 "
"""An option that only images have; left out where a line names a task."""

SHORT = (
    f"{IMAGES}--set training.batch_size=256 --set search.baselines=none "
    "--set latency.min_pairs=3 --set latency.max_pairs=3 --set latency.final_pairs=3"
)
"""What makes every piece of work short, and leaves their number as it stands on the page."""

TINY = (
    "--trials 2 --seed 1 --set search.strategy_options.short_epochs=1 --set search.strategy_options.full_epochs=2 "
    f"--set search.strategy_options.round_size=2 --set search.strategy_options.max_latency_ratio=100 {SHORT} "
    "--workers 0"
)
"""What cuts a search with the funnel short, in this process."""


SMALL = "--teacher timm:test_resnet --target torch_cpu --space resnet_s0"
"""What keeps the default teacher from being trained."""


@dataclass(frozen=True)
class Block:
    """A code block; `reason` says why it is not run, `file` where it is written to."""

    language: str
    code: str
    reason: str | None

    @property
    def file(self) -> str | None:
        """The name in the first line."""
        match = _FILE.match(self.code)
        return match[1] if match else None


def blocks(path: Path) -> list[Block]:
    """Return the code blocks of a page in order; directives (``{toctree}``) and plain text are none."""
    return [
        Block(match["language"], match["code"], match["reason"])
        for match in _BLOCK.finditer(path.read_text(encoding="utf-8"))
    ]


def pages() -> list[Path]:
    """Return every page that is written by hand: the site's, and those that are read beside the code."""
    beside = ("README.md", "CONTRIBUTING.md", "examples/third_party_plugin/README.md")
    return [*(ROOT / name for name in beside), *sorted(DOCS.rglob("*.md"))]


def run_page(path: Path, folder: Path, *, search: str = TINY, replace: dict[str, str] | None = None) -> None:
    """Run a page's blocks in order.

    Args:
        path: the page.
        folder: where files are written to; must be the working directory.
        search: options that are added to every search.
        replace: text -> what stands there in the test, such as the id of a student.
    """
    namespace: dict[str, object] = {"__name__": "__docs__"}
    for block in blocks(path):
        if block.reason is None:
            code = block.code
            for old, new in (replace or {}).items():
                code = code.replace(old, new)
            _run(Block(block.language, code, None), folder, namespace, search, path)


def _run(block: Block, folder: Path, namespace: dict[str, object], search: str, page: Path) -> None:
    where = f"{page.relative_to(ROOT)}:\n{block.code}"
    if block.language == "toml":
        tomllib.loads(block.code)
    if block.file is not None:
        target = folder / block.file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.code, encoding="utf-8")
    elif block.language == "python":
        # The file's name lets a traceback say where it comes from.
        exec(compile(block.code, f"<{page.name}>", "exec"), namespace)
    elif block.language == "bash":
        for line in block.code.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                _shell(line.strip(), search, where)
    else:
        assert block.language in ("toml", "json", "text"), f"nobody runs {block.language} blocks: {where}"


def _shell(line: str, search: str, where: str) -> None:
    from nasdistill.cli import main

    if line.startswith("nasdistill search"):
        line = f"{line} {search.replace(IMAGES, '') if ' --task ' in line else search}"
    command, _, output = line.partition(" > ")
    if command.startswith("nasdistill ") and not _SHELL.search(f"{command} {output}"):
        with contextlib.ExitStack() as stack:
            if output:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(output).open("w"))))
            code = main(shlex.split(command)[1:])
        assert code == 0, f"exit code {code} of {line!r} in {where}"
        return
    if line.startswith("pip install -e "):
        _install(Path(line.removeprefix("pip install -e ").strip("'\"").partition("[")[0]))
        return
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if Path(path).is_relative_to(Path.cwd()))
    program = ["bash", "-euo", "pipefail", "-c", line]
    done = subprocess.run(program, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{where}\n{done.stdout}\n{done.stderr}"


def _install(package: Path) -> None:
    """What an editable installation leaves: a path, and metadata with the entry points. Nothing is built or fetched."""
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    site = package.resolve().parent / "site-packages"
    write_distribution(site, project["name"], modules={}, entries=project["entry-points"]["nasdistill"])
    sys.path[:0] = [str(site), str(package.resolve() / "src")]
    importlib.invalidate_caches()
