"""Shared attention maps in two stages: with the teacher, then on the labels alone.

    1. convert: inner layers share the maps of their leaders (transform `echoatt`)
    2. distil: task loss, KL of the outputs and squared error of the hidden states of all layers, to the teacher
    3. adjust: task loss alone, without a teacher

The student is the model to convert, and layers keep their depth, so hidden states pair one to one and need no
projection where the teacher is that model.

Cost: one forward per calibration batch, `epochs` passes with the teacher, `adjust_epochs` without.

Source: "EchoAtt: Attend, Copy, then Adjust for More Efficient Large Language Models", arXiv 2409.14595. The stages are
the paper's; its weights and numbers of steps are not published with it, and those here are ours: 1 for every term, with
hidden states normalised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from torch import nn

from nasdistill.interfaces import Example, Recipe, RecipeRunner, Stage
from nasdistill_recipes._stages import StageOptions, converted

ENCODER = {"model": "nasdistill.testing.kit.attention:SmallEncoder"}
LOSSES = {"task": 1.0, "kd": {"temperature": 1.0}, "hidden": {"normalise": True}}


class EchoTwoStageOptions(StageOptions):
    """Options of `echoatt_two_stage`."""

    share: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of the attention variant echoatt (block, first, last, by, groups ...).",
    )
    losses: dict[str, Any] = Field(LOSSES, min_length=1, description="Losses of the first stage.")
    adjust_epochs: float = Field(5.0, ge=0, description="Passes without a teacher; 0 leaves that stage out.")


class EchoTwoStage(Recipe):
    """See the module's text."""

    options_model = EchoTwoStageOptions
    options: EchoTwoStageOptions
    examples = (
        Example({"share": {"last": 0}}, ENCODER, "two stages"),
        Example({"share": {"last": 0}, "adjust_epochs": 0}, ENCODER, "distil only"),
    )

    def plan(self) -> Sequence[Stage]:
        """Return both stages."""
        o = self.options
        stages = [Stage("distil", teacher=o.teacher, losses=o.losses, epochs=o.epochs, optimizer=o.optimizer)]
        if o.adjust_epochs:
            stages.append(Stage("adjust", losses={"task": 1.0}, epochs=o.adjust_epochs, optimizer=o.optimizer))
        return stages

    def run(self, student: nn.Module, runner: RecipeRunner) -> nn.Module:
        """Return the converted and trained model.

        Raises:
            MismatchError: the model has no attention whose maps could be shared.
        """
        done = converted(runner, "echoatt", student, {"variant": self.options.share})
        runner.note(told(done.report))
        made = done.model
        for stage in self.plan():
            made = runner.train(stage, made).student
        return made


def told(report: Mapping[str, Any]) -> str:
    """Return what was shared, or why nothing was, in one line."""
    if not report["groups"]:
        return f"echoatt: {report['reason']}; nothing is shared"
    shared = "; ".join(
        f"layer{'s' * (len(rest) != 1)} {', '.join(map(str, rest))} share{'s' * (len(rest) == 1)} the attention of "
        f"layer {leader}"
        for leader, *rest in report["groups"]
    )
    return f"echoatt: {shared}; {report['parameters_before']:,} parameters before, {report['parameters_after']:,} after"
