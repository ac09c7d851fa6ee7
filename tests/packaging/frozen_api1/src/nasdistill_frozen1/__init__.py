"""Components of eight kinds, written against plugin API 1. This package does not say so: absent means 1."""

from __future__ import annotations

from nasdistill import hookimpl
from nasdistill.spec.component import (
    AttentionSpec, AttentionTags, CommandSpec, ExporterSpec, LossSpec, LossTags, ProxySpec, ProxyTags, Requirement,
    SamplerSpec, SearchSpaceSpec, SpaceTags, TargetSpec, TargetTags,
)

TAGS = AttentionTags(causal="strict", cross=True, padding=True, returns_map=True)
SOURCE = ("original",)


@hookimpl
def nasdistill_search_spaces():
    return [
        SearchSpaceSpec(
            "pooled", "nasdistill_frozen1.space:Pooled", "one convolution, attention or not, global average, linear",
            options="nasdistill_frozen1.space:PooledOptions", references=SOURCE, tags=SpaceTags(family="vision"),
        )
    ]


@hookimpl
def nasdistill_proxies():
    return [
        ProxySpec(
            "margin", "nasdistill_frozen1.proxy:Margin", "spread of an untrained network's outputs",
            options="nasdistill_frozen1.proxy:MarginOptions", references=SOURCE,
            tags=ProxyTags(needs_data=True, cost="forward", mode="eval"),
        )
    ]


@hookimpl
def nasdistill_attention_variants():
    return [AttentionSpec("mean", "nasdistill_frozen1.attention:Mean", "every key counts nearly the same",
                          references=SOURCE, tags=TAGS)]


@hookimpl
def nasdistill_losses():
    return [LossSpec("l1", "nasdistill_frozen1.loss:L1", "mean absolute difference of the logits",
                     references=SOURCE, tags=LossTags(level="logit", same_classes=True))]


@hookimpl
def nasdistill_targets():
    return [
        TargetSpec(
            "counted", "nasdistill_frozen1.target:Counted", "a nanosecond per parameter",
            references=SOURCE, requires=(Requirement("torch", "torch"),), tags=TargetTags(clock="simulated"),
        )
    ]


@hookimpl
def nasdistill_samplers():
    return [SamplerSpec("uniform", "nasdistill_frozen1.sampler:Uniform", "independent uniform draws", references=SOURCE)]


@hookimpl
def nasdistill_exporters():
    return [ExporterSpec("sizes", "nasdistill_frozen1.exporter:Sizes", "the shapes of a student's tensors",
                         references=SOURCE)]


@hookimpl
def nasdistill_commands():
    return [CommandSpec("frozen", "nasdistill_frozen1.command:run", "say hello", references=SOURCE)]
