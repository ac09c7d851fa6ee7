"""Importing what plugins name: their output kept off stdout, every failure with the component and its distribution."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.machinery
import importlib.util
import inspect
import io
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pluggy

from nasdistill.errors import ISOLATED as ISOLATED
from nasdistill.errors import BrokenComponentError, did_you_mean, one_line
from nasdistill.host.registry import INTERFACES, ComponentRecord, label
from nasdistill.spec import component
from nasdistill.spec.component import Kind

_KEYWORD = re.compile(r"^(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")


class _Ear(io.TextIOBase):
    """A stdout that keeps what is said while it listens; what somebody says to it later goes to stderr."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.said: list[str] = []
        self.listening = True

    @property
    def buffer(self) -> Any:
        """For those who write bytes."""
        return sys.stderr.buffer

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.listening:
            self.said.append(text)
        else:
            sys.stderr.write(text)
        return len(text)


@contextlib.contextmanager
def overhear(tell: Callable[[str], None]) -> Iterator[None]:
    """Keep what is printed off stdout, which belongs to the command's result, and `tell` it afterwards, if anything."""
    ear = _Ear()
    try:
        with contextlib.redirect_stdout(ear):
            yield
    finally:
        ear.listening = False
        text = "".join(ear.said).strip()
        if text:
            tell(text)


def cause(error: BaseException) -> str:
    """Return an exception as one line."""
    if isinstance(error, pluggy.PluginValidationError):
        return " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    misnamed = _KEYWORD.search(str(error)) if isinstance(error, TypeError) else None
    known = None if misnamed is None else getattr(component, misnamed[1], None)
    if misnamed is not None and dataclasses.is_dataclass(known):
        return f"{one_line(error)}. {did_you_mean(misnamed[2], [item.name for item in dataclasses.fields(known)])}"
    return one_line(error)


def import_target(record: ComponentRecord, target: str) -> Any:
    """Import ``"module:attribute"`` of a component.

    Raises:
        BrokenComponentError: it cannot be; the component and its distribution are named, the cause is chained.
    """
    module_name, _, attribute = target.partition(":")
    origin = f"{label(record.kind)} {record.id!r} ({record.distribution} {record.version})"
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module = importlib.import_module(module_name)
    except ISOLATED as error:
        hint = f"The import that failed: {module_name}"
        file = record.distribution.removesuffix(".py")
        one_off = file == record.plugin != record.distribution
        if one_off and isinstance(error, ModuleNotFoundError) and error.name == module_name != file:
            hint = f"Targets of a plugin of one file are written FILE:Class, here '{file}:{target.partition(':')[2]}'."
        raise BrokenComponentError(f"{origin} cannot be imported: {cause(error)}", hint=hint) from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        public = [name for name in vars(module) if not name.startswith("_")]
        raise BrokenComponentError(
            f"{origin} cannot be imported: module {module_name} has no {attribute!r}",
            hint=did_you_mean(attribute, public),
        ) from error


def check_interface(record: ComponentRecord, found: Any) -> None:
    """Refuse a target that is not what its kind asks for.

    Raises:
        BrokenComponentError: saying what is wrong with it.
    """
    origin = f"{label(record.kind)} {record.id!r} ({record.distribution} {record.version})"
    where = record.spec.target
    if record.kind is Kind.COMMAND:
        if not callable(found):
            raise BrokenComponentError(f"{origin}: {where} is not a function")
        return
    interfaces = [_interface(text) for text in INTERFACES[record.kind]]
    if not (isinstance(found, type) and issubclass(found, tuple(interfaces))):
        names = " or ".join(item.__name__ for item in interfaces)
        raise BrokenComponentError(f"{origin}: {where} does not derive from {names}")
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise BrokenComponentError(f"{origin}: {where} does not implement {lacking}")


def _interface(text: str) -> type:
    module_name, _, name = text.partition(":")
    interface: type = getattr(importlib.import_module(module_name), name)
    return interface


def installed(module: str) -> bool:
    """Return whether a module can be found, without importing it or its parents."""
    parts = module.split(".")
    try:
        spec = importlib.util.find_spec(parts[0])
    except (ImportError, ValueError):  # ValueError: somebody put a bare object into sys.modules
        return False
    for depth in range(2, len(parts) + 1):
        if spec is None or spec.submodule_search_locations is None:
            return False
        name = ".".join(parts[:depth])
        spec = importlib.machinery.PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return spec is not None
