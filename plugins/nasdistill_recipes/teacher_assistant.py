"""A teacher assistant: where depth and width both shrink a lot, distil in two steps.

    student of M layers, width d;  teacher of L layers, width D:   where M <= L / 2 and d <= D / 2
        teacher -> assistant (L layers, width d);   assistant -> student, by the same losses
    elsewhere
        teacher -> student

L and D are those of the teacher's network, found by running it on two made-up samples; for one without layers of tokens
(a convolutional network) they are the space's largest depth and width.

The assistant is the student's point of the search space with the teacher's depth, its layers repeated, and starts from
the teacher's weights where the space inherits; the student starts as it is. A space whose choices of depth stop short
of L is made once more with this depth as its choice. Where that is not possible, the nearest choice is taken, and where
there is none beyond M, no assistant; what was taken is told.

The losses are MiniLMv2's relations of the last layer (left out for students without attention) and, as a relation loss
does not reach the output layer, the KL of the outputs. The paper uses relations alone, of MiniLM, and fine-tunes after
that: `losses` is an option.

Cost: assistant_epochs passes with the assistant, epochs passes with the student.

Source: "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers", arXiv
2002.10957 (section 3.3; the 12 x 384 assistant of its 6 x 384 student); the idea is that of "Improved Knowledge
Distillation via Teacher Assistant", arXiv 1902.03393.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from nasdistill.errors import ArchitectureError, NasdistillError, UsageError
from nasdistill.interfaces import Example, Recipe, RecipeRunner, SearchSpace, SingleTeacher, Stage
from nasdistill.interfaces.recipe import Origin
from nasdistill.seeds import torch_generator
from nasdistill.spec.architecture import Architecture, Axis, Value
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec
from nasdistill.trace import describe
from nasdistill.weights import model_hash
from nasdistill_recipes._stages import StageOptions, origin_of

ASSISTANT = "assistant"
DEPTHS, WIDTHS = ("layers", "depth"), ("width", "hidden", "embed", "dim")
RELATIONS = {"kd": 1.0, "minilmv2": {"weight": 1.0, "optional": True}}
TINY = "nasdistill.testing.kit.space:TinySpace"
_OF_LAYER = re.compile(r"^(\D*)(\d+)(\..+)$")


class Size(NamedTuple):
    """Depth in layers, and width of the residual stream."""

    layers: float
    width: float


class TeacherAssistantOptions(StageOptions):
    """Options of `teacher_assistant`."""

    losses: dict[str, Any] = Field(RELATIONS, min_length=1, description="Losses: name -> weight or table of options.")
    assistant_epochs: float = Field(10.0, gt=0, description="Passes over the data of the assistant's training.")
    when: Literal["auto", "always", "never"] = Field(
        "auto", description="Whether there is an assistant; `auto` = where depth and width are at most half."
    )
    depth: str = Field("", description="The space's axis of depth; empty = layers or depth.")
    width: str = Field("", description="The space's axis of width; empty = width, hidden, embed or dim.")


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
        """Return the stages where `when` decides them; with `auto` the teacher's size does."""
        return {"auto": [], "always": [self._assistant(), self._student(ASSISTANT)],
                "never": [self._student(self.options.teacher)]}[self.options.when]  # fmt: skip

    def run(self, student: nn.Module, runner: RecipeRunner) -> nn.Module:
        """Return the trained student.

        Raises:
            UsageError: no space made the student, or the space has no such axes.
        """
        assistant = None if self.options.when == "never" else self._made(runner)
        if assistant is None:
            return runner.train(self._student(self.options.teacher), student).student
        taught = runner.train(self._assistant(), assistant).student
        runner.register_teacher(ASSISTANT, SingleTeacher(taught, label=ASSISTANT, fingerprint=model_hash(taught)))
        return runner.train(self._student(ASSISTANT), student).student

    def _made(self, runner: RecipeRunner) -> nn.Module | None:
        """Return the untrained assistant, or None where the student learns from the teacher itself; say which."""
        origin = origin_of(runner, self.id)
        depth, width = self._axes(origin)
        teacher = size_of(runner.teacher(self.options.teacher).model, origin.io) or Size(
            max(map(float, depth.choices)), max(map(float, width.choices))
        )
        params = origin.architecture.params
        student = Size(float(params[depth.name]), float(params[width.name]))
        sizes = f"the teacher has {_told(teacher)}, the student {_told(student)}"
        if self.options.when == "auto" and not all(2 * s <= t for s, t in zip(student, teacher, strict=True)):
            runner.note(f"no assistant: {sizes}, which is not half of both")
            return None
        found = self.assistant(origin, int(teacher.layers))
        if found is None:
            runner.note(f"no assistant: {sizes}, and space {origin.space.id} has no deeper network like it")
            return None
        space, point = found
        taken = Size(float(point.params[depth.name]), student.width)
        nearest = "" if taken.layers == teacher.layers else ", the nearest that the space has"
        runner.note(f"assistant of {_told(taken)}{nearest}: {sizes}")
        return runner.candidate(point, space=None if space is origin.space else space)

    def assistant(self, origin: Origin, layers: int) -> tuple[SearchSpace, Architecture] | None:
        """Return the student's point at a depth of `layers`, or the nearest deeper than the student, and its space.

        The space is the student's, or that with `layers` as its choice of depth. None where there is nothing deeper.

        Raises:
            UsageError: the space has no axis of depth or of width.
        """
        depth, _ = self._axes(origin)
        params, own = origin.architecture.params, origin.space
        known = {int(choice) for choice in depth.choices}
        tries = [] if layers in known else [(self._of_depth(own, depth.name, layers), layers)]
        tries += [(own, choice) for choice in sorted(known, key=lambda choice: (abs(choice - layers), choice))]
        for space, choice in tries:
            if space is None or choice <= int(params[depth.name]):
                continue
            try:
                return space, space.architecture(deepened(space, params, depth.name, choice))
            except ArchitectureError:  # a constraint, of parameters for instance
                continue
        return None

    def _of_depth(self, space: SearchSpace, name: str, layers: int) -> SearchSpace | None:
        """Return the same space with one choice of depth, or None where an option does not say so."""
        options = space.options.model_dump(mode="json")
        if not isinstance(options.get(name, 0), list | None):
            return None
        try:
            found: SearchSpace = self.host.create(Kind.SEARCH_SPACE, space.id, {**options, name: [layers]})
        except NasdistillError:  # more than the network that its students are cut from
            return None
        return found if any(axis.name == name and axis.choices == (layers,) for axis in found.axes()) else None

    def _axes(self, origin: Origin) -> tuple[Axis, Axis]:
        o = self.options
        return self._axis(origin, o.depth, DEPTHS, "depth"), self._axis(origin, o.width, WIDTHS, "width")

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


def size_of(model: nn.Module, io: IOSpec) -> Size | None:
    """Return L and D of a network: its layers, and the width of the last one's output; None without layers of tokens.

    Args:
        model: called on two samples of `io`; left as it was.
        io: its input.
    """
    generator = torch_generator(0, "teacher assistant")
    if io.kind == "tokens":
        sample = torch.randint(0, io.vocabulary or 2, (2, *io.shape), generator=generator)
    else:
        sample = torch.randn((2, *io.shape), generator=generator)
    parameter = next(model.parameters(), None)
    sample = sample if parameter is None else sample.to(parameter.device)

    def call(network: nn.Module) -> Tensor:
        output: Tensor = network(sample)
        return output

    with torch.no_grad():
        geometry = describe(model, call, "teacher")
    if not geometry.layers or "hidden.-1" not in geometry:
        return None
    return Size(geometry.layers, geometry["hidden.-1"].width)


def deepened(space: SearchSpace, params: Any, depth: str, layers: int) -> dict[str, Value]:
    """Return a point's parameters at another depth: layer i is like layer ``i * M // layers`` of its M layers.

    Args:
        space: whose axes the new point has; those of one layer are named ``layer07.heads`` or alike.
        params: of the point.
        depth: name of the axis of depth.
        layers: the new depth, at least M.
    """
    before, found = int(params[depth]), {**params, depth: layers}
    for axis in space.axes():
        match = _OF_LAYER.match(axis.name)
        if match is None or int(match[2]) >= layers:
            continue
        like = f"{match[1]}{int(match[2]) * before // layers:0{len(match[2])}d}{match[3]}"
        if like in params:
            found[axis.name] = params[like]
    return found


def _told(size: Size) -> str:
    return f"{size.layers:g} layer{'s' * (size.layers != 1)} of width {size.width:g}"
