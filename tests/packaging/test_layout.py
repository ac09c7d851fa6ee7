"""The same list of packages in pyproject.toml, in the host and on disk; the README's commands; the pinned versions."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from nasdistill.host.bundled import BUNDLED

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = [ROOT / path for path in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]


def on_disk() -> set[str]:
    """The import packages under the two source roots of plugins."""
    return {
        folder.name
        for root in ("plugins", "search_spaces")
        for folder in (ROOT / root).iterdir()
        if (folder / "__init__.py").is_file()
    }


def test_bundled_plugins_are_those_on_disk_and_in_the_wheel():
    assert set(BUNDLED) == on_disk() == {package.name for package in PACKAGES} - {"nasdistill"}
    assert len(set(BUNDLED)) == len(BUNDLED)


def test_the_import_rules_know_every_package():
    linter = PROJECT["tool"]["importlinter"]
    assert set(linter["root_packages"]) == {"nasdistill", *BUNDLED}
    rules = {contract["name"]: contract for contract in linter["contracts"]}
    assert set(rules["plugins use the public API only"]["source_modules"]) == set(BUNDLED)
    assert set(rules["plugin families do not know each other"]["modules"]) == set(BUNDLED)


def test_source_roots_are_not_packages():
    assert not (ROOT / "plugins" / "__init__.py").exists()
    assert not (ROOT / "search_spaces" / "__init__.py").exists()
    assert set(PROJECT["tool"]["hatch"]["build"]["dev-mode-dirs"]) == {".", "plugins", "search_spaces"}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_every_package_is_typed(package: Path):
    assert (package / "py.typed").is_file()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_every_folder_with_modules_is_a_package(package: Path):
    for module in package.rglob("*.py"):
        assert (module.parent / "__init__.py").is_file(), f"{module} would be left out of the import package"


def readme_command(name: str) -> str:
    """The text of the fenced block right under a marker; nothing else may stand between them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(rf"^<!-- command {name} -->\n```bash\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return found[0]


def test_command_one_installs_and_runs_the_main_job():
    assert readme_command("one") == "pip install -c constraints.txt '.[onnx]' && nasdistill search"


def test_command_two_installs_the_tests_and_runs_them():
    command = readme_command("two")
    assert command.startswith("pip install -c constraints.txt -e '.[dev]' && ")
    assert "python -m pytest" in command


def test_the_continuous_check_runs_command_two_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    function = script[script.index("readme_command() {") : script.index("}\n\ncommand_two=") + 2]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{function}\nreadme_command two"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == readme_command("two")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def requirement_name(text: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", text)
    assert found
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def test_every_direct_dependency_is_pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins)
    pinned = {requirement_name(pin) for pin in pins}
    assert len(pinned) == len(pins)
    project = PROJECT["project"]
    wanted = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    assert {requirement_name(item) for item in wanted} - {"nasdistill"} <= pinned
    assert {"torch==2.13.0", "torchvision==0.28.0"} <= set(pins)


def test_the_public_facade_names_what_exists():
    import nasdistill

    for name in nasdistill.__all__:
        assert getattr(nasdistill, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = nasdistill.nonsense
