"""Latent attention by conversion, then distillation: a trained model keeps its quality with a fraction of the cache.

    1. convert: every layer's attention becomes latent attention, started from its weights (transform `mla_upcycle`)
    2. distil: KL of the outputs to the teacher, which may be the model itself or a larger one of the same vocabulary

The student is the model to convert. The teacher is the one of the training unless `teacher` says otherwise; `"self"` is
the model as it was before the conversion.

Cost: two singular value decompositions per layer, then `epochs` passes with the converted model and its teacher.

Source: "X-EcoMLA: Upcycling Pre-Trained Attention into MLA for Efficient and Extreme KV Compression", arXiv 2503.11132.
Departures: the released code sums its KL over positions and divides by the batch, so that its weight grows with the
length; ours is the mean over positions. Its third stage, preference optimisation, is left out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from pydantic import Field
from torch import nn

from nasdistill.interfaces import Example, Recipe, RecipeRunner, SingleTeacher, Stage
from nasdistill.weights import model_hash
from nasdistill_recipes._stages import StageOptions, converted

ITSELF = "self"
ENCODER = {"model": "nasdistill.testing.kit.attention:SmallEncoder"}


class EcoMLAOptions(StageOptions):
    """Options of `ecomla`."""

    convert: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of the transform mla_upcycle (kv_rank, energy, cache, edge_rank ...).",
    )
    losses: dict[str, Any] = Field(
        {"kd": {"temperature": 1.0}}, min_length=1, description="Losses: name -> weight or table of options."
    )


class EcoMLA(Recipe):
    """See the module's text."""

    options_model = EcoMLAOptions
    options: EcoMLAOptions
    examples = (
        Example({}, ENCODER, "teacher"),
        Example({"teacher": ITSELF, "convert": {"energy": 0.9}}, ENCODER, "itself"),
    )

    def plan(self) -> Sequence[Stage]:
        """Return the one stage."""
        o = self.options
        return [Stage("distil", teacher=o.teacher, losses=o.losses, epochs=o.epochs, optimizer=o.optimizer)]

    def run(self, student: nn.Module, runner: RecipeRunner) -> nn.Module:
        """Return the converted and distilled model.

        Raises:
            MismatchError: a layer cannot be converted.
        """
        if self.options.teacher == ITSELF:
            before = copy.deepcopy(student)
            runner.register_teacher(ITSELF, SingleTeacher(before, label=ITSELF, fingerprint=model_hash(before)))
        done = converted(runner, "mla_upcycle", student, self.options.convert)
        old, new = (sum(parameter.numel() for parameter in one.parameters()) for one in (student, done.model))
        count = len(done.report["layers"])
        runner.note(
            f"ecomla: {count} layer{'s' * (count != 1)} converted to latent attention, a cache of "
            f"{done.report['cache_share']:.1%} of before; {old:,} parameters before, {new:,} after"
        )
        return runner.train(self.plan()[0], done.model).student
