"""Causal language models cut from a larger one: fewer layers, heads, neurons, channels (Minitron's sliced decoder).

The largest network is the teacher's: its sizes are the options (filled in from a GPT-2, Llama, Qwen2 or Mistral). Axes,
each on a coarse grid of shares of the largest:

    layers;  width (channels of the residual stream);  heads, or groups and queries per group;  mlp (neurons)

Heads keep their size, so their number does not tie the width. All layers are alike, as in the paper, or (`per_layer`)
heads and neurons are axes of each layer; with several attention variants each layer has an axis for its own. `params`
keeps the points within a tolerance (5 %) of a number of parameters: the candidates of the paper. Students start from
the teacher's most important parts (:mod:`nasdistill_spaces.decoder.inherit`); the transform `minitron` does the same
for given shares, without a search.

Cost of one layer at N tokens, width C, H heads, G groups of size D, F neurons: N (2 C D (H + G) + 2 C F) plus the core
(softmax 2 N^2 H D) multiply-accumulates; a gated MLP has 3 C F.

Source: "Compact Language Models via Pruning and Knowledge Distillation" (Minitron), arXiv 2407.14679. We depart from it
in the grid (shares of any teacher instead of its tables) and in what is free beyond it: sizes per layer, attention.
Points whose layers are alike and whose attention is softmax are stock models of transformers (GPT-2 where heads * size
= width; Llama and Qwen2 always), as language models and as classifiers; these read the last token that is not padding,
which `padding_id` (the teacher's) names. Without it they go by the mask, which no stock classifier does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from nasdistill.errors import ArchitectureError, MismatchError, UnknownComponentError
from nasdistill.interfaces import (
    AttentionCore,
    Batch,
    Example,
    InheritReport,
    ModelGeometry,
    ModelingSource,
    StockModel,
)
from nasdistill.interfaces.info import TeacherInfo
from nasdistill.spec.architecture import Architecture, Axis, Value
from nasdistill.spec.component import Kind
from nasdistill.spec.io import Cost, IOSpec
from nasdistill_spaces.decoder.families import read_teacher, sizes_of, stock_config, to_stock
from nasdistill_spaces.decoder.inherit import add_residuals, choose, score_parts, slicing_plan, spread
from nasdistill_spaces.decoder.model import DecoderNet, DecoderShape, parameter_count
from nasdistill_spaces.decoder.options import DecoderOptions
from nasdistill_spaces.decoder.standalone import decoder
from nasdistill_spaces.plan import Plan, PlannedSpace
from nasdistill_spaces.slicing import SliceCopier

HELP = {
    "layers": "number of layers", "width": "channels of the residual stream", "heads": "attention heads",
    "groups": "key/value heads", "queries": "query heads of each group", "mlp": "neurons of the MLP",
}  # fmt: skip
WORDS = IOSpec("tokens", (12,), 40, 40, "causal_lm")


class Decoder(PlannedSpace):
    """Causal language models cut from a larger one; students start from its most important parts."""

    options_model = DecoderOptions
    options: DecoderOptions
    examples = (
        Example(
            {"layers": 3, "width": 32, "heads": 4, "mlp": 64, "positions": 32, "padding_id": 0},
            {"io": (WORDS, IOSpec("tokens", (9,), 3, 40))},
            "gpt2",
        ),
        Example(
            {"style": "llama", "layers": 2, "width": 24, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp": 48,
             "positions": 32, "tied": False, "per_layer": True, "attention": ["softmax", "flow"], "qkv_bias": True},
            {"io": WORDS},
            "llama",
        ),
        Example(
            {"style": "llama", "layers": 4, "width": 32, "heads": 4, "mlp": 64, "positions": 32, "vocabulary": 40,
             "params": 0.6, "tolerance": 0.1},
            {"io": WORDS},
            "window",
        ),
    )  # fmt: skip

    @classmethod
    def adapted(cls, options: Mapping[str, Any], teacher: TeacherInfo) -> dict[str, Any]:
        """Return the sizes of the teacher's network.

        Raises:
            MismatchError: it is of a family without a style here.
        """
        if teacher.library != "transformers" or not teacher.model:
            return {}
        return sizes_of(teacher.model)

    # ---- points ---------------------------------------------------------------------------------------------------

    @cached_property
    def _start(self) -> dict[str, int]:
        """The uniform point of all defaults: the largest, or within the window the deepest one nearest its middle."""
        o = self.options
        if o.params is None:
            return {name: sizes[-1] for name, sizes in o.sizes().items()}
        inside = [point for point in o.grid() if o.in_window(point)]
        return min(inside, key=lambda point: (-point["layers"], abs(o.count(point) - o.target)))

    def axes(self) -> tuple[Axis, ...]:
        """Return ``layers width heads mlp`` (``groups queries`` for ``heads`` where keys and values are shared); with
        `per_layer` those of heads and neurons for ``layer00`` on, with several variants ``layer00.attention`` on.
        """
        return self._axes

    @cached_property
    def _axes(self) -> tuple[Axis, ...]:
        o, start, sizes = self.options, self._start, self.options.sizes()
        whole = ("layers", "width") if o.per_layer else tuple(sizes)
        axes = [Axis(name, sizes[name], start[name], ordered=True, help=HELP[name]) for name in whole]
        for layer in range(sizes["layers"][-1]):
            active = self._present(layer)
            axes += [
                Axis(f"layer{layer:02d}.{name}", sizes[name], start[name], active, ordered=True, help=HELP[name])
                for name in sizes
                if name not in whole
            ]
            if len(o.attention) > 1:
                axes.append(
                    Axis(f"layer{layer:02d}.attention", o.attention, o.attention[0], active, help="attention variant")
                )
        return tuple(axes)

    def _present(self, layer: int) -> Callable[[Mapping[str, Value]], bool] | None:
        """Return when a layer is there; None means always."""
        return None if layer < self.options.sizes()["layers"][0] else lambda params: int(params["layers"]) > layer

    def constraints(self, params: Mapping[str, Value]) -> list[str]:
        """Return that the number of parameters lies outside the window, if it does."""
        o = self.options
        if o.params is None:
            return []
        count = parameter_count(o.shape(**self._sizes(params)))
        if o.close(count):
            return []
        return [f"{count:,} parameters are not within {o.tolerance:.0%} of {round(o.target):,}"]

    def sample(self, rng: random.Random) -> Architecture:
        """Return a random point: with a window and layers that are alike, one of its points, all equally likely."""
        if self.options.params is None or self.options.per_layer:
            return super().sample(rng)
        sizes = rng.choice(self._inside)
        drawn = {a.name: sizes[a.name] if a.name in sizes else rng.choice(a.choices) for a in self.axes()}
        return Architecture.of(self.id, self.canonical(drawn), self.version)

    def mutate(self, arch: Architecture, rng: random.Random, changes: int = 1) -> Architecture:
        """Return a neighbour; where no single change stays within the window, one of the nearest points inside."""
        child = super().mutate(arch, rng, changes)
        if child != arch or self.options.params is None or self.options.per_layer:
            return child
        others = [point for point in self._inside if any(arch.params[name] != size for name, size in point.items())]
        if not others:
            return arch
        far = [sum(arch.params[name] != size for name, size in point.items()) for point in others]
        near = rng.choice([point for point, steps in zip(others, far, strict=True) if steps == min(far)])
        return Architecture.of(self.id, self.canonical({**arch.params, **near}), self.version)

    @cached_property
    def _inside(self) -> list[dict[str, int]]:
        """The uniform points within the window."""
        return [point for point in self.options.grid() if self.options.in_window(point)]

    def size(self) -> int:
        """Return the number of points: sum over depths d of (points of one layer) ** d, less what the window excludes
        where layers are alike.
        """
        o, sizes = self.options, self.options.sizes()
        variants = len(o.attention)
        if o.per_layer:
            if o.params is not None:
                return super().size()
            layer = variants
            for name in set(sizes) - {"layers", "width"}:
                layer *= len(sizes[name])
            return len(sizes["width"]) * sum(int(layer**depth) for depth in sizes["layers"])
        return sum(variants ** point["layers"] for point in o.grid() if o.in_window(point))

    def depth(self, arch: Architecture) -> int:
        """Return the number of layers."""
        return int(arch.params["layers"])

    def accepts(self, io: IOSpec) -> str | None:
        """Return why `io` is not for a causal language model or a classifier of text, or None."""
        if io.kind != "tokens":
            return f"it takes token ids, not inputs of the kind {io.kind!r}"
        if io.head not in ("causal_lm", "classes"):
            return f"its networks end in logits for every token or in classes, not in {io.head.replace('_', ' ')!r}"
        if not io.vocabulary:
            return "it needs the number of token ids"
        if len(io.shape) != 1 or io.shape[0] > self.options.positions:
            return f"inputs have at most {self.options.positions} tokens, not {' x '.join(map(str, io.shape))}"
        if io.head == "causal_lm" and io.outputs != io.vocabulary:
            return f"a language model has as many outputs as token ids, not {io.outputs} of {io.vocabulary}"
        return None

    # ---- networks -------------------------------------------------------------------------------------------------

    def shape(self, arch: Architecture, io: IOSpec) -> DecoderShape:
        """Return all sizes of a network.

        Raises:
            ArchitectureError: not a point of this space, or impossible for `io`.
        """
        self.check(arch)
        reason = self.accepts(io)
        if reason:
            raise ArchitectureError(f"{self.id} cannot be built for {io}: {reason}")
        o, layers = self.options, range(self.depth(arch))
        attention = tuple(str(arch.params.get(f"layer{layer:02d}.attention", o.attention[0])) for layer in layers)
        return o.shape(
            **self._sizes(arch.params), attention=attention, vocabulary=io.vocabulary, head=io.head, outputs=io.outputs
        )

    def _sizes(self, params: Mapping[str, Value]) -> dict[str, Any]:
        """Return width, heads, key/value heads and neurons of a point, layer by layer."""
        o = self.options

        def each(name: str) -> tuple[int, ...]:
            names = (f"layer{layer:02d}.{name}" if o.per_layer else name for layer in range(int(params["layers"])))
            return tuple(int(params[name]) for name in names)

        if o.grouped:
            groups = each("groups")
            heads = tuple(count * queries for count, queries in zip(groups, each("queries"), strict=True))
        else:
            groups = heads = each("heads")
        return {"width": int(params["width"]), "heads": heads, "kv_heads": groups, "mlp": each("mlp")}

    def build(self, arch: Architecture, io: IOSpec) -> nn.Module:
        """Return a :class:`DecoderNet`; see :class:`SearchSpace`."""
        return self._net(self.shape(arch, io))

    def _net(self, shape: DecoderShape) -> DecoderNet:
        return DecoderNet(shape, [self._core(shape, layer) for layer in range(shape.layers)])

    def stock_model(self, arch: Architecture, io: IOSpec) -> StockModel | None:
        """Return the configuration of GPT-2, Llama or Qwen2 that computes the same, or None."""
        shape = self.shape(arch, io)
        config = stock_config(shape)
        return None if config is None else StockModel(config, to_stock(shape))

    def modeling_source(self, arch: Architecture, io: IOSpec) -> ModelingSource:
        """Return :func:`decoder` of :mod:`nasdistill_spaces.decoder.standalone` with its arguments."""
        shape = self.shape(arch, io)
        options = [self._core(shape, layer).options.model_dump(mode="json") for layer in range(shape.layers)]
        parts: dict[str, type] = {
            name: self._core_class(name, shape.heads != shape.kv_heads) for name in set(shape.attention)
        }
        config = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(shape).items()}
        sizes = {"hidden_size": shape.width, "num_hidden_layers": shape.layers, "head_dim": shape.head_dim}
        per_layer = {
            layer: {
                "num_attention_heads": shape.heads[layer],
                "num_key_value_heads": shape.kv_heads[layer],
                "intermediate_size": shape.mlp[layer],
            }
            for layer in range(shape.layers)
        }
        return ModelingSource(decoder, {**config, "attention_options": options}, parts, sizes, per_layer)

    def layer_map(self, arch: Architecture, teacher: ModelGeometry) -> dict[int, int]:
        """Return the teacher's layers as weights are inherited without calibration: spread, the last on the last.

        With calibration the layers that matter are kept instead, which is not known here, before any data is seen.
        """
        depth = self.depth(arch)
        if depth < 1 or teacher.layers < 1:
            return {}
        if depth > teacher.layers:
            return super().layer_map(arch, teacher)
        return {**dict(enumerate(spread(depth, teacher.layers))), depth - 1: teacher.layers - 1}

    def inherit(
        self, student: nn.Module, arch: Architecture, teacher: nn.Module, *, calibration: Sequence[Batch] = ()
    ) -> InheritReport | None:
        """Slice the weights of a decoder into `student`; see :mod:`nasdistill_spaces.decoder.inherit`.

        Args:
            student: a network of this space.
            arch: its point.
            teacher: a network of this space, or a model of transformers of a served family, also wrapped.
            calibration: batches with ``input_ids``, to rank by activations; none ranks by weights.

        Returns:
            None when the teacher is of another family or style.

        Raises:
            MismatchError: its heads are of another size.
        """
        found = read_teacher(teacher) if isinstance(student, DecoderNet) else None
        if not isinstance(student, DecoderNet) or found is None or found[0].style != student.shape.style:
            return None
        shape, state = found
        if shape.head_dim != student.shape.head_dim:
            raise MismatchError(
                f"{self.id} keeps the size of heads: the teacher's have {shape.head_dim} channels, the student's "
                f"{student.shape.head_dim}",
                hint=f"Set head_dim = {shape.head_dim} in the options of the space.",
            )
        o = self.options
        batches = [batch for batch in calibration if "input_ids" in batch.inputs]
        scores = score_parts(
            self._twin(teacher, shape, state), batches, ranking=o.ranking, seed=o.ranking_seed,
            pre=o.neurons == "pre", layers=o.layer_score,
        )  # fmt: skip
        kept = choose(student.shape, shape, scores)
        copier, targets = SliceCopier(), dict(student.named_parameters())
        for name, (source, picks) in slicing_plan(student.shape, shape, kept).items():
            copier.tensor(targets[name], state[source], *picks)
        by = {"importance": "activations" if batches else "norms of weights"}.get(o.ranking, f"{o.ranking} ranking")
        notes = [
            f"{len(kept.channels)} of {shape.width} channels, by {by}",
            f"layers {', '.join(map(str, kept.layers))} of {shape.layers}"
            + (", spread evenly" if scores.layers is None else f", by {o.layer_score if batches else by}"),
        ]
        _copy_cores(copier, student, teacher, kept.layers)
        if o.head_residual:
            notes.append(f"residuals of dropped heads added to {add_residuals(student, state, kept)} heads")
        total = sum(parameter.numel() for parameter in student.parameters())
        if copier.copied < total:
            notes.append(f"{total - copier.copied:,} parameters have no counterpart and start fresh")
        return InheritReport(copier.copied, total, tuple(notes))

    def _twin(self, teacher: nn.Module, shape: DecoderShape, state: Mapping[str, Tensor]) -> DecoderNet:
        """Return a teacher as a network of ours; one of transformers lends its tensors to one, nothing is copied."""
        import torch

        own = next((module for module in teacher.modules() if isinstance(module, DecoderNet)), None)
        if own is not None:
            return own
        with torch.device("meta"):
            twin = self._net(shape)
        twin.load_state_dict(state, assign=True)
        return twin

    # ---- cost -----------------------------------------------------------------------------------------------------

    def plan(self, arch: Architecture, io: IOSpec) -> Plan:
        """Return the network step by step. Raises as :meth:`shape`."""
        shape = self.shape(arch, io)
        tokens, width = io.shape[0], shape.width
        plan, norm = Plan(io.shape), Cost(width * (2 if shape.style == "gpt2" else 1), 0)
        embedding = Cost(shape.vocabulary * width, 0)
        plan.add("embed_tokens", "embedding", (tokens, width), embedding, label=f"embedding, {width}")
        if shape.style == "gpt2":
            plan.add("embed_positions", "add", (tokens, width), Cost(shape.positions * width, 0), label="positions")
        for layer in range(shape.layers):
            self._plan_layer(plan, shape, layer, tokens, norm)
        plan.add("norm", "norm", (tokens, width), norm, label="norm")
        if shape.head == "classes":
            plan.add("last", "select", (width,), label="last token")
            cost = Cost.linear(width, shape.outputs, bias=False)
            plan.add("score", "linear", (shape.outputs,), cost, label=f"linear, {shape.outputs}")
            return plan
        cost = Cost.linear(width, shape.outputs, tokens=tokens, bias=False)
        if shape.tied:
            cost = Cost(0, cost.macs, cost.activations)
        plan.add("lm_head", "linear", (tokens, shape.outputs), cost, label=f"linear, {shape.outputs}")
        return plan

    def _plan_layer(self, plan: Plan, shape: DecoderShape, layer: int, tokens: int, norm: Cost) -> None:
        """Append one layer; its two branches leave from, and return to, the residual stream."""
        name, stream, width, geometry = f"layers.{layer}", plan.last, shape.width, shape.geometry(layer)
        inner, hidden = geometry.heads * shape.head_dim, shape.mlp[layer]
        variant = shape.attention[layer]
        core = self._core_class(variant, geometry.heads != geometry.kv_heads)

        def linear(path: str, inputs: int, outputs: int, bias: bool, after: str | None = None) -> str:
            cost = Cost.linear(inputs, outputs, tokens=tokens, bias=bias)
            label = f"linear, {outputs}"
            return plan.add(f"{name}.{path}", "linear", (tokens, outputs), cost, after=after, label=label)

        read = plan.add(f"{name}.input_layernorm", "norm", (tokens, width), norm, label="norm")
        outputs = {"q": inner, "k": geometry.kv_heads * shape.head_dim, "v": geometry.kv_heads * shape.head_dim}
        parts = tuple(
            linear(f"self_attn.{part}_proj", width, size, shape.qkv_bias, read) for part, size in outputs.items()
        )
        cost = core.cost(geometry, tokens, tokens, self.options.attention_options.get(variant))
        label = f"{variant}, {geometry.heads} x {geometry.head_dim}"
        plan.add(f"{name}.self_attn.core", "attention", (tokens, inner), cost, after=parts, label=label)
        out = linear("self_attn.o_proj", inner, width, shape.out_bias)
        stream = plan.add(f"{name}.add1", "add", (tokens, width), after=(stream, out))
        read = plan.add(f"{name}.post_attention_layernorm", "norm", (tokens, width), norm, label="norm")
        ups = ("gate_proj", "up_proj") if shape.gated else ("up_proj",)
        inside = tuple(linear(f"mlp.{up}", width, hidden, shape.mlp_bias, read) for up in ups)
        plan.add(f"{name}.mlp.act", shape.activation, (tokens, hidden), after=inside)
        out = linear("mlp.down_proj", hidden, width, shape.mlp_bias)
        plan.add(f"{name}.add2", "add", (tokens, width), after=(stream, out))

    # ---- attention ------------------------------------------------------------------------------------------------

    def _core(self, shape: DecoderShape, layer: int) -> AttentionCore:
        """Return a fresh core for one layer."""
        name, geometry = shape.attention[layer], shape.geometry(layer)
        self._core_class(name, geometry.heads != geometry.kv_heads)
        options = self.options.attention_options.get(name)
        core: AttentionCore = self.host.create(Kind.ATTENTION, name, options, geometry=geometry)
        return core

    def _core_class(self, name: str, grouped: bool) -> type[AttentionCore]:
        """Return a variant's class.

        Raises:
            ArchitectureError: unknown, or not a variant that can stand in a decoder's layer.
        """
        try:
            tags = self.host.tags(Kind.ATTENTION, name)
        except UnknownComponentError as error:
            raise ArchitectureError(f"{self.id}: {error.message}", hint=error.hint) from error
        lacks = (
            f"it is of level {tags.level!r}" if tags.level != "core"
            else "it is not strictly causal" if tags.causal != "strict"
            else "it takes no padding" if not tags.padding
            else "its query heads cannot share keys and values" if grouped and not tags.gqa
            else ""
        )  # fmt: skip
        if lacks:
            raise ArchitectureError(
                f"{self.id}: attention variant {name!r} cannot stand in a decoder's layer: {lacks}",
                hint="nasdistill plugins list --kind attention names all variants; choose causal ones of level 'core'.",
            )
        found: type[AttentionCore] = self.host.load(Kind.ATTENTION, name)
        return found


def _copy_cores(copier: SliceCopier, student: DecoderNet, teacher: nn.Module, layers: Sequence[int]) -> None:
    """Copy what attention variants own, where a layer of the student has the teacher's."""
    own = next((module for module in teacher.modules() if isinstance(module, DecoderNet)), None)
    if own is None:
        return
    for ours, theirs in enumerate(layers):
        source, target = (net.get_submodule(f"layers.{layer}.self_attn.core") for net, layer in
                          ((own, theirs), (student, ours)))  # fmt: skip
        others = dict(source.named_parameters())
        for name, parameter in target.named_parameters():
            if type(source) is type(target) and name in others and others[name].shape == parameter.shape:
                copier.tensor(parameter, others[name])
