"""A component under test: how checks get at it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from nasdistill.host import ComponentRecord, Host, PluginRecord
from nasdistill.host.registry import label
from nasdistill.interfaces.base import Example
from nasdistill.measure.guard import RandomGuard
from nasdistill.seeds import seeded
from nasdistill.spec.component import ComponentSpec, Kind

T = TypeVar("T")


class Subject:
    """One component with one example of its use.

    Attributes:
        host: makes the component and whatever it asks for.
        record: where it comes from.
        example: the options and the context to create it with.
        seed: of everything random.
        thorough: whether time may be spent.
        touched: what happened to the random states inside :meth:`seeded` that should not have.
    """

    def __init__(
        self, host: Host, record: ComponentRecord, example: Example, *, seed: int = 0, thorough: bool = False
    ) -> None:
        self.host = host
        self.record = record
        self.example = example
        self.seed = seed
        self.thorough = thorough
        self.touched: list[str] = []
        self._memory: dict[str, Any] = {}

    @property
    def kind(self) -> Kind:
        """The component's kind."""
        return self.record.kind

    @property
    def id(self) -> str:
        """The canonical id."""
        return self.record.id

    @property
    def spec(self) -> ComponentSpec:
        """What the plugin says of it."""
        return self.record.spec

    @property
    def tags(self) -> Any:
        """The declared tags; None for a kind without tags."""
        return getattr(self.spec, "tags", None)

    @property
    def name(self) -> str:
        """How a message names it: kind, id, distribution, version."""
        return f"{label(self.kind)} {self.id} {origin(self.record)}"

    def load(self) -> Any:
        """Return the class (a command's function)."""
        return self.host.load(self.kind, self.id)

    def create(self, options: Any = None, **context: Any) -> Any:
        """Return a new component: the example's options unless others are given, and the constructor's `context`."""
        return self.host.create(self.kind, self.id, self.example.options if options is None else options, **context)

    def context(self, name: str, default: Any = None) -> Any:
        """Return what the example says of the component's surroundings (a teacher's ``locator``, a space's ``io``)."""
        return self.example.context.get(name, default)

    def made(self, name: str) -> Any:
        """Return what the example says of the surroundings, made where it is a function.

        Such a function is given the example's own folder, once, and writes there what no package brings (a small saved
        model, a file of texts); the folder goes with the subject.
        """
        value = self.context(name)
        return self.once(f"made {name}", lambda: value(self.folder())) if callable(value) else value

    def folder(self) -> Path:
        """Return the folder of what the example's functions write."""

        def make() -> Path:
            folder = Path(tempfile.mkdtemp(prefix="nasdistill-example-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            return folder

        return self.once("folder", make)

    @contextlib.contextmanager
    def seeded(self) -> Iterator[None]:
        """Run the component in here: random states are seeded before and put back after, and seeding is noticed."""
        with seeded(self.seed):
            guard = RandomGuard()
            try:
                yield
            finally:
                self.touched += guard.changes()

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return `make()`, made at the first call only: for what several checks look at and none changes."""
        if name not in self._memory:
            self._memory[name] = make()
        value: T = self._memory[name]
        return value


def origin(brought: ComponentRecord | PluginRecord) -> str:
    """Return who brings a component or plugin, in brackets."""
    return "(" + f"{brought.distribution.strip('()')} {brought.version}".strip() + ")"
