"""Causal language models: guess the next token.

The shift is made here: a batch's label at position t is the token at t + 1, so the logits at t are compared with the
label at t, and the last token of a sample has no label. The metric is perplexity or bits per byte over a split
(:mod:`nasdistill_tasks.text_lm`). With ``tokenizer = "chars"`` the tokens are characters and no tokenizer's files are
needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nasdistill.files import write_json
from nasdistill.interfaces.base import Example
from nasdistill_tasks.text_lm import LanguageModel
from nasdistill_tasks.text_task import IGNORED


class CausalLM(LanguageModel):
    """See the module's text."""

    examples: ClassVar[tuple[Example, ...]] = (
        Example({"max_length": 32}, {"other_options": {"max_length": 24}}, "toy"),
        Example({"layout": "lines", "metric": "bits_per_byte"}, {"other_options": {"layout": "packed"}}, "lines"),
    )
    head = "causal_lm"
    space = "decoder"
    framed = False
    shortest = 2

    def write_assets(self, folder: Path) -> None:
        """Write the tokenizer, and the ids that ``generate`` begins, ends and fills up with."""
        super().write_assets(folder)
        write_json(folder / "generation_config.json", self._encoder.generation())

    def _labels(
        self, rows: Sequence[NDArray[Any]], inputs: dict[str, Tensor], key: int, ids: NDArray[np.int64]
    ) -> Tensor:
        tokens, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        labels = torch.full_like(tokens, IGNORED)
        labels[:, :-1] = torch.where(mask[:, 1:], tokens[:, 1:], IGNORED)
        return labels
