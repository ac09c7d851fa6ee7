"""The network of `encoder` and `bert_free`: a post-norm transformer encoder as BERT, RoBERTa, ELECTRA and DistilBERT.

    x = norm(words + types + positions);   x = norm(x + attention(x));   x = norm(x + mlp(x));   head(x)

Parameters are named as in transformers' BERT below the head, which is called ``head`` whatever the family. With the
same weights it computes the same as the model of transformers (with its fused attention), bit for bit. Layers may
differ in heads, MLP width and attention variant, and heads * head_dim need not be the width.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasdistill.interfaces import AttentionContext, AttentionCore, AttentionMask, static_shape
from nasdistill_spaces.layers import LayerShape, activate


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """Everything that an encoder is built from, but its attention cores.

    Attributes:
        family: ``bert``, ``roberta``, ``electra`` or ``distilbert``: how positions count, and the form of the head.
        vocabulary: rows of the token table V.
        hidden: width H of the residual stream.
        head_dim: size D of a head.
        layers: from the first to the last.
        embedding: width E of the embeddings; a projection follows where `projected`.
        projected: a linear layer from E to H stands between the embeddings and the first layer.
        positions: rows of the position table.
        token_types: rows of the token type table; 0 for none.
        padding_id: id of the padding token (RoBERTa counts positions from the next number on, padding apart).
        activation: of the MLPs, a key of `ACTIVATIONS`.
        eps: of the layer norms.
        dropout: while training, after the embeddings, attention and MLP.
        head: what comes out, as :class:`nasdistill.spec.io.IOSpec` says.
        outputs: classes K, or the vocabulary; unused for embeddings.
        tied: a masked-LM head multiplies with the token table, rather than with a table of its own.
    """

    family: str
    vocabulary: int
    hidden: int
    head_dim: int
    layers: tuple[LayerShape, ...]
    embedding: int
    projected: bool
    positions: int
    token_types: int
    padding_id: int
    activation: str
    eps: float
    dropout: float
    head: str
    outputs: int
    tied: bool

    @property
    def max_length(self) -> int:
        """Longest input in tokens."""
        return self.positions - (self.padding_id + 1 if self.family == "roberta" else 0)


class Embeddings(nn.Module):
    """Sum of token, type and position vectors, normalised."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        width = shape.embedding
        self.max_length, self.padding_id = shape.max_length, shape.padding_id
        self.skips_padding = shape.family == "roberta"
        self.word_embeddings = nn.Embedding(shape.vocabulary, width)
        self.position_embeddings = nn.Embedding(shape.positions, width)
        self.token_type_embeddings = nn.Embedding(shape.token_types, width) if shape.token_types else None
        self.LayerNorm = nn.LayerNorm(width, eps=shape.eps)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Map ids ``(B, N)`` to ``(B, N, E)``.

        Raises:
            ValueError: N is more than the position table holds, or types are given to a network without types.
        """
        length = static_shape(input_ids)[1]
        if length > self.max_length:
            raise ValueError(f"{length} tokens are more than the {self.max_length} of this network's position table")
        x = self.word_embeddings(input_ids)
        if self.token_type_embeddings is not None:
            types = self.token_type_embeddings
            # All tokens are of the first type unless types are given: one row then serves all.
            x = x + (types.weight[0] if token_type_ids is None else types(token_type_ids))
        x = x + self._positions(input_ids, length)
        return self.dropout(self.LayerNorm(x))  # type: ignore[no-any-return]

    def _positions(self, input_ids: Tensor, length: int) -> Tensor:
        """Return position vectors, ``(N, E)`` or, where padding does not count, ``(B, N, E)``."""
        if not self.skips_padding:
            return self.position_embeddings.weight[:length]
        real = (input_ids != self.padding_id).to(torch.int32)
        places = torch.cumsum(real, dim=1).to(torch.int32) * real
        return self.position_embeddings(places.long() + self.padding_id)  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """Multi-head self-attention around an exchangeable core, without the output projection.

    Attributes:
        heads, head_dim: H, D.
        core: the variant; called as ``core(q, k, v, ctx)`` on ``(B, H, N, D)``.
    """

    def __init__(self, shape: EncoderShape, sizes: LayerShape, core: AttentionCore, layer: int) -> None:
        super().__init__()
        self.heads, self.head_dim, self.layer = sizes.heads, shape.head_dim, layer
        # Variants with sums over the queries must not count padding there. Softmax has none, and its padded rows stay
        # those of the library's model.
        self.masks_queries = not sizes.softmax
        width, inner = shape.hidden, self.heads * self.head_dim
        self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.core = core

    def forward(self, x: Tensor, real: Tensor | None, store: MutableMapping[str, Any]) -> Tensor:
        """Map ``(B, N, C)`` to the context ``(B, N, H * D)``; `real` is ``(B, N)``, False at padding."""
        tokens = static_shape(x)[1]

        def split(y: Tensor) -> Tensor:
            return y.reshape(-1, tokens, self.heads, self.head_dim).transpose(1, 2)

        context = self.attention_context(x, real, store)
        out = self.core(split(self.query(x)), split(self.key(x)), split(self.value(x)), context).out
        return out.transpose(1, 2).reshape(-1, tokens, self.heads * self.head_dim)  # type: ignore[no-any-return]

    def attention_context(self, x: Tensor, real: Tensor | None, store: MutableMapping[str, Any]) -> AttentionContext:
        """Return what attention is told beside q, k and v; the arguments are those of `forward`."""
        mask = None
        if real is not None:
            mask = AttentionMask(key_valid=real, query_valid=real if self.masks_queries else None)
        return AttentionContext(mask=mask, layer=self.layer, layer_input=x, store=store)


class Output(nn.Module):
    """The end of a branch: linear layer, back to the residual stream, norm."""

    def __init__(self, inputs: int, shape: EncoderShape) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, shape.hidden)
        self.LayerNorm = nn.LayerNorm(shape.hidden, eps=shape.eps)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor, stream: Tensor) -> Tensor:
        """Map ``(B, N, inputs)`` and the stream ``(B, N, H)`` to the new stream."""
        return self.LayerNorm(self.dropout(self.dense(x)) + stream)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention and its output."""

    def __init__(self, shape: EncoderShape, sizes: LayerShape, core: AttentionCore, layer: int) -> None:
        super().__init__()
        self.self = SelfAttention(shape, sizes, core, layer)
        self.output = Output(sizes.heads * shape.head_dim, shape)

    def forward(self, x: Tensor, real: Tensor | None, store: MutableMapping[str, Any]) -> Tensor:
        """Map ``(B, N, H)`` to ``(B, N, H)``."""
        return self.output(self.self(x, real, store), x)  # type: ignore[no-any-return]


class Intermediate(nn.Module):
    """First half of the MLP."""

    def __init__(self, width: int, neurons: int, activation: str) -> None:
        super().__init__()
        self.dense = nn.Linear(width, neurons)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, N, H)`` to ``(B, N, neurons)``."""
        return activate(self.activation, self.dense(x))


class Layer(nn.Module):
    """Attention and MLP, each followed by a norm."""

    def __init__(self, shape: EncoderShape, layer: int, core: AttentionCore) -> None:
        super().__init__()
        sizes = shape.layers[layer]
        self.attention = Attention(shape, sizes, core, layer)
        self.intermediate = Intermediate(shape.hidden, sizes.mlp, shape.activation)
        self.output = Output(sizes.mlp, shape)

    def forward(self, x: Tensor, real: Tensor | None, store: MutableMapping[str, Any]) -> Tensor:
        """Map ``(B, N, H)`` to ``(B, N, H)``."""
        x = self.attention(x, real, store)
        return self.output(self.intermediate(x), x)  # type: ignore[no-any-return]


class Layers(nn.Module):
    """The layers, one after the other."""

    def __init__(self, shape: EncoderShape, cores: Sequence[AttentionCore]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(shape, index, core) for index, core in enumerate(cores))

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        """Map ``(B, N, H)`` to ``(B, N, H)``."""
        store: dict[str, Any] = {}  # what the cores of one forward share
        for layer in self.layer:
            x = layer(x, real, store)
        return x


class ClassesHead(nn.Module):
    """Linear layer and activation on the first token, then classes."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.dense = nn.Linear(shape.hidden, shape.hidden)
        self.out_proj = nn.Linear(shape.hidden, shape.outputs)
        self.dropout = nn.Dropout(shape.dropout)
        self.activation = {"electra": "gelu", "distilbert": "relu"}.get(shape.family, "tanh")

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, N, H)`` to ``(B, K)``."""
        x = self.dense(x[:, 0])
        x = torch.tanh(x) if self.activation == "tanh" else activate(self.activation, x)
        return self.out_proj(self.dropout(x))  # type: ignore[no-any-return]


class MaskedLmHead(nn.Module):
    """Linear layer, activation and norm, then a product with the token table (or one of its own)."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.dense = nn.Linear(shape.hidden, shape.embedding)
        self.LayerNorm = nn.LayerNorm(shape.embedding, eps=shape.eps)
        self.bias = nn.Parameter(torch.zeros(shape.outputs))
        self.decoder = None if shape.tied else nn.Linear(shape.embedding, shape.outputs, bias=False)
        self.activation = "gelu" if shape.family in ("roberta", "electra") else shape.activation

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """Map ``(B, N, H)`` and the token table ``(V, E)`` to ``(B, N, V)``."""
        x = self.LayerNorm(activate(self.activation, self.dense(x)))
        return F.linear(x, table if self.decoder is None else self.decoder.weight, self.bias)


class EncoderNet(nn.Module):
    """Embeddings, layers, head.

    Attributes:
        shape: all its sizes.
    """

    def __init__(self, shape: EncoderShape, cores: Sequence[AttentionCore]) -> None:
        super().__init__()
        self.shape = shape
        self.embeddings = Embeddings(shape)
        self.embeddings_project = nn.Linear(shape.embedding, shape.hidden) if shape.projected else None
        self.encoder = Layers(shape, cores)
        self.head: ClassesHead | MaskedLmHead | None = None
        if shape.head == "classes":
            self.head = ClassesHead(shape)
        elif shape.head == "masked_lm":
            self.head = MaskedLmHead(shape)
        self._initialise()

    def _initialise(self) -> None:
        """Draw fresh weights as BERT does; cores keep what they set themselves."""
        for name, module in self.named_modules():
            if ".core" in name or not isinstance(module, nn.Linear | nn.Embedding):
                continue
            nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Map ids ``(B, N)`` to class logits ``(B, K)``, an embedding ``(B, H)`` or token logits ``(B, N, V)``.

        Args:
            input_ids: ``(B, N)`` int64.
            attention_mask: ``(B, N)``, nonzero at real tokens; None when all are real.
            token_type_ids: ``(B, N)`` int64; None when all are of type 0.
        """
        x = self.encode(input_ids, attention_mask, token_type_ids)
        if isinstance(self.head, ClassesHead):
            return self.head(x)  # type: ignore[no-any-return]
        if isinstance(self.head, MaskedLmHead):
            return self.head(x, self.embeddings.word_embeddings.weight)  # type: ignore[no-any-return]
        return mean_pool(x, attention_mask)

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Return the last hidden states ``(B, N, H)``; arguments as for :meth:`forward`."""
        real = None if attention_mask is None else attention_mask.bool()
        x = self.embeddings(input_ids, token_type_ids)
        if self.embeddings_project is not None:
            x = self.embeddings_project(x)
        return self.encoder(x, real)  # type: ignore[no-any-return]


def mean_pool(x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the mean over real tokens, ``(B, N, H)`` to ``(B, H)``."""
    if attention_mask is None:
        return x.mean(1)
    weight = attention_mask.unsqueeze(-1).to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
