"""Fill a configuration in from its teacher and its task, before anything is loaded.

A user names a teacher, a task and data. What follows from these (the tokenizer, the label names, the sizes that
students are cut from, a space and losses that suit the task) is asked of the components and written into the
configuration, so that the run's record is complete and its workers, a resume and whoever loads a student need not ask
again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nasdistill.errors import NasdistillError, UsageError, one_line
from nasdistill.host.importing import ISOLATED
from nasdistill.spec.component import Kind
from nasdistill.spec.config import RunConfig, Table, parse_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from nasdistill.host.manager import Host
    from nasdistill.interfaces import TeacherInfo

SUGGESTED = ("space", "target", "proxy", "objective", "training", "search", "latency")
"""Tables that a task may suggest."""


def adapt_config(config: RunConfig, host: Host, *, where: str = "the configuration") -> RunConfig:
    """Return the configuration with what its teacher and its task imply; what the user said stays.

    Adapting twice changes nothing more.

    Args:
        config: the configuration.
        host: where components come from.
        where: its name in messages.

    Raises:
        UsageError: there is no such teacher.
        MismatchError: a space cannot serve students of this teacher.
        ConfigError: a component answered with what is no valid configuration.
    """
    info = describe_teacher(config, host)
    task = host.load(Kind.TASK, config.task.name)
    options = {**_ask(task.adapted, config.task.name, config.task.options, info), **config.task.options}
    given = _given(config)
    given["task"] = {"name": config.task.name, "options": options}
    for table, values in _ask(task.suggested, config.task.name, options, info).items():
        if table not in SUGGESTED:
            raise UsageError(f"task {config.task.name} suggests {table!r}, which no task decides")
        own = given.get(table)
        given[table] = values if own is None else _merged(values, own) if isinstance(own, dict) else own
    spaces = given.get("space", [item.model_dump(mode="json") for item in config.space])
    given["space"] = [
        {"name": item["name"], "options": adapted_options(host, item["name"], item.get("options") or {}, info)}
        for item in spaces
    ]
    return parse_config(given, where=f"{where} with what follows from teacher and task")


def _merged(values: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return suggested values with the user's over them; a strategy's or sampler's options only where it stays."""
    kept = dict(values)
    for name in ("strategy", "sampler"):
        if own.get(name, values.get(name)) != values.get(name):
            kept.pop(f"{name}_options", None)
    return {**kept, **own}


def describe_teacher(config: RunConfig, host: Host) -> TeacherInfo:
    """Return what the configured teacher says of itself before it is loaded. Raises UsageError when there is none."""
    from nasdistill.interfaces import Teacher

    name, locator = host.locate(Kind.TEACHER, config.teacher.name)
    teacher: Teacher = host.create(Kind.TEACHER, name, config.teacher.options)
    try:
        return teacher.describe(locator)
    except NasdistillError:
        raise
    except ISOLATED as error:
        raise UsageError(f"teacher {config.teacher.name} cannot be looked at: {one_line(error)}") from error


def adapted_options(host: Host, space: str, options: Mapping[str, Any], info: TeacherInfo) -> dict[str, Any]:
    """Return a search space's options with what follows from the teacher. Raises MismatchError as the space says."""
    cls = host.load(Kind.SEARCH_SPACE, space)
    filled = {**_ask(cls.adapted, space, options, info), **options}
    if cls.inner_option is not None:
        inner = filled.get(cls.inner_option, cls.options_model().model_dump(mode="json")[cls.inner_option])
        adapted = adapted_options(host, inner["name"], inner.get("options") or {}, info)
        if adapted:
            filled[cls.inner_option] = {"name": inner["name"], "options": adapted}
    return filled


def _ask(
    method: Callable[[Mapping[str, Any], TeacherInfo], dict[str, Any]],
    name: str,
    options: Mapping[str, Any],
    info: TeacherInfo,
) -> dict[str, Any]:
    """Call a component's class method; whatever it raises is told with the component's name."""
    try:
        return dict(method(dict(options), info))
    except NasdistillError:
        raise
    except ISOLATED as error:
        raise UsageError(f"{name} failed to adapt to the teacher: {one_line(error)}") from error


def _given(table: Table) -> dict[str, Any]:
    """Return what was set in a configuration, without the defaults."""
    found: dict[str, Any] = {}
    for name in table.model_fields_set:
        value = getattr(table, name)
        if isinstance(value, Table):
            found[name] = _given(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], Table):
            found[name] = [item.model_dump(mode="json") for item in value]
        else:
            found[name] = table.model_dump(mode="json", include={name})[name]
    return found
