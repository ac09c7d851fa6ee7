"""A clean virtual environment, as a user has one, without downloading anything."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
from pathlib import Path


class CleanEnvironment:
    """A virtual environment with the wheel, outside the checkout.

    torch and the other dependencies are those of the interpreter that runs the tests, named in a ``.pth`` file: nothing
    is downloaded. The checkout itself is not on the path.

    Attributes:
        folder: where commands run; nothing of the checkout is in it.
        python: the interpreter.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "outside"
        self.folder.mkdir(parents=True)
        home = folder / "environment"
        venv.create(home, symlinks=os.name != "nt")
        self.python = home / ("Scripts" if os.name == "nt" else "bin") / Path(sys.executable).name
        if not self.python.exists():
            self.python = self.python.with_name("python")
        (packages,) = home.glob("[Ll]ib/**/site-packages")
        lent = [path for path in site.getsitepackages() if Path(path).is_dir()]
        (packages / "zz_lent.pth").write_text("\n".join(lent) + "\n", encoding="utf-8")
        own = {name: value for name, value in os.environ.items() if not name.startswith(("NASDISTILL_", "PYTEST_"))}
        for name in ("PYTHONPATH", "VIRTUAL_ENV"):
            own.pop(name, None)
        self.environment = own | {
            "NASDISTILL_CACHE": str(folder / "cache"), "NASDISTILL_CONFIG_HOME": str(folder / "config"),
            "NASDISTILL_STRICT_PLUGINS": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120", "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / "hf"), "PIP_NO_COMPILE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INPUT": "1",
        }  # fmt: skip

    def run(self, *words: object, ok: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run the environment's interpreter with these arguments; with `ok` a failure is the test's."""
        done = subprocess.run(
            [str(self.python), *map(str, words)], cwd=self.folder, env=self.environment, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=timeout, check=False,
        )  # fmt: skip
        assert not ok or done.returncode == 0, f"{words}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        return done

    def cli(self, *words: object, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``nasdistill ...``."""
        return self.run("-m", "nasdistill", *words, ok=ok)

    def pip(self, *words: object) -> None:
        """Run pip on this environment, without any index."""
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *map(str, words)]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"

    def install(self, *sources: Path) -> None:
        """Install wheels or source folders (which are built first), without what they depend on."""
        # --ignore-installed: the lent packages include nasdistill itself, as an editable.
        options = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed")
        self.pip("install", *options, *sources)

    def uninstall(self, distribution: str) -> None:
        """Uninstall a distribution."""
        self.pip("uninstall", "--quiet", "--yes", distribution)
