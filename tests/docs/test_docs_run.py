"""Every code block of the documentation runs: each page from top to bottom, in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from docs_blocks import DOCS, IMAGES, ROOT, SHORT, SMALL, TINY, blocks, pages, run_page
from fake_distributions import write_distribution

HOWTO = sorted(path for path in (DOCS / "howto").glob("*.md") if blocks(path))
GUIDES = sorted(path for path in (DOCS / "guides").glob("*.md") if blocks(path))
EXAMPLE = ROOT / "examples" / "third_party_plugin"
PAGES_ELSEWHERE = {
    "README.md", "CONTRIBUTING.md", "examples/third_party_plugin/README.md", "docs/tutorial.md", "docs/index.md",
}  # fmt: skip
"""Pages that a test of their own runs."""

NOT_RUN = {
    "README.md": 2,
    "CONTRIBUTING.md": 1,
    "examples/third_party_plugin/README.md": 2,
    "docs/index.md": 1,
}
"""Page -> how many of its blocks are marked as not run, each with its reason."""

SEARCHES = {
    "without-training": SHORT,
    "supernet": f"{SHORT.replace(IMAGES, '')} --workers 0",
    "text": TINY.replace(IMAGES, ""),
    "pipeline": f"{SHORT} --trials 8 --set search.strategy_options.epochs=1 --workers 0",
}
"""How-to -> what cuts its searches short, where it is another strategy or another task than the default."""


def test_every_page_with_code_is_run_by_a_test():
    with_code = {str(page.relative_to(ROOT)) for page in pages() if blocks(page)}
    run = {str(page.relative_to(ROOT)) for page in [*HOWTO, *GUIDES]} | PAGES_ELSEWHERE
    assert with_code == run


def test_blocks_that_are_not_run_are_counted():
    found = {str(page.relative_to(ROOT)): [b.reason for b in blocks(page) if b.reason] for page in pages()}
    assert {page: len(reasons) for page, reasons in found.items() if reasons} == {k: v for k, v in NOT_RUN.items() if v}


def write_photos(folder: Path) -> None:
    """Photos of three classes, and a package with a network for them: what a reader has."""
    from PIL import Image
    from sklearn.datasets import load_digits

    images, labels = load_digits(n_class=3, return_X_y=True)
    for number, (image, label) in enumerate(zip(images[:90], labels[:90], strict=True)):
        place = folder / "photos" / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.reshape(8, 8) * 15).astype("uint8")).convert("RGB").save(place / f"{number}.png")
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").touch()
    (folder / "my_package" / "models.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 256, 3), nn.ReLU(), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 3))\n"
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a small finished run, a second one, and an exported student."""
    from nasdistill.cli import main

    folder = tmp_path_factory.mktemp("docs")
    tiny = f"{SMALL} {TINY}".split()
    assert main(["-q", "search", "--out", str(folder / "runs" / "digits"), *tiny]) == 0
    shutil.copytree(folder / "runs" / "digits", folder / "runs" / "other")
    assert main(["export", str(folder / "runs" / "digits"), str(folder / "exported"), "--to", "torch"]) == 0
    return folder


@pytest.fixture
def empty_desk(tmp_path, monkeypatch):
    """An empty working directory; what is imported from it is forgotten afterwards."""
    before, path = set(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("NASDISTILL_") and name != "NASDISTILL_CACHE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NASDISTILL_CONFIG_HOME", str(tmp_path / "settings"))
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.fixture
def desk(empty_desk, finished):
    """The working directory of a reader who has photos, a package and runs."""
    shutil.copytree(finished, empty_desk, dirs_exist_ok=True)
    write_photos(empty_desk)
    return empty_desk


@pytest.mark.slow
@pytest.mark.parametrize("page", HOWTO, ids=lambda page: page.stem)
def test_how_to(page, desk):
    run_page(page, desk, search=SEARCHES.get(page.stem, TINY))


@pytest.fixture
def acme(desk, monkeypatch):
    """The same with an installed distribution ``nasdistill-acme``, whose modules the guide's blocks write."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "nasdistill_acme"]:
        monkeypatch.delitem(sys.modules, name)  # of another test: the example package has the name too
    write_distribution(desk, "nasdistill-acme", modules={}, entries={"acme": "nasdistill_acme"})
    monkeypatch.syspath_prepend(desk)
    return desk


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_guide(page, acme):
    run_page(page, acme)


@pytest.mark.slow
def test_the_tutorial(empty_desk):
    run_page(DOCS / "tutorial.md", empty_desk, search=SHORT)
    assert (empty_desk / "runs" / "first" / "result.json").is_file()
    assert (empty_desk / "runs" / "mine" / "students").is_dir()


@pytest.mark.slow
def test_the_front_page(desk):
    run_page(DOCS / "index.md", desk)


def test_what_contributors_read(empty_desk):
    run_page(ROOT / "CONTRIBUTING.md", empty_desk)


@pytest.fixture
def example(empty_desk, monkeypatch):
    """An empty working directory, with the example package installed."""

    def loaded():
        return [name for name in sys.modules if name.partition(".")[0] == "nasdistill_acme"]

    for name in loaded():
        monkeypatch.delitem(sys.modules, name)  # the guides' package has the name too
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    site, entries = empty_desk / "site", project["entry-points"]["nasdistill"]
    write_distribution(site, project["name"], version=project["version"], modules={}, entries=entries)
    monkeypatch.syspath_prepend(site)
    monkeypatch.syspath_prepend(EXAMPLE / "src")
    yield empty_desk
    for name in loaded():
        del sys.modules[name]


@pytest.mark.slow
def test_the_example_packages_readme(example):
    replace = {" --thorough": "", "search search.toml": "search search.toml --teacher timm:test_resnet"}
    found = "".join(block.code for block in blocks(EXAMPLE / "README.md"))
    assert all(old in found for old in replace)
    run_page(EXAMPLE / "README.md", example, replace=replace)
    result = json.loads((example / "runs" / "acme" / "result.json").read_text(encoding="utf-8"))
    assert "gradsign" in result["proxies"]


@pytest.mark.slow
def test_the_readme(desk):
    student = next((desk / "runs" / "digits" / "students").iterdir()).name
    found = "".join(block.code for block in blocks(ROOT / "README.md"))
    replace = {
        "0037-99df52": student,
        "--epochs 200": "--epochs 1",
        "max_latency_ms=0.05": "max_latency_ms=1000",
        "nasdistill search mine.toml": f"nasdistill search mine.toml {SMALL}",
    }
    assert all(old in found for old in replace)
    exec(blocks(DOCS / "howto" / "text.md")[0].code, {"__name__": "__docs__"})  # a model and a table of texts
    run_page(ROOT / "README.md", desk, replace=replace)
