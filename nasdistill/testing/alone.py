"""What runs in a process of its own for :mod:`nasdistill.testing.probing`; the standard library is all it imports."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn


def import_light(given: dict[str, Any]) -> dict[str, Any]:
    """Import a module and return what that imports, prints, and reaches for in the network.

    Args:
        given: `module`, its name; `declare`, a function of it that is then called with an argument parser, or nothing.
    """
    reached: list[str] = []
    _refuse_connections(reached.append)
    _ = importlib.import_module("nasdistill").hookimpl  # which every plugin has
    before = set(sys.modules)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        module = importlib.import_module(given["module"])
        declare = getattr(module, given["declare"], None) if given["declare"] else None
        if declare is not None:
            with contextlib.suppress(Exception):  # whether it works is not asked here
                declare(argparse.ArgumentParser())
    return {"modules": sorted(set(sys.modules) - before), "reached": reached, "printed": said.getvalue()}


def _refuse_connections(tell: Callable[[str], None]) -> None:
    """Let every look-up of a name and every connection fail, as offline, and `tell` where it was to go."""

    def refuse(address: object) -> NoReturn:
        pair = isinstance(address, tuple) and len(address) >= 2
        tell(":".join(map(_text, address[:2])) if pair else _text(address))  # type: ignore[index]
        raise socket.gaierror(socket.EAI_AGAIN, "no network here")

    def method(self: socket.socket, *words: Any) -> NoReturn:
        refuse(words[-1])

    def look_up(host: object, port: object = None, *words: Any, **more: Any) -> NoReturn:
        refuse(host if port is None else (host, port))

    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, method)
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr"):
        setattr(socket, name, look_up)


def _text(part: object) -> str:
    return part.decode(errors="replace") if isinstance(part, bytes) else str(part)


def import_bare(given: dict[str, Any]) -> dict[str, list[str]]:
    """Import modules as if most packages were not installed, and return which of these they cannot do without.

    Args:
        given: `own`, the top-level names that the modules belong to; `groups`, each with `hidden`, the top-level names
            of what is not there, and `modules`, a mapping from a name for each to the module.
    """
    own, finders = frozenset(given["own"]), list(sys.meta_path)
    lacking: dict[str, list[str]] = {}
    for group in given["groups"]:
        hidden = frozenset(group["hidden"])
        for name, module in group["modules"].items():
            for loaded in [item for item in sys.modules if _top(item) in own | hidden]:
                del sys.modules[loaded]
            missed: list[str] = []
            sys.meta_path[:] = [_Without(finder, own, hidden, missed) for finder in finders]
            try:
                importlib.import_module(module)
            except (Exception, SystemExit) as error:
                lacking[name] = [*dict.fromkeys(missed or _missing(error, hidden))]
    return {name: missed for name, missed in lacking.items() if missed}


class _Without:
    """A finder of modules that does not know the hidden ones, and notes which of them the own modules ask for."""

    def __init__(self, finder: Any, own: frozenset[str], hidden: frozenset[str], missed: list[str]) -> None:
        self._finder, self._own, self._hidden, self._missed = finder, own, hidden, missed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)  # finding distributions, forgetting what is cached

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if _top(name) not in self._hidden:
            return self._finder.find_spec(name, path, target)
        frame: Any = sys._getframe(1)
        while frame is not None and _top(frame.f_globals.get("__name__", "")) == "importlib":
            frame = frame.f_back
        if frame is not None and _top(frame.f_globals.get("__name__", "")) in self._own:
            self._missed.append(_top(name))
        return None


def _missing(error: BaseException | None, hidden: frozenset[str]) -> Iterator[str]:
    """Yield the hidden modules whose absence led to an error."""
    while error is not None:
        if isinstance(error, ImportError) and _top(error.name or "") in hidden:
            yield _top(error.name or "")
        error = error.__cause__ or error.__context__


def _top(module: str) -> str:
    return module.partition(".")[0]
