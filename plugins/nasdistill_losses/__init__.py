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
            "logit_kl",
            "nasdistill_losses.logit_kl:LogitKL",
            "KL of the answers, all real positions of the batch alike, without T^2; for language models",
            options="nasdistill_losses.logit_kl:LogitKLOptions",
            references=("arXiv:2407.14679", "arXiv:2109.11105"),
            tags=LossTags(level="logit", same_classes=True),
        ),
        LossSpec(
            "logit_mse",
            "nasdistill_losses.logit_mse:LogitMSE",
            "squared distance of logits",
            options="nasdistill_losses.logit_mse:LogitMSEOptions",
            references=("arXiv:1312.6184", "arXiv:2109.11105"),
            tags=LossTags(level="logit", same_classes=True),
        ),
        LossSpec(
            "embedding",
            "nasdistill_losses.embedding:Embedding",
            "sentence embeddings and the like: the vectors, and their similarities within the batch; any widths",
            options="nasdistill_losses.embedding:EmbeddingOptions",
            references=("arXiv:2004.09813",),
            tags=LossTags(level="logit", owns_parameters=True),
        ),
        LossSpec(
            "distilbert",
            "nasdistill_losses.distilbert:DistilBERT",
            "soft targets at all tokens, labels at masked ones, and the direction of the last hidden states",
            options="nasdistill_losses.distilbert:DistilBERTOptions",
            references=("arXiv:1910.01108", "arXiv:2311.13657"),
            tags=LossTags(
                level="feature", needs_labels=True, owns_parameters=True, same_classes=True, zero_at_identity=False
            ),
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
            "hidden_cos",
            "nasdistill_losses.hidden_cos:HiddenCosine",
            "direction of hidden states token by token, with one linear map for all pairs of layers",
            options="nasdistill_losses.hidden_cos:HiddenCosineOptions",
            references=("arXiv:2407.14679", "arXiv:2109.11105"),
            tags=LossTags(level="feature", owns_parameters=True),
        ),
        LossSpec(
            "hidden_ce",
            "nasdistill_losses.hidden_ce:HiddenCrossEntropy",
            "hidden states as distributions over channels, by cross-entropy",
            options="nasdistill_losses.hidden_ce:HiddenCrossEntropyOptions",
            references=("arXiv:2109.11105",),
            tags=LossTags(level="feature", owns_parameters=True, zero_at_identity=False),
        ),
        LossSpec(
            "pkd",
            "nasdistill_losses.pkd:PatientDistillation",
            "normalised vectors of the class token (or last token, or mean) of paired layers",
            options="nasdistill_losses.pkd:PatientOptions",
            references=("arXiv:1908.09355", "arXiv:2109.11105"),
            tags=LossTags(level="feature", owns_parameters=True),
        ),
        *_bounds(),
        LossSpec(
            "minilm",
            "nasdistill_losses.minilm:MiniLM",
            "attention maps and value relations of one layer; equal head counts",
            options="nasdistill_losses.minilm:MiniLMOptions",
            references=("arXiv:2002.10957",),
            tags=LossTags(level="attention", same_heads=True),
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
            "qkv_relation",
            "nasdistill_losses.qkv_relation:QKVRelation",
            "relations of queries, keys and values of the last layer, in as many heads as the teacher has",
            options="nasdistill_losses.qkv_relation:QKVRelationOptions",
            references=("arXiv:2201.12507",),
            tags=LossTags(level="attention"),
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


def _bounds() -> list[LossSpec]:
    """The bounds of mutual information, which share a file."""
    tags = LossTags(level="feature", owns_parameters=True, zero_at_identity=False)
    critic = "nasdistill_losses.mi_alpha:CriticOptions"
    return [
        LossSpec(
            "mi_alpha",
            "nasdistill_losses.mi_alpha:MutualInformation",
            "a bound of the mutual information of paired layers, between InfoNCE and TUBA, with learned critics",
            options="nasdistill_losses.mi_alpha:MutualInformationOptions",
            references=("arXiv:2109.11105", "arXiv:1905.06922"),
            tags=tags,
        ),
        LossSpec(
            "infonce",
            "nasdistill_losses.mi_alpha:InfoNCE",
            "mutual information by InfoNCE: steady, never above log(K - 1) for K samples",
            options=critic,
            references=("arXiv:1807.03748", "arXiv:2109.11105"),
            tags=tags,
        ),
        LossSpec(
            "tuba",
            "nasdistill_losses.mi_alpha:TUBA",
            "mutual information by TUBA: unbounded, with a learned baseline and much variance",
            options=critic,
            references=("arXiv:1905.06922", "arXiv:2109.11105"),
            tags=tags,
        ),
        LossSpec(
            "nwj",
            "nasdistill_losses.mi_alpha:NWJ",
            "mutual information by Nguyen, Wainwright and Jordan's bound: TUBA with the baseline 1",
            options=critic,
            references=("arXiv:0809.0853", "arXiv:1905.06922", "arXiv:2109.11105"),
            tags=tags,
        ),
    ]
