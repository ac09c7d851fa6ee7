"""Start a decoder from a larger one: rank once, then slice every tensor with the same index sets.

*Channels* have one ranking for the whole network; *heads* (whole groups first, then as many query heads within each
kept group) and *neurons* are ranked in each layer; *layers* by block influence. What is kept stays in its order, so
keeping all is the identity. Then one plan says for each tensor of the student which entries of which tensor of the
teacher it is: every tensor that reads or writes the residual stream (embeddings of tokens and positions, norms, all
projections and their biases, the output matrix) is cut by the same channels. Cutting heads and neurons is exact (the
teacher with the matching columns of its output matrices set to zero); cutting channels is not, because norms see fewer.

Without calibration data the ranking is by norms of weights, and layers are spread evenly from first to last.

Source: "Compact Language Models via Pruning and Knowledge Distillation" (Minitron), arXiv 2407.14679.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nasdistill.interfaces import Batch
from nasdistill.seeds import torch_generator
from nasdistill_spaces.decoder.importance import Importance
from nasdistill_spaces.decoder.model import DecoderNet, DecoderShape
from nasdistill_spaces.slicing import row_norms, top

Ranking = Literal["importance", "random", "inverse", "first"]


@dataclass(slots=True)
class Scores:
    """How much each part of a teacher matters, higher is more.

    Attributes:
        channels: ``(C,)``.
        heads, groups, neurons: for each layer ``(H,)``, ``(G,)`` and ``(F,)``.
        layers: ``(L,)``; None spreads the kept ones evenly.
    """

    channels: Tensor
    heads: list[Tensor]
    groups: list[Tensor]
    neurons: list[Tensor]
    layers: Tensor | None

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Scores:
        """Return the same parts with other scores."""
        heads, groups, neurons = ([change(item) for item in items] for items in (self.heads, self.groups, self.neurons))
        layers = None if self.layers is None else change(self.layers)
        return Scores(change(self.channels), heads, groups, neurons, layers)


def score_parts(
    model: DecoderNet,
    calibration: Sequence[Batch],
    *,
    ranking: Ranking = "importance",
    seed: int = 0,
    pre: bool = False,
    layers: Literal["bi", "ppl"] = "bi",
) -> Scores:
    """Return the scores by which parts are kept.

    Args:
        model: the teacher, left as it was.
        calibration: batches to run it on; without any, norms of weights decide.
        ranking: by importance, or, to compare with: at random, the least important first, or the first ones.
        seed: of the random ranking.
        pre: score neurons before the activation.
        layers: score layers by block influence or by the loss.
    """
    if calibration and ranking in ("importance", "inverse"):
        seen = Importance(model, calibration, pre=pre, layers=layers)
        scores = Scores(seen.channels, seen.heads, seen.groups, seen.neurons, seen.layers)
    else:
        scores = weight_scores(model)
    if ranking == "inverse":
        return scores.mapped(torch.neg)
    if ranking == "first":
        return scores.mapped(lambda item: -torch.arange(item.numel(), dtype=torch.float32))
    if ranking == "random":
        generator = torch_generator(seed, "ranking")
        return scores.mapped(lambda item: torch.rand(item.numel(), generator=generator))
    return scores


def weight_scores(model: DecoderNet) -> Scores:
    """Return scores from norms of weights: the channels' over all that reads or writes them, |W_q| |W_k| |W_v| |W_o| of
    groups, |W_q| |W_o| of heads, |w_up| |w_down| (|w_gate|) of neurons.
    """
    shape, state = model.shape, {name: tensor.detach().float() for name, tensor in model.state_dict().items()}
    channels = row_norms(state["embed_tokens.weight"], 1)
    heads, groups, neurons = [], [], []
    for layer in range(shape.layers):
        at = f"layers.{layer}"
        read1, read2 = state[f"{at}.input_layernorm.weight"], state[f"{at}.post_attention_layernorm.weight"]
        q, k, v = (state[f"{at}.self_attn.{part}_proj.weight"] for part in "qkv")
        out = state[f"{at}.self_attn.o_proj.weight"]
        up, down = state[f"{at}.mlp.up_proj.weight"], state[f"{at}.mlp.down_proj.weight"]
        channels = channels + row_norms(torch.cat((q, k, v)) * read1, 1) + row_norms(out, 0)
        channels = channels + row_norms(up * read2, 1) + row_norms(down, 0)
        count, grouped = shape.heads[layer], shape.kv_heads[layer]
        strength = q.reshape(count, -1).norm(dim=1) * out.reshape(shape.width, count, -1).norm(dim=(0, 2))
        heads.append(strength)
        shared = k.reshape(grouped, -1).norm(dim=1) * v.reshape(grouped, -1).norm(dim=1)
        groups.append(shared * strength.reshape(grouped, -1).sum(1))
        score = up.norm(dim=1) * down.norm(dim=0)
        neurons.append(score * state[f"{at}.mlp.gate_proj.weight"].norm(dim=1) if shape.gated else score)
    return Scores(channels, heads, groups, neurons, None)


@dataclass(slots=True)
class Kept:
    """What a student keeps of its teacher.

    Attributes:
        channels: indices, ascending.
        layers: for each student layer the teacher's.
        heads, groups, neurons: for each student layer indices within the teacher's layer; heads group by group.
        orders: for each student layer the rankings that heads were taken from: all query heads of a ranking, most
            important first, and how many of them were kept.
    """

    channels: Tensor
    layers: tuple[int, ...]
    heads: list[Tensor]
    groups: list[Tensor]
    neurons: list[Tensor]
    orders: list[list[tuple[Tensor, int]]]


def choose(student: DecoderShape, teacher: DecoderShape, scores: Scores) -> Kept:
    """Return what `student` keeps of `teacher`: the parts with the highest scores, as many as it has."""
    if scores.layers is None or student.layers > teacher.layers:
        layers = spread(student.layers, teacher.layers)
    else:
        layers = tuple(int(index) for index in top(scores.layers, student.layers))
    heads, groups, neurons, orders = [], [], [], []
    for ours, theirs in enumerate(layers):
        within = teacher.heads[theirs] // teacher.kv_heads[theirs]
        wanted = student.heads[ours] // student.kv_heads[ours]
        kept = top(scores.groups[theirs], student.kv_heads[ours])
        order = [
            group * within + torch.argsort(scores.heads[theirs][group * within : (group + 1) * within], descending=True)
            for group in kept.tolist()
        ]
        groups.append(kept)
        if within == 1:
            everything = torch.argsort(scores.groups[theirs], descending=True)
            orders.append([(everything, min(student.kv_heads[ours], len(everything)))])
        else:
            orders.append([(item, min(wanted, within)) for item in order])
        heads.append(torch.cat([item[:wanted].sort().values for item in order]))
        neurons.append(top(scores.neurons[theirs], student.mlp[ours]))
    return Kept(top(scores.channels, student.width), layers, heads, groups, neurons, orders)


def spread(depth: int, teacher_depth: int) -> tuple[int, ...]:
    """Return for each student layer a teacher's: the first, the last, evenly between; a single one is the first."""
    if depth == 1:
        return (0,)
    return tuple((2 * index * (teacher_depth - 1) + depth - 1) // (2 * (depth - 1)) for index in range(depth))


Source = tuple[str, tuple[Tensor | None, ...]]
"""A tensor of the teacher by name, and for each of its axes the kept indices (None = as they are)."""


def slicing_plan(student: DecoderShape, teacher: DecoderShape, kept: Kept) -> dict[str, Source]:
    """Return for each tensor of the student what it is a slice of; tensors that are not named start fresh.

    Left out are an output matrix of another head, and what belongs to query heads if the student has more of them in a
    group than the teacher.
    """
    c = kept.channels
    plan: dict[str, Source] = {"embed_tokens.weight": ("embed_tokens.weight", (None, c))}
    if student.style == "gpt2":
        plan["embed_positions.weight"] = ("embed_positions.weight", (None, c))
    ends = ("weight", "bias") if student.style == "gpt2" else ("weight",)
    for end in ends:
        plan[f"norm.{end}"] = (f"norm.{end}", (c,))
    for ours, theirs in enumerate(kept.layers):
        here, there = f"layers.{ours}", f"layers.{theirs}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            for end in ends:
                plan[f"{here}.{name}.{end}"] = (f"{there}.{name}.{end}", (c,))
        q, kv = _channels(kept.heads[ours], student.head_dim), _channels(kept.groups[ours], student.head_dim)
        f, bias = kept.neurons[ours], student.mlp_bias and teacher.mlp_bias
        linears = [("mlp.up_proj", f, c, bias), ("mlp.down_proj", c, f, bias)]
        if student.gated:
            linears.append(("mlp.gate_proj", f, c, bias))
        within = student.heads[ours] // student.kv_heads[ours], teacher.heads[theirs] // teacher.kv_heads[theirs]
        if within[0] <= within[1] or student.kv_heads[ours] == student.heads[ours]:
            bias = student.qkv_bias and teacher.qkv_bias
            linears += [("self_attn.q_proj", q, c, bias), ("self_attn.k_proj", kv, c, bias)]
            linears += [("self_attn.v_proj", kv, c, bias)]
            linears.append(("self_attn.o_proj", c, q, student.out_bias and teacher.out_bias))
        for name, rows, columns, bias in linears:
            plan[f"{here}.{name}.weight"] = (f"{there}.{name}.weight", (rows, columns))
            if bias:
                plan[f"{here}.{name}.bias"] = (f"{there}.{name}.bias", (rows,))
    if student.head == "causal_lm" and not student.tied and teacher.head == "causal_lm":
        plan["lm_head.weight"] = ("embed_tokens.weight" if teacher.tied else "lm_head.weight", (None, c))
    if student.head == teacher.head == "classes" and student.outputs == teacher.outputs:
        plan["score.weight"] = ("score.weight", (None, c))
    return plan


def _channels(heads: Tensor, size: int) -> Tensor:
    """Return the channels of some heads, head by head."""
    return (heads[:, None] * size + torch.arange(size, device=heads.device)).flatten()


def residual_pairs(total: int, kept: int) -> list[tuple[int, int]]:
    """Return which kept head takes up which dropped one, as ranks from 1 (the most important) on.

    ``i = 2K - L + 1 .. K`` with ``2K - i + 1 = L .. K + 1``: the weakest kept head takes the strongest dropped one.
    (The lower end printed in the paper, 2K - L, has a partner L + 1, which does not exist.) Empty when more heads are
    dropped than kept.
    """
    if total > 2 * kept:
        return []
    return [(i, 2 * kept - i + 1) for i in range(2 * kept - total + 1, kept + 1)]


@torch.no_grad()
def add_residuals(student: DecoderNet, teacher: Mapping[str, Tensor], kept: Kept) -> int:
    """Turn weak kept heads into ``head + (head - dropped)``, in place; return how many.

    Applied to the rows of q, k and v; where query heads share keys and values to those of q alone.

    Args:
        student: as the plan has left it.
        teacher: its tensors under our names.
        kept: what was kept.
    """
    size, changed, parameters = student.shape.head_dim, 0, dict(student.named_parameters())
    for ours, theirs in enumerate(kept.layers):
        at = f"layers.{theirs}.self_attn"
        alone = teacher[f"{at}.q_proj.weight"].shape[0] == teacher[f"{at}.k_proj.weight"].shape[0]
        position = {head: at for at, head in enumerate(kept.heads[ours].tolist())}
        for order, count in kept.orders[ours]:
            for first, second in residual_pairs(len(order), count):
                keep, drop = position[int(order[first - 1])] * size, int(order[second - 1]) * size
                changed += 1
                for part in "qkv" if alone else "q":
                    for end in ("weight", "bias"):
                        target = parameters.get(f"layers.{ours}.self_attn.{part}_proj.{end}")
                        source = teacher.get(f"{at}.{part}_proj.{end}")
                        if target is None or source is None:
                            continue
                        lost = source[drop : drop + size].to(target)
                        rows = target[keep : keep + size]
                        rows += rows - (lost[:, kept.channels.to(target.device)] if lost.dim() == 2 else lost)
    return changed
