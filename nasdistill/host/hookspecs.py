"""The hooks a plugin implements: one per kind of component.

All are registration hooks and share one contract. They take no argument, are called once while the host loads, and
return an iterable of specs, possibly empty. They are cheap and import neither torch nor the components themselves: a
spec names its class as ``"module:Class"`` text, which is imported when the component is first used. A hook that raises
takes its own plugin out and nothing else. A spec that is malformed, of another kind, or whose name the plugin has used
already is left out and reported.

The canonical id of a component is ``plugin:name``; components of different plugins may share a short name, which is
then no longer enough to choose one.
"""

# The bodies are documentation: pluggy calls the implementations, never these functions.

from __future__ import annotations

from collections.abc import Iterable

from nasdistill.host.markers import hookspec
from nasdistill.spec.component import (
    AttentionSpec,
    CommandSpec,
    DataReducerSpec,
    DiagnosticSpec,
    ExporterSpec,
    Kind,
    LossSpec,
    ProxySpec,
    RecipeSpec,
    ReportSectionSpec,
    SamplerSpec,
    SearchSpaceSpec,
    StrategySpec,
    TargetSpec,
    TaskSpec,
    TeacherSpec,
    TransformSpec,
)


@hookspec
def nasdistill_search_spaces() -> Iterable[SearchSpaceSpec]:  # type: ignore[empty-body]
    """Return the search spaces of this plugin (interface :class:`nasdistill.interfaces.SearchSpace`).

    The class is created as ``Class(options, host=host)``; its architectures carry the canonical id.
    """


@hookspec
def nasdistill_proxies() -> Iterable[ProxySpec]:  # type: ignore[empty-body]
    """Return the training-free proxies of this plugin (interface :class:`nasdistill.interfaces.Proxy`).

    Higher is better, always. The tags say what the host must hand over and in which mode.
    """


@hookspec
def nasdistill_attention_variants() -> Iterable[AttentionSpec]:  # type: ignore[empty-body]
    """Return the attention variants of this plugin.

    The tag `level` chooses the interface: :class:`nasdistill.interfaces.AttentionCore`, created as
    ``Class(options, geometry=geometry, host=host)``; :class:`nasdistill.interfaces.ModuleAttention`, made by its class
    method ``from_softmax``; or :class:`nasdistill.interfaces.ModelAttention`, created as ``Class(options, host=host)``.
    """


@hookspec
def nasdistill_losses() -> Iterable[LossSpec]:  # type: ignore[empty-body]
    """Return the distillation losses of this plugin (interface :class:`nasdistill.interfaces.DistillationLoss`)."""


@hookspec
def nasdistill_teachers() -> Iterable[TeacherSpec]:  # type: ignore[empty-body]
    """Return the teacher providers of this plugin (interface :class:`nasdistill.interfaces.Teacher`).

    Users write ``NAME`` or ``NAME:LOCATOR``; the provider gives the locator its meaning.
    """


@hookspec
def nasdistill_tasks() -> Iterable[TaskSpec]:  # type: ignore[empty-body]
    """Return the tasks of this plugin (interface :class:`nasdistill.interfaces.Task`)."""


@hookspec
def nasdistill_targets() -> Iterable[TargetSpec]:  # type: ignore[empty-body]
    """Return the targets of this plugin (interface :class:`nasdistill.interfaces.Target`).

    A target whose runtime is optional names it in `requires`, so that the host can say what to install.
    """


@hookspec
def nasdistill_transforms() -> Iterable[TransformSpec]:  # type: ignore[empty-body]
    """Return the model transforms of this plugin (interface :class:`nasdistill.interfaces.Transform`)."""


@hookspec
def nasdistill_recipes() -> Iterable[RecipeSpec]:  # type: ignore[empty-body]
    """Return the training recipes of this plugin (interface :class:`nasdistill.interfaces.Recipe`)."""


@hookspec
def nasdistill_data_reducers() -> Iterable[DataReducerSpec]:  # type: ignore[empty-body]
    """Return the data reducers of this plugin (interface :class:`nasdistill.interfaces.DataReducer`)."""


@hookspec
def nasdistill_diagnostics() -> Iterable[DiagnosticSpec]:  # type: ignore[empty-body]
    """Return the diagnostics of this plugin (interface :class:`nasdistill.interfaces.Diagnostic`)."""


@hookspec
def nasdistill_strategies() -> Iterable[StrategySpec]:  # type: ignore[empty-body]
    """Return the search strategies of this plugin (interface :class:`nasdistill.interfaces.Strategy`)."""


@hookspec
def nasdistill_samplers() -> Iterable[SamplerSpec]:  # type: ignore[empty-body]
    """Return the sampler factories of this plugin (interface :class:`nasdistill.interfaces.SamplerFactory`)."""


@hookspec
def nasdistill_exporters() -> Iterable[ExporterSpec]:  # type: ignore[empty-body]
    """Return the exporters of this plugin (interface :class:`nasdistill.interfaces.Exporter`)."""


@hookspec
def nasdistill_report_sections() -> Iterable[ReportSectionSpec]:  # type: ignore[empty-body]
    """Return the report sections of this plugin (interface :class:`nasdistill.interfaces.ReportSection`)."""


@hookspec
def nasdistill_commands() -> Iterable[CommandSpec]:  # type: ignore[empty-body]
    """Return the subcommands of this plugin.

    `target` names a function ``run(args: argparse.Namespace) -> int``; the function ``add_arguments(parser)`` of the
    same module, where there is one, declares its arguments. A built-in command of the same name wins.
    """


HOOKS: dict[str, Kind] = {
    "nasdistill_search_spaces": Kind.SEARCH_SPACE,
    "nasdistill_proxies": Kind.PROXY,
    "nasdistill_attention_variants": Kind.ATTENTION,
    "nasdistill_losses": Kind.LOSS,
    "nasdistill_teachers": Kind.TEACHER,
    "nasdistill_tasks": Kind.TASK,
    "nasdistill_targets": Kind.TARGET,
    "nasdistill_transforms": Kind.TRANSFORM,
    "nasdistill_recipes": Kind.RECIPE,
    "nasdistill_data_reducers": Kind.DATA_REDUCER,
    "nasdistill_diagnostics": Kind.DIAGNOSTIC,
    "nasdistill_strategies": Kind.STRATEGY,
    "nasdistill_samplers": Kind.SAMPLER,
    "nasdistill_exporters": Kind.EXPORTER,
    "nasdistill_report_sections": Kind.REPORT_SECTION,
    "nasdistill_commands": Kind.COMMAND,
}
"""Registration hook -> the kind of component it returns."""
