"""What the components of a plugin import, against what their distribution and their specs say that they need."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from nasdistill.host import ComponentRecord, PluginRecord
from nasdistill.host.discovery import HOME
from nasdistill.testing.probing import ask


def undeclared(plugin: PluginRecord, records: Iterable[ComponentRecord]) -> dict[str, list[str]]:
    """Return the components that cannot be imported with what they say they need, and the modules that they lack.

    What they may have: Python's own modules, those of their distribution and of nasdistill, of everything that these
    two depend on (without extras), and what the component's `requires` names, with what that depends on. Of modules
    that no distribution has nothing is said.

    Where no file of theirs imports any other module, functions aside, nothing needs to be tried. Otherwise they are
    imported in a process of their own, in which there is no other: an import that may fail is then none they need.

    Raises:
        CheckFailed: the process came to no answer.
        metadata.PackageNotFoundError: the distribution, or nasdistill's, has no metadata here.
    """
    brought = metadata.packages_distributions()
    records = list(records)
    own = {_top(plugin.module), *(_top(record.spec.target) for record in records)}
    given = _with_dependencies([HOME, plugin.distribution])
    groups: dict[frozenset[str], dict[str, str]] = {}
    for record in records:
        required = {_top(item.module) for item in record.spec.requires}
        there = given | _with_dependencies(name for module in required for name in brought.get(module, ()))
        hidden = frozenset(
            module
            for module, distributions in brought.items()
            if module not in own | required | sys.stdlib_module_names and there.isdisjoint(map(_key, distributions))
        )
        groups.setdefault(hidden, {})[record.id] = record.spec.target.partition(":")[0]
    named = _imported(own)
    if named is not None and all(hidden.isdisjoint(named) for hidden in groups):
        return {}
    # Those that need least come first: what one has imported is never wanted a second time by the next.
    ordered = sorted(groups.items(), key=lambda group: -len(group[0]))
    asked = {"own": sorted(own), "groups": [{"hidden": sorted(h), "modules": modules} for h, modules in ordered]}
    found, _ = ask("import_bare", asked, f"what plugin {plugin.name} has")
    return found


def _with_dependencies(names: Iterable[str]) -> set[str]:
    """Return distributions and all that they depend on, as far as it is installed, in comparable form.

    Raises:
        metadata.PackageNotFoundError: one of `names` is not installed.
    """
    from packaging.requirements import Requirement

    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    queue = [(name, "") for name in names]
    for name, _ in queue:
        metadata.distribution(name)
    while queue:
        name, extra = queue.pop()
        if (_key(name), extra) in seen:
            continue
        seen.add((_key(name), extra))
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another system, or another Python
            continue
        found.add(_key(name))
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                queue += [(need.name, ""), *((need.name, wanted) for wanted in need.extras)]
    return found


def _imported(own: Iterable[str]) -> set[str] | None:
    """Return the top-level names that the files of some top-level modules import, functions aside; None: any."""
    found: set[str] = set()
    for file in _files(own):
        try:
            nodes = list(_at_import(ast.parse(file.read_bytes())))
        except (OSError, ValueError, SyntaxError):  # compiled code, too
            return None
        for node in nodes:
            if isinstance(node, ast.Import):
                found |= {_top(alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(_top(node.module or ""))
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
                return None
    return found


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a file that run when it is imported: those outside functions."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _at_import(child)


def _files(own: Iterable[str]) -> Iterator[Path]:
    """Yield the files of top-level modules, which are not imported for it."""
    for name in own:
        spec = importlib.util.find_spec(name)
        if spec is None:
            continue
        for folder in spec.submodule_search_locations or ():
            yield from Path(folder).rglob("*.py")
        if spec.submodule_search_locations is None and spec.origin is not None:
            yield Path(spec.origin)


def _top(module: str) -> str:
    return re.split(r"[.:]", module)[0]


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
