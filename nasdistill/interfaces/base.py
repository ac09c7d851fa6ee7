"""What all kinds share: a component has options, and may ask its host for other components by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from nasdistill.spec.component import Kind
from nasdistill.spec.options import ComponentOptions, parse_options


@runtime_checkable
class ComponentFactory(Protocol):
    """How a component reaches others without importing them: by kind and name."""

    def create(self, kind: Kind, name: str, options: Any = None, **context: Any) -> Any:
        """Return a new component.

        Args:
            kind: which kind.
            name: canonical id (``plugin:name``) or the bare name where unique.
            options: a mapping or an options instance; None takes the defaults.
            context: further keyword arguments of the constructor (``geometry=`` for attention cores).

        Raises:
            UnknownComponentError, AmbiguousComponentError, BrokenComponentError, MissingExtraError, ConfigError.
        """

    def load(self, kind: Kind, name: str) -> type[Any]:
        """Return the component's class (its class methods: ``cost``, ``from_softmax``). Raises as `create`."""

    def canonical(self, kind: Kind, name: str) -> str:
        """Return the canonical id that `name` stands for."""

    def tags(self, kind: Kind, name: str) -> Any:
        """Return the declared tags (a frozen dataclass of :mod:`nasdistill.spec.component`)."""


@dataclass(frozen=True, slots=True)
class Example:
    """One way to use a component, for the contract checks (:mod:`nasdistill.testing`).

    Attributes:
        options: what it is created with.
        context: what it needs around it, by the names its kind knows: a teacher's ``locator``, a space's ``io``.
        name: how results call it; empty for the only one.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


class HostReference:
    """Holds the factory of a component that is a module, so that copying the module does not copy the factory.

    A deep copy shares it; an unpickled component has none.

    Attributes:
        value: the factory, or None.
    """

    __slots__ = ("value",)

    def __init__(self, value: ComponentFactory | None) -> None:
        self.value = value

    def get(self, owner: str) -> ComponentFactory:
        """Return the factory.

        Raises:
            RuntimeError: `owner` was built by hand without one.
        """
        if self.value is None:
            raise RuntimeError(f"{owner} was created without a host; pass host=... or use Host.create")
        return self.value

    def __deepcopy__(self, memo: dict[int, Any]) -> HostReference:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return HostReference, (None,)


class Component:
    """Base of all interface classes but the two that are ``nn.Module``.

    A subclass sets `options_model` and reads `self.options`; its constructor has exactly this signature, does no work
    and imports nothing heavy that the module did not already need.

    Attributes:
        options_model: the pydantic model of the options.
        examples: the uses that the contract checks try; one with the default options unless it says otherwise.
        expected_failures: checks that it is known to fail, and why.
        options: the validated options.
        host: gives other components by name.
        id: canonical id, set by the host after construction (the class name before).
    """

    options_model: ClassVar[type[ComponentOptions]] = ComponentOptions
    examples: ClassVar[tuple[Example, ...]] = (Example(),)
    expected_failures: ClassVar[Mapping[str, str]] = {}
    options: Any  # a subclass narrows this to its own model: `options: MyOptions`

    def __init__(self, options: Any = None, *, host: ComponentFactory | None = None) -> None:
        self.id = type(self).__name__
        self.options = parse_options(self.options_model, options, where=self.id)
        self._host = host

    @property
    def host(self) -> ComponentFactory:
        """The factory that made this component.

        Raises:
            RuntimeError: the component was built by hand without one.
        """
        if self._host is None:
            raise RuntimeError(f"{self.id} was created without a host; pass host=... or use Host.create")
        return self._host
