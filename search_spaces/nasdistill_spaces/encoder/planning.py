"""An encoder layer by layer: from which its cost and its graph are read."""

from __future__ import annotations

from collections.abc import Callable

from nasdistill.interfaces import AttentionGeometry
from nasdistill.spec.io import Cost
from nasdistill_spaces.encoder.model import EncoderShape
from nasdistill_spaces.layers import LayerShape
from nasdistill_spaces.plan import Plan

CoreCost = Callable[[AttentionGeometry, str], Cost]
"""Cost of an attention variant in a layer of some geometry."""


def plan_of(shape: EncoderShape, n: int, core_cost: CoreCost) -> Plan:
    """Return the steps for an input of `n` tokens, named as the modules they stand for."""
    plan, width = Plan((n,)), shape.embedding

    def table(name: str, rows: int, after: str) -> str:
        label = f"{rows} x {width}"
        cost = Cost(rows * width, 0)
        return plan.add(f"embeddings.{name}", "embedding", (n, width), cost, after=after, label=label)

    parts = [table("word_embeddings", shape.vocabulary, "input")]
    if shape.token_types:
        parts.append(table("token_type_embeddings", shape.token_types, "input"))
    parts.append(table("position_embeddings", shape.positions, "input"))
    plan.add("embeddings.add", "add", (n, width), after=tuple(parts))
    plan.add("embeddings.LayerNorm", "norm", (n, width), Cost.norm(width), label="layer norm")
    if shape.projected:
        _linear(plan, "embeddings_project", n, width, shape.hidden)
    for index, layer in enumerate(shape.layers):
        _layer(plan, f"encoder.layer.{index}", shape, layer, n, core_cost)
    _head(plan, shape, n)
    return plan


def _linear(plan: Plan, name: str, tokens: int, inputs: int, outputs: int, after: str | None = None) -> str:
    cost = Cost.linear(inputs, outputs, tokens=tokens)
    return plan.add(name, "linear", (tokens, outputs), cost, after=after, label=f"linear, {outputs}")


def _layer(plan: Plan, name: str, shape: EncoderShape, layer: LayerShape, n: int, core_cost: CoreCost) -> None:
    """Append one layer; its two branches leave from, and return to, the residual stream."""
    hidden, inner, stream = shape.hidden, layer.heads * shape.head_dim, plan.last
    geometry = AttentionGeometry(dim=hidden, heads=layer.heads, head_dim=shape.head_dim)
    projections = [
        _linear(plan, f"{name}.attention.self.{part}", n, hidden, inner, stream) for part in ("query", "key", "value")
    ]
    label = f"{layer.attention}, {layer.heads} x {shape.head_dim}"
    core = core_cost(geometry, layer.attention)
    plan.add(f"{name}.attention.self.core", "attention", (n, inner), core, after=tuple(projections), label=label)
    out = _linear(plan, f"{name}.attention.output.dense", n, inner, hidden)
    plan.add(f"{name}.attention.add", "add", (n, hidden), after=(stream, out))
    part = f"{name}.attention.output.LayerNorm"
    stream = plan.add(part, "norm", (n, hidden), Cost.norm(hidden), label="layer norm")
    _linear(plan, f"{name}.intermediate.dense", n, hidden, layer.mlp)
    plan.add(f"{name}.intermediate.act", shape.activation, (n, layer.mlp))
    out = _linear(plan, f"{name}.output.dense", n, layer.mlp, hidden)
    plan.add(f"{name}.add", "add", (n, hidden), after=(stream, out))
    plan.add(f"{name}.output.LayerNorm", "norm", (n, hidden), Cost.norm(hidden), label="layer norm")


def _head(plan: Plan, shape: EncoderShape, n: int) -> None:
    hidden, width, outputs = shape.hidden, shape.embedding, shape.outputs
    if shape.head == "embedding":
        plan.add("pool", "mean", (hidden,), label="mean over tokens")
    elif shape.head == "classes":
        plan.add("first", "slice", (hidden,), label="first token")
        for name, size in (("dense", hidden), ("out_proj", outputs)):
            plan.add(f"head.{name}", "linear", (size,), Cost.linear(hidden, size), label=f"linear, {size}")
    else:
        _linear(plan, "head.dense", n, hidden, width)
        plan.add("head.LayerNorm", "norm", (n, width), Cost.norm(width), label="layer norm")
        table = 0 if shape.tied else width * outputs
        cost = Cost(table, n * width * outputs, n * outputs)
        plan.add("head.decoder", "linear", (n, outputs), cost, label=f"linear, {outputs}")
        plan.add("head.bias", "add", (n, outputs), Cost(outputs, 0))
