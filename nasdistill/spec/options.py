"""Options of components: pydantic models with bounds, defaults and help, some of them searchable."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nasdistill.errors import ConfigError, did_you_mean

_Model = TypeVar("_Model", bound=BaseModel)


class ComponentOptions(BaseModel):
    """Base of every options model: immutable, unknown keys refused, defaults validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def searchable(default: Any, *, choices: tuple[str | int | float, ...], description: str, **bounds: Any) -> Any:
    """Declare an option that a search may vary over `choices`.

    Args:
        default: value outside a search; must be one of `choices`.
        choices: the values a search may take (strings, ints or floats).
        description: one sentence of help.
        bounds: any other argument of ``pydantic.Field`` (``ge``, ``le`` ...).
    """
    if default not in choices:
        raise ValueError(f"default {default!r} is not among the choices {choices}")
    return Field(default, description=description, json_schema_extra={"search": list(choices)}, **bounds)


def searchable_axes(model: type[BaseModel]) -> dict[str, tuple[str | int | float, ...]]:
    """Return option name -> choices for every searchable option of `model`."""
    axes = {}
    for name, info in model.model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and "search" in extra:
            axes[name] = tuple(cast("list[str | int | float]", extra["search"]))
    return axes


def parse_options(model: type[_Model], values: Any, *, where: str) -> _Model:
    """Validate `values` (a mapping, an instance or None) into `model`.

    Args:
        model: the options model.
        values: what the user gave.
        where: how to name the place in messages, such as ``"[[proxy]] zico, file search.toml"``.

    Raises:
        ConfigError: with one line per problem; unknown keys come with close matches.
    """
    if isinstance(values, model):
        return values
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{where}: options must be a table of keys and values, not {type(values).__name__}")
    try:
        return model.model_validate(values or {})
    except ValidationError as error:
        raise ConfigError(f"{where}: " + explain(error, model)) from None


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Turn a pydantic error into lines that name the key, the problem and the nearest valid key."""
    lines = []
    for item in error.errors(include_url=False):
        location = [str(part) for part in item["loc"]]
        key = ".".join(location) or "(root)"
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {key!r}. {did_you_mean(location[-1], _keys_at(model, location[:-1]))}")
        else:
            given = item.get("input")
            shown = repr(given) if isinstance(given, str | int | float | bool) else type(given).__name__
            lines.append(f"{key}: {item['msg'][0].lower()}{item['msg'][1:]} (given: {shown})")
    return "; ".join(lines)


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """Return the valid keys of the nested model at `path`, as far as it can be followed."""
    current: Any = model
    for part in path:
        if part.isdigit():
            continue
        info = current.model_fields.get(part) if hasattr(current, "model_fields") else None
        candidates = [info.annotation, *getattr(info.annotation, "__args__", ())] if info is not None else []
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                current = candidate
                break
        else:
            return []
    return [info.alias or name for name, info in current.model_fields.items()]
