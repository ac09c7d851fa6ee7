"""The host: finds and loads plugins, and creates components by kind and name.

Loading imports the plugins' own modules, which are free of torch; a component's class is imported when it is first
asked for. The host keeps no global state: two hosts in one process know nothing of each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, overload

from nasdistill.errors import (
    BrokenComponentError,
    MissingExtraError,
    NasdistillError,
    UnknownComponentError,
    UsageError,
    did_you_mean,
)
from nasdistill.host.discovery import PluginSource, bundled_sources, file_source, third_party_sources
from nasdistill.host.importing import ISOLATED, cause, check_interface, import_target, installed
from nasdistill.host.loading import Loader
from nasdistill.host.onefile import OneOffFile
from nasdistill.host.problems import PluginProblem, Stage
from nasdistill.host.records import PluginRecord
from nasdistill.host.registry import ComponentRecord, label
from nasdistill.host.switches import ENV_DISABLE, ENV_ONLY, FILE_NAME, Switches, name_key
from nasdistill.spec.component import ComponentSpec, Kind, Requirement

__all__ = ["ENV_DISABLE", "ENV_ONLY", "ENV_STRICT", "Host", "PluginRecord"]

ENV_STRICT = "NASDISTILL_STRICT_PLUGINS"


class _Builds(Protocol):
    """Signature of :meth:`Host.discover`."""

    def __call__(
        self,
        *,
        third_party: bool = True,
        disable: Iterable[str] = (),
        only: Iterable[str] | None = None,
        files: Iterable[str | os.PathLike[str] | OneOffFile] = (),
        user_settings: bool | None = None,
        environment: bool = True,
        strict: bool | None = None,
    ) -> Host: ...


class _Imports(Protocol):
    """Signature of :meth:`Host.component_class`."""

    def __call__(self, kind: Kind, name: str) -> Any: ...


class _Load:
    """``Host.load()`` builds a host, ``host.load(kind, name)`` imports a component: two uses of the best name."""

    @overload
    def __get__(self, instance: None, owner: type[Host]) -> _Builds: ...

    @overload
    def __get__(self, instance: Host, owner: type[Host]) -> _Imports: ...

    def __get__(self, instance: Host | None, owner: type[Host]) -> Any:
        return owner.discover if instance is None else instance.component_class


class Host:
    """Plugins and their components. It is a :class:`nasdistill.interfaces.ComponentFactory`.

    Args:
        strict: raise a problem of a plugin (:class:`PluginError`, cause chained) instead of recording it.

    Attributes:
        problems: what is wrong with plugins, in the order found.
        notices: what else a user should hear of: output of plugins, settings that cannot be read.
        arguments: what :meth:`discover` takes to load the same in another process, whatever has changed since.
        unknown_switches: names to leave out that no installed plugin or distribution has.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.arguments: dict[str, Any] = {}
        self.unknown_switches: tuple[str, ...] = ()
        self._loader = Loader(strict=strict)
        self.problems = self._loader.problems
        self.notices = self._loader.notices
        self._classes: dict[tuple[Kind, str], Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Host:
        """Return this very host: a copied network asks the same plugins as its original."""
        return self

    # -- loading ------------------------------------------------------------------------------------------------------

    @classmethod
    def discover(
        cls,
        *,
        third_party: bool = True,
        disable: Iterable[str] = (),
        only: Iterable[str] | None = None,
        files: Iterable[str | os.PathLike[str] | OneOffFile] = (),
        user_settings: bool | None = None,
        environment: bool = True,
        strict: bool | None = None,
    ) -> Host:
        """Return a host with the bundled plugins, the installed third-party ones, and plugins of one file.

        Several switches may leave a plugin out; :mod:`nasdistill.host.switches` says which one decides.

        Args:
            third_party: look at the entry points of group ``nasdistill`` at all.
            disable: plugins (or distributions) that are listed but not imported; bundled ones too. Those in the
                environment variable ``NASDISTILL_DISABLE_PLUGINS`` (comma-separated) are added.
            only: the third-party plugins (or distributions) that may load; empty means bundled plugins only. None
                reads ``NASDISTILL_PLUGINS`` (comma-separated), and means all when that is not set.
            files: Python files with hooks and components, each a plugin named after its file.
            user_settings: heed the user's ``plugins.toml``; None does with `third_party`.
            environment: heed the two environment variables.
            strict: raise at the first problem; None reads ``NASDISTILL_STRICT_PLUGINS`` (``1``).

        Raises:
            UsageError: one of `files` is not there, or its name is that of another plugin or an importable module.
            PluginError: a plugin has a problem and `strict` is on.
        """
        read = {file.path: file for file in (f if isinstance(f, OneOffFile) else OneOffFile.read(f) for f in files)}
        host = cls(strict=os.environ.get(ENV_STRICT, "") == "1" if strict is None else strict)
        loader = host._loader
        switches = Switches.collect(
            disable, only, user=third_party if user_settings is None else user_settings, environment=environment
        )
        if switches.notice:
            host.notices.append(switches.notice)

        sources = bundled_sources()
        unreadable: list[PluginProblem] = []
        if third_party:
            found, unreadable = third_party_sources()
            sources += found
        taken = {source.name: source.origin for source in sources}
        for file in read.values():
            file.check_name(taken)
            sources.append(file_source(file))
            taken[file.name] = file.path

        known = {name for source in sources for name in source.names}
        known |= {name for problem in unreadable for name in (problem.plugin, problem.distribution)}
        host.unknown_switches = switches.unknown(known) if third_party else ()
        for problem in unreadable:
            if not switches.disabled_by((problem.plugin, problem.distribution)):
                loader.report(problem)
        for source in sources:
            disabled_by = switches.of(source)
            if disabled_by:
                loader.leave_out(source, disabled_by)
            else:
                loader.load(source)
        keys = set(map(name_key, known))
        for name in sorted(name for name in switches.only or () if name_key(name) not in keys):
            loader.report(
                PluginProblem(
                    plugin=name, distribution="", version="", stage=Stage.METADATA,
                    cause=f"{switches.only_by} asks for it, but no installed distribution brings it",
                    hint=did_you_mean(name, [item.name for item in sources if not item.bundled]),
                )
            )  # fmt: skip
        given = switches.arguments()
        # What broke here breaks elsewhere too, or hangs for as long.
        broken = [p.name for p in loader.plugins.values() if p.state == "broken" and not p.bundled]
        host.arguments = {
            **given, "disable": (*given["disable"], *broken), "third_party": third_party, "files": tuple(read.values()),
        }  # fmt: skip
        return host

    def add(self, plugin: object, name: str, *, distribution: str = "(in process)", version: str = "") -> None:
        """Load a plugin object (a module, or anything with hook implementations) that is already imported.

        Args:
            plugin: the object.
            name: the plugin's name.
            distribution: how to name its origin in messages.
            version: of the distribution.
        """
        module = getattr(plugin, "__name__", type(plugin).__name__)
        self._loader.load(PluginSource(name, module, distribution, version, False), plugin)

    # -- asking -------------------------------------------------------------------------------------------------------

    def plugins(self) -> list[PluginRecord]:
        """Return every plugin that was found, bundled ones first, whatever its state."""
        return [*self._loader.plugins.values(), *self._loader.refused]

    def plugin(self, name: str) -> PluginRecord | None:
        """Return the plugin of this name, None where there is none."""
        return self._loader.plugins.get(name)

    def specs(self, kind: Kind | None = None) -> list[ComponentRecord]:
        """Return the components of a kind, or all, sorted by kind and id."""
        return self._loader.registry.of_kind(None if kind is None else _kind(kind))

    def record(self, kind: Kind, name: str) -> ComponentRecord:
        """Return the component that `name` stands for. Nothing is imported.

        Raises:
            UnknownComponentError: there is none; close matches are named.
            AmbiguousComponentError: several plugins have one.
            BrokenComponentError: its plugin is broken; the cause is chained.
        """
        kind = _kind(kind)
        owner = self.plugin(name.partition(":")[0])
        if ":" in name and owner is not None and owner.state == "disabled":
            raise UnknownComponentError(
                f"{label(kind)} {name!r} belongs to plugin {owner.name!r}, which is disabled",
                hint=how_enabled(owner),
            )
        disabled = {plugin.name: how_enabled(plugin) for plugin in self.plugins() if plugin.state == "disabled"}
        return self._loader.registry.resolve(kind, name, self.problems, disabled)

    def spec(self, kind: Kind, name: str) -> ComponentSpec:
        """Return the spec of a component. Raises as :meth:`record`."""
        return self.record(kind, name).spec

    def canonical(self, kind: Kind, name: str) -> str:
        """Return the canonical id that `name` stands for. Raises as :meth:`record`."""
        return self.record(kind, name).id

    def tags(self, kind: Kind, name: str) -> Any:
        """Return the declared tags, None for a kind without tags. Raises as :meth:`record`."""
        return getattr(self.spec(kind, name), "tags", None)

    def locate(self, kind: Kind, text: str) -> tuple[str, str]:
        """Split ``NAME:LOCATOR`` into a canonical id and the locator (empty when nothing follows the name).

        ``timm:resnet18``, ``teachers:timm:resnet18`` and ``teachers:random`` are all understood; where the first word
        is both a component's and a plugin's name, the component's is meant.

        Raises: as :meth:`record`; for a folder that transformers saved, given as a teacher, ``hf:`` is suggested.
        """
        kind = _kind(kind)
        head, _, rest = text.partition(":")
        names = {item.name for item in self.specs(kind)}
        if head not in names:
            second, _, locator = rest.partition(":")
            if second and self.plugin(head) is not None:
                return self.record(kind, f"{head}:{second}").id, locator
        try:
            return self.record(kind, head).id, rest
        except UnknownComponentError as error:
            if kind is Kind.TEACHER and (Path(text) / "config.json").is_file():
                raise UnknownComponentError(
                    f"no teacher named {text!r}, but a folder with a config.json. Did you mean 'hf:{text}'?",
                    hint="A teacher is written NAME:LOCATOR.",
                ) from error
            raise

    # -- creating -----------------------------------------------------------------------------------------------------

    def missing(self, kind: Kind, name: str) -> tuple[Requirement, ...]:
        """Return the declared requirements of a component that are not installed. Raises as :meth:`record`."""
        return tuple(item for item in self.spec(kind, name).requires if not installed(item.module))

    def component_class(self, kind: Kind, name: str) -> Any:
        """Import and return a component's class (a command's function); `host.load(kind, name)` is the same.

        Raises:
            UnknownComponentError: there is none; close matches are named.
            AmbiguousComponentError: several plugins have one.
            MissingExtraError: a package it declares is not installed.
            BrokenComponentError: it cannot be imported or is not what its kind asks for; the cause is chained.
        """
        kind = _kind(kind)
        record = self.record(kind, name)
        key = (kind, record.id)
        if key not in self._classes:
            lacking = self.missing(kind, record.id)
            if lacking:
                modules = ", ".join(item.module for item in lacking)
                extras = " ".join(repr(extra) for extra in dict.fromkeys(item.extra for item in lacking))
                raise MissingExtraError(
                    f"{label(kind)} {record.id!r} needs {modules}, which is not installed", hint=f"pip install {extras}"
                )
            found = import_target(record, record.spec.target)
            check_interface(record, found)
            self._classes[key] = found
        return self._classes[key]

    def options_model(self, kind: Kind, name: str) -> Any:
        """Import and return a component's options model, None for a component without options.

        The spec's `options` is asked first: it may be importable where the class is not.

        Raises: as :meth:`component_class`.
        """
        record = self.record(kind, name)
        if record.spec.options is not None:
            return import_target(record, record.spec.options)
        if _kind(kind) is Kind.COMMAND:
            return None
        return getattr(self.component_class(kind, name), "options_model", None)

    def create(self, kind: Kind, name: str, options: Any = None, **context: Any) -> Any:
        """Return a new component, with `id` set to its canonical id.

        Args:
            kind: which kind.
            name: canonical id (``plugin:name``) or the bare name where unique.
            options: a mapping or an options instance; None takes the defaults.
            context: further keyword arguments of the constructor (``geometry=`` for attention cores).

        Raises:
            ConfigError: the options are wrong; every key concerned is named.
            BrokenComponentError: its constructor failed; the cause is chained.
            NasdistillError: as :meth:`component_class`, or what the constructor raised on purpose.
        """
        found = self.component_class(kind, name)
        identifier = self.canonical(kind, name)
        if _kind(kind) is Kind.COMMAND:
            raise UsageError(f"{identifier} is a command; it is run, not created")
        model = getattr(found, "options_model", None)
        try:
            if model is not None:
                from nasdistill.spec.options import parse_options

                options = parse_options(model, options, where=identifier)
            if hasattr(found, "from_softmax"):
                raise UsageError(
                    f"{identifier} is a module-level attention variant; it is made from a layer, not created",
                    hint="Call from_softmax(view, options, host=host) on the class that host.load returns.",
                )
            instance = found(options, host=self, **context)
        except NasdistillError:
            raise
        except ISOLATED as error:
            raise BrokenComponentError(f"{identifier} could not be created: {cause(error)}") from error
        instance.id = identifier
        return instance

    load = _Load()
    """On the class: build a host (:meth:`discover`). On a host: import a component (:meth:`component_class`)."""


# -- details ----------------------------------------------------------------------------------------------------------


def _kind(kind: Kind | str) -> Kind:
    """Return the kind, also for its text."""
    try:
        return Kind(kind)
    except ValueError:
        raise UsageError(f"no kind {kind!r}. {did_you_mean(str(kind), [item.value for item in Kind])}") from None


def how_enabled(plugin: PluginRecord) -> str:
    """Return how to have a disabled plugin back."""
    if plugin.disabled_by.endswith(FILE_NAME):
        return f"nasdistill plugins enable {plugin.name} has it back ({plugin.disabled_by} disables it)."
    return f"Plugin {plugin.name!r} is disabled by {plugin.disabled_by}."
