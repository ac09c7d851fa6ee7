"""Copying source: what is taken, what is left out, what is refused."""

from __future__ import annotations

import ast
import importlib
import sys

import pytest

from nasdistill_exporters.vendoring import Vendor, VendoringError, requirements

FILES = {
    "vend_one/__init__.py": "from vend_one.parts import part as renamed\nfrom vend_one import lazy\n",
    "vend_one/parts.py": (
        '"""Parts."""\nfrom __future__ import annotations\n\nimport math\nfrom typing import TYPE_CHECKING\n\n'
        "if TYPE_CHECKING:\n    from vend_one.types import Shape\n\n"
        "# a comment that is not needed\nUNUSED = 1\nFACTOR = 2  # doubles\n\n\n"
        "def part(x: Shape) -> float:\n    # why: to test\n    return math.sqrt(x) * FACTOR + _deeper()\n\n\n"
        "def _deeper():\n    from math import pi\n\n    return pi\n\n\ndef unused():\n    return UNUSED\n"
    ),
    "vend_one/types.py": "class Shape:\n    pass\n",
    "vend_one/lazy.py": "import vend_two\n\n\ndef uses_a_module():\n    return vend_two.value\n",
    "vend_one/entry.py": (
        "from __future__ import annotations\nfrom functools import lru_cache\nfrom vend_one import renamed as again\n"
        "from . import parts\nfrom .parts import _deeper\n\n\n"
        "class Base:\n    pass\n\n\nclass Thing(Base):\n    options_model = int\n    size: int = 3\n\n"
        "    @lru_cache\n    def run(self, x: float = 4.0) -> float:\n"
        "        return again(x) + _deeper() + self.size\n\n"
        "    @classmethod\n    def cost(cls):\n        return parts.UNUSED\n"
    ),
    "vend_two.py": "value = 1\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda name: importlib.import_module(name)
    for name in [name for name in sys.modules if name.startswith(("vend_one", "vend_two"))]:
        del sys.modules[name]


def test_only_what_is_reached_is_taken_and_it_runs(package, tmp_path):
    entry = package("vend_one.entry")
    vendor = Vendor()
    assert vendor.add(entry.Thing) == ("vend_one_entry", "Thing")
    files = vendor.files()
    assert set(files) == {"vend_one_entry.py", "vend_one_parts.py"}
    parts, taken = files["vend_one_parts.py"], files["vend_one_entry.py"]
    assert "# why: to test" in parts
    assert "FACTOR = 2  # doubles" in parts
    assert "UNUSED" not in parts
    assert "unused" not in parts
    assert "cost" not in taken
    assert "options_model" not in taken
    assert "from .vend_one_parts import _deeper, part as again" in taken
    folder = tmp_path / "out" / "copied"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    for name, text in files.items():
        ast.parse(text)
        (folder / name).write_text(text)
    sys.path.insert(0, str(folder.parent))
    try:
        copy = importlib.import_module("copied.vend_one_entry").Thing()
        assert copy.run() == entry.Thing().run()
    finally:
        sys.path.remove(str(folder.parent))
    assert requirements(files.values()) == []


def test_a_replacement_stands_in(package):
    entry = package("vend_one.entry")
    vendor = Vendor({"vend_one.entry:Base": "vend_one.types:Shape"})
    vendor.add(package("vend_one.types").Shape)
    vendor.add(entry.Thing)
    assert "class Base" in vendor.files()["vend_one_entry.py"]  # named in its own module, it is not an import
    vendor = Vendor({"vend_one.parts:part": "vend_one.types:Shape"})
    vendor.add(entry.Thing)
    assert "from .vend_one_types import Shape as again" in vendor.files()["vend_one_entry.py"]


def test_whole_modules_and_inner_functions_are_refused(package):
    with pytest.raises(VendoringError, match="only names from it can be copied"):
        Vendor().add(package("vend_one.lazy").uses_a_module)
    with pytest.raises(VendoringError, match="not defined at the top level"):
        Vendor().add(lambda: 1)


def test_what_a_source_imports_is_found_inside_functions_too():
    source = "def f():\n    import numpy.linalg\n    from timm.layers import x\n    from .a import b\n    import math\n"
    assert requirements([source]) == ["numpy", "timm"]
