"""Check a configuration against what is installed: every named component exists and takes its options.

Components are imported for their options models, so a mistake shows before any work starts. Only the strategy is
created, which says whether it can work with the rest, and spaces with a supernet, for the names of their sub-spaces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from nasdistill.errors import ConfigError, NasdistillError, one_line
from nasdistill.host.adapting import adapt_config, adapted_options, describe_teacher
from nasdistill.host.importing import ISOLATED
from nasdistill.spec.component import Kind, SearchSpaceSpec

if TYPE_CHECKING:
    from nasdistill.host.manager import Host
    from nasdistill.interfaces import SearchSetting, SearchSpace, Strategy
    from nasdistill.spec.config import RunConfig


def named_components(config: RunConfig) -> Iterator[tuple[str, Kind, str, dict[str, Any]]]:
    """Yield (place in the file, kind, name, options) for every component that a configuration names.

    A teacher's name still carries its locator (``timm:resnet18``).
    """
    yield "[task]", Kind.TASK, config.task.name, config.task.options
    yield "[teacher]", Kind.TEACHER, config.teacher.name, config.teacher.options
    for table, kind, entries in (
        ("space", Kind.SEARCH_SPACE, config.space),
        ("target", Kind.TARGET, config.target),
        ("proxy", Kind.PROXY, config.proxy),
    ):
        for entry in entries:
            yield f"[[{table}]]", kind, entry.name, entry.options
    for loss in config.objective.losses:
        yield "objective.losses", Kind.LOSS, loss.name, loss.options
    search = config.search
    yield "search.strategy", Kind.STRATEGY, search.strategy, search.strategy_options
    yield "search.sampler", Kind.SAMPLER, search.sampler, search.sampler_options


def config_problems(config: RunConfig, host: Host, *, where: str) -> list[NasdistillError]:
    """Return what is wrong with the components that a configuration names; empty when nothing is.

    Args:
        config: the configuration.
        host: what is installed.
        where: the file's name, for messages.
    """
    problems: list[NasdistillError] = []
    for place, kind, name, options in named_components(config):
        try:
            identifier = host.locate(kind, name)[0] if kind is Kind.TEACHER else host.canonical(kind, name)
            host.component_class(kind, identifier)
            model = host.options_model(kind, identifier)
            if model is not None:
                from nasdistill.spec.options import parse_options

                parse_options(model, _following(config, host, kind, name, options), where=name)
        except NasdistillError as error:
            problem = type(error)(f"{where}: {place} {error.message}", hint=error.hint)
            problem.__cause__ = error.__cause__
            problems.append(problem)
    if not problems:
        try:
            adapted = _adapted(config, host, where)
            if adapted is None:
                return problems
            search = adapted.search
            strategy = host.create(Kind.STRATEGY, search.strategy, search.strategy_options)
            check_strategy(strategy, search_setting(adapted, host, parts=adapted is not config))
        except NasdistillError as error:
            problems.append(type(error)(f"{where}: {error.message}", hint=error.hint))
    return problems


def _following(config: RunConfig, host: Host, kind: Kind, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return a space's options with what follows from the teacher: a width is judged by the teacher's, not a default's.

    Where nothing can be said of the teacher, or the space does not take it, they are as they stand.
    """
    if kind is not Kind.SEARCH_SPACE or not options:
        return options
    try:
        return adapted_options(host, name, options, describe_teacher(config, host))
    except NasdistillError:
        return options


def _adapted(config: RunConfig, host: Host, where: str) -> RunConfig | None:
    """Return a configuration with the spaces and the strategy that follow from its teacher and its task.

    A teacher that is not there is told when it is opened. What it implies is not known then: the configuration as it
    stands, or None where spaces are left to the task.
    """
    try:
        return adapt_config(config, host, where=where)
    except NasdistillError:
        return config if "space" in config.model_fields_set else None


def check_strategy(strategy: Strategy, setting: SearchSetting) -> None:
    """Have a strategy look at what a search is configured with.

    Raises:
        NasdistillError: it refuses, or its check failed.
    """
    try:
        strategy.check(setting)
    except NasdistillError:
        raise
    except ISOLATED as error:
        raise NasdistillError(
            f"strategy {strategy.id} failed when it looked at the configuration: {one_line(error)}",
            hint="Tell the authors of the plugin, or choose another one: --strategy funnel.",
        ) from error


def search_setting(config: RunConfig, host: Host, *, parts: bool = True) -> SearchSetting:
    """Return what a strategy may depend on, of a configuration whose components are all installed.

    Args:
        config: the configuration.
        host: what is installed.
        parts: ask the spaces for their sub-spaces. Not to be done while a teacher that decides their sizes is unknown.
    """
    from nasdistill.interfaces import SearchSetting

    ids = [host.canonical(Kind.SEARCH_SPACE, item.name) for item in config.space]
    spaces, elastic = short_names(ids), _elastic(host)
    names: dict[str, None] = {}
    for item, identifier in zip(config.space, ids, strict=True):
        if parts and identifier in elastic:
            space: SearchSpace = host.create(Kind.SEARCH_SPACE, item.name, item.options)
            names |= dict.fromkeys(part.name for part in space.subspaces())
    return SearchSetting(
        spaces=tuple(spaces),
        targets=tuple(host.canonical(Kind.TARGET, item.name) for item in config.target),
        proxies=tuple(short_names(host.canonical(Kind.PROXY, item.name) for item in config.proxy)),
        trials=config.search.trials,
        supernets=tuple(name for name, identifier in zip(spaces, ids, strict=True) if identifier in elastic),
        elastic=tuple(short_names(elastic)),
        losses=tuple(host.canonical(Kind.LOSS, item.name) for item in config.objective.losses),
        subspaces=tuple(names) if parts else None,
    )


def _elastic(host: Host) -> list[str]:
    """Return the ids of all installed spaces that can train shared weights."""
    return [
        record.id
        for record in host.specs(Kind.SEARCH_SPACE)
        if isinstance(record.spec, SearchSpaceSpec) and record.spec.tags.supernet
    ]


def short_names(identifiers: Iterable[str]) -> list[str]:
    """Return each canonical id's bare name, or all of it (``plugin_name``) where an earlier one has that name."""
    names: list[str] = []
    for identifier in identifiers:
        bare = identifier.split(":", 1)[-1]
        names.append(identifier.replace(":", "_") if bare in names else bare)
    return names


def check_config(config: RunConfig, host: Host, *, where: str) -> None:
    """Raise when :func:`config_problems` finds something.

    Raises:
        NasdistillError: the one problem, or a :class:`ConfigError` that lists several.
    """
    problems = config_problems(config, host, where=where)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ConfigError("\n".join(str(problem) for problem in problems))
