"""Plugins of one file (``--plugin FILE.py``): hooks and components together, without a package.

The plugin and its module are both named after the file, so that a component's target is ``"stem:Class"``. The text is
read once: worker processes run the same text, whatever happens to the file while a search is on.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from nasdistill.errors import UsageError, one_line
from nasdistill.spec.component import NAME_PATTERN


@dataclass(frozen=True, slots=True)
class OneOffFile:
    """A file that was given as a plugin.

    Attributes:
        path: absolute.
        source: its content when it was read.
    """

    path: str
    source: bytes = field(repr=False)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> OneOffFile:
        """Read a file.

        Raises:
            UsageError: it is not there, not Python, or its name cannot be a plugin's.
        """
        given = Path(path).expanduser()
        if given.suffix != ".py":
            raise UsageError(f"plugin file {path}: a Python file is needed, NAME.py")
        try:
            source = given.read_bytes()
        except OSError as error:
            raise UsageError(f"plugin file {path} cannot be read: {error.strerror or one_line(error)}") from error
        file = cls(str(given.resolve().parent / given.name), source)
        if NAME_PATTERN.match(file.name) is None:
            raise UsageError(
                f"plugin file {path}: {file.name!r} cannot be the name of a plugin",
                hint="Rename it: lower-case letters, digits and underscores, a letter first.",
            )
        return file

    @property
    def name(self) -> str:
        """Name of the plugin and of its module."""
        return Path(self.path).stem

    @property
    def filename(self) -> str:
        """Name of the file, without its folder."""
        return Path(self.path).name

    @property
    def sha256(self) -> str:
        """Hash of the content."""
        return hashlib.sha256(self.source).hexdigest()

    def check_name(self, taken: Mapping[str, str]) -> None:
        """Refuse a name that stands for something else already.

        Args:
            taken: name of a plugin -> where it is from.

        Raises:
            UsageError: another plugin or an importable module is called so.
        """
        other = taken.get(self.name)
        if other is not None:
            what = f"there is a plugin {self.name!r} already ({other})"
        else:
            origin = self._module_of_that_name()
            if origin is None:
                return
            what = f"{self.name!r} is the name of an importable module ({origin})"
        raise UsageError(
            f"plugin file {self.path}: {what}",
            hint="Rename the file: the plugin is named after it, and its module too.",
        )

    def _module_of_that_name(self) -> str | None:
        """Return where another module of this name is, None where there is none."""
        module = sys.modules.get(self.name)
        if module is not None:
            if isinstance(getattr(module, "__loader__", None), _Loader):
                return None
            origin = getattr(module, "__file__", None) or "loaded already"
        else:
            try:
                spec = importlib.util.find_spec(self.name)
            except (ImportError, ValueError):
                return None
            if spec is None or spec.origin is None:  # a folder without __init__.py shadows nothing
                return None
            origin = spec.origin
        return None if os.path.realpath(origin) == os.path.realpath(self.path) else origin

    def load(self) -> ModuleType:
        """Run the file as module of its name and return that. Raises whatever the file raises."""
        before = sys.modules.get(self.name)
        if before is not None:
            loader = getattr(before, "__loader__", None)
            if not isinstance(loader, _Loader) or loader.file == self:
                return before  # imported from this very file
        spec = importlib.util.spec_from_loader(self.name, _Loader(self))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[self.name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            if before is None:
                del sys.modules[self.name]
            else:
                sys.modules[self.name] = before
            raise
        return module


class _Loader(importlib.abc.ExecutionLoader):
    """Runs the text that was read, and leaves no ``__pycache__`` beside somebody's notes."""

    def __init__(self, file: OneOffFile) -> None:
        self.file = file

    def get_filename(self, fullname: str) -> str:
        return self.file.path

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self.file.source)

    def is_package(self, fullname: str) -> bool:
        return False
