"""Bundled recipes: trainings in several stages, one file each. Read when plugins are listed, so it imports no torch."""

from __future__ import annotations

from nasdistill import hookimpl
from nasdistill.spec.component import RecipeSpec


@hookimpl
def nasdistill_recipes() -> list[RecipeSpec]:
    """Return the bundled recipes."""
    return [
        RecipeSpec(
            "echoatt_two_stage",
            "nasdistill_recipes.echoatt_two_stage:EchoTwoStage",
            "Share attention maps between layers, distil, then train on the labels alone",
            options="nasdistill_recipes.echoatt_two_stage:EchoTwoStageOptions",
            references=("arXiv:2409.14595",),
            left_out="The paper's loss weights and step counts, which are not published with it.",
        ),
        RecipeSpec(
            "ecomla",
            "nasdistill_recipes.ecomla:EcoMLA",
            "Convert every layer to latent attention, then distil the outputs of the model itself or of a larger one",
            options="nasdistill_recipes.ecomla:EcoMLAOptions",
            references=("arXiv:2503.11132",),
            left_out="The stage of preference optimisation.",
        ),
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
            "Distil first to a student of the teacher's depth, then from that one, where depth and width shrink a lot",
            options="nasdistill_recipes.teacher_assistant:TeacherAssistantOptions",
            references=("arXiv:2002.10957", "arXiv:1902.03393"),
            partly=("arXiv:1902.03393",),
            left_out="Chains of several assistants.",
        ),
    ]
