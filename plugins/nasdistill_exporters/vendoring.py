"""Copy the source of a few classes and functions, and of all they use, into files that stand alone.

From each module only the definitions that are reached are taken, with their comments, in their order. A module of the
toolkit or of a plugin becomes one file beside the others, and its imports become relative; torch, numpy and the
standard library stay imports. Annotations are not followed: with ``from __future__ import annotations`` they are never
evaluated. Nothing is executed; names are resolved in the syntax trees.

What is left out of a class: ``options_model`` and the class method ``cost`` (they are for searching), and of its bases
those that a `replacements` entry stands in for.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

KEPT_IMPORTS = frozenset({"torch", "numpy"})
"""Packages besides the standard library that the written files may import."""

_LEFT_OUT = frozenset({"options_model", "cost"})
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


class VendoringError(Exception):
    """Some source cannot be copied; the text says which name and why."""


@dataclass(slots=True)
class _Module:
    """A parsed module, and what of it is needed."""

    name: str
    text: str
    tree: ast.Module
    definitions: dict[str, _Definition]
    imports: dict[str, tuple[str, str | None]]
    """Local name -> (module, name in it), the latter None for ``import module``."""
    needed: set[str] = field(default_factory=set)
    uses: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """Imported names that the needed definitions use, and where they really come from."""


class Vendor:
    """Collects definitions.

    Args:
        replacements: ``"module:name"`` -> ``"module:name"`` of what stands in for it.
    """

    def __init__(self, replacements: Mapping[str, str] | None = None) -> None:
        self._replacements = dict(replacements or {})
        self._modules: dict[str, _Module] = {}

    def add(self, target: object) -> tuple[str, str]:
        """Take a module-level class or function, and all that it uses.

        Returns:
            The name of its file without ``.py``, and its own name there.

        Raises:
            VendoringError: it is not defined at the top of a module, or it uses something that cannot be copied.
        """
        module, name = getattr(target, "__module__", ""), getattr(target, "__qualname__", "")
        if not name.isidentifier():
            raise VendoringError(f"{module}.{name or target!r} is not defined at the top level of a module")
        module, name = self._origin(module, name)
        self._need(module, name)
        return file_name(module), name

    def files(self) -> dict[str, str]:
        """Return file name -> source of everything collected."""
        used = [module for module in self._modules.values() if module.needed]
        found = {f"{file_name(module.name)}.py": self._source(module) for module in used}
        if len(found) < len(used):
            raise VendoringError("two modules would share a file: " + ", ".join(sorted(m.name for m in used)))
        return found

    # ---- collecting -----------------------------------------------------------------------------------------------

    def _need(self, module_name: str, name: str) -> None:
        module = self._module(module_name)
        if name in module.needed:
            return
        module.needed.add(name)
        definition = module.definitions[name]
        for used in _names(definition):
            if used in module.definitions:
                self._need(module_name, used)
            elif used in module.imports:
                self._import(module, used)
        if isinstance(definition, ast.ClassDef | ast.FunctionDef):
            for used in _annotated(definition):
                source = module.imports.get(used)
                if source is not None and _is_kept(source[0]):
                    module.uses[used] = source

    def _import(self, module: _Module, used: str) -> None:
        source, name = module.imports[used]
        if _is_kept(source):
            module.uses[used] = (source, name)
            return
        if name is None or importlib.util.find_spec(source) is None:
            raise VendoringError(
                f"{module.name} uses the module {source} as {used!r}; only names from it can be copied"
            )
        origin = self._origin(source, name)
        module.uses[used] = origin
        self._need(*origin)

    def _origin(self, module_name: str, name: str) -> tuple[str, str]:
        """Return the module that defines a name, through re-exports and replacements."""
        seen = set()
        while (module_name, name) not in seen:
            seen.add((module_name, name))
            replaced = self._replacements.get(f"{module_name}:{name}")
            if replaced is not None:
                module_name, _, name = replaced.partition(":")
            module = self._module(module_name)
            if name in module.definitions:
                return module_name, name
            source = module.imports.get(name)
            if source is None or source[1] is None or _is_kept(source[0]):
                break
            module_name, name = source[0], source[1]
        raise VendoringError(f"no definition of {name!r} found in {module_name}")

    def _module(self, name: str) -> _Module:
        if name not in self._modules:
            if _is_kept(name):
                raise VendoringError(f"{name} is not a module of the toolkit or of a plugin")
            module = importlib.import_module(name)
            if not (module.__file__ or "").endswith(".py"):
                raise VendoringError(f"the source of {name} is not here")
            text = Path(str(module.__file__)).read_text(encoding="utf-8")
            tree = ast.parse(text)
            self._modules[name] = _Module(name, text, tree, *_top_level(tree, name, bool(hasattr(module, "__path__"))))
        return self._modules[name]

    # ---- writing --------------------------------------------------------------------------------------------------

    def _source(self, module: _Module) -> str:
        head = f'"""Taken from {module.name}.'
        words = ast.get_docstring(module.tree, clean=False)
        parts = [f'{head}\n\n{words.rstrip()}\n"""' if words else f'{head}"""', "from __future__ import annotations"]
        parts.append(self._imports(module))
        nodes = {id(module.definitions[name]): module.definitions[name] for name in module.needed}
        statements = module.tree.body
        body = ""
        for position, node in enumerate(statements):
            if id(node) not in nodes:
                continue
            text = _segment(module.text, node)
            following = statements[position + 1] if position + 1 < len(statements) else None
            if isinstance(node, ast.Assign | ast.AnnAssign) and _is_text(following):
                text += "\n" + _segment(module.text, following)
            body += ("\n\n" if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) else "") + text
            body += "\n"
        return "\n\n".join(part for part in [*parts, body.lstrip("\n")] if part)

    def _imports(self, module: _Module) -> str:
        """Return the import lines: the kept ones, those from the other files, those that only annotations name."""
        plain, named, own = set(), dict[str, set[str]](), dict[str, set[str]]()
        for local, (source, name) in module.uses.items():
            if name is None:
                plain.add(f"import {source}" + ("" if source == local else f" as {local}"))
            else:
                (named if _is_kept(source) else own).setdefault(source, set()).add(_alias(name, local))
        shown = dict[str, set[str]]()
        for used in {used for name in module.needed for used in _annotated(module.definitions[name])}:
            source, name = module.imports.get(used, ("", None))
            if used not in module.uses and name is not None and not _is_kept(source):
                try:
                    origin, name = self._origin(source, name)
                except VendoringError:
                    continue
                if origin != module.name and name in self._modules[origin].needed:
                    shown.setdefault(origin, set()).add(_alias(name, used))
        if shown:
            named.setdefault("typing", set()).add("TYPE_CHECKING")
        groups = [[*sorted(plain), *_from(named)], _from(own, "."), []]
        if shown:
            groups[2] = ["if TYPE_CHECKING:", *(f"    {line}" for line in _from(shown, "."))]
        return "\n\n".join("\n".join(group) for group in groups if group) + "\n"


def _from(names: Mapping[str, set[str]], dot: str = "") -> list[str]:
    """Return sorted ``from ... import ...`` lines."""
    lines = (f"from {dot}{file_name(m) if dot else m} import {', '.join(sorted(n))}" for m, n in names.items())
    return sorted(lines)


def _alias(name: str, local: str) -> str:
    return name if name == local else f"{name} as {local}"


def file_name(module: str) -> str:
    """Return the name of a module's file, without its ending (``nasdistill_spaces.plan``: its dot becomes ``_``)."""
    return re.sub(r"\W|_+", "_", module.replace(".", "_"))


def _is_kept(module: str) -> bool:
    top = module.partition(".")[0]
    return top in KEPT_IMPORTS or top in sys.stdlib_module_names


def _top_level(
    tree: ast.Module, module: str, is_package: bool
) -> tuple[dict[str, _Definition], dict[str, tuple[str, str | None]]]:
    """Return the definitions and the imports at the top of a module (those under ``if TYPE_CHECKING`` are not)."""
    definitions: dict[str, _Definition] = {}
    imports: dict[str, tuple[str, str | None]] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            definitions |= {
                item.id: node for target in targets for item in ast.walk(target) if isinstance(item, ast.Name)
            }
        elif isinstance(node, ast.Import):
            for alias in node.names:
                imports[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0], None
                )  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                package = module if is_package else module.rpartition(".")[0]
                source = importlib.util.resolve_name("." * node.level + source, package)
            imports |= {alias.asname or alias.name: (source, alias.name) for alias in node.names}
    return definitions, imports


def _kept_members(node: ast.ClassDef) -> Iterator[ast.stmt]:
    """Yield what stays of a class's body."""
    for item in node.body:
        names = [item.name] if isinstance(item, ast.FunctionDef | ast.ClassDef) else []
        if isinstance(item, ast.Assign):
            names = [target.id for target in item.targets if isinstance(target, ast.Name)]
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            # `options: FlowOptions` only tells a type checker something, and names what is not here.
            names = ["options_model"] if item.target.id == "options" and item.value is None else [item.target.id]
        if not _LEFT_OUT & set(names):
            yield item


def _names(node: ast.AST) -> set[str]:
    """Return the names that running a definition reads."""
    found: set[str] = set()
    for part in _evaluated(node):
        found |= {item.id for item in ast.walk(part) if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Load)}
    return found


def _evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of a definition without its annotations; nested ones are split too."""
    if isinstance(node, ast.ClassDef):
        yield from [*node.bases, *(keyword.value for keyword in node.keywords), *node.decorator_list]
        for item in _kept_members(node):
            yield from _evaluated(item)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield from [*node.decorator_list, *node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]
        for item in node.body:
            yield from _evaluated(item)
    elif isinstance(node, ast.AnnAssign):
        if node.value is not None:
            yield node.value
    elif any(isinstance(item, ast.FunctionDef | ast.ClassDef | ast.AnnAssign) for item in ast.walk(node)):
        for child in ast.iter_child_nodes(node):
            yield from _evaluated(child)
    else:
        yield node


def _annotated(node: ast.AST) -> set[str]:
    """Return the names in annotations: imported where that costs nothing, for whoever reads the file."""
    found: list[ast.AST | None] = []
    for item in ast.walk(node):
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(item.returns)
        elif isinstance(item, ast.arg | ast.AnnAssign):
            found.append(item.annotation)
    return {name.id for part in found if part is not None for name in ast.walk(part) if isinstance(name, ast.Name)}


def _is_text(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _segment(text: str, node: ast.AST | None) -> str:
    """Return a statement's lines, decorators included; of a class without the members that are left out."""
    assert isinstance(node, ast.stmt)
    lines = text.splitlines()

    def span(item: ast.stmt) -> tuple[int, int]:
        decorators = [d.lineno for d in getattr(item, "decorator_list", [])]
        return min([item.lineno, *decorators]), item.end_lineno or item.lineno

    first, last = span(node)
    dropped: set[int] = set()
    if isinstance(node, ast.ClassDef):
        kept = list(_kept_members(node))
        for item in node.body:
            if item not in kept:
                start, end = span(item)
                dropped |= set(range(start, end + 1))
    shown = [lines[number - 1] for number in range(first, last + 1) if number not in dropped]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(shown).rstrip())


def requirements(files: Iterable[str]) -> list[str]:
    """Return the packages outside the standard library that sources import."""
    found = set()
    for text in files:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module.partition(".")[0])
    return sorted(found - sys.stdlib_module_names)
