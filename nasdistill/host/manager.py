"""The host: loads plugins one by one, isolates the broken ones, and creates components by kind and name.

Loading imports the plugins' own modules, which are free of torch; a component's class is imported when it is first
asked for. The host keeps no global state: two hosts in one process know nothing of each other.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, overload

import pluggy

from nasdistill.errors import (
    BrokenComponentError,
    MissingExtraError,
    NasdistillError,
    UnknownComponentError,
    UsageError,
    did_you_mean,
    one_line,
)
from nasdistill.host import hookspecs
from nasdistill.host.apiversion import PLUGIN_API, plugin_api
from nasdistill.host.discovery import PluginSource, bundled_sources, third_party_sources
from nasdistill.host.hookspecs import HOOKS
from nasdistill.host.markers import PROJECT
from nasdistill.host.problems import PluginError, PluginProblem, Stage
from nasdistill.host.registry import INTERFACES, ComponentRecord, Registry, label
from nasdistill.spec.component import SPEC_CLASSES, ComponentSpec, Kind, Requirement

ENV_ONLY = "NASDISTILL_PLUGINS"
ENV_DISABLE = "NASDISTILL_DISABLE_PLUGINS"
ENV_STRICT = "NASDISTILL_STRICT_PLUGINS"

# What a plugin's code may do to its own loading and to nothing else. Some modules call sys.exit() when something they
# want is missing; an interrupt from the keyboard is the user's and goes through.
_ISOLATED = (Exception, SystemExit)


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """A plugin that was found.

    Attributes:
        name: the first half of its components' ids.
        module: what was imported, ``"module"`` or ``"module:attribute"``.
        distribution, version: what installed it.
        bundled: part of nasdistill itself.
        state: ``"disabled"`` plugins were not imported; ``"broken"`` ones contribute nothing.
        api: the plugin interface it states; None when that is not known.
    """

    name: str
    module: str
    distribution: str
    version: str
    bundled: bool
    state: Literal["loaded", "disabled", "broken"]
    api: int | None = None


class _Builds(Protocol):
    """Signature of :meth:`Host.discover`."""

    def __call__(
        self,
        *,
        third_party: bool = True,
        disable: Iterable[str] = (),
        only: Iterable[str] | None = None,
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
        arguments: what :meth:`discover` was given, so that another process can load the same.
        unknown_switches: names given to `disable` that no installed plugin or distribution has.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.problems: list[PluginProblem] = []
        self.arguments: dict[str, Any] = {}
        self.unknown_switches: tuple[str, ...] = ()
        self._registry = Registry()
        self._plugins: dict[str, PluginRecord] = {}
        self._refused: list[PluginRecord] = []
        self._classes: dict[tuple[Kind, str], Any] = {}
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)

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
        strict: bool | None = None,
    ) -> Host:
        """Return a host with the bundled plugins and the installed third-party ones.

        Args:
            third_party: look at the entry points of group ``nasdistill`` at all.
            disable: plugins (or distributions) that are listed but not imported; bundled ones too. Those in the
                environment variable ``NASDISTILL_DISABLE_PLUGINS`` (comma-separated) are added.
            only: the third-party plugins (or distributions) that may load; empty means bundled plugins only. None
                reads ``NASDISTILL_PLUGINS`` (comma-separated), and means all when that is not set.
            strict: raise at the first problem; None reads ``NASDISTILL_STRICT_PLUGINS`` (``1``).

        Raises:
            PluginError: a plugin has a problem and `strict` is on.
        """
        host = cls(strict=os.environ.get(ENV_STRICT, "") == "1" if strict is None else strict)
        disable = tuple(disable)
        host.arguments = {"third_party": third_party, "disable": disable, "only": None if only is None else tuple(only)}
        if only is None and ENV_ONLY in os.environ:
            only = _names(os.environ[ENV_ONLY])
        blocked = {*disable, *_names(os.environ.get(ENV_DISABLE, ""))}
        wanted = None if only is None else set(only)

        sources = bundled_sources()
        if third_party:
            found, problems = third_party_sources()
            for problem in problems:
                if not {problem.plugin, problem.distribution} & blocked:
                    host._report(problem)
            sources += found
        known = {name for source in sources for name in (source.name, source.distribution)}
        known |= {name for problem in host.problems for name in (problem.plugin, problem.distribution)}
        host.unknown_switches = tuple(sorted(blocked - known)) if third_party else ()

        for source in sources:
            names = {source.name} if source.bundled else {source.name, source.distribution}
            if names & blocked or not (source.bundled or wanted is None or names & wanted):
                host._remember(source, "disabled")
            else:
                host._load_source(source)
        for name in sorted((wanted or set()) - known):
            host._report(
                PluginProblem(
                    plugin=name, distribution="", version="", stage=Stage.METADATA,
                    cause=f"{ENV_ONLY} asks for it, but no installed distribution brings it",
                    hint=did_you_mean(name, [item.name for item in sources if not item.bundled]),
                )
            )  # fmt: skip
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
        self._load_source(PluginSource(name, module, distribution, version, False), plugin)

    def _load_source(self, source: PluginSource, plugin: object | None = None) -> None:
        """Take one plugin through all stages; on the first failure it is out, whole."""
        stage, api = Stage.METADATA, None
        try:
            other = self._plugins.get(source.name)
            if other is not None:
                raise ValueError(
                    f"{other.distribution} {other.version} has a plugin of that name already, which stays in use"
                )
            stage = Stage.IMPORT
            with _quiet():
                plugin = source.load() if plugin is None else plugin
            stage = Stage.API_VERSION
            api = plugin_api(plugin)
            stage = Stage.REGISTER
            self._register(plugin, source.name)
            stage = Stage.HOOK
            for hook in HOOKS:
                self._collect(source, plugin, hook)
        except _ISOLATED as error:
            problem = PluginProblem(
                plugin=source.name, distribution=source.distribution, version=source.version, stage=stage,
                cause=_cause(error, stage), hint=_advice(stage, source, error), exception=error,
            )  # fmt: skip
            if stage is Stage.HOOK:
                self._manager.unregister(plugin)
                self._registry.remove_plugin(source.name, problem)
            self._remember(source, "broken", api, refused=stage is Stage.METADATA)
            self._report(problem)
        else:
            self._remember(source, "loaded", api)

    def _register(self, plugin: object, name: str) -> None:
        """Register a plugin with pluggy, or leave no trace of it."""
        self._manager.register(plugin, name)
        try:
            # Unknown hook names are only found here, after pluggy has taken the plugin in.
            self._manager.check_pending()
        except BaseException:
            self._manager.unregister(plugin)
            raise

    def _collect(self, source: PluginSource, plugin: object, hook: str) -> None:
        """Call one hook of one plugin and register what it returns."""
        kind = HOOKS[hook]
        others = [item for item in self._manager.get_plugins() if item is not plugin]
        caller = self._manager.subset_hook_caller(hook, others)
        implementations = caller.get_hookimpls()
        if not implementations:
            return
        with _quiet():
            answers = caller()
            if len(answers) < len(implementations):  # pluggy drops None
                raise TypeError(f"{hook} returned None instead of an iterable of {SPEC_CLASSES[kind].__name__}")
            specs = []
            for answer in answers:
                if isinstance(answer, ComponentSpec):
                    raise TypeError(f"{hook} returned one spec instead of an iterable of them")
                specs.extend(answer)
        for spec in specs:
            self._add_spec(source, hook, kind, spec)

    def _add_spec(self, source: PluginSource, hook: str, kind: Kind, spec: object) -> None:
        """Register one spec, or report why it is left out."""
        name = getattr(spec, "name", None)
        identifier = f"{source.name}:{name}" if isinstance(name, str) else None
        faults = _spec_faults(hook, kind, spec)
        if not faults and isinstance(spec, ComponentSpec) and identifier is not None:
            record = ComponentRecord(identifier, spec, source.name, source.distribution, source.version)
            if self._registry.add(record):
                return
            faults = [f"the plugin has a {label(kind)} of this name already; the first one stays in use"]
        problem = PluginProblem(
            plugin=source.name, distribution=source.distribution, version=source.version, stage=Stage.SPEC,
            component=identifier, cause=f"{identifier or hook}: {'; '.join(faults)}",
            hint="This component is left out, the others of the plugin work.",
        )  # fmt: skip
        self._report(problem)
        if identifier is not None and self._registry.get(kind, identifier) is None:
            self._registry.quarantine(kind, identifier, problem)

    def _remember(
        self,
        source: PluginSource,
        state: Literal["loaded", "disabled", "broken"],
        api: int | None = None,
        *,
        refused: bool = False,
    ) -> None:
        record = PluginRecord(
            source.name, source.module, source.distribution, source.version, source.bundled, state, api
        )
        if refused or source.name in self._plugins:
            self._refused.append(record)
        else:
            self._plugins[source.name] = record

    def _report(self, problem: PluginProblem) -> None:
        """Record a problem, or raise it when strict."""
        self.problems.append(problem)
        if self.strict:
            raise PluginError(str(problem)) from problem.exception

    # -- asking -------------------------------------------------------------------------------------------------------

    def plugins(self) -> list[PluginRecord]:
        """Return every plugin that was found, bundled ones first, whatever its state."""
        return [*self._plugins.values(), *self._refused]

    def specs(self, kind: Kind | None = None) -> list[ComponentRecord]:
        """Return the components of a kind, or all, sorted by kind and id."""
        return self._registry.of_kind(None if kind is None else _kind(kind))

    def record(self, kind: Kind, name: str) -> ComponentRecord:
        """Return the component that `name` stands for. Nothing is imported.

        Raises:
            UnknownComponentError: there is none; close matches are named.
            AmbiguousComponentError: several plugins have one.
            BrokenComponentError: its plugin is broken; the cause is chained.
        """
        kind = _kind(kind)
        plugin = name.partition(":")[0]
        owner = self._plugins.get(plugin)
        if ":" in name and owner is not None and owner.state == "disabled":
            raise UnknownComponentError(
                f"{label(kind)} {name!r} belongs to plugin {plugin!r}, which is disabled",
                hint=f"Look at [plugins] disable, --no-plugin, {ENV_DISABLE} and {ENV_ONLY}.",
            )
        return self._registry.resolve(kind, name, self.problems)

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

        Raises: as :meth:`record`.
        """
        kind = _kind(kind)
        head, _, rest = text.partition(":")
        names = {item.name for item in self.specs(kind)}
        if head not in names:
            second, _, locator = rest.partition(":")
            if second and head in self._plugins:
                return self.record(kind, f"{head}:{second}").id, locator
        return self.record(kind, head).id, rest

    # -- creating -----------------------------------------------------------------------------------------------------

    def missing(self, kind: Kind, name: str) -> tuple[Requirement, ...]:
        """Return the declared requirements of a component that are not installed. Raises as :meth:`record`."""
        return tuple(item for item in self.spec(kind, name).requires if not _installed(item.module))

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
            found = _import(record, record.spec.target)
            _check_interface(record, found)
            self._classes[key] = found
        return self._classes[key]

    def options_model(self, kind: Kind, name: str) -> Any:
        """Import and return a component's options model, None for a component without options.

        The spec's `options` is asked first: it may be importable where the class is not.

        Raises: as :meth:`component_class`.
        """
        record = self.record(kind, name)
        if record.spec.options is not None:
            return _import(record, record.spec.options)
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
        except Exception as error:
            raise BrokenComponentError(f"{identifier} could not be created: {one_line(error)}") from error
        instance.id = identifier
        return instance

    load = _Load()
    """On the class: build a host (:meth:`discover`). On a host: import a component (:meth:`component_class`)."""


# -- details ----------------------------------------------------------------------------------------------------------


def _names(text: str) -> list[str]:
    """Split a comma-separated environment variable."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _kind(kind: Kind | str) -> Kind:
    """Return the kind, also for its text."""
    try:
        return Kind(kind)
    except ValueError:
        raise UsageError(f"no kind {kind!r}. {did_you_mean(str(kind), [item.value for item in Kind])}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what a plugin prints while loading to stderr: stdout belongs to the command's result."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _cause(error: BaseException, stage: Stage | None = None) -> str:
    """Return an exception as one line; what the host itself refuses comes without the exception's name."""
    if stage in (Stage.METADATA, Stage.API_VERSION) and type(error) is ValueError:
        return str(error)
    if isinstance(error, pluggy.PluginValidationError):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return " ".join(lines)
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    return one_line(error)


def _advice(stage: Stage, source: PluginSource, error: BaseException) -> str:
    """Return what to do about a failure."""
    if source.bundled:
        reinstall = f"Reinstall nasdistill, or go on without it: --no-plugin {source.name}"
    else:
        reinstall = f"Update {source.distribution}, or go on without it: --no-plugin {source.name}"
    if stage is Stage.METADATA:
        return f"Uninstall one of the two: pip uninstall {source.distribution}"
    if stage is Stage.API_VERSION:
        return f"Update {source.distribution} or nasdistill (plugin API {PLUGIN_API})"
    if stage is Stage.REGISTER:
        unknown = [hook for hook in HOOKS if hook not in str(error)]
        if "unknown hook" in str(error):
            name = str(error).split("unknown hook", 1)[1].split()[0].strip("'\"")
            return f"{did_you_mean(name, unknown)} {reinstall}"
    return reinstall


def _spec_faults(hook: str, kind: Kind, spec: object) -> list[str]:
    """Return what is wrong with one item that a hook returned."""
    expected = SPEC_CLASSES[kind]
    if not isinstance(spec, expected):
        return [f"{hook} must return {expected.__name__} objects, not {type(spec).__name__}"]
    try:
        faults = list(spec.problems())
    except Exception as error:  # a spec of strange types may break the check itself
        return [f"its fields cannot be checked ({one_line(error)})"]
    if not _all_instances(spec.references, str):
        faults.append("references must be a tuple of strings")
    if not _all_instances(spec.requires, Requirement):
        faults.append("requires must be a tuple of Requirement objects")
    tags = getattr(spec, "tags", None)
    wanted = type(getattr(expected("x", "x:x", "x"), "tags", None))
    if not isinstance(tags, wanted):
        faults.append(f"tags must be {wanted.__name__}, not {type(tags).__name__}")
    return faults


def _all_instances(value: object, of: type) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(item, of) for item in value)


def _import(record: ComponentRecord, target: str) -> Any:
    """Import ``"module:attribute"`` of a component; every failure names the component and its distribution."""
    module_name, _, attribute = target.partition(":")
    origin = f"{label(record.kind)} {record.id!r} ({record.distribution} {record.version})"
    try:
        with _quiet():
            module = importlib.import_module(module_name)
    except _ISOLATED as error:
        raise BrokenComponentError(
            f"{origin} cannot be imported: {_cause(error)}", hint=f"The import that failed: {module_name}"
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        public = [name for name in vars(module) if not name.startswith("_")]
        raise BrokenComponentError(
            f"{origin} cannot be imported: module {module_name} has no {attribute!r}",
            hint=did_you_mean(attribute, public),
        ) from error


def _check_interface(record: ComponentRecord, found: Any) -> None:
    """Refuse a target that is not what its kind asks for."""
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


def _installed(module: str) -> bool:
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
