"""Bundled search spaces. Read when plugins are listed, so it imports no torch."""

from __future__ import annotations

from nasdistill import hookimpl
from nasdistill.spec.component import SearchSpaceSpec, SpaceTags, TransformSpec


@hookimpl
def nasdistill_search_spaces() -> list[SearchSpaceSpec]:
    """Return the bundled spaces."""
    return [
        SearchSpaceSpec(
            "conv_vit",
            "nasdistill_spaces.conv_vit:ConvVit",
            "Convolution stem + transformer blocks; per block heads, MLP ratio and attention variant",
            options="nasdistill_spaces.conv_vit:ConvVitOptions",
            references=("arXiv:2106.14881", "arXiv:2107.00651", "arXiv:2407.14679", "arXiv:2202.06258"),
            partly=("arXiv:2407.14679",),
            left_out="Weights shared by all points; relative positions; a class token; Minitron's language models.",
            tags=SpaceTags(family="vision", inherits=True),
        ),
        SearchSpaceSpec(
            "encoder",
            "nasdistill_spaces.encoder:Encoder",
            "AutoDistil's elastic BERT: layers, heads, width and MLP ratio cut from a teacher; parts tiny, small, base",
            options="nasdistill_spaces.encoder:EncoderOptions",
            references=("arXiv:2201.12507", "arXiv:2004.04037", "arXiv:2407.14679"),
            partly=("arXiv:2004.04037", "arXiv:2407.14679"),
            left_out="DynaBERT's two-stage training; Minitron's depth pruning and language models.",
            tags=SpaceTags(family="encoder", inherits=True, supernet=True),
        ),
        SearchSpaceSpec(
            "bert_free",
            "nasdistill_spaces.encoder:BertFree",
            "A BERT-like encoder cut from a teacher, with heads, MLP width and attention variant of each layer",
            options="nasdistill_spaces.encoder:BertFreeOptions",
            references=("arXiv:2005.14187", "arXiv:2201.12507"),
            partly=("arXiv:2005.14187",),
            left_out="HAT's decoder and its attention to several encoder layers; its latency predictor.",
            tags=SpaceTags(family="encoder", inherits=True, supernet=True),
        ),
        SearchSpaceSpec(
            "vit",
            "nasdistill_spaces.vit:Vit",
            "AutoFormer's tables tiny, small, base: ViTs cut from a teacher; per block heads, MLP ratio and attention",
            options="nasdistill_spaces.vit:VitOptions",
            references=("arXiv:2107.00651", "arXiv:2010.11929", "arXiv:2012.12877", "arXiv:2407.14679"),
            partly=("arXiv:2107.00651", "arXiv:2012.12877", "arXiv:2407.14679"),
            left_out="AutoFormer's relative positions; DeiT's second head and training; Minitron's language models.",
            tags=SpaceTags(family="vision", inherits=True, supernet=True),
        ),
        SearchSpaceSpec(
            "pit",
            "nasdistill_spaces.vit:Pit",
            "Pooling-based ViTs: head size, MLP ratio; per stage blocks, heads and attention variant",
            options="nasdistill_spaces.vit:PitOptions",
            references=("arXiv:2103.16302", "arXiv:2312.09059"),
            partly=("arXiv:2103.16302", "arXiv:2312.09059"),
            left_out="Shared weights; PiT's distillation token and other stems; Auto-Prox's proxy.",
            tags=SpaceTags(family="vision", inherits=True),
        ),
        SearchSpaceSpec(
            "resnet_s0",
            "nasdistill_spaces.resnet_s0:ResNetS0",
            "CIFAR ResNets: blocks per stage, width, stages, stride of the stem",
            options="nasdistill_spaces.resnet_s0:ResNetS0Options",
            references=("arXiv:2303.15678", "arXiv:1512.03385"),
            partly=("arXiv:2303.15678",),
            left_out="The cell space and the plain-net space of the same paper.",
            tags=SpaceTags(family="vision", inherits=True),
        ),
        SearchSpaceSpec(
            "kd_pipeline",
            "nasdistill_spaces.kd_pipeline:KdPipeline",
            "How a student is trained: losses, mapping, temperature, weights, augmentation; alone or with its network",
            options="nasdistill_spaces.kd_pipeline:KdPipelineOptions",
            references=("arXiv:2109.11105",),
            partly=("arXiv:2109.11105",),
            left_out="Contextual augmentation and back-translation, which need further language models; mixup of text.",
            tags=SpaceTags(family="vision", inherits=True),
        ),
        SearchSpaceSpec(
            "decoder",
            "nasdistill_spaces.decoder:Decoder",
            "Causal language models cut from GPT-2, Llama, Qwen2 or Mistral: layers, width, heads or groups, neurons",
            options="nasdistill_spaces.decoder:DecoderOptions",
            references=("arXiv:2407.14679", "arXiv:2403.03853", "arXiv:2302.13971", "arXiv:2305.13245"),
            partly=("arXiv:2403.03853", "arXiv:2302.13971"),
            left_out="Tensor and pipeline parallel training; mixtures of experts, ALiBi, soft caps of other decoders.",
            tags=SpaceTags(family="decoder", inherits=True),
        ),
    ]


@hookimpl
def nasdistill_transforms() -> list[TransformSpec]:
    """Return the transforms that belong to a space."""
    return [
        TransformSpec(
            "minitron",
            "nasdistill_spaces.decoder.transform:Minitron",
            "A decoder cut to shares of its layers, width, heads and neurons, the most important ones kept",
            options="nasdistill_spaces.decoder.transform:MinitronOptions",
            references=("arXiv:2407.14679",),
        ),
    ]
