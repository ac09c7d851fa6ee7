"""Checks of a plugin as a whole: what its module does when plugins are merely listed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata

from nasdistill.errors import UsageError, did_you_mean
from nasdistill.host import Host, PluginRecord
from nasdistill.host.discovery import HOME
from nasdistill.testing.attempt import attempt
from nasdistill.testing.dependencies import undeclared
from nasdistill.testing.probing import import_alone
from nasdistill.testing.registry import fail, need_docstrings, skip, skip_test
from nasdistill.testing.results import CheckResult, title
from nasdistill.testing.subject import origin


@dataclass(frozen=True, slots=True)
class PluginCheck:
    """A check of one plugin.

    Attributes:
        name: of the check.
        rule: what holds.
        hint: the likely fix.
        host: where the plugin lives.
        plugin: the plugin.
        function: the check.
    """

    name: str
    rule: str
    hint: str
    host: Host
    plugin: PluginRecord
    function: Callable[[Host, PluginRecord], None]

    @property
    def id(self) -> str:
        """Name for a test runner."""
        return f"{self.plugin.name}-{self.name}"

    @property
    def about(self) -> tuple[str, str]:
        """What is checked: a plugin, and its name."""
        return "plugin", self.plugin.name

    @property
    def title(self) -> str:
        """What people call it: ``plugin acme: loads``."""
        return title(*self.about, "", self.name)

    def run(self, *, timeout: float = 0.0) -> CheckResult:
        """Run the check and return what came out; nothing but an interrupt is raised.

        Args:
            timeout: seconds after which it has failed; 0: never.
        """
        start = time.perf_counter()
        who = f"plugin {self.plugin.name} {origin(self.plugin)}"
        status, message = attempt(lambda: self.function(self.host, self.plugin), who, seconds=timeout)
        return CheckResult(
            component=self.plugin.name, kind="plugin", check=self.name, example="", status=status, message=message,
            rule=self.rule, hint=self.hint, seconds=time.perf_counter() - start,
        )  # fmt: skip

    def __call__(self) -> None:
        """Run the check as a test; raises AssertionError or unittest.SkipTest."""
        result = self.run()
        if not result.ok:
            raise AssertionError(str(result))
        if result.status == "skipped":
            skip_test(result.message)


def plugin_checks(host: Host, name: str) -> Iterator[PluginCheck]:
    """Yield the checks of a plugin.

    Raises:
        UsageError: no such plugin, or Python runs with ``-OO``.
    """
    need_docstrings()
    plugin = next((item for item in host.plugins() if item.name == name), None)
    if plugin is None:
        known = [item.name for item in host.plugins()]
        raise UsageError(
            f"no plugin named {name!r}. {did_you_mean(name, known)}",
            hint="nasdistill plugins list names them; a plugin is found when its package is installed.",
        )
    for function, hint in PLUGIN_CHECKS.items():
        rule = " ".join((function.__doc__ or "").split("\n\n")[0].split())
        yield PluginCheck(function.__name__, rule, hint, host, plugin, function)


def loads(host: Host, plugin: PluginRecord) -> None:
    """A plugin loads without a problem, with every component that it registers."""
    found = [problem for problem in host.problems if problem.plugin == plugin.name]
    if found:
        fail("; ".join(str(problem) for problem in found))
    if plugin.state != "loaded":
        fail(f"it is {plugin.state}")


def brings_components(host: Host, plugin: PluginRecord) -> None:
    """A plugin registers at least one component."""
    if plugin.state != "loaded":
        skip("it does not load")
    if not any(record.plugin == plugin.name for record in host.specs()):
        fail("no hook of it returns a component")


def imports_light(host: Host, plugin: PluginRecord) -> None:
    """Importing a plugin's module imports nothing heavy, prints nothing and opens no connection."""
    if plugin.state != "loaded":
        skip("it does not load")
    module = plugin.module.partition(":")[0]
    if plugin.file is not None:
        skip("a plugin of one file holds its components, too")
    if not _installed(plugin):
        skip("it was handed over in this process, there is no module to import")
    seen = import_alone(module)
    if seen.heavy:
        fail(f"importing {module} imports {', '.join(seen.heavy)}, which every nasdistill command then waits for")
    if seen.reached:
        fail(f"importing {module} connects to {', '.join(seen.reached)}")
    if seen.printed:
        fail(f"importing {module} prints {seen.printed.splitlines()[0]!r}")


def requires_is_complete(host: Host, plugin: PluginRecord) -> None:
    """Components import what nasdistill and their distribution depend on and what their `requires` names, no more.

    Imports at the top of modules and in the bodies of classes are looked at, those inside functions are not.
    """
    if plugin.state != "loaded":
        skip("it does not load")
    if not _installed(plugin):
        skip("it is no distribution, which could depend on something")
    here = [item for item in host.specs() if item.plugin == plugin.name and not host.missing(item.kind, item.id)]
    try:
        lacking = undeclared(plugin, here)
    except metadata.PackageNotFoundError as error:
        skip(f"there is no metadata of {error.name} here")
    found = [f"{name} imports {', '.join(modules)}" for name, modules in lacking.items()]
    if found:
        nobody = f"{HOME} does not depend on"
        if plugin.distribution != HOME:
            nobody = f"neither {HOME} nor {plugin.distribution} depends on"
        fail(f"{'; '.join(found)}, which {nobody}, and `requires` does not name")


def _installed(plugin: PluginRecord) -> bool:
    """Whether a plugin is part of an installed distribution."""
    return plugin.file is None and not plugin.distribution.startswith("(")


PLUGIN_CHECKS: dict[Callable[[Host, PluginRecord], None], str] = {
    loads: "The message names the stage: import, plugin API, registration, hook or spec.",
    brings_components: "Mark the hook functions with nasdistill.hookimpl and return the specs.",
    imports_light: 'Name classes as "module:Class" texts in the specs; import torch in the component\'s own file.',
    requires_is_complete: (
        "Add the package to the dependencies of the distribution, or to the spec's `requires` with the extra that "
        "brings it, or import it where it is used."
    ),
}
"""Check -> likely fix, in the order run."""
