"""A teacher assistant: where depth and width both shrink a lot, distil in two steps.

    student of M layers, width d;  teacher of L layers, width D:   where M <= L / 2 and d <= D / 2
        teacher -> assistant (M layers, width D);   assistant -> student, by the same losses
    elsewhere
        teacher -> student

The assistant is the student's point of the search space with its width at the largest choice, and starts from the
teacher's weights where the space inherits; the student starts as it is. What L and D are is read from the space, whose
largest depth and width are the teacher's for spaces that adapt to one; `when` says otherwise.

The losses are MiniLMv2's relations of the last layer (left out for students without attention) and, as a relation loss
does not reach the output layer, the KL of the outputs. The paper uses relations alone, of MiniLM, and fine-tunes after
that: `losses` is an option.

Cost: assistant_epochs passes with the assistant, epochs passes with the student.

Source: "MiniLM: Deep Self-Attention Distillation", arXiv 2002.10957 (section 3.4); the idea is that of "Improved
Knowledge Distillation via Teacher Assistant", arXiv 1902.03393.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field
from torch import nn

from nasdistill.errors import UsageError
from nasdistill.interfaces import Example, Recipe, RecipeRunner, SingleTeacher, Stage
from nasdistill.interfaces.recipe import Origin
from nasdistill.spec.architecture import Architecture, Axis
from nasdistill.weights import model_hash
from nasdistill_recipes._stages import StageOptions, origin_of

ASSISTANT = "assistant"
DEPTHS, WIDTHS = ("layers", "depth"), ("width", "hidden", "dim")
RELATIONS = {"kd": 1.0, "minilmv2": {"weight": 1.0, "optional": True}}
TINY = "nasdistill.testing.kit.space:TinySpace"


class TeacherAssistantOptions(StageOptions):
    """Options of `teacher_assistant`."""

    losses: dict[str, Any] = Field(RELATIONS, min_length=1, description="Losses: name -> weight or table of options.")
    assistant_epochs: float = Field(10.0, gt=0, description="Passes over the data of the assistant's training.")
    when: Literal["auto", "always", "never"] = Field(
        "auto", description="Whether there is an assistant; `auto` = where depth and width are at most half."
    )
    depth: str = Field("", description="The space's axis of depth; empty = layers or depth.")
    width: str = Field("", description="The space's axis of width; empty = width, hidden or dim.")


class TeacherAssistant(Recipe):
    """See the module's text."""

    options_model = TeacherAssistantOptions
    options: TeacherAssistantOptions
    examples = (
        Example({}, {"space": TINY, "architecture": {"width": 4, "depth": 1}}, "both halved"),
        Example({}, {"space": TINY, "architecture": {"depth": 1}}, "depth halved"),
        Example({"when": "never"}, name="never"),
    )

    def plan(self) -> Sequence[Stage]:
        """Return the stages where `when` decides them; with `auto` the space does."""
        return {"auto": [], "always": [self._assistant(), self._student(ASSISTANT)],
                "never": [self._student(self.options.teacher)]}[self.options.when]  # fmt: skip

    def run(self, student: nn.Module, runner: RecipeRunner) -> nn.Module:
        """Return the trained student.

        Raises:
            UsageError: no space made the student, or the space has no such axes.
        """
        point = None if self.options.when == "never" else self.assistant(origin_of(runner, self.id))
        if point is None:
            return runner.train(self._student(self.options.teacher), student).student
        taught = runner.train(self._assistant(), runner.candidate(point)).student
        runner.register_teacher(ASSISTANT, SingleTeacher(taught, label=ASSISTANT, fingerprint=model_hash(taught)))
        return runner.train(self._student(ASSISTANT), student).student

    def assistant(self, origin: Origin) -> Architecture | None:
        """Return the assistant's point, or None where the student learns from the teacher itself.

        Raises:
            UsageError: the space has no axis of depth or of width.
            ArchitectureError: the space has no point of the student's depth and the largest width.
        """
        depth = self._axis(origin, self.options.depth, DEPTHS, "depth")
        width = self._axis(origin, self.options.width, WIDTHS, "width")
        params = origin.architecture.params
        halved = all(2 * float(params[axis.name]) <= max(map(float, axis.choices)) for axis in (depth, width))
        largest = max(width.choices, key=float)
        if params[width.name] == largest or (self.options.when == "auto" and not halved):
            return None
        return origin.space.architecture({**params, width.name: largest})

    def _axis(self, origin: Origin, given: str, usual: Sequence[str], what: str) -> Axis:
        axes = {axis.name: axis for axis in origin.space.axes()}
        name = given or next((name for name in usual if name in axes), "")
        if name not in axes or any(isinstance(choice, str) for choice in axes[name].choices):
            raise UsageError(
                f"recipe {self.id}: space {origin.space.id} has no axis {given or ' or '.join(usual)} of numbers",
                hint=f"Name its axis of {what} by the option {what!r}; its axes are {', '.join(axes)}.",
            )
        return axes[name]

    def _assistant(self) -> Stage:
        o = self.options
        return Stage(ASSISTANT, teacher=o.teacher, losses=o.losses, epochs=o.assistant_epochs, optimizer=o.optimizer)

    def _student(self, teacher: str) -> Stage:
        o = self.options
        return Stage("student", teacher=teacher, losses=o.losses, epochs=o.epochs, optimizer=o.optimizer)
