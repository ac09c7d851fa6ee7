"""Bundled plugin `tasks`: data with a meaning."""

from __future__ import annotations

from nasdistill import hookimpl
from nasdistill.spec.component import TaskSpec


@hookimpl
def nasdistill_tasks() -> list[TaskSpec]:
    """Return the bundled tasks."""
    return [
        TaskSpec(
            "image_classification",
            "nasdistill_tasks.image_classification:ImageClassification",
            "One class per image: the embedded digits, an image folder or zip, .npz arrays, datasets or parquet.",
            options="nasdistill_tasks.image_classification:ImageClassificationOptions",
            references=("UCI Optical Recognition of Handwritten Digits, test set, as in scikit-learn",),
        ),
        TaskSpec(
            "text_classification",
            "nasdistill_tasks.text_classification:TextClassification",
            "One class per text or pair of texts: tsv, csv, JSON lines, parquet, saved data sets.",
            options="nasdistill_tasks.text_classification:TextClassificationOptions",
            references=(
                "Gorodkin: Comparing two K-category assignments by a K-category correlation coefficient, 2004",
            ),
        ),
        TaskSpec(
            "sentence_similarity",
            "nasdistill_tasks.sentence_similarity:SentenceSimilarity",
            "A vector per sentence: cosines of pairs against scores; trained on sentences without labels.",
            options="nasdistill_tasks.sentence_similarity:SentenceSimilarityOptions",
            references=("arXiv:1908.10084",),
        ),
        TaskSpec(
            "masked_lm",
            "nasdistill_tasks.masked_lm:MaskedLM",
            "Masked tokens of plain text files: perplexity or bits per byte.",
            options="nasdistill_tasks.masked_lm:MaskedLMOptions",
            references=("arXiv:1810.04805",),
        ),
        TaskSpec(
            "causal_lm",
            "nasdistill_tasks.causal_lm:CausalLM",
            "The next token of plain text files, of any tokenizer or of characters: perplexity or bits per byte.",
            options="nasdistill_tasks.text_lm:LanguageModelOptions",
            references=("Shannon: Prediction and Entropy of Printed English, 1951",),
        ),
    ]
