"""The three fronts: check one component, check a plugin, and both as pytest parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from nasdistill.errors import UsageError
from nasdistill.host import ComponentRecord, Host
from nasdistill.interfaces.base import Example
from nasdistill.spec.component import ComponentSpec, Kind
from nasdistill.testing.generator import BoundCheck, generate_checks
from nasdistill.testing.hosts import isolated_host
from nasdistill.testing.pluginchecks import PluginCheck, plugin_checks
from nasdistill.testing.results import CheckResult, failures

OnFail = Literal["raise", "record"]


def check_component(
    component: str | ComponentSpec,
    *,
    kind: Kind | str | None = None,
    host: Host | None = None,
    expected_failures: Mapping[str, str] | None = None,
    examples: Sequence[Example] | None = None,
    thorough: bool = False,
    on_fail: OnFail = "raise",
    seed: int = 0,
    on_result: Callable[[CheckResult], None] | None = None,
    on_start: Callable[[BoundCheck | PluginCheck], None] | None = None,
    timeout: float = 0.0,
) -> list[CheckResult]:
    """Run every check of one component.

    Args:
        component: a name (``"synflow"``, ``"proxies:synflow"``), or a spec, which is then tried in a host of its own.
        kind: which kind, where several have a component of that name.
        host: where the component lives; None loads all installed plugins.
        expected_failures: check -> why it is known to fail. One that passes after all counts as a failure.
        examples: uses to try instead of those that the class gives.
        thorough: the slow checks too.
        on_fail: ``"raise"`` an AssertionError with every failure at the end, or ``"record"`` only.
        seed: of everything random.
        on_result: called after each check.
        on_start: called before each check.
        timeout: seconds after which a check has failed (0: never), in the main thread of a POSIX system.

    Returns:
        One result per check, in the order run.

    Raises:
        AssertionError: a check failed and `on_fail` is ``"raise"``.
        UnknownComponentError: there is no such component.
    """
    if isinstance(component, ComponentSpec):
        host = isolated_host(component)
        kind, component = component.kind, f"local:{component.name}"
    host = Host.load() if host is None else host
    record = _record(host, component, kind)
    checks = generate_checks(
        host, record, thorough=thorough, expected_failures=expected_failures, examples=examples, seed=seed
    )
    return _collect(checks, on_fail, on_result, on_start, timeout)


def check_plugin(
    plugin: str,
    *,
    host: Host | None = None,
    expected_failures: Mapping[str, Mapping[str, str]] | None = None,
    thorough: bool = False,
    on_fail: OnFail = "raise",
    on_result: Callable[[CheckResult], None] | None = None,
    on_start: Callable[[BoundCheck | PluginCheck], None] | None = None,
    timeout: float = 0.0,
) -> list[CheckResult]:
    """Run the checks of a plugin and of each of its components.

    Args:
        plugin: the plugin's name.
        host: where it lives; None loads all installed plugins.
        expected_failures: component (id or short name) -> check -> why it is known to fail.
        thorough: the slow checks too.
        on_fail: ``"raise"`` an AssertionError with every failure at the end, or ``"record"`` only.
        on_result: called after each check.
        on_start: called before each check.
        timeout: seconds after which a check has failed (0: never), in the main thread of a POSIX system.

    Raises:
        AssertionError: a check failed and `on_fail` is ``"raise"``.
        UsageError: there is no such plugin.
    """
    host = Host.load() if host is None else host
    return _collect(_all_of(host, plugin, expected_failures, thorough), on_fail, on_result, on_start, timeout)


def parametrize_with_checks(
    plugin: str,
    *,
    kind: Kind | str | None = None,
    host: Host | None = None,
    expected_failures: Mapping[str, Mapping[str, str]] | None = None,
    thorough: bool = False,
) -> Any:
    """Return a pytest decorator that gives a test every check of a plugin, as its argument `check`.

    Args:
        plugin: the plugin's name.
        kind: components of one kind only, without the plugin's own checks; None takes all.
        host: where it lives; None loads all installed plugins.
        expected_failures: component (id or short name) -> check -> reason; these become strict xfails.
        thorough: the slow checks too.

    Raises:
        UsageError: there is no such plugin, or an expectation names nothing.
    """
    import pytest

    host = Host.load() if host is None else host
    wanted = None if kind is None else Kind(kind)
    parameters = []
    for item in _all_of(host, plugin, expected_failures, thorough):
        if wanted is not None and (isinstance(item, PluginCheck) or item.subject.kind is not wanted):
            continue
        marks: tuple[Any, ...] = ()
        if isinstance(item, BoundCheck) and item.expected:
            marks = (pytest.mark.xfail(reason=item.expected, raises=AssertionError, strict=True),)
            item = replace(item, expected="")  # pytest holds the outcome against the expectation
        parameters.append(pytest.param(item, id=item.id, marks=marks))
    return pytest.mark.parametrize("check", parameters)


def _record(host: Host, name: str, kind: Kind | str | None) -> ComponentRecord:
    """Return the component that is meant."""
    if kind is not None:
        return host.record(Kind(kind), name)
    fitting = [record for record in host.specs() if name in (record.id, record.name)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        kinds = ", ".join(f"{record.id} ({record.kind.value})" for record in fitting)
        raise UsageError(f"several components are called {name!r}: {kinds}", hint="Say which kind.")
    return host.record(Kind.PROXY, name)  # raises, naming what there is of that name


def _all_of(
    host: Host, plugin: str, expected: Mapping[str, Mapping[str, str]] | None, thorough: bool
) -> Iterator[BoundCheck | PluginCheck]:
    """Yield the checks of a plugin, then those of its components."""
    expected = dict(expected or {})
    yield from plugin_checks(host, plugin)
    for record in host.specs():
        if record.plugin == plugin:
            reasons = {**expected.pop(record.name, {}), **expected.pop(record.id, {})}
            yield from generate_checks(host, record, thorough=thorough, expected_failures=reasons)
    if expected:
        raise UsageError(f"expected_failures names {', '.join(sorted(expected))}, which {plugin} does not have")


def _collect(
    checks: Iterable[BoundCheck | PluginCheck],
    on_fail: OnFail,
    on_result: Callable[[CheckResult], None] | None,
    on_start: Callable[[BoundCheck | PluginCheck], None] | None,
    timeout: float,
) -> list[CheckResult]:
    """Run checks one after the other."""
    results = []
    for item in checks:
        if on_start is not None:
            on_start(item)
        results.append(item.run(timeout=timeout))
        if on_result is not None:
            on_result(results[-1])
    broken = failures(results)
    if broken and on_fail == "raise":
        raise AssertionError("\n".join(map(str, broken)))
    return results
