"""Bundled diagnostics. Read when plugins are listed, so it imports no torch."""

from __future__ import annotations

from nasdistill import hookimpl
from nasdistill.spec.component import DiagnosticSpec


@hookimpl
def nasdistill_diagnostics() -> list[DiagnosticSpec]:
    """Return the bundled diagnostics."""
    return [
        DiagnosticSpec(
            "attention_similarity",
            "nasdistill_diagnostics.attention_similarity:AttentionSimilarity",
            "how alike the attention maps of a model's layers are, beyond being flat",
            options="nasdistill_diagnostics.attention_similarity:AttentionSimilarityOptions",
            references=("arXiv:2409.14595",),
        ),
        DiagnosticSpec(
            "autodistiller",
            "nasdistill_diagnostics.autodistiller:AutoDistiller",
            "which distillation choices mattered in finished runs, and which pipelines to try on a new task",
            options="nasdistill_diagnostics.autodistiller:AutoDistillerOptions",
            references=("arXiv:2109.11105",),
            partly=("arXiv:2109.11105",),
            left_out="The embedding of a data set's texts among the features.",
        ),
        DiagnosticSpec(
            "subspace_interference",
            "nasdistill_diagnostics.subspace_interference:SubspaceInterference",
            "whether students that share weights pull them the same way, within and across sub-spaces",
            options="nasdistill_diagnostics.subspace_interference:SubspaceInterferenceOptions",
            references=("arXiv:2201.12507",),
        ),
    ]
