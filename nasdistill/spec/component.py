"""What a plugin says of its components before any of their code is imported.

Specs are standard-library dataclasses, so that listing plugins needs neither torch nor pydantic. `target` and
`options` are ``"module:attribute"`` texts, imported on first use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Literal

NAME_PATTERN = re.compile(r"^[a-z][a-z0-9_]*$")
TARGET_PATTERN = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


class Kind(StrEnum):
    """The kinds of components; one registration hook, one spec class and one interface class for each."""

    SEARCH_SPACE = "search_space"
    PROXY = "proxy"
    ATTENTION = "attention"
    LOSS = "loss"
    TEACHER = "teacher"
    TASK = "task"
    TARGET = "target"
    TRANSFORM = "transform"
    RECIPE = "recipe"
    DATA_REDUCER = "data_reducer"
    DIAGNOSTIC = "diagnostic"
    STRATEGY = "strategy"
    SAMPLER = "sampler"
    EXPORTER = "exporter"
    REPORT_SECTION = "report_section"
    COMMAND = "command"


@dataclass(frozen=True, slots=True)
class Requirement:
    """A package that a component needs beyond the base install.

    Attributes:
        module: the import name that is probed (``"onnxruntime"``), without importing it.
        extra: what to install, as a pip argument (``"nasdistill[onnx]"``).
    """

    module: str
    extra: str


@dataclass(frozen=True, slots=True)
class ProxyTags:
    """What a proxy needs and does; each promise is tested.

    Attributes:
        needs_data: reads the batch's inputs (False: the score is the same for any batch).
        needs_labels: reads the batch's labels.
        needs_teacher: cannot score without a teacher.
        needs_backward: runs a backward pass.
        pool: the score only has a meaning within a pool of candidates (rank aggregation, as AZ-NAS).
        stochastic: depends on the generator even with the batch fixed.
        cost: ``"analytic"`` (no forward), ``"forward"`` (forwards only), ``"backward"`` (one backward pass per batch,
            and one more through the teacher where it needs one) or ``"heavy"`` (more of them).
        mode: a request to the host rather than a promise: train or eval mode of the copies, set before the call.
        init: a request, too: ``"network"`` scores the weights as built (or inherited), for ``"normal"`` the host draws
            conv and linear weights from N(0, 1) first; the initialisation is part of a proxy's definition.
    """

    needs_data: bool = True
    needs_labels: bool = False
    needs_teacher: bool = False
    needs_backward: bool = False
    pool: bool = False
    stochastic: bool = False
    cost: Literal["analytic", "forward", "backward", "heavy"] = "forward"
    mode: Literal["train", "eval"] = "train"
    init: Literal["network", "normal"] = "network"


@dataclass(frozen=True, slots=True)
class AttentionTags:
    """What an attention variant can do; what is not declared must be refused, never ignored.

    Attributes:
        level: ``"core"`` computes from q, k, v; ``"module"`` owns its projections; ``"model"`` needs several layers;
            its `causal`, `bidirectional`, `cross` and `gqa` say which layers it converts, and as nobody asks a
            converted layer for padding, a bias, patterns, a map or decoding, these stay False there.
        causal: ``"strict"`` (no position of the output depends on a later token), ``"values"`` (values only: scores or
            selections do look ahead) or ``"no"``.
        bidirectional: works without a causal mask.
        cross: queries and keys may come from different sequences (N != M).
        gqa: accepts fewer key/value heads than query heads.
        padding: honours a key padding mask.
        bias: honours an additive score bias.
        exact: equals softmax attention as it is made (a module the layer that it starts from); False: it does not.
        complexity: cost in the sequence length. ``"n*w"`` reads w of the keys for a query, however many there are,
            where ``"n"`` reads all of them at a linear cost; ``"n log n"`` may come from sorting or transforming them.
        stateful: keeps state between calls (a step-wise cache of block masks, say), reset through the context's store.
        returns_map: can return an attention map.
        decodes: supports token-by-token decoding with a cache.
        exportable: passes torch.export and both of torch's ways to ONNX, and computes the same there; False: it fails
            one of them.
        owns_parameters: adds trainable parameters of its own.
        patterns: honours ``AttentionMask.window`` and ``AttentionMask.predicate``.
    """

    level: Literal["core", "module", "model"] = "core"
    causal: Literal["strict", "values", "no"] = "no"
    bidirectional: bool = True
    cross: bool = False
    gqa: bool = False
    padding: bool = False
    bias: bool = False
    exact: bool = False
    complexity: Literal["n^2", "n*w", "n log n", "n"] = "n^2"
    stateful: bool = False
    returns_map: bool = False
    decodes: bool = False
    exportable: bool = True
    owns_parameters: bool = False
    patterns: bool = False


@dataclass(frozen=True, slots=True)
class LossTags:
    """What a distillation loss looks at.

    Attributes:
        level: the kind of signal: ``"logit"`` reads the logits alone, ``"feature"`` hidden states, stage maps or
            outputs of blocks, ``"attention"`` queries, keys, values or maps. ``"relation"``, ``"sequence"`` and
            ``"diffusion"`` say what is done with signals of any kind.
        needs_labels: reads the batch's labels.
        owns_parameters: has trainable parts (projectors, critics, routers) that never reach the export.
        same_width, same_heads, same_classes: the pair of models must agree in these.
        zero_at_identity: the value is 0 when the student's signals equal the teacher's; False: it is not.
    """

    level: Literal["logit", "feature", "attention", "relation", "sequence", "diffusion"] = "logit"
    needs_labels: bool = False
    owns_parameters: bool = False
    same_width: bool = False
    same_heads: bool = False
    same_classes: bool = False
    zero_at_identity: bool = True


@dataclass(frozen=True, slots=True)
class SpaceTags:
    """What a search space offers.

    Attributes:
        family: what its models are: ``"vision"`` takes images, ``"encoder"`` and ``"decoder"`` (which is causal, with
            logits for every token) take tokens, ``"diffusion"`` and ``"graph"`` inputs of the kind ``"other"``.
        inherits: can start a student from a teacher's weights.
        supernet: can train one set of shared weights.
    """

    family: Literal["vision", "encoder", "decoder", "diffusion", "graph", "other"] = "vision"
    inherits: bool = False
    supernet: bool = False


@dataclass(frozen=True, slots=True)
class TargetTags:
    """What a target is.

    Attributes:
        clock: which clock its timings come from; ``"simulated"`` is deterministic.
        exports: an artefact is written (and checked against torch) rather than the module run as it is.
    """

    clock: Literal["cpu", "wall", "device", "simulated"] = "cpu"
    exports: bool = False


@dataclass(frozen=True, slots=True)
class TeacherTags:
    """What a teacher provider is.

    Attributes:
        cacheable: the same input always gives the same output, so outputs may be computed once. False for one that
            changes while the student trains (EMA, self-distillation).
        locator: what stands behind the colon of ``NAME:LOCATOR``, in a few words; empty when nothing does.
    """

    cacheable: bool = True
    locator: str = ""


@dataclass(frozen=True, slots=True)
class ComponentSpec:
    """One component, as data.

    Attributes:
        name: short name, ``[a-z][a-z0-9_]*``; ``plugin:name`` is the canonical id.
        target: ``"module:Class"`` of the implementation.
        summary: one line, shown in lists.
        options: ``"module:Model"`` of its options (a pydantic model); None when it has none.
        requires: packages beyond the base install.
        references: sources, ``"arXiv:2202.06258"`` where the paper has an id, else a short citation.
        left_out: what of the source this component does not do.
        partly: those of `references` of which something essential is missing here, as `left_out` says.
        since: version that brought it.
        maturity: stable components keep their options between minor versions.
    """

    kind: ClassVar[Kind]

    name: str
    target: str
    summary: str
    options: str | None = field(default=None, kw_only=True)
    requires: tuple[Requirement, ...] = field(default=(), kw_only=True)
    references: tuple[str, ...] = field(default=(), kw_only=True)
    left_out: str = field(default="", kw_only=True)
    partly: tuple[str, ...] = field(default=(), kw_only=True)
    since: str = field(default="0.1", kw_only=True)
    maturity: Literal["stable", "experimental"] = field(default="stable", kw_only=True)

    def problems(self) -> list[str]:
        """Return what is wrong with the spec itself, as sentences; empty when it is well formed."""
        found = []
        if not isinstance(self.name, str) or not NAME_PATTERN.match(self.name):
            found.append(f"name {self.name!r} must match {NAME_PATTERN.pattern}")
        for label, value in (("target", self.target), ("options", self.options)):
            if value is None and label == "options":
                continue
            if not isinstance(value, str) or not TARGET_PATTERN.match(value):
                found.append(f"{label} {value!r} must look like 'package.module:Name'")
        if not isinstance(self.summary, str) or not self.summary.strip() or "\n" in self.summary:
            found.append("summary must be one non-empty line")
        sources = {"references": self.references, "partly": self.partly}
        wrong = [f"{label} {value!r} must be a tuple of texts" for label, value in sources.items() if not _texts(value)]
        if not _texts((self.left_out or "nothing",)):
            wrong.append(f"left_out {self.left_out!r} must be a text")
        found += wrong
        if self.partly and not wrong:
            strangers = [source for source in self.partly if source not in self.references]
            if strangers:
                found.append(f"partly names {', '.join(map(repr, strangers))}, which references does not")
            if not self.left_out.strip():
                found.append("partly needs left_out, which says what is missing")
        return found


def _texts(value: object) -> bool:
    """Return whether `value` is a tuple of non-empty texts."""
    return isinstance(value, tuple | list) and all(isinstance(item, str) and item.strip() for item in value)


@dataclass(frozen=True, slots=True)
class SearchSpaceSpec(ComponentSpec):
    """A search space (interface :class:`nasdistill.interfaces.SearchSpace`)."""

    kind: ClassVar[Kind] = Kind.SEARCH_SPACE
    tags: SpaceTags = field(default_factory=SpaceTags, kw_only=True)


@dataclass(frozen=True, slots=True)
class ProxySpec(ComponentSpec):
    """A training-free proxy (interface :class:`nasdistill.interfaces.Proxy`)."""

    kind: ClassVar[Kind] = Kind.PROXY
    tags: ProxyTags = field(default_factory=ProxyTags, kw_only=True)


@dataclass(frozen=True, slots=True)
class AttentionSpec(ComponentSpec):
    """An attention variant (interface :class:`nasdistill.interfaces.AttentionCore` and its siblings)."""

    kind: ClassVar[Kind] = Kind.ATTENTION
    tags: AttentionTags = field(default_factory=AttentionTags, kw_only=True)


@dataclass(frozen=True, slots=True)
class LossSpec(ComponentSpec):
    """A distillation loss (interface :class:`nasdistill.interfaces.DistillationLoss`)."""

    kind: ClassVar[Kind] = Kind.LOSS
    tags: LossTags = field(default_factory=LossTags, kw_only=True)


@dataclass(frozen=True, slots=True)
class TeacherSpec(ComponentSpec):
    """A teacher provider (interface :class:`nasdistill.interfaces.Teacher`)."""

    kind: ClassVar[Kind] = Kind.TEACHER
    tags: TeacherTags = field(default_factory=TeacherTags, kw_only=True)


@dataclass(frozen=True, slots=True)
class TaskSpec(ComponentSpec):
    """A task (interface :class:`nasdistill.interfaces.Task`)."""

    kind: ClassVar[Kind] = Kind.TASK


@dataclass(frozen=True, slots=True)
class TargetSpec(ComponentSpec):
    """A target (interface :class:`nasdistill.interfaces.Target`)."""

    kind: ClassVar[Kind] = Kind.TARGET
    tags: TargetTags = field(default_factory=TargetTags, kw_only=True)


@dataclass(frozen=True, slots=True)
class TransformSpec(ComponentSpec):
    """A transform (interface :class:`nasdistill.interfaces.Transform`)."""

    kind: ClassVar[Kind] = Kind.TRANSFORM


@dataclass(frozen=True, slots=True)
class RecipeSpec(ComponentSpec):
    """A recipe (interface :class:`nasdistill.interfaces.Recipe`)."""

    kind: ClassVar[Kind] = Kind.RECIPE


@dataclass(frozen=True, slots=True)
class DataReducerSpec(ComponentSpec):
    """A data reducer (interface :class:`nasdistill.interfaces.DataReducer`)."""

    kind: ClassVar[Kind] = Kind.DATA_REDUCER


@dataclass(frozen=True, slots=True)
class DiagnosticSpec(ComponentSpec):
    """A diagnostic (interface :class:`nasdistill.interfaces.Diagnostic`)."""

    kind: ClassVar[Kind] = Kind.DIAGNOSTIC


@dataclass(frozen=True, slots=True)
class StrategySpec(ComponentSpec):
    """A search strategy (interface :class:`nasdistill.interfaces.Strategy`)."""

    kind: ClassVar[Kind] = Kind.STRATEGY


@dataclass(frozen=True, slots=True)
class SamplerSpec(ComponentSpec):
    """An Optuna sampler factory (interface :class:`nasdistill.interfaces.SamplerFactory`)."""

    kind: ClassVar[Kind] = Kind.SAMPLER


@dataclass(frozen=True, slots=True)
class ExporterSpec(ComponentSpec):
    """An exporter of saved students (interface :class:`nasdistill.interfaces.Exporter`)."""

    kind: ClassVar[Kind] = Kind.EXPORTER


@dataclass(frozen=True, slots=True)
class ReportSectionSpec(ComponentSpec):
    """A section of the report (interface :class:`nasdistill.interfaces.ReportSection`)."""

    kind: ClassVar[Kind] = Kind.REPORT_SECTION


@dataclass(frozen=True, slots=True)
class CommandSpec(ComponentSpec):
    """A subcommand; `target` is ``"module:function"`` with the signature of :mod:`nasdistill.cli.table`."""

    kind: ClassVar[Kind] = Kind.COMMAND


SPEC_CLASSES: dict[Kind, type[ComponentSpec]] = {
    cls.kind: cls
    for cls in (
        SearchSpaceSpec, ProxySpec, AttentionSpec, LossSpec, TeacherSpec, TaskSpec, TargetSpec, TransformSpec,
        RecipeSpec, DataReducerSpec, DiagnosticSpec, StrategySpec, SamplerSpec, ExporterSpec, ReportSectionSpec,
        CommandSpec,
    )
}  # fmt: skip
