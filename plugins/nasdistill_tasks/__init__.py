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
        )
    ]
