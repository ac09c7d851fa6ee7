"""Check a configuration against what is installed: every named component exists and takes its options.

Components are imported for their options models and nothing is created, so a mistake shows before any work starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nasdistill.errors import ConfigError, NasdistillError
from nasdistill.spec.component import Kind

if TYPE_CHECKING:
    from nasdistill.host.manager import Host
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

                parse_options(model, options, where=name)
        except NasdistillError as error:
            problem = type(error)(f"{where}: {place} {error.message}", hint=error.hint)
            problem.__cause__ = error.__cause__
            problems.append(problem)
    return problems


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
