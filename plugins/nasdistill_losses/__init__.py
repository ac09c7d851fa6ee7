"""Bundled distillation losses."""

from __future__ import annotations

from nasdistill import hookimpl
from nasdistill.spec.component import LossSpec, LossTags


@hookimpl
def nasdistill_losses() -> list[LossSpec]:
    """Return the losses of this package."""
    return [
        LossSpec(
            "kd",
            "nasdistill_losses.kd:KnowledgeDistillation",
            "softened class probabilities (Hinton), temperature and T^2 factor",
            options="nasdistill_losses.kd:KnowledgeDistillationOptions",
            references=("arXiv:1503.02531",),
            tags=LossTags(level="logit", same_classes=True),
        ),
        LossSpec(
            "hidden",
            "nasdistill_losses.hidden:HiddenStates",
            "hidden states or stage maps of paired layers, by mean squared error or cosine, with a learned projector",
            options="nasdistill_losses.hidden:HiddenStatesOptions",
            references=("arXiv:1412.6550", "arXiv:1909.10351"),
            tags=LossTags(level="feature", owns_parameters=True),
        ),
        LossSpec(
            "minilm",
            "nasdistill_losses.minilm:MiniLM",
            "attention maps and value relations of one layer; equal head counts",
            options="nasdistill_losses.minilm:MiniLMOptions",
            references=("arXiv:2002.10957",),
            tags=LossTags(level="attention", same_heads=True),
            left_out="the intermediate teacher of equal width (a recipe of two runs)",
        ),
        LossSpec(
            "minilmv2",
            "nasdistill_losses.minilmv2:MiniLMv2",
            "relations among queries, keys and values of one layer; any widths and head counts",
            options="nasdistill_losses.minilmv2:MiniLMv2Options",
            references=("arXiv:2012.15828",),
            tags=LossTags(level="relation"),
        ),
        LossSpec(
            "spatial_attention",
            "nasdistill_losses.spatial_attention:SpatialAttention",
            "where a stage map is active, whatever its channels: attention transfer or KL over positions",
            options="nasdistill_losses.spatial_attention:SpatialAttentionOptions",
            references=("arXiv:1612.03928", "arXiv:2306.01526"),
            tags=LossTags(level="feature"),
            left_out="masks from ground-truth boxes and the losses of detection heads",
        ),
        LossSpec(
            "relation",
            "nasdistill_losses.relation:SampleRelations",
            "how the samples of a batch relate: similarity matrices, distances or angles",
            options="nasdistill_losses.relation:SampleRelationsOptions",
            references=("arXiv:1907.09682", "arXiv:1904.05068", "arXiv:2303.15678"),
            partly=("arXiv:2303.15678",),
            tags=LossTags(level="relation"),
            left_out="DisWOT's semantic term, on the gradients of the classifier, as a distiller",
        ),
    ]
