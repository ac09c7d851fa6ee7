"""The components by kind and name, as data.

Names resolve here; nothing is imported. An entry is never overwritten, and a short name that several plugins use is
refused with the canonical ids to choose from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from nasdistill.errors import AmbiguousComponentError, BrokenComponentError, UnknownComponentError, did_you_mean
from nasdistill.host.problems import PluginProblem
from nasdistill.spec.component import ComponentSpec, Kind

INTERFACES: dict[Kind, tuple[str, ...]] = {
    Kind.SEARCH_SPACE: ("nasdistill.interfaces.space:SearchSpace",),
    Kind.PROXY: ("nasdistill.interfaces.proxy:Proxy",),
    Kind.ATTENTION: (
        "nasdistill.interfaces.attention:AttentionCore",
        "nasdistill.interfaces.attention:ModuleAttention",
        "nasdistill.interfaces.attention:ModelAttention",
    ),
    Kind.LOSS: ("nasdistill.interfaces.loss:DistillationLoss",),
    Kind.TEACHER: ("nasdistill.interfaces.teacher:Teacher",),
    Kind.TASK: ("nasdistill.interfaces.task:Task",),
    Kind.TARGET: ("nasdistill.interfaces.target:Target",),
    Kind.TRANSFORM: ("nasdistill.interfaces.transform:Transform",),
    Kind.RECIPE: ("nasdistill.interfaces.recipe:Recipe",),
    Kind.DATA_REDUCER: ("nasdistill.interfaces.data:DataReducer",),
    Kind.DIAGNOSTIC: ("nasdistill.interfaces.diagnostic:Diagnostic",),
    Kind.STRATEGY: ("nasdistill.interfaces.strategy:Strategy",),
    Kind.SAMPLER: ("nasdistill.interfaces.output:SamplerFactory",),
    Kind.EXPORTER: ("nasdistill.interfaces.output:Exporter",),
    Kind.REPORT_SECTION: ("nasdistill.interfaces.output:ReportSection",),
}
"""Kind -> the classes of which a component must derive from one. A command is a function and has none."""


@dataclass(frozen=True, slots=True)
class ComponentRecord:
    """A registered component.

    Attributes:
        id: canonical id, ``"plugin:name"``.
        spec: what the plugin says of it.
        plugin: name of the plugin.
        distribution, version: what installed the plugin.
    """

    id: str
    spec: ComponentSpec
    plugin: str
    distribution: str
    version: str

    @property
    def kind(self) -> Kind:
        """The component's kind."""
        return self.spec.kind

    @property
    def name(self) -> str:
        """The short name."""
        return self.spec.name


def label(kind: Kind) -> str:
    """Return how a kind is called in a sentence (``"search space"``)."""
    return kind.value.replace("_", " ")


class Registry:
    """Components and, kept apart, those whose plugin is broken."""

    def __init__(self) -> None:
        self._records: dict[tuple[Kind, str], ComponentRecord] = {}
        self._broken: dict[tuple[Kind, str], PluginProblem] = {}

    def __iter__(self) -> Iterator[ComponentRecord]:
        return iter(self._records.values())

    def get(self, kind: Kind, identifier: str) -> ComponentRecord | None:
        """Return the component with this canonical id."""
        return self._records.get((kind, identifier))

    def add(self, record: ComponentRecord) -> bool:
        """Add a component; return False, and change nothing, when its kind has this id already."""
        key = (record.kind, record.id)
        if key in self._records:
            return False
        self._records[key] = record
        return True

    def quarantine(self, kind: Kind, identifier: str, problem: PluginProblem) -> None:
        """Remember that a component exists and cannot be used; the first reason stays."""
        self._broken.setdefault((kind, identifier), problem)

    def remove_plugin(self, plugin: str, problem: PluginProblem) -> None:
        """Move all components of a plugin to the broken ones."""
        for key in [key for key, record in self._records.items() if record.plugin == plugin]:
            del self._records[key]
            self.quarantine(*key, problem)

    def of_kind(self, kind: Kind | None = None) -> list[ComponentRecord]:
        """Return the components of a kind, or all, in the order of kinds and ids."""
        order = list(Kind)
        chosen = [record for record in self._records.values() if kind is None or record.kind is kind]
        return sorted(chosen, key=lambda record: (order.index(record.kind), record.id))

    def resolve(
        self,
        kind: Kind,
        name: str,
        problems: Iterable[PluginProblem] = (),
        disabled: Mapping[str, str] | None = None,
    ) -> ComponentRecord:
        """Return the component that a canonical id or a short name stands for.

        Args:
            kind: its kind.
            name: ``"plugin:name"``, or ``"name"`` where one plugin has it.
            problems: problems of plugins, to explain why something may be missing.
            disabled: plugins that are disabled -> how to have each back, for the same purpose.

        Raises:
            UnknownComponentError: there is none; close matches are named.
            AmbiguousComponentError: several plugins have one; the canonical ids are listed.
            BrokenComponentError: there is one, but its plugin is broken; the cause is chained.
        """
        record = self._records.get((kind, name))
        if record is not None:
            return record
        fitting = [item for item in self.of_kind(kind) if item.name == name]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            ids = [item.id for item in fitting]
            raise AmbiguousComponentError(
                f"{label(kind)} {name!r} is the name of several components: {', '.join(ids)}",
                hint=f"Write the whole id, for example {ids[0]!r}.",
            )
        problems = list(problems)
        self._raise_broken(kind, name, problems)
        raise self._unknown(kind, name, problems, disabled or {})

    def _raise_broken(self, kind: Kind, name: str, problems: list[PluginProblem]) -> None:
        """Raise when `name` belongs to a plugin that could not be loaded."""
        problem = self._broken.get((kind, name)) or next(
            (item for (of_kind, key), item in self._broken.items() if of_kind is kind and key.endswith(f":{name}")),
            None,
        )
        if problem is None and ":" in name:
            plugin = name.partition(":")[0]
            known = {record.plugin for record in self}
            if plugin not in known:
                problem = next((item for item in problems if item.plugin == plugin), None)
        if problem is not None:
            raise BrokenComponentError(
                f"{label(kind)} {name!r} cannot be used: {problem}",
            ) from problem.exception

    def _unknown(
        self, kind: Kind, name: str, problems: list[PluginProblem], disabled: Mapping[str, str]
    ) -> UnknownComponentError:
        """Say what `name` could have meant."""
        # Bare names for a bare name, ids for an id: both would name every component twice.
        names = [record.id if ":" in name else record.name for record in self.of_kind(kind)]
        elsewhere = sorted({label(item.kind) for item in self if name in (item.name, item.id)})
        message = f"no {label(kind)} named {name!r}."
        if elsewhere:
            message += f" There is a {' and a '.join(elsewhere)} of that name."
        message += f" {did_you_mean(name, names)}"
        hint = f"nasdistill plugins list --kind {kind.value} lists what is installed."
        broken = sorted({item.plugin for item in problems})
        if broken:
            hint += f" Plugins with problems, which may have it: {', '.join(broken)}."
        if disabled:
            hint += f" Disabled plugins, which may have it: {', '.join(sorted(disabled))}."
            # One line is read, a list of commands is not.
            hint += "".join(f"\n  {disabled[name]}" for name in sorted(disabled)[:3])
        return UnknownComponentError(message, hint=hint)
