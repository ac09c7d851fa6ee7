"""Your own network: ``torch:package.module:callable``.

The module is imported with the current folder on the import path, and the callable (a function or an ``nn.Module``
class, dotted names allowed) is called: without arguments, or with the task's :class:`~nasdistill.spec.io.IOSpec` when
it has a required argument or one named ``io``. It returns the network, weights loaded. A name that already is a network
is taken as it is. The teacher is a copy: a network that the module keeps for itself is not frozen, moved or switched to
eval mode.

The fingerprint covers the weights, the structure and the source file of the callable, so an edited forward is another
teacher.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from nasdistill.errors import BrokenComponentError, UsageError, did_you_mean, one_line
from nasdistill.files import content_hash, file_hash
from nasdistill.interfaces.base import Example
from nasdistill.interfaces.task import Task
from nasdistill.interfaces.teacher import SingleTeacher, Teacher, TeacherSession
from nasdistill.seeds import seeded
from nasdistill.spec.io import IOSpec
from nasdistill.spec.options import ComponentOptions
from nasdistill_teachers._common import single


class TorchOptions(ComponentOptions):
    """`torch` has no options."""


class TorchTeacher(Teacher):
    """See the module's text."""

    examples: ClassVar[tuple[Example, ...]] = (
        Example(
            context={
                "locator": "nasdistill.testing.kit.models:SmallResNet",
                "other_locator": "nasdistill.testing.kit.models:SmallViT",
            }
        ),
    )
    options_model = TorchOptions
    options: TorchOptions

    def open(
        self,
        locator: str,
        task: Task,
        *,
        cache_dir: Path,
        device: str = "cpu",
        progress: Callable[[str], None] | None = None,
    ) -> TeacherSession:
        """Import, call and check; see :class:`Teacher`.

        Raises:
            UsageError: no such module or name, not callable, or it returns no network.
            BrokenComponentError: the user's code raised; the cause is chained.
            MismatchError: the network does not fit the task.
        """
        label = f"torch:{locator}"
        with _current_folder_on_path():
            found, source = find(locator)
            model = found if isinstance(found, nn.Module) else _call(found, task.io, label)
            if not isinstance(model, nn.Module):
                raise UsageError(f"{label} returned {type(model).__name__}, not a torch.nn.Module")
            session = single(_copied(model, label), task, label=label, device=device)
        if source is None:
            return session
        return SingleTeacher(
            session.model, label=label, fingerprint=content_hash([session.fingerprint, file_hash(source)])
        )


def find(locator: str) -> tuple[Any, Path | None]:
    """Return what ``package.module:name`` stands for, and the file of its module.

    Raises:
        UsageError: the text, the module or the name is wrong, or it is not callable.
        BrokenComponentError: importing the module raised.
    """
    module_name, _, name = locator.partition(":")
    if not module_name or not name or not all(part.isidentifier() for part in (module_name + "." + name).split(".")):
        raise UsageError(
            f"torch:{locator} does not name a network", hint="Write torch:package.module:callable, as in an import."
        )
    try:
        with seeded(0, "import", module_name):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise UsageError(
                f"torch:{locator}: there is no module {error.name!r} on the import path",
                hint=f"The current folder {os.getcwd()} is searched, then the installed packages.",
            ) from error
        raise BrokenComponentError(f"torch:{locator}: importing {module_name} failed: {one_line(error)}") from error
    # Anything may happen in a user's module; SystemExit from a script without a main guard included.
    except (Exception, SystemExit) as error:
        raise BrokenComponentError(f"torch:{locator}: importing {module_name} failed: {one_line(error)}") from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [key for key in vars(found) if not key.startswith("_") and callable(getattr(found, key, None))]
            raise UsageError(f"torch:{locator}: {module_name} has no {name!r}. {did_you_mean(part, known)}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"torch:{locator}: {name} is {type(found).__name__}, not something to call")
    file = getattr(module, "__file__", None)
    return found, Path(file) if file is not None and Path(file).is_file() else None


def _call(build: Callable[..., Any], io: IOSpec, label: str) -> Any:
    """Call the user's function under a fixed seed."""
    try:
        parameters = list(inspect.signature(build).parameters.values())
    except (TypeError, ValueError):  # builtins without a signature
        parameters = []
    required = [
        p.name for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]  # fmt: skip
    if len(required) > 1:
        raise UsageError(
            f"{label} needs {len(required)} arguments ({', '.join(required)}); it is called with none, or with the "
            "task's input and output (nasdistill.spec.io.IOSpec)"
        )
    plain = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    named = [p for p in plain if p.name in (required or ["io"])]
    try:
        with seeded(0, "teacher", label):
            if not named:
                return build()
            return build(io) if named[0].kind is named[0].POSITIONAL_ONLY else build(**{named[0].name: io})
    except (Exception, SystemExit) as error:
        raise BrokenComponentError(f"{label} failed: {one_line(error)}") from error


def _copied(model: nn.Module, label: str) -> nn.Module:
    """Return a copy of the user's network, which may be in use elsewhere."""
    try:
        return copy.deepcopy(model)
    except Exception as error:  # modules may hold anything: a lock, an open file, a tensor with a gradient history
        raise BrokenComponentError(
            f"{label} returned a network that cannot be copied: {one_line(error)}",
            hint="Keep locks, open files and computed tensors out of the network's attributes.",
        ) from error


@contextlib.contextmanager
def _current_folder_on_path() -> Iterator[None]:
    """Put the current folder first on the import path, as ``python -m`` does."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
