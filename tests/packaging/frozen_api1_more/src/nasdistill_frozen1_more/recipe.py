"""Two halves: the teacher's answers first, then labels as well."""

from __future__ import annotations

from pydantic import Field

from nasdistill.interfaces import Recipe, Stage
from nasdistill.spec.options import ComponentOptions


class HalvesOptions(ComponentOptions):
    """Options of `halves`."""

    teacher: str = Field("timm:test_resnet", min_length=1, description="The teacher, NAME or NAME:LOCATOR.")
    epochs: float = Field(4.0, gt=0, description="Epochs of both halves together.")


class Halves(Recipe):
    """See the module's text."""

    options_model = HalvesOptions

    def plan(self):
        half, teacher = self.options.epochs / 2, self.options.teacher
        return (
            Stage("imitate", teacher=teacher, losses={"kd": 1.0}, epochs=half),
            Stage("learn", teacher=teacher, losses={"task": 1.0, "kd": 0.5}, epochs=half, optimizer={"lr": 1e-4}),
        )

    def run(self, student, runner):
        for stage in self.plan():
            student = runner.train(stage, student).student
        return student
