"""The warning of a teacher at chance: noise counts as chance, knowledge does not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nasdistill.distill import no_better_than_chance
from nasdistill.interfaces.task import Evaluation, Metric


@pytest.mark.parametrize(
    ("metric", "higher", "chance", "score", "n", "words"),
    [
        ("accuracy", True, 0.3667, 0.3667, 120, "no better"),
        ("accuracy", True, 0.3667, 0.3917, 120, "hardly better"),
        ("accuracy", True, 0.3667, 0.3917, 12_000, None),
        ("accuracy", True, 0.3667, 0.46, 120, None),
        ("accuracy", True, 1.0, 1.0, 120, "no better"),
        ("perplexity", False, 390.0, 391.0, 40, "no better"),
        ("perplexity", False, 390.0, 374.23, 40, "hardly better"),
        ("perplexity", False, 390.0, 280.0, 40, None),
        ("bits_per_byte", False, 4.0, 3.9, 40, "hardly better"),
        ("bits_per_byte", False, 4.0, 3.7, 40, None),
        ("f1", True, 0.5, 0.5, 10, "no better"),
        ("f1", True, 0.5, 0.51, 10, None),
        ("accuracy", True, None, 0.1, 10, None),
    ],
)
def test_noise_is_no_knowledge(metric, higher, chance, score, n, words):
    task = SimpleNamespace(metric=Metric(metric, higher_is_better=higher), chance=lambda split: chance)
    told = no_better_than_chance("hf:t", task, Evaluation(score=score, loss=1.0, n=n))
    assert told is None if words is None else told.startswith(f"teacher hf:t is {words} than chance: its validation")
