"""Plugin `acme` for nasdistill: five components of five kinds. Read when plugins are listed, so it imports no torch."""

from __future__ import annotations

from nasdistill import hookimpl
from nasdistill.spec.component import (
    AttentionSpec,
    AttentionTags,
    LossSpec,
    LossTags,
    ProxySpec,
    ProxyTags,
    SearchSpaceSpec,
    SpaceTags,
    TargetSpec,
    TargetTags,
)

NASDISTILL_API = 1
"""The plugin interface that this was written for."""

RELU_TAGS = AttentionTags(
    causal="strict", cross=True, gqa=True, padding=True, bias=True, patterns=True, complexity="n^2", returns_map=True
)
"""What ReLU attention can do; it refuses the rest."""


@hookimpl
def nasdistill_search_spaces() -> list[SearchSpaceSpec]:
    """Return the search space."""
    return [
        SearchSpaceSpec(
            "metaformer",
            "nasdistill_acme.metaformer:MetaFormer",
            "MetaFormers: per block pooling, a depthwise convolution or attention mixes the tokens",
            options="nasdistill_acme.metaformer:MetaFormerOptions",
            references=("arXiv:2111.11418", "arXiv:2210.13452"),
            left_out="Stages of falling resolution; the layer scale; starting from a teacher's weights.",
            tags=SpaceTags(family="vision"),
        ),
    ]


@hookimpl
def nasdistill_proxies() -> list[ProxySpec]:
    """Return the proxy."""
    return [
        ProxySpec(
            "gradsign",
            "nasdistill_acme.gradsign:GradSign",
            "How far the samples agree on the direction in which each weight should move",
            references=("arXiv:2110.08616",),
            tags=ProxyTags(needs_labels=True, needs_backward=True, cost="heavy", mode="eval"),
        ),
    ]


@hookimpl
def nasdistill_attention_variants() -> list[AttentionSpec]:
    """Return the attention variant."""
    return [
        AttentionSpec(
            "relu",
            "nasdistill_acme.relu:ReluAttention",
            "ReLU of the scores over the number of keys, in place of softmax",
            options="nasdistill_acme.relu:ReluOptions",
            references=("arXiv:2309.08586", "arXiv:2202.10447"),
            partly=("arXiv:2202.10447",),
            left_out="The gated unit around it (arXiv:2202.10447); exponents of the length other than -1.",
            tags=RELU_TAGS,
        ),
    ]


@hookimpl
def nasdistill_losses() -> list[LossSpec]:
    """Return the distillation loss."""
    return [
        LossSpec(
            "dkd",
            "nasdistill_acme.dkd:DecoupledDistillation",
            "Decoupled knowledge distillation: target class and other classes, weighted apart",
            options="nasdistill_acme.dkd:DecoupledOptions",
            references=("arXiv:2203.08679",),
            left_out="The warm-up of the weight, which the objective's schedule does.",
            tags=LossTags(level="logit", needs_labels=True, same_classes=True),
        ),
    ]


@hookimpl
def nasdistill_targets() -> list[TargetSpec]:
    """Return the target."""
    return [
        TargetSpec(
            "bf16_cpu",
            "nasdistill_acme.bf16_cpu:Bf16Cpu",
            "Torch eager on the CPU in bfloat16",
            options="nasdistill_acme.bf16_cpu:Bf16Options",
            references=("arXiv:1905.12322",),
            left_out="Training in bfloat16.",
            tags=TargetTags(clock="cpu"),
        ),
    ]
