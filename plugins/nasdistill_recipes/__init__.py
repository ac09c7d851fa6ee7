"""Bundled recipes: trainings in several stages, one file each. Read when plugins are listed, so it imports no torch."""

from __future__ import annotations

from nasdistill import hookimpl
from nasdistill.spec.component import RecipeSpec


@hookimpl
def nasdistill_recipes() -> list[RecipeSpec]:
    """Return the bundled recipes."""
    return [
        RecipeSpec(
            "prune_distill",
            "nasdistill_recipes.prune_distill:PruneDistill",
            "Cut a teacher to several shapes of one size, train each briefly, distil the best one long",
            options="nasdistill_recipes.prune_distill:PruneDistillOptions",
            references=("arXiv:2407.14679",),
        ),
        RecipeSpec(
            "teacher_assistant",
            "nasdistill_recipes.teacher_assistant:TeacherAssistant",
            "Distil first to a student of the teacher's width, then from that one, where depth and width shrink a lot",
            options="nasdistill_recipes.teacher_assistant:TeacherAssistantOptions",
            references=("arXiv:2002.10957", "arXiv:1902.03393"),
            partly=("arXiv:1902.03393",),
            left_out="Chains of several assistants.",
        ),
    ]
