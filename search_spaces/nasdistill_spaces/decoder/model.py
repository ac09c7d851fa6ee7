"""The networks of `decoder`: causal language models in the style of GPT-2 and of Llama.

    x = embed(ids) (+ positions);   x = x + attn(norm(x));   x = x + mlp(norm(x));   logits = lm_head(norm(x))

Both styles are one network with other parts: GPT-2 has learned positions, layer norm, one GELU MLP and biases
everywhere; Llama (Qwen2, Mistral) rotary positions, RMS norm, a gated MLP, grouped key/value heads and few biases. What
transformers has no configuration for is ordinary here: heads and MLP widths per layer, and a head size that does not
follow from the width. With a model's weights the outputs are those of transformers (Llama bit for bit).

Sources: "Language Models are Unsupervised Multitask Learners" (GPT-2); "LLaMA: Open and Efficient Foundation Language
Models", arXiv 2302.13971; rotary positions, "RoFormer", arXiv 2104.09864; grouped heads, "GQA", arXiv 2305.13245. There
is no dropout: students are trained on a teacher's outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasdistill.interfaces import AttentionContext, AttentionCore, AttentionGeometry, AttentionMask

Style = Literal["gpt2", "llama"]


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """All sizes of a network; lists have one entry per layer.

    Attributes:
        style: which parts it is made of.
        width: channels C of the residual stream.
        head_dim: size D of a head; ``heads * head_dim`` may differ from the width.
        heads, kv_heads: query heads H and key/value heads G of each layer; G divides H.
        mlp: neurons of each MLP.
        attention: name of each layer's attention variant.
        vocabulary: token ids.
        positions: longest input.
        head: ``causal_lm`` gives logits for every token, ``classes`` for the last real one.
        outputs: size of the last axis of the output.
        activation: ``gelu``, ``gelu_tanh``, ``silu`` or ``relu``.
        eps: of the norms.
        qkv_bias, out_bias, mlp_bias: which linear layers have biases.
        tied: the output matrix is the token embedding.
        rope_theta: base of the rotary frequencies.
        rope_scaling: how they are changed: empty, or ``rope_type`` ``linear`` or ``llama3`` with its numbers.
        padding_id: ``classes`` read the last token of another id, as in transformers; None: the last one that the mask
            calls real.
    """

    style: Style
    width: int
    head_dim: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    mlp: tuple[int, ...]
    attention: tuple[str, ...]
    vocabulary: int
    positions: int
    head: str
    outputs: int
    activation: str
    eps: float
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    tied: bool
    rope_theta: float
    rope_scaling: Mapping[str, Any]
    padding_id: int | None = None

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.heads)

    @property
    def gated(self) -> bool:
        """Whether the MLP is gated."""
        return self.style == "llama"

    def geometry(self, layer: int) -> AttentionGeometry:
        """Return the sizes of a layer's attention."""
        return AttentionGeometry(
            dim=self.width,
            heads=self.heads[layer],
            kv_heads=self.kv_heads[layer],
            head_dim=self.head_dim,
            causal=True,
        )


class RMSNorm(nn.Module):
    """``x / rms(x) * weight``, in float32 whatever the type of x."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., C)`` to ``(..., C)``."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotary_frequencies(size: int, theta: float, scaling: Mapping[str, Any], device: torch.device | str) -> Tensor:
    """Return the angle per position of each pair of channels, ``(size / 2,)`` float32.

    Args:
        size: channels of a head.
        theta: base.
        scaling: empty; ``linear`` divides all by ``factor``; ``llama3`` divides the low frequencies, leaves the high
            ones, and goes smoothly from one to the other between.
        device: where to put them.
    """
    steps = torch.arange(0, size, 2, dtype=torch.float32, device=device) / size
    frequencies = 1.0 / (theta**steps)
    kind = scaling.get("rope_type", "default")
    if kind == "linear":
        return frequencies / float(scaling["factor"])
    if kind == "llama3":
        factor, original = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        turns = original * frequencies / (2 * math.pi)
        share = ((turns - low) / (high - low)).clamp(0.0, 1.0)
        return (1 - share) * frequencies / factor + share * frequencies
    return frequencies


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + D/2) of ``(B, H, N, D)`` by the angles of ``(N, D)``."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal self-attention around an exchangeable core.

    Attributes:
        heads, kv_heads, head_dim: sizes H, G, D.
        core: the variant; called as ``core(q, k, v, ctx)`` on ``(B, H, N, D)`` and ``(B, G, N, D)``.
    """

    def __init__(self, shape: DecoderShape, core: AttentionCore, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = shape.heads[layer], shape.kv_heads[layer], shape.head_dim
        self.layer = layer
        inner, grouped = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(shape.width, inner, bias=shape.qkv_bias)
        self.k_proj = nn.Linear(shape.width, grouped, bias=shape.qkv_bias)
        self.v_proj = nn.Linear(shape.width, grouped, bias=shape.qkv_bias)
        self.core = core
        self.o_proj = nn.Linear(inner, shape.width, bias=shape.out_bias)

    def forward(
        self, x: Tensor, mask: AttentionMask, angles: tuple[Tensor, Tensor] | None, store: MutableMapping[str, Any]
    ) -> Tensor:
        """Map ``(B, N, C)`` to ``(B, N, C)``."""
        q, k, v = (
            project(x).reshape(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        out = self.core(q, k, v, self.attention_context(x, mask, angles, store)).out
        return self.o_proj(out.transpose(1, 2).reshape(*x.shape[:2], -1))  # type: ignore[no-any-return]

    def attention_context(
        self, x: Tensor, mask: AttentionMask, angles: tuple[Tensor, Tensor] | None, store: MutableMapping[str, Any]
    ) -> AttentionContext:
        """Return what attention is told beside q, k and v; the arguments are those of `forward`."""
        return AttentionContext(mask=mask, layer=self.layer, layer_input=x, store=store)


ACTIVATIONS: Mapping[str, Any] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}


class Mlp(nn.Module):
    """``down(act(up(x)))``, or gated ``down(act(gate(x)) * up(x))``."""

    def __init__(self, shape: DecoderShape, layer: int) -> None:
        super().__init__()
        hidden = shape.mlp[layer]
        self.activation = shape.activation
        self.gate_proj = nn.Linear(shape.width, hidden, bias=shape.mlp_bias) if shape.gated else None
        self.up_proj = nn.Linear(shape.width, hidden, bias=shape.mlp_bias)
        self.down_proj = nn.Linear(hidden, shape.width, bias=shape.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, N, C)`` to ``(B, N, C)``."""
        act = ACTIVATIONS[self.activation]
        hidden = act(self.up_proj(x)) if self.gate_proj is None else act(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(hidden)  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, shape: DecoderShape, core: AttentionCore, layer: int) -> None:
        super().__init__()
        self.input_layernorm = _norm(shape)
        self.self_attn = Attention(shape, core, layer)
        self.post_attention_layernorm = _norm(shape)
        self.mlp = Mlp(shape, layer)

    def forward(
        self, x: Tensor, mask: AttentionMask, angles: tuple[Tensor, Tensor] | None, store: MutableMapping[str, Any]
    ) -> Tensor:
        """Map ``(B, N, C)`` to ``(B, N, C)``."""
        x = x + self.self_attn(self.input_layernorm(x), mask, angles, store)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


def _norm(shape: DecoderShape) -> nn.Module:
    return RMSNorm(shape.width, shape.eps) if shape.style == "llama" else nn.LayerNorm(shape.width, shape.eps)


class DecoderNet(nn.Module):
    """Embedding, layers, final norm, output matrix.

    Attributes:
        shape: all its sizes.
    """

    def __init__(self, shape: DecoderShape, cores: Sequence[AttentionCore]) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        learned = shape.style == "gpt2"
        self.embed_positions = nn.Embedding(shape.positions, shape.width) if learned else None
        self.layers = nn.ModuleList(DecoderLayer(shape, core, i) for i, core in enumerate(cores))
        self.norm = _norm(shape)
        # Tied, there is no second matrix at all: nothing that copying, saving or slicing could untie.
        words = shape.head == "causal_lm"
        self.lm_head = nn.Linear(shape.width, shape.outputs, bias=False) if words and not shape.tied else None
        self.score = None if words else nn.Linear(shape.width, shape.outputs, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        """Draw fresh weights as GPT-2 does; cores keep what they set themselves."""
        for name, module in self.named_modules():
            if ".core" in name:
                continue
            if isinstance(module, nn.Linear | nn.Embedding):
                out = name.endswith(("o_proj", "down_proj"))
                nn.init.normal_(module.weight, std=0.02 / (2 * self.shape.layers) ** 0.5 if out else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Return logits.

        Args:
            input_ids: ``(B, N)`` int64.
            attention_mask: ``(B, N)``, 1 at real tokens; None = all are. Positions count from the first column.
            token_type_ids: not used.

        Returns:
            ``(B, N, V)`` for ``causal_lm``, ``(B, K)`` of the last real token for ``classes`` (see `padding_id`).
        """
        shape, tokens = self.shape, input_ids.shape[1]
        valid = None if attention_mask is None else attention_mask != 0
        mask = AttentionMask(causal=True, key_valid=valid, query_valid=valid)
        where = torch.arange(tokens, device=input_ids.device)
        x = self.embed_tokens(input_ids)
        angles = None
        if self.embed_positions is not None:
            x = x + self.embed_positions(where)
        else:
            frequencies = rotary_frequencies(shape.head_dim, shape.rope_theta, shape.rope_scaling, x.device)
            turned = where[:, None].float() * frequencies
            both = torch.cat((turned, turned), dim=-1)
            angles = both.cos().to(x.dtype), both.sin().to(x.dtype)
        store: dict[str, Any] = {}  # what the cores of one forward share
        for layer in self.layers:
            x = layer(x, mask, angles, store)
        x = self.norm(x)
        if self.score is not None:
            ends = valid if shape.padding_id is None else input_ids != shape.padding_id
            return self.score(_last_token(x, ends, where))  # type: ignore[no-any-return]
        return F.linear(x, self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight)


def _last_token(x: Tensor, valid: Tensor | None, where: Tensor) -> Tensor:
    """Return the vectors ``(B, C)`` of the last real tokens of ``(B, N, C)``."""
    if valid is None:
        return x[:, -1]
    last = (valid * where).amax(1)
    return x.gather(1, last[:, None, None].expand(-1, 1, x.shape[-1])).squeeze(1)


def parameter_count(shape: DecoderShape) -> int:
    """Return the number of parameters in closed form; those that attention variants own are not counted."""
    width, size = shape.width, shape.head_dim
    norm = width * (2 if shape.style == "gpt2" else 1)
    total = shape.vocabulary * width + norm + (shape.positions * width if shape.style == "gpt2" else 0)
    if shape.head != "causal_lm" or not shape.tied:
        total += shape.outputs * width
    matrices = 3 if shape.gated else 2
    for heads, groups, hidden in zip(shape.heads, shape.kv_heads, shape.mlp, strict=True):
        read = (heads + 2 * groups) * size
        total += width * (read + heads * size) + read * shape.qkv_bias + width * shape.out_bias
        total += matrices * width * hidden + shape.mlp_bias * ((matrices - 1) * hidden + width) + 2 * norm
    return total
