"""Bundled attention variants: cores that compute from q, k and v, one file each.

This module is read when plugins are listed, so it imports no torch; the variants' files read their tags from here.
"""

from __future__ import annotations

from nasdistill import hookimpl
from nasdistill.spec.component import AttentionSpec, AttentionTags

TAGS: dict[str, AttentionTags] = {
    "softmax": AttentionTags(
        causal="strict", cross=True, gqa=True, padding=True, bias=True, patterns=True, exact=True, complexity="n^2",
        returns_map=True, decodes=True,
    ),
    "flow": AttentionTags(
        causal="strict", cross=True, gqa=True, padding=True, complexity="n", returns_map=True, decodes=True
    ),
    "sigmoid": AttentionTags(
        causal="strict", cross=True, gqa=True, padding=True, bias=True, patterns=True, complexity="n^2",
        returns_map=True, decodes=True,
    ),
    "linear": AttentionTags(
        causal="strict", cross=True, gqa=True, padding=True, complexity="n", returns_map=True, decodes=True
    ),
    "window": AttentionTags(
        causal="strict", gqa=True, padding=True, bias=True, patterns=True, complexity="n*w", returns_map=True
    ),
    "mla": AttentionTags(
        level="module", causal="strict", gqa=True, padding=True, bias=True, patterns=True, complexity="n^2",
        returns_map=True, decodes=True, owns_parameters=True,
    ),
    "echoatt": AttentionTags(level="model", causal="strict", gqa=True, complexity="n^2"),
}  # fmt: skip
"""What each variant can do; the core refuses the rest."""


@hookimpl
def nasdistill_attention_variants() -> list[AttentionSpec]:
    """Return the bundled variants."""
    return [
        AttentionSpec(
            "softmax",
            "nasdistill_attention.softmax:SoftmaxAttention",
            "Scaled dot-product attention through torch's fused kernel",
            references=("arXiv:1706.03762",),
            tags=TAGS["softmax"],
        ),
        AttentionSpec(
            "flow",
            "nasdistill_attention.flow:FlowAttention",
            "Flow-Attention: linear time, with competition between keys and allocation over queries",
            options="nasdistill_attention.flow:FlowOptions",
            references=("arXiv:2202.06258",),
            left_out="The task-specific clamps of the released code are one option, off by default.",
            tags=TAGS["flow"],
        ),
        AttentionSpec(
            "sigmoid",
            "nasdistill_attention.sigmoid:SigmoidAttention",
            "Sigmoid of the scores instead of softmax, with or without normalisation",
            options="nasdistill_attention.sigmoid:SigmoidOptions",
            references=("arXiv:2410.10781",),
            partly=("arXiv:2410.10781",),
            left_out="The paper's ELU similarities, identity and MLP kernels, and key/value bias slots.",
            tags=TAGS["sigmoid"],
        ),
        AttentionSpec(
            "linear",
            "nasdistill_attention.linear:LinearAttention",
            "Kernel attention with the feature map elu + 1, linear time",
            options="nasdistill_attention.linear:LinearOptions",
            references=("arXiv:2006.16236",),
            tags=TAGS["linear"],
        ),
        AttentionSpec(
            "window",
            "nasdistill_attention.window:WindowAttention",
            "Softmax attention within a window of the sequence or of the patch grid, prefix tokens global",
            options="nasdistill_attention.window:WindowOptions",
            references=("arXiv:2004.05150", "arXiv:2204.07143"),
            left_out="Dilated windows.",
            tags=TAGS["window"],
        ),
        AttentionSpec(
            "mla",
            "nasdistill_attention.mla:LatentAttention",
            "Multi-head latent attention that starts from softmax weights by a joint decomposition",
            options="nasdistill_attention.mla:MLAOptions",
            references=("arXiv:2503.11132",),
            left_out="A value width other than the layer's own.",
            tags=TAGS["mla"],
        ),
        AttentionSpec(
            "echoatt",
            "nasdistill_attention.echoatt:EchoAttention",
            "Layers with similar attention share one map; followers lose their queries and keys",
            options="nasdistill_attention.echoatt:EchoOptions",
            references=("arXiv:2409.14595",),
            tags=TAGS["echoatt"],
        ),
    ]
