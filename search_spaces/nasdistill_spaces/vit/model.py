"""The network of `vit`: a pre-norm vision transformer as ViT and DeiT, and the block it shares with `pit`.

    x = [class token; patches] + positions;   x = x + attention(norm(x));   x = x + mlp(norm(x))
    logits = classifier(norm(x)[0]),   classifier(norm(mean(patches of x)))   or   classifier(mean(norm(patches of x)))

Parameters are named as in transformers' ViT. With the same weights it computes the same as the model of transformers
(with its fused attention) and as timm's VisionTransformer, to rounding. Blocks may differ in heads, MLP width and
attention variant, and heads * head_dim need not be the width.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasdistill.interfaces import AttentionContext, AttentionCore, AttentionGeometry, TokenLayout
from nasdistill_spaces.layers import LayerShape, activate


@dataclass(frozen=True, slots=True)
class VitShape:
    """Everything that a vision transformer is built from, but its attention cores.

    Attributes:
        channels: of the images.
        patch: height and width of a patch in pixels.
        grid: patches (h, w); pixels beyond the last whole patch are not seen.
        embed: width C of the residual stream.
        head_dim: size D of a head.
        layers: from the first to the last.
        prefix: learned tokens P before the patches: the class token first, then distillation token or registers.
        prefix_positions: whether these have positions, too.
        pool: the head reads the class ``token`` after the last norm, the norm of the ``mean`` over the patches, or the
            ``normed_mean``: the mean over the patches after the norm.
        qkv_bias: biases in the projections to q, k and v.
        activation: of the MLPs, a key of `nasdistill_spaces.layers.ACTIVATIONS`.
        eps: of the layer norms.
        dropout: while training, after the positions, attention and MLP.
        outputs: classes K.
    """

    channels: int
    patch: tuple[int, int]
    grid: tuple[int, int]
    embed: int
    head_dim: int
    layers: tuple[LayerShape, ...]
    prefix: int
    prefix_positions: bool
    pool: str
    qkv_bias: bool
    activation: str
    eps: float
    dropout: float
    outputs: int

    @property
    def patches(self) -> int:
        """Number of patches."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Number of tokens N, those of the prefix included."""
        return self.prefix + self.patches

    def geometry(self, layer: LayerShape) -> AttentionGeometry:
        """Return what the core of a layer is made for."""
        return AttentionGeometry(
            dim=self.embed, heads=layer.heads, head_dim=self.head_dim, tokens=self.tokens,
            layout=TokenLayout(grid=self.grid, prefix=self.prefix),
        )  # fmt: skip


class Attention(nn.Module):
    """Multi-head self-attention around an exchangeable core.

    Attributes:
        heads, head_dim, tokens: fixed sizes H, D, N.
        core: the variant; called as ``core(q, k, v, ctx)`` on ``(B, H, N, D)``.
    """

    def __init__(self, geometry: AttentionGeometry, core: AttentionCore, layer: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.heads, self.head_dim = geometry.heads, geometry.head_dim
        self.tokens = geometry.tokens or -1
        self.layout, self.layer = geometry.layout, layer
        inner = self.heads * self.head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(geometry.dim, inner, bias=qkv_bias) for _ in range(3))
        self.core = core
        self.o_proj = nn.Linear(inner, geometry.dim)

    def forward(self, x: Tensor, store: MutableMapping[str, Any]) -> Tensor:
        """Map ``(B, N, C)`` to ``(B, N, C)``."""

        def split(y: Tensor) -> Tensor:  # fixed sizes, so that the exported graph computes no shapes
            return y.reshape(-1, self.tokens, self.heads, self.head_dim).transpose(1, 2)

        context = self.attention_context(x, store)
        out = self.core(split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x)), context).out
        out = out.transpose(1, 2).reshape(-1, self.tokens, self.heads * self.head_dim)
        return self.o_proj(out)  # type: ignore[no-any-return]

    def attention_context(self, x: Tensor, store: MutableMapping[str, Any]) -> AttentionContext:
        """Return what attention is told beside q, k and v; the arguments are those of `forward`."""
        return AttentionContext(layer=self.layer, layout=self.layout, layer_input=x, store=store)


class Mlp(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, width: int, neurons: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, neurons)
        self.fc2 = nn.Linear(neurons, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, N, C)`` to ``(B, N, C)``."""
        return self.fc2(activate(self.activation, self.fc1(x)))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(
        self,
        geometry: AttentionGeometry,
        neurons: int,
        core: AttentionCore,
        layer: int,
        *,
        qkv_bias: bool = True,
        activation: str = "gelu",
        eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(geometry.dim, eps=eps)
        self.attention = Attention(geometry, core, layer, qkv_bias=qkv_bias)
        self.layernorm_after = nn.LayerNorm(geometry.dim, eps=eps)
        self.mlp = Mlp(geometry.dim, neurons, activation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, store: MutableMapping[str, Any]) -> Tensor:
        """Map ``(B, N, C)`` to ``(B, N, C)``."""
        x = self.dropout(self.attention(self.layernorm_before(x), store)) + x
        return self.dropout(self.mlp(self.layernorm_after(x))) + x  # type: ignore[no-any-return]


class Patches(nn.Module):
    """One linear map of every patch."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.projection = nn.Conv2d(shape.channels, shape.embed, kernel_size=shape.patch, stride=shape.patch)

    def forward(self, image: Tensor) -> Tensor:
        """Map ``(B, channels, H, W)`` to ``(B, patches, C)``."""
        return self.projection(image).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class Embeddings(nn.Module):
    """Patches behind the tokens of the prefix, with positions.

    Attributes:
        cls_token: ``(1, P, C)``; None without a prefix.
        position_embeddings: ``(1, P + patches, C)``, or ``(1, patches, C)``.
    """

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.prefix, self.prefix_positions = shape.prefix, shape.prefix_positions
        rows = shape.tokens if shape.prefix_positions else shape.patches
        self.cls_token = nn.Parameter(torch.empty(1, shape.prefix, shape.embed)) if shape.prefix else None
        self.position_embeddings = nn.Parameter(torch.empty(1, rows, shape.embed))
        self.patch_embeddings = Patches(shape)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, image: Tensor) -> Tensor:
        """Map ``(B, channels, H, W)`` to ``(B, N, C)``."""
        x = self.patch_embeddings(image)
        table: Tensor = self.position_embeddings
        if self.cls_token is not None:
            # The same for all images, so it is added to rows of zeros: no graph then asks how many images there are.
            first = self.cls_token + table[:, : self.prefix] if self.prefix_positions else self.cls_token
            table = torch.cat([first, table[:, self.prefix :] if self.prefix_positions else table], dim=1)
            x = F.pad(x, (0, 0, self.prefix, 0))
        return self.dropout(x + table)  # type: ignore[no-any-return]


class VitNet(nn.Module):
    """Embeddings, blocks, norm, classifier.

    Attributes:
        shape: all its sizes.
    """

    def __init__(self, shape: VitShape, cores: Sequence[AttentionCore]) -> None:
        super().__init__()
        self.shape = shape
        self.embeddings = Embeddings(shape)
        shared = {key: getattr(shape, key) for key in ("qkv_bias", "activation", "eps", "dropout")}
        self.layers = nn.ModuleList(
            Layer(shape.geometry(layer), layer.mlp, core, index, **shared)
            for index, (layer, core) in enumerate(zip(shape.layers, cores, strict=True))
        )
        self.layernorm = nn.LayerNorm(shape.embed, eps=shape.eps)
        self.classifier = nn.Linear(shape.embed, shape.outputs)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Map images ``(B, channels, H, W)`` to logits ``(B, K)``."""
        x = self.embeddings(image)
        store: dict[str, Any] = {}  # what the cores of one forward share
        for layer in self.layers:
            x = layer(x, store)
        if self.shape.pool == "token":
            x = self.layernorm(x[:, 0])
        elif self.shape.pool == "mean":
            x = self.layernorm(x[:, self.shape.prefix :].mean(1))
        else:
            x = self.layernorm(x[:, self.shape.prefix :]).mean(1)
        return self.classifier(x)  # type: ignore[no-any-return]


def initialise(model: nn.Module) -> None:
    """Draw fresh weights as ViT does, deviation .02; norms and cores keep what they set themselves."""
    for name, module in model.named_modules():
        if ".core" in name:
            continue
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_token", "position_embeddings")):
            nn.init.normal_(parameter, std=0.02)
