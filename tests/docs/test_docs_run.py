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


FAST = (
    "--trials 2 --seed 1 --set search.strategy_options.short_epochs=1 --set search.strategy_options.full_epochs=2 "
    "--set search.strategy_options.round_size=2 --set search.strategy_options.max_latency_ratio=100 "
    "--set latency.max_seconds=0.2 --set search.baselines=none"
)


@pytest.fixture
def journey(tmp_path):
    """A folder with what the README's reader has: photos, a package with a network, and a finished run."""
    from PIL import Image
    from sklearn.datasets import load_digits

    images, labels = load_digits(n_class=3, return_X_y=True)
    for number, (image, label) in enumerate(zip(images[:90], labels[:90], strict=True)):
        folder = tmp_path / "photos" / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.reshape(8, 8) * 15).astype("uint8")).convert("RGB").save(folder / f"{number}.png")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").touch()
    (tmp_path / "my_package" / "models.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 256, 3), nn.ReLU(), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 3))\n"
    )
    return tmp_path


@pytest.mark.slow
def test_the_readme(journey):
    """Every command and Python block, searches cut short; the two installations are the continuous check's."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(journey), "OMP_NUM_THREADS": "1"}

    def run(*command):
        done = subprocess.run(command, cwd=journey, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    # As command one does after the installation.
    tiny = "--teacher timm:test_resnet --target torch_cpu --space resnet_s0 --out runs/digits"
    run("bash", "-c", f"nasdistill search {tiny} {FAST}")
    student = next((journey / "runs" / "digits" / "students").iterdir()).name
    seen = []
    for language, code in blocks(ROOT / "README.md"):
        if language == "python":
            run(sys.executable, "-c", code.replace("max_latency_ms=0.05", "max_latency_ms=1000"))
            continue
        for line in code.splitlines():
            if line.startswith("pip install"):
                continue
            command = line.replace("0037-99df52", student).replace("--epochs 200", "--epochs 1")
            run("bash", "-c", f"{command} {FAST}" if line.startswith("nasdistill search") else command)
            seen.append(line.split()[1])
    assert set(seen) >= {"search", "config", "export", "distill", "plugins", "spaces"}
