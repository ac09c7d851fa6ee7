"""What `encoder` and `bert_free` share: from the sizes of the layers to network, cost, weights and stock models."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from torch import nn

from nasdistill.errors import ArchitectureError
from nasdistill.interfaces import (
    AttentionCore,
    AttentionGeometry,
    Batch,
    InheritReport,
    ModelGeometry,
    ModelingSource,
    StockModel,
    SubSpace,
    TeacherInfo,
)
from nasdistill.spec.architecture import Architecture, Value
from nasdistill.spec.io import Cost, IOSpec
from nasdistill_spaces.choices import source_layers, unique
from nasdistill_spaces.cores import VariantOptions, core_class, fresh_core
from nasdistill_spaces.encoder.model import EncoderNet, EncoderShape
from nasdistill_spaces.encoder.planning import plan_of
from nasdistill_spaces.encoder.ranking import rank
from nasdistill_spaces.encoder.reading import read_source
from nasdistill_spaces.encoder.sizes import TeacherSizes, read_sizes
from nasdistill_spaces.encoder.standalone import PER_LAYER, encoder
from nasdistill_spaces.encoder.stock import stock_model
from nasdistill_spaces.encoder.superlm import SuperLm
from nasdistill_spaces.encoder.weights import inherit_weights
from nasdistill_spaces.images import unique_sorted
from nasdistill_spaces.layers import LayerShape
from nasdistill_spaces.plan import Plan, PlannedSpace

Count = Annotated[int, Field(ge=1, le=1 << 20)]
Choices = tuple[Count, ...]
HEADS = ("classes", "embedding", "masked_lm")


class EncoderSpaceOptions(VariantOptions):
    """What both spaces may be told."""

    teacher: TeacherSizes = Field(
        default_factory=TeacherSizes, description="Sizes of the network students are cut from; read from the teacher."
    )
    layers: Choices | None = Field(None, min_length=1, description="Choices of layers, instead of the usual ones.")
    hidden: Choices | None = Field(None, min_length=1, description="Choices of the width H, likewise.")
    heads: Choices | None = Field(None, min_length=1, description="Choices of heads, likewise.")
    ranking: Literal["none", "importance"] = Field(
        "none", description="Keep the first channels, heads and neurons of the teacher, or the most important ones."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout while training, after embeddings, attention and MLP.")

    @field_validator("layers", "hidden", "heads")
    @classmethod
    def _sorted(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return None if value is None else unique_sorted(value)

    @model_validator(mode="after")
    def _consistent(self) -> EncoderSpaceOptions:
        for name in ("layers", "hidden", "heads"):
            given, most = getattr(self, name), getattr(self.teacher, name)
            if given and given[-1] > most:
                raise ValueError(f"{name} = {given[-1]} is more than the teacher's {most}")
        return self


class EncoderSpace(PlannedSpace):
    """Students cut from a BERT-like teacher; a subclass says which axes there are and how they size the layers."""

    options: Any
    name: ClassVar[str]
    """What messages call it that are written before it is created."""

    @classmethod
    def adapted(cls, options: Mapping[str, Any], teacher: TeacherInfo) -> dict[str, Any]:
        """Return ``teacher``: the sizes of its network; nothing for teachers that say nothing.

        Raises:
            MismatchError: not of a known family; what is missing is named.
        """
        if "teacher" in options or (not teacher.library and not teacher.model):
            return {}
        return {"teacher": read_sizes(teacher, cls.name)}

    @abstractmethod
    def _layers(self, arch: Architecture) -> tuple[LayerShape, ...]:
        """Return the sizes of the active layers."""

    @abstractmethod
    def _choices(self, subspace: SubSpace | None) -> Mapping[str, tuple[Value, ...]]:
        """Return each axis' choices within a sub-space."""

    @abstractmethod
    def _largest(self, choices: Mapping[str, tuple[Value, ...]]) -> tuple[int, list[LayerShape]]:
        """Return the largest width, and for each teacher layer the largest sizes of what is cut from it."""

    def accepts(self, io: IOSpec) -> str | None:
        """Return why `io` is no text that these networks can serve, or None."""
        if io.kind != "tokens" or len(io.shape) != 1:
            return f"it needs token ids of shape (N,), not {io.kind} of shape {io.shape}"
        if io.head not in HEADS:
            return f"its networks answer with {', '.join(HEADS)}, not {io.head}"
        if not io.vocabulary or io.vocabulary < 1:
            return f"it needs to know the number of token ids, which the task does not say: {io.vocabulary}"
        limit = self._shape_of(0, (), io).max_length
        if not 1 <= io.shape[0] <= limit:
            return f"inputs of shape {io.shape} do not fit a position table for 1 to {limit} tokens"
        if io.head == "classes" and io.outputs < 1:
            return "it needs at least one class"
        if io.head == "masked_lm" and io.outputs != io.vocabulary:
            return f"a masked language model gives {io.vocabulary} logits for {io.vocabulary} ids, not {io.outputs}"
        return None

    def reference(self) -> Architecture:
        """Return the largest point with the first variant: a teacher for the others."""
        return self.default()

    def depth(self, arch: Architecture) -> int:
        """Return the number of layers."""
        return int(arch.params["layers"])

    def layer_map(self, arch: Architecture, teacher: ModelGeometry) -> dict[int, int]:
        """Return for each layer the teacher's layer that its weights came from, the last on the last."""
        depth = self.depth(arch)
        if depth < 1 or teacher.layers < 1:
            return {}
        return {**dict(enumerate(source_layers(depth, teacher.layers))), depth - 1: teacher.layers - 1}

    # ---- networks -------------------------------------------------------------------------------------------------

    def build(self, arch: Architecture, io: IOSpec) -> nn.Module:
        """Return an :class:`EncoderNet`; see :class:`SearchSpace`."""
        self._require(arch, io)
        return self._net(self._shape(arch, io))

    def modeling_source(self, arch: Architecture, io: IOSpec) -> ModelingSource:
        """Return :func:`encoder` of :mod:`nasdistill_spaces.encoder.standalone` with its arguments."""
        self._require(arch, io)
        shape = self._shape(arch, io)
        config = {key: value for key, value in asdict(shape).items() if key != "layers"}
        config |= {key: [getattr(layer, key) for layer in shape.layers] for key in PER_LAYER}
        config["attention_options"] = [
            core.options.model_dump(mode="json") for core in (self._core(shape, layer) for layer in shape.layers)
        ]
        names = unique(layer.attention for layer in shape.layers)
        parts: dict[str, type] = {name: self._core_class(name) for name in names}
        sizes = {"hidden_size": shape.hidden, "num_hidden_layers": len(shape.layers), "head_dim": shape.head_dim}
        per_layer = {
            index: {"num_attention_heads": layer.heads, "intermediate_size": layer.mlp}
            for index, layer in enumerate(shape.layers)
        }
        return ModelingSource(encoder, config, parts, sizes, per_layer)

    def stock_model(self, arch: Architecture, io: IOSpec) -> StockModel | None:
        """Return the class of transformers where one has this shape: equal layers, softmax, heads that fill the
        width.
        """
        self._require(arch, io)
        return stock_model(self._shape(arch, io), self.options.teacher)

    def inherit(
        self, student: nn.Module, arch: Architecture, teacher: nn.Module, *, calibration: Sequence[Batch] = ()
    ) -> InheritReport | None:
        """Slice the weights of a BERT-like teacher into `student`; see :mod:`nasdistill_spaces.encoder.weights`.

        Args:
            student: a network of this space.
            arch: its architecture.
            teacher: a model of transformers, something that holds one, or a network of this module.
            calibration: for ``ranking = "importance"``: ranks by activations rather than by weights.

        Returns:
            None when the teacher has another structure.
        """
        if not isinstance(student, EncoderNet):
            return None
        source = read_source(teacher, student.shape.head)
        if source is None:
            return None
        order = None
        if self.options.ranking == "importance":
            order = rank(source, student.shape.head_dim, teacher, calibration)
        return inherit_weights(student, source, source_layers(len(student.shape.layers), source.depth), order)

    def supernet(self, io: IOSpec, teacher: nn.Module | None = None, *, subspace: SubSpace | None = None) -> SuperLm:
        """Return shared weights for the whole space or a sub-space, as large as its largest member in every tensor.

        With ``ranking = "importance"`` channels, heads and neurons are ordered once, by the teacher's weights, the most
        important first (the axes of an embedding, which are channels, too). Without a teacher, or with one of another
        structure, the weights are fresh.

        Raises:
            ArchitectureError: a variant has tensors of its own, or `io` does not fit.
        """
        choices = self._choices(subspace)
        first = self.architecture({name: values[-1] for name, values in choices.items()})
        self._require(first, io)
        hidden, layers = self._largest(choices)
        used = unique(
            source
            for depth in choices["layers"]
            for source in source_layers(int(depth), self.options.teacher.layers)
        )  # fmt: skip
        shared = self._net(self._shape_of(hidden, tuple(layers[index] for index in used), io))
        if teacher is not None:
            self._start(shared, used, teacher)

        def build(arch: Architecture) -> EncoderNet:
            self.check(arch)
            return self._net(self._shape(arch, io))

        def sources(arch: Architecture) -> tuple[int, ...]:
            return source_layers(self.depth(arch), self.options.teacher.layers)

        return SuperLm(shared, used, build, sources, first)

    def _start(self, shared: EncoderNet, used: Sequence[int], teacher: nn.Module) -> None:
        """Copy the teacher's weights into a supernet's, whose layers are numbered as those of the options' teacher."""
        source = read_source(teacher, shared.shape.head)
        if source is None:
            return
        order = rank(source, shared.shape.head_dim, teacher) if self.options.ranking == "importance" else None
        # The same layers, unless this teacher is deeper or shallower than the options say.
        layers = [index * source.depth // self.options.teacher.layers for index in used]
        inherit_weights(shared, source, layers, order, nested=True)

    def _net(self, shape: EncoderShape) -> EncoderNet:
        return EncoderNet(shape, [self._core(shape, layer) for layer in shape.layers])

    def _shape(self, arch: Architecture, io: IOSpec) -> EncoderShape:
        return self._shape_of(int(arch.params["hidden"]), self._layers(arch), io)

    def _shape_of(self, hidden: int, layers: tuple[LayerShape, ...], io: IOSpec) -> EncoderShape:
        """Return all sizes of a network; what no axis says is the teacher's."""
        sizes: TeacherSizes = self.options.teacher
        return EncoderShape(
            family=sizes.family, vocabulary=io.vocabulary or 0, hidden=hidden, head_dim=sizes.head_dim, layers=layers,
            embedding=sizes.embedding if sizes.projected else hidden, projected=sizes.projected,
            positions=sizes.positions, token_types=sizes.token_types, padding_id=sizes.padding_id,
            activation=sizes.activation, eps=sizes.eps, dropout=self.options.dropout, head=io.head, outputs=io.outputs,
            tied=sizes.tied,
        )  # fmt: skip

    def _require(self, arch: Architecture, io: IOSpec) -> None:
        self.check(arch)
        reason = self.accepts(io)
        if reason:
            raise ArchitectureError(f"{self.id} cannot be built for {io}: {reason}")

    def _core(self, shape: EncoderShape, layer: LayerShape) -> AttentionCore:
        """Return a fresh core for one layer."""
        geometry = AttentionGeometry(dim=shape.hidden, heads=layer.heads, head_dim=shape.head_dim)
        return fresh_core(self, layer.attention, geometry, self.options.attention_options, padding=True)

    def _core_class(self, name: str) -> type[AttentionCore]:
        return core_class(self, name, padding=True)

    # ---- cost -----------------------------------------------------------------------------------------------------

    def plan(self, arch: Architecture, io: IOSpec) -> Plan:
        """Return the network layer by layer.

        Raises:
            ArchitectureError: not a point of this space, or impossible for `io`.
        """
        self._require(arch, io)

        def core_cost(geometry: AttentionGeometry, variant: str) -> Cost:
            options = self.options.attention_options.get(variant)
            return self._core_class(variant).cost(geometry, io.shape[0], io.shape[0], options)

        return plan_of(self._shape(arch, io), io.shape[0], core_cost)
