"""What may stand behind an option's name, in the words of those who write it into a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
PLAIN = {bool: "`true` or `false`", int: "whole number", float: "number", str: "text", Any: "anything"}


def field_words(info: FieldInfo) -> str:
    """Return what a field takes: ``"number > 0, or unset"``."""
    return words(info.annotation, info.metadata)


def words(annotation: Any, limits: Sequence[Any] = (), *, many: bool = False) -> str:
    """Return a type and its limits in words; `many` for the plural."""
    origin, inner = get_origin(annotation), get_args(annotation)
    s = "s" * many
    if origin is Annotated:
        metadata = [item for part in inner[1:] for item in (part.metadata if isinstance(part, FieldInfo) else [part])]
        return words(inner[0], metadata, many=many)
    if origin is Literal:
        return _either([f"`{json.dumps(value)}`" for value in inner])
    if origin in (Union, UnionType):
        parts = [words(part, limits, many=many) for part in inner if part is not NoneType]
        return _either(list(dict.fromkeys(parts))) + (", or unset" if NoneType in inner else "")
    if origin is tuple and inner[-1] is Ellipsis:
        return f"list{s} of {words(inner[0], many=True)}{_length(limits)}"
    if origin is tuple:
        kinds = list(dict.fromkeys(words(part, many=True) for part in inner))
        return f"list{s} of {len(inner)} {_either(kinds)}"
    if origin is list:
        return f"list{s} of {words(inner[0], many=True)}"
    if origin is dict:
        return f"table{s}" if inner[1] is Any else f"table{s} of {words(inner[1], many=True)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"table{s}"
    said = PLAIN[annotation]
    return said + s * (annotation is not bool) + _range(limits)


def default_words(info: FieldInfo) -> str:
    """Return a field's default as it would be written; of a list of tables only the names."""
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is None:
        return "unset"
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple) and value and all(isinstance(item, BaseModel) for item in value):
        return ", ".join(f"`{item.name}`" for item in value)
    return f"`{json.dumps(value)}`"


def _either(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


def _limit(limits: Sequence[Any], name: str) -> Any:
    return next((value for item in limits if (value := getattr(item, name, None)) is not None), None)


def _range(limits: Sequence[Any]) -> str:
    found = [f"{sign} {value}" for name, sign in SIGNS.items() if (value := _limit(limits, name)) is not None]
    if (step := _limit(limits, "multiple_of")) is not None:
        found.append(f"multiple of {step}")
    if (pattern := _limit(limits, "pattern")) is not None:
        found.append(f"matching `{pattern}`")
    return " " + " and ".join(found) if found else ""


def _length(limits: Sequence[Any]) -> str:
    least, most = _limit(limits, "min_length"), _limit(limits, "max_length")
    if least and most:
        return f", {least} to {most}" if least != most else f", exactly {least}"
    return f", at least {least}" if least else f", at most {most}" if most else ""
