"""A vision transformer layer by layer: from which its cost and its graph are read."""

from __future__ import annotations

from collections.abc import Callable

from nasdistill.interfaces import AttentionGeometry
from nasdistill.spec.io import Cost
from nasdistill_spaces.plan import Plan
from nasdistill_spaces.vit.model import VitShape

CoreCost = Callable[[AttentionGeometry, str], Cost]
"""Cost of an attention variant in a layer of some geometry."""


def plan_of(shape: VitShape, image: tuple[int, ...], core_cost: CoreCost) -> Plan:
    """Return the steps for an image ``(C, H, W)``, named as the modules they stand for."""
    plan, embed, tokens = Plan(image), shape.embed, shape.tokens
    name = "embeddings.patch_embeddings.projection"
    add_patches(plan, name, shape.channels, embed, shape.patch, shape.grid)
    if shape.prefix:
        cost = Cost(shape.prefix * embed, 0)
        plan.add("embeddings.cls_token", "concat", (tokens, embed), cost, label=f"{shape.prefix} more in front")
    rows = tokens if shape.prefix_positions else shape.patches
    label = f"position, {rows}"
    plan.add("embeddings.position_embeddings", "add", (tokens, embed), Cost(rows * embed, 0), label=label)
    for index, layer in enumerate(shape.layers):
        geometry = shape.geometry(layer)
        core = core_cost(geometry, layer.attention)
        variant = layer.attention
        add_layer(plan, f"layers.{index}", geometry, layer.mlp, variant, core, shape.activation, shape.qkv_bias)
    pool = ("slice", "first token") if shape.pool == "token" else ("mean", "mean over patches")
    if shape.pool == "normed_mean":
        plan.add("layernorm", "norm", (tokens, embed), Cost.norm(embed), label="layer norm")
    plan.add("pool", pool[0], (embed,), label=pool[1])
    if shape.pool != "normed_mean":
        plan.add("layernorm", "norm", (embed,), Cost.norm(embed), label="layer norm")
    label = f"linear, {shape.outputs}"
    plan.add("classifier", "linear", (shape.outputs,), Cost.linear(embed, shape.outputs), label=label)
    return plan


def add_patches(
    plan: Plan, name: str, channels: int, width: int, kernel: tuple[int, int], grid: tuple[int, int]
) -> None:
    """Append the convolution that embeds patches."""
    weights, places = width * channels * kernel[0] * kernel[1], grid[0] * grid[1]
    cost = Cost(weights + width, weights * places, width * places)
    label = f"patches {kernel[0]} x {kernel[1]}, {width}"
    plan.add(name, "conv", (width, *grid), cost, label=label)


def add_layer(
    plan: Plan, name: str, geometry: AttentionGeometry, neurons: int, variant: str, core: Cost,
    activation: str = "gelu", qkv_bias: bool = True,
) -> None:  # fmt: skip
    """Append one block; its two branches leave from, and return to, the residual stream."""
    width, inner, n, stream = geometry.dim, geometry.heads * geometry.head_dim, geometry.tokens or 1, plan.last

    def linear(path: str, inputs: int, outputs: int, after: str | None = None, *, bias: bool = True) -> str:
        cost = Cost.linear(inputs, outputs, tokens=n, bias=bias)
        return plan.add(f"{name}.{path}", "linear", (n, outputs), cost, after=after, label=f"linear, {outputs}")

    norm = plan.add(f"{name}.layernorm_before", "norm", (n, width), Cost.norm(width), label="layer norm")
    parts = tuple(linear(f"attention.{part}_proj", width, inner, norm, bias=qkv_bias) for part in "qkv")
    label = f"{variant}, {geometry.heads} x {geometry.head_dim}"
    plan.add(f"{name}.attention.core", "attention", (n, inner), core, after=parts, label=label)
    out = linear("attention.o_proj", inner, width)
    stream = plan.add(f"{name}.add1", "add", (n, width), after=(stream, out))
    plan.add(f"{name}.layernorm_after", "norm", (n, width), Cost.norm(width), label="layer norm")
    linear("mlp.fc1", width, neurons)
    plan.add(f"{name}.mlp.act", activation, (n, neurons))
    out = linear("mlp.fc2", neurons, width)
    plan.add(f"{name}.add2", "add", (n, width), after=(stream, out))
