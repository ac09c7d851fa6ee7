"""What the recipes' stages have in common."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import nn

from nasdistill.bridge.views import NoAttentionError
from nasdistill.errors import UsageError
from nasdistill.interfaces import RecipeRunner, Transformed
from nasdistill.interfaces.recipe import TEACHER, Origin
from nasdistill.spec.options import ComponentOptions


class StageOptions(ComponentOptions):
    """Options of recipes whose stages all learn from one teacher in one way."""

    teacher: str = Field(TEACHER, description="Who teaches: `teacher` for the one of the training, or NAME:LOCATOR.")
    epochs: float = Field(10.0, gt=0, description="Passes over the data of the long training of the student.")
    optimizer: dict[str, Any] = Field(default_factory=dict, description="Training options that all stages change.")


def converted(runner: RecipeRunner, transform: str, student: nn.Module, options: dict[str, Any]) -> Transformed:
    """Convert the student's attention.

    Raises:
        NoAttentionError: it has none; the hint names the students that do, and recipes for others.
        MismatchError: it has another kind than can be converted.
    """
    try:
        return runner.transform(transform, student, options)
    except NoAttentionError as error:
        raise NoAttentionError(
            error.message,
            hint="Students of the spaces encoder, decoder, vit and conv_vit have attention to convert. For others "
            "there is the recipe prune_distill, or one training without a recipe (--epochs N).",
        ) from None


def origin_of(runner: RecipeRunner, name: str) -> Origin:
    """Return what the student is.

    Raises:
        UsageError: no space made it, so that there are no networks beside it.
    """
    origin = runner.origin
    if origin is None:
        raise UsageError(
            f"recipe {name} looks for other networks of the student's search space, and this student has none",
            hint="Run it by nasdistill distill ARCH --recipe, on an architecture of a space that inherits weights.",
        )
    return origin
