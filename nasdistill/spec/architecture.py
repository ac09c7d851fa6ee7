"""An architecture: one point of a search space, as immutable, hashable, human-diffable JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from nasdistill.errors import ArchitectureError
from nasdistill.files import content_hash, write_json

Value: TypeAlias = str | int | float
"""A value of an axis: what Optuna's storages keep unchanged."""

FORMAT = "nasdistill.architecture"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension of a search space.

    Attributes:
        name: flat, dotted, index-padded: ``"block03.heads"``.
        choices: at least one value; all strings or all numbers.
        default: the value of an inactive axis in a canonical architecture.
        active: given all parameters, whether this axis matters; None means always.
        ordered: whether neighbouring choices are alike (mutation then prefers neighbours).
        help: one line.
    """

    name: str
    choices: tuple[Value, ...]
    default: Value
    active: Callable[[Mapping[str, Value]], bool] | None = None
    ordered: bool = False
    help: str = ""

    def __post_init__(self) -> None:
        if not self.choices or self.default not in self.choices:
            raise ValueError(f"axis {self.name!r}: default {self.default!r} must be one of {self.choices}")

    def is_active(self, params: Mapping[str, Value]) -> bool:
        """Return whether this axis matters for `params`."""
        return self.active is None or self.active(params)


class FrozenParams(Mapping[str, Value]):
    """An immutable, hashable mapping with sorted keys."""

    __slots__ = ("_hash", "_items")

    def __init__(self, items: Mapping[str, Value]) -> None:
        self._items = {name: items[name] for name in sorted(items)}
        self._hash = hash(tuple(self._items.items()))

    def __getitem__(self, name: str) -> Value:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self._items) == dict(other)

    def __repr__(self) -> str:
        return repr(self._items)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A point of a search space.

    Attributes:
        space: canonical id of the space (``"spaces:conv_vit"``).
        params: every axis of the space with its value; inactive axes hold their default.
        version: version of the space's meaning; a space raises it when old points would build another network.
    """

    space: str
    params: FrozenParams = field(default_factory=lambda: FrozenParams({}))
    version: int = 1

    @classmethod
    def of(cls, space: str, params: Mapping[str, Value], version: int = 1) -> Architecture:
        """Build from an ordinary mapping."""
        return cls(space, FrozenParams(params), version)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of space, version and parameters; equal in every process."""
        return content_hash({"space": self.space, "version": self.version, "params": dict(self.params)})

    @property
    def id(self) -> str:
        """The first 12 characters of the fingerprint: short enough for a folder name."""
        return self.fingerprint[:12]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form (``architecture.json``)."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "space": self.space,
            "space_version": self.version,
            "params": dict(self.params),
            "fingerprint": self.fingerprint,
        }

    def save(self, path: Path) -> None:
        """Write the JSON form to `path` atomically."""
        write_json(path, self.to_json())

    @classmethod
    def from_json(cls, value: Any, *, where: str = "architecture") -> Architecture:
        """Read the JSON form; `params` may also stand alone beside `space`.

        The fingerprint, where given, is not compared: files are meant to be edited by hand, and the space validates
        the result.

        Args:
            value: the parsed JSON.
            where: how to name the source in messages.

        Raises:
            ArchitectureError: naming what is missing or of the wrong type.
        """
        if not isinstance(value, dict):
            raise ArchitectureError(f"{where}: expected a JSON object, got {type(value).__name__}")
        if _has_lone_surrogate(value):
            raise ArchitectureError(f"{where}: a text in it cannot be encoded (half of a surrogate pair)")
        if value.get("format", FORMAT) != FORMAT:
            raise ArchitectureError(f"{where}: format {value['format']!r} is not {FORMAT!r}")
        file_version = value.get("format_version", FORMAT_VERSION)
        if file_version != FORMAT_VERSION:
            raise ArchitectureError(
                f"{where}: format_version {file_version!r} is not {FORMAT_VERSION}",
                hint="Read it with the version of nasdistill that wrote it.",
            )
        known = {"format", "format_version", "space", "space_version", "params", "fingerprint", "io", "space_options",
                 "transforms"}  # fmt: skip
        unknown = sorted(str(key) for key in set(value) - known)
        if unknown:
            raise ArchitectureError(f"{where}: unknown key(s) {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        space = value.get("space")
        params = value.get("params")
        version = value.get("space_version", 1)
        if not isinstance(space, str) or not space:
            raise ArchitectureError(f"{where}: 'space' must be the name of a search space")
        if not isinstance(params, dict):
            raise ArchitectureError(f"{where}: 'params' must be an object of axis names and values")
        if isinstance(version, bool) or not isinstance(version, int):
            raise ArchitectureError(f"{where}: 'space_version' must be an integer")
        for name, item in params.items():
            if isinstance(item, bool) or not isinstance(item, str | int | float):
                raise ArchitectureError(f"{where}: params.{name} must be a string or a number, not {item!r}")
            if isinstance(item, float) and not math.isfinite(item):
                raise ArchitectureError(f"{where}: params.{name} is not a finite number")
        return cls.of(space, params, version)

    @classmethod
    def load(cls, source: str | Path) -> Architecture:
        """Read an architecture from a JSON text (starts with ``{``) or a file.

        Raises:
            ArchitectureError: unreadable, not JSON, or not an architecture.
        """
        value, where = read_json(source)
        return cls.from_json(value, where=where)


def read_json(source: str | Path) -> tuple[Any, str]:
    """Return the JSON in a text (starts with ``{`` or ``[``) or a file, and how to name the source in messages.

    Raises:
        ArchitectureError: unreadable, or not JSON.
    """
    text = str(source)
    if text.lstrip().startswith(("{", "[")):
        where = "architecture given as JSON"
    else:
        where = text
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise ArchitectureError(
                f"cannot read architecture file {where}: {error}",
                hint="Give a file or the JSON itself; nasdistill spaces sample prints examples.",
            ) from None
    try:
        return json.loads(text), where
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        raise ArchitectureError(f"{where}: not valid JSON ({str(error)[:200]})") from None


def _has_lone_surrogate(value: Any) -> bool:
    """Return whether a name or text in JSON data cannot be written as UTF-8 (JSON's escapes can spell such texts)."""
    if isinstance(value, str):
        return any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, dict):
        return any(map(_has_lone_surrogate, (*value.keys(), *value.values())))
    return isinstance(value, list) and any(map(_has_lone_surrogate, value))
