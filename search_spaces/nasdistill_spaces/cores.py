"""Attention variants in the layers of a space's networks: the choice of them, which may stand there, and fresh ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from nasdistill.errors import ArchitectureError, UnknownComponentError
from nasdistill.interfaces import AttentionCore, AttentionGeometry, SearchSpace
from nasdistill.spec.component import Kind
from nasdistill.spec.options import ComponentOptions

Variants = tuple[Annotated[str, Field(min_length=1)], ...]


class VariantOptions(ComponentOptions):
    """The attention variants that are choices of a space, and their options."""

    attention: Variants = Field(("softmax",), min_length=1, description="Attention variants.")
    attention_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Options of the variants, by the name used in `attention`."
    )

    @field_validator("attention")
    @classmethod
    def _distinct_variants(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("the same variant twice")
        return value

    @model_validator(mode="after")
    def _options_of_listed_variants(self) -> Self:
        unknown = sorted(set(self.attention_options) - set(self.attention))
        if unknown:
            raise ValueError(f"attention_options for {', '.join(unknown)}, which `attention` does not list")
        return self


def core_class(space: SearchSpace, name: str, *, padding: bool = False) -> type[AttentionCore]:
    """Return a variant's class.

    Args:
        space: which asks.
        name: of the variant.
        padding: whether its inputs are padded.

    Raises:
        ArchitectureError: unknown, or not a variant that can stand in an encoder's layer.
    """
    try:
        tags = space.host.tags(Kind.ATTENTION, name)
    except UnknownComponentError as error:
        raise ArchitectureError(f"{space.id}: {error.message}", hint=error.hint) from error
    reasons = [f"it is of level {tags.level!r}"] if tags.level != "core" else []
    reasons += [] if tags.bidirectional else ["it works with a causal mask only"]
    reasons += [] if tags.padding or not padding else ["it does not take padding"]
    if reasons:
        raise ArchitectureError(
            f"{space.id}: attention variant {name!r} cannot stand in an encoder: {', '.join(reasons)}",
            hint="nasdistill plugins list --kind attention names all variants; choose some of level 'core'.",
        )
    found: type[AttentionCore] = space.host.load(Kind.ATTENTION, name)
    return found


def fresh_core(
    space: SearchSpace,
    name: str,
    geometry: AttentionGeometry,
    options: Mapping[str, Mapping[str, Any]],
    *,
    padding: bool = False,
) -> AttentionCore:
    """Return a core for one layer, with its entry of `options`; raises as :func:`core_class`."""
    core_class(space, name, padding=padding)
    core: AttentionCore = space.host.create(Kind.ATTENTION, name, options.get(name), geometry=geometry)
    return core
