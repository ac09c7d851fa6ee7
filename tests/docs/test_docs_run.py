"""Every code block of the documentation runs: the tutorial in order, in one empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(path.read_text(encoding="utf-8"))


def test_only_these_pages_have_code():
    """A new page with code must be run by a test here."""
    pages = {str(p.relative_to(ROOT)) for p in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if blocks(p)}
    assert pages == {"README.md", "docs/tutorial.md"}


@pytest.mark.slow
def test_the_tutorial(tmp_path):
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    found = blocks(ROOT / "docs" / "tutorial.md")
    assert {language for language, _ in found} == {"bash", "python"}
    for language, code in found:
        command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "runs" / "first" / "result.json").is_file()
    assert (tmp_path / "runs" / "mine" / "students").is_dir()


@pytest.mark.slow
def test_the_readme_commands_that_look_at_parts(tmp_path):
    """The README's installation and full searches are run by the continuous check; the other commands here."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    commands = [
        line
        for language, code in blocks(ROOT / "README.md")
        if language == "bash"
        for line in code.splitlines()
        if line.startswith("nasdistill ") and not line.startswith(("nasdistill search", "nasdistill show"))
    ]
    assert len(commands) >= 4
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
