"""Loading: one plugin at a time through all stages, and whatever goes wrong with one is recorded and harms no other."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pluggy

from nasdistill.errors import did_you_mean, one_line
from nasdistill.host import hookspecs
from nasdistill.host.apiversion import PLUGIN_API, plugin_api
from nasdistill.host.discovery import PluginSource
from nasdistill.host.hookspecs import HOOKS
from nasdistill.host.importing import ISOLATED, cause, overhear
from nasdistill.host.markers import PROJECT
from nasdistill.host.problems import PluginError, PluginProblem, Stage
from nasdistill.host.records import PluginRecord, State
from nasdistill.host.registry import ComponentRecord, Registry, label
from nasdistill.host.timelimit import ENV_TIMEOUT, TimeLimitReached, load_seconds, time_limit
from nasdistill.spec.component import SPEC_CLASSES, ComponentSpec, Kind, Requirement

_log = logging.getLogger("nasdistill.host")


class Refusal(ValueError):
    """The host refuses a plugin; the text says why."""


class Loader:
    """Takes plugins in.

    Args:
        strict: raise a problem of a plugin (:class:`PluginError`, cause chained) instead of recording it.

    Attributes:
        problems: what is wrong with plugins, in the order found.
        notices: what else a user should hear of: output of plugins, settings that cannot be read.
        registry: the components.
        plugins: name -> plugin.
        refused: plugins whose name another one has.
    """

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.problems: list[PluginProblem] = []
        self.notices: list[str] = []
        self.registry = Registry()
        self.plugins: dict[str, PluginRecord] = {}
        self.refused: list[PluginRecord] = []
        self._seconds, notice = load_seconds()
        if notice:
            self.notices.append(notice)
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)

    def load(self, source: PluginSource, plugin: object | None = None) -> None:
        """Take one plugin through all stages; on the first failure it is out, whole.

        Args:
            source: where it is from.
            plugin: itself, where it is imported already.

        Raises:
            PluginError: it has a problem, and this loader is strict.
        """
        stage, api = Stage.METADATA, None
        try:
            other = self.plugins.get(source.name)
            if other is not None and other.state != "disabled":
                origin = f"{other.distribution} {other.version}".strip()
                raise Refusal(f"{origin} has a plugin of that name already, and the first one counts")
            stage = Stage.IMPORT
            with time_limit(0.0 if source.bundled else self._seconds) as check_time:
                with self._overhearing(source, stage):
                    plugin = source.load() if plugin is None else plugin
                check_time()
                stage = Stage.API_VERSION
                api = plugin_api(plugin)
                stage = Stage.REGISTER
                self._register(source, plugin)
                stage = Stage.HOOK
                with self._overhearing(source, stage):
                    for hook in HOOKS:
                        self._collect(source, plugin, hook)
        except (*ISOLATED, TimeLimitReached) as error:
            problem = PluginProblem(
                plugin=source.name, distribution=source.distribution, version=source.version, stage=stage,
                cause=self._cause(error, stage), hint=_advice(stage, source, error), exception=error,
            )  # fmt: skip
            if stage is not Stage.METADATA and self._manager.has_plugin(source.name):
                self._manager.unregister(name=source.name)
                self.registry.remove_plugin(source.name, problem)
            self._remember(source, "broken", api=api, refused=stage is Stage.METADATA)
            self.report(problem)
        else:
            self._remember(source, "loaded", api=api)

    def leave_out(self, source: PluginSource, disabled_by: str) -> None:
        """Remember a plugin that a switch disables."""
        self._remember(source, "disabled", disabled_by=disabled_by)

    def report(self, problem: PluginProblem) -> None:
        """Record a problem, or raise it when strict.

        Raises:
            PluginError: this loader is strict.
        """
        self.problems.append(problem)
        if self.strict:
            raise PluginError(str(problem)) from problem.exception

    # -- stages -------------------------------------------------------------------------------------------------------

    def _register(self, source: PluginSource, plugin: object) -> None:
        """Register a plugin with pluggy, or leave no trace of it."""
        self._manager.register(plugin, source.name)
        try:
            # Unknown hook names are only found here, after pluggy has taken the plugin in.
            self._manager.check_pending()
            if source.file is not None and not self._manager.get_hookcallers(plugin):
                raise Refusal(f"it implements no hook{_unmarked(plugin)}")
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
            if self.registry.add(record):
                return
            faults = [f"the plugin has a {label(kind)} of this name already; the first one stays in use"]
        whose = f"Mend {source.distribution}" if source.file else f"{_update(source)}, or tell its authors"
        problem = PluginProblem(
            plugin=source.name, distribution=source.distribution, version=source.version, stage=Stage.SPEC,
            component=identifier, cause=f"{identifier or hook}: {'; '.join(faults)}",
            hint=f"This component is left out, the others of the plugin work. {whose}.",
        )  # fmt: skip
        self.report(problem)
        if identifier is not None and self.registry.get(kind, identifier) is None:
            self.registry.quarantine(kind, identifier, problem)

    # -- details ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _overhearing(self, source: PluginSource, stage: Stage) -> Iterator[None]:
        """Keep what a plugin prints while it loads off stdout, and make one notice of it."""

        def tell(text: str) -> None:
            first, *more = text.splitlines()
            shown = first if len(first) <= 100 else f"{first[:97]}..."
            also = f" and {len(more)} more line{'s' if len(more) > 1 else ''}" if more else ""
            self.notices.append(
                f"plugin {source.name!r} ({source.origin}) printed {shown!r}{also} at {stage.value}. It was kept off "
                f"stdout, where results go; {_without(source)}"
            )
            _log.info("plugin %r printed at %s:\n%s", source.name, stage.value, text)

        with overhear(tell):
            yield

    def _remember(
        self,
        source: PluginSource,
        state: State,
        *,
        api: int | None = None,
        refused: bool = False,
        disabled_by: str = "",
    ) -> None:
        """Keep the record of a plugin. A name belongs to the first that is not disabled."""
        file = source.file
        record = PluginRecord(
            source.name, source.module, source.distribution, source.version, source.bundled, state, api, disabled_by,
            None if file is None else file.path, None if file is None else file.sha256,
        )  # fmt: skip
        other = self.plugins.get(source.name)
        if refused or (other is not None and (other.state != "disabled" or state == "disabled")):
            self.refused.append(record)
            return
        if other is not None:
            self.refused.append(other)
        self.plugins[source.name] = record

    def _cause(self, error: BaseException, stage: Stage) -> str:
        """Return an exception as one line; what the host itself refuses comes without the exception's name."""
        if isinstance(error, TimeLimitReached):
            return f"it took longer than {self._seconds:g} s ({ENV_TIMEOUT} sets the limit)"
        if isinstance(error, Refusal) or (stage is Stage.API_VERSION and type(error) is ValueError):
            return str(error)
        return cause(error)


def _without(source: PluginSource) -> str:
    """Return how to go on without a plugin."""
    if source.file is not None:
        return f"leave out --plugin {source.distribution}"
    if source.distribution.startswith("("):  # an object of this process
        return "leave it out"
    once = f"--no-plugin {source.name}"
    return once if source.bundled else f"go on without it: nasdistill plugins disable {source.name}, or once: {once}"


def _update(source: PluginSource) -> str:
    """Return what users and authors of a plugin do about it."""
    return f"Update {source.distribution} or, if it is yours, see nasdistill --debug plugins check {source.name}"


def _advice(stage: Stage, source: PluginSource, error: BaseException) -> str:
    """Return what to do about a failure."""
    if stage is Stage.METADATA:
        if source.file is not None:
            return "Rename the file"
        return (
            f"Choose one of the two: nasdistill plugins disable {source.distribution}, "
            f"or pip uninstall {source.distribution}"
        )
    if isinstance(error, TimeLimitReached):
        words = _without(source)
        return words[0].upper() + words[1:]
    if source.bundled:
        mend = f"Reinstall nasdistill, or go on without it: {_without(source)}"
    else:
        mend = f"{f'Mend {source.distribution}' if source.file else _update(source)}, or {_without(source)}"
    if stage is Stage.API_VERSION:
        return f"{mend} (this is plugin API {PLUGIN_API})"
    if stage is Stage.REGISTER and "unknown hook" in str(error):
        name = str(error).split("unknown hook", 1)[1].split()[0].strip("'\"")
        return f"{did_you_mean(name, [hook for hook in HOOKS if hook not in str(error)])} {mend}"
    return mend


def _unmarked(plugin: object) -> str:
    """Return what to say of hooks that lack their marker."""
    names = [name for name in HOOKS if callable(getattr(plugin, name, None))]
    return f": {' and '.join(names)} without @hookimpl" if names else f", such as {next(iter(HOOKS))}"


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
