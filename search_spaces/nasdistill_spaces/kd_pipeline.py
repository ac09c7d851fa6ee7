"""The distillation pipeline as a search space: which losses, between which layers, how strong, on which data.

A point says how a student is trained; the network is that of another space (option `student`), either one fixed point
of it (the default), so that pipelines alone are compared, or any, so that both are searched together.

    total = w_task L_task + w_logit L_logit(T) + w_inter L_inter(mapping)      on mixed or noisy inputs

Axes: ``kd.logit`` (loss on the logits), ``kd.temperature``, ``kd.logit_weight``, ``kd.intermediate`` (loss between
layers, or none), ``kd.intermediate_weight``, ``kd.mapping`` (which student layer learns from which teacher layer),
``kd.alpha`` (of `mi_alpha`), ``kd.task_weight``, ``kd.mixup``, ``kd.token_noise``; the student's axes follow under
``student.`` where they are searched. An axis that does not matter for a point is inactive.

Cost: that of the network; a pipeline changes the training alone.

Source: "Distiller: A Systematic Study of Model Distillation Methods in NLP", arXiv 2109.11105. Its contextual
augmentation and back-translation need further language models and are left out; its mixup mixes embeddings of text,
ours images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from torch import nn

from nasdistill.errors import ArchitectureError
from nasdistill.interfaces import (
    Batch,
    Example,
    InheritReport,
    ModelGeometry,
    ModelingSource,
    SearchSpace,
    StockModel,
    SubSpace,
    TeacherInfo,
)
from nasdistill.spec.architecture import Architecture, Axis, Value
from nasdistill.spec.component import Kind
from nasdistill.spec.config import ComponentConfig, LossConfig, ObjectiveConfig, TrainingConfig
from nasdistill.spec.io import Cost, IOSpec
from nasdistill.spec.options import ComponentOptions

if TYPE_CHECKING:
    import networkx as nx

NONE = "none"
"""No loss between layers."""

Name = Annotated[str, Field(min_length=1)]
Weight = Annotated[float, Field(ge=0)]


class KdPipelineOptions(ComponentOptions):
    """The student, and the choices of every axis."""

    student: ComponentConfig = Field(ComponentConfig(name="conv_vit"), description="Search space of the network.")
    architecture: dict[str, str | int | float] | Literal["middle"] | None = Field(
        "middle",
        description="The fixed student: `middle` takes the middle choice of every ordered axis of its space, a table "
        "names axes that differ from the space's default; `searched` searches it too.",
    )
    logit: tuple[Name, ...] = Field(("kd", "logit_mse"), min_length=1, description="Losses on the logits.")
    temperature: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1.0, 2.0, 4.0, 8.0), min_length=1, description="Softening of the logits."
    )
    logit_weight: tuple[Weight, ...] = Field((0.5, 1.0), min_length=1, description="Weight of the loss on the logits.")
    intermediate: tuple[Name, ...] = Field(
        (NONE, "hidden", "hidden_ce", "hidden_cos", "pkd", "mi_alpha"),
        min_length=1,
        description="Losses between layers; `none` is no loss.",
    )
    intermediate_weight: tuple[Weight, ...] = Field((0.1, 1.0), min_length=1, description="Weight of that loss.")
    mapping: tuple[Name, ...] = Field(
        ("skip", "last", "emd"), min_length=1, description="Which layers are compared: the losses' option `mapping`."
    )
    alpha: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.1, 0.5, 0.9), min_length=1, description="Of `mi_alpha`."
    )
    task_weight: tuple[Weight, ...] = Field((0.0, 0.5), min_length=1, description="Weight of the loss on labels.")
    mixup: tuple[Weight, ...] = Field((0.0, 0.4), min_length=1, description="Mixing of images; 0 = not.")
    token_noise: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        (0.0,), min_length=1, description="Share of exchanged tokens."
    )

    @field_validator("architecture", mode="before")
    @classmethod
    def _searched(cls, value: Any) -> Any:  # a word, because TOML has no null
        return None if value == "searched" else value

    @model_validator(mode="after")
    def _distinct(self) -> KdPipelineOptions:
        for name in CHOICES:
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names a choice twice")
        if max(self.logit_weight) == 0 and max(self.task_weight) == 0 and set(self.intermediate) == {NONE}:
            raise ValueError("no pipeline trains on anything: all weights are 0")
        return self


CHOICES = (
    "logit", "temperature", "logit_weight", "intermediate", "intermediate_weight", "mapping", "alpha", "task_weight",
    "mixup", "token_noise",
)  # fmt: skip
_HELP = {
    "logit": "loss on the logits",
    "temperature": "softening of the logits",
    "logit_weight": "weight of the loss on the logits",
    "intermediate": "loss between layers",
    "intermediate_weight": "weight of the loss between layers",
    "mapping": "which layers are compared",
    "alpha": "weight of the multi-sample baseline",
    "task_weight": "weight of the loss on labels",
    "mixup": "mixing of images",
    "token_noise": "share of exchanged tokens",
}
_BETWEEN = ("intermediate_weight", "mapping")
STUDENT = "student."
"""Prefix of the network's own axes."""


_FEW: dict[str, Any] = {
    "student": {"name": "resnet_s0", "options": {"width": [8], "blocks": [1], "stages": [1, 2], "stem_stride": [2]}},
    "temperature": [1.0, 4.0], "logit_weight": [1.0], "intermediate": [NONE, "hidden"], "intermediate_weight": [0.1],
    "mapping": ["skip", "last"], "alpha": [0.9], "task_weight": [0.5], "mixup": [0.0],
}  # fmt: skip
"""A small space, for the contract checks."""


class KdPipeline(SearchSpace):
    """See the module's text."""

    options_model = KdPipelineOptions
    options: KdPipelineOptions
    inner_option: ClassVar[str | None] = "student"
    examples = (
        Example(_FEW | {"mixup": [0.0, 0.4]}, name="pipeline alone"),
        Example(_FEW | {"architecture": None, "temperature": [2.0]}, name="with the architecture"),
    )

    @classmethod
    def adapted(cls, options: Mapping[str, Any], teacher: TeacherInfo) -> dict[str, Any]:
        """Return choices of augmentation that suit text where the teacher reads text."""
        return {"mixup": [0.0], "token_noise": [0.0, 0.1, 0.3]} if teacher.tokenizer else {}

    @cached_property
    def student(self) -> SearchSpace:
        """The space of the networks."""
        chosen = self.options.student
        space: SearchSpace = self.host.create(Kind.SEARCH_SPACE, chosen.name, chosen.options)
        return space

    # ---- axes -----------------------------------------------------------------------------------------------------

    def axes(self) -> tuple[Axis, ...]:
        """Return the pipeline's axes, then those of the student where they are searched."""
        found = []
        for name in CHOICES:
            values: tuple[Value, ...] = getattr(self.options, name)
            ordered = not isinstance(values[0], str)
            found.append(Axis(f"kd.{name}", values, values[0], _active(name), ordered=ordered, help=_HELP[name]))
        if self.options.architecture is None:
            found += [
                Axis(STUDENT + a.name, a.choices, a.default, _of_student(a), ordered=a.ordered, help=a.help)
                for a in self.student.axes()
            ]
        return tuple(found)

    def constraints(self, params: Mapping[str, Value]) -> list[str]:
        """Return where nothing would be trained on, and what the student's space forbids."""
        found = []
        weights = ["kd.logit_weight", "kd.task_weight"]
        if params["kd.intermediate"] != NONE:
            weights.append("kd.intermediate_weight")
        if not any(float(params[name]) for name in weights):
            found.append("all weights are 0, so there is nothing to train on")
        if self.options.architecture is None:
            found += [STUDENT + text for text in self.student.constraints(_student(params))]
        return found

    def network(self, arch: Architecture) -> Architecture:
        """Return the student's architecture in its own space."""
        fixed = self.options.architecture
        if fixed == "middle":
            return self._middle
        return self.student.architecture(_student(arch.params) if fixed is None else fixed)

    @cached_property
    def _middle(self) -> Architecture:
        """The point in the middle of the student's space: its default is often as large as the teacher."""
        axes = self.student.axes()
        params = {a.name: a.choices[(len(a.choices) - 1) // 2] if a.ordered else a.default for a in axes}
        try:
            return self.student.architecture(params)
        except ArchitectureError:  # the middle of each axis need not be a point
            return self.student.default()

    # ---- the pipeline ---------------------------------------------------------------------------------------------

    def teaching(
        self, arch: Architecture, objective: ObjectiveConfig, training: TrainingConfig
    ) -> tuple[ObjectiveConfig, TrainingConfig]:
        """Return losses, weights and augmentation of a point; optimiser, balance and the rest are the run's."""
        params = arch.params
        losses = [self._loss(str(params["kd.logit"]), params["kd.logit_weight"], temperature=params["kd.temperature"])]
        if params["kd.intermediate"] != NONE:
            losses.append(
                self._loss(
                    str(params["kd.intermediate"]), params["kd.intermediate_weight"],
                    mapping=params["kd.mapping"], alpha=params["kd.alpha"],
                )
            )  # fmt: skip
        return (
            ObjectiveConfig(
                task_weight=float(params["kd.task_weight"]),
                losses=tuple(loss for loss in losses if loss.weight != 0),
                balance=objective.balance,
            ),
            training.model_copy(
                update={"mixup": float(params["kd.mixup"]), "token_noise": float(params["kd.token_noise"])}
            ),
        )

    def _loss(self, name: str, weight: Value, **wanted: Value) -> LossConfig:
        """Return a loss with those of the wanted options that it has."""
        fields = self.host.load(Kind.LOSS, name).options_model.model_fields
        return LossConfig(
            name=name, weight=float(weight), options={key: value for key, value in wanted.items() if key in fields}
        )

    # ---- what the student's space answers -------------------------------------------------------------------------

    def accepts(self, io: IOSpec) -> str | None:
        """Return why the student's space cannot serve `io`, or that the fixed architecture is none of its points."""
        fixed = self.options.architecture
        if isinstance(fixed, dict):
            try:
                self.student.architecture(fixed)
            except ArchitectureError as error:
                return f"its fixed student is {error.message}"
        reason = self.student.accepts(io)
        if reason is None:
            return None
        fitting = "vit" if io.kind == "image" else "decoder" if io.head == "causal_lm" else "encoder"
        return (
            f"it searches how students of the space {self.student.id} are trained, and of that: {reason}. Its option "
            f'student names another: space.kd_pipeline.student={{name="{fitting}"}}'
        )

    def build(self, arch: Architecture, io: IOSpec) -> nn.Module:
        """Return the student's network."""
        self.check(arch)
        return self.student.build(self.network(arch), io)

    def cost(self, arch: Architecture, io: IOSpec) -> Cost:
        """Return the cost of the student's network."""
        self.check(arch)
        return self.student.cost(self.network(arch), io)

    def graph(self, arch: Architecture, io: IOSpec) -> nx.DiGraph:
        """Return the student's network."""
        self.check(arch)
        return self.student.graph(self.network(arch), io)

    def inherit(
        self, student: nn.Module, arch: Architecture, teacher: nn.Module, *, calibration: Sequence[Batch] = ()
    ) -> InheritReport | None:
        """Start the student as its own space does."""
        return self.student.inherit(student, self.network(arch), teacher, calibration=calibration)

    def layer_map(self, arch: Architecture, teacher: ModelGeometry) -> dict[int, int]:
        """Return the map of the student's space; losses with another `mapping` do not follow it."""
        return self.student.layer_map(self.network(arch), teacher)

    def depth(self, arch: Architecture) -> int:
        """Return the student's number of blocks."""
        return self.student.depth(self.network(arch))

    def stock_model(self, arch: Architecture, io: IOSpec) -> StockModel | None:
        """Return what the student's space says."""
        return self.student.stock_model(self.network(arch), io)

    def modeling_source(self, arch: Architecture, io: IOSpec) -> ModelingSource | None:
        """Return what the student's space says."""
        self.check(arch)
        return self.student.modeling_source(self.network(arch), io)

    def subspaces(self) -> tuple[SubSpace, ...]:
        """Return the sub-spaces of the student's space where its architecture is searched."""
        if self.options.architecture is not None:
            return ()
        return tuple(
            SubSpace(sub.name, {STUDENT + axis: values for axis, values in sub.choices.items()}, sub.summary)
            for sub in self.student.subspaces()
        )


def _student(params: Mapping[str, Value]) -> dict[str, Value]:
    """Return the student's own axes without their prefix."""
    return {name.removeprefix(STUDENT): value for name, value in params.items() if name.startswith(STUDENT)}


def _of_student(axis: Axis) -> Callable[[Mapping[str, Value]], bool] | None:
    """Return when an axis of the student matters."""
    active = axis.active
    return None if active is None else lambda params: active(_student(params))


def _active(name: str) -> Callable[[Mapping[str, Value]], bool] | None:
    """Return when an axis of the pipeline matters; None means always."""
    if name in _BETWEEN:
        return lambda params: params["kd.intermediate"] != NONE
    if name == "alpha":
        return lambda params: params["kd.intermediate"] == "mi_alpha"
    if name == "temperature":
        return lambda params: float(params["kd.logit_weight"]) > 0
    return None
