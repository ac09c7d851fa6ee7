"""Masked language models: guess the tokens that are hidden (Devlin et al.: "BERT: Pre-training of Deep Bidirectional
Transformers for Language Understanding", arXiv 1810.04805).

Of each sample's tokens that are not special, 15 % are chosen, at least one; 80 % of these become the mask token, 10 % a
random token, 10 % stay. Which ones is a function of (seed, epoch, sample, position): teacher and student of a batch see
the same, and so does every batch size. Validation and test are masked once and for all. The loss is the mean
cross-entropy over the chosen tokens, the metric over all of them (:mod:`nasdistill_tasks.text_lm`).

Difference: the paper's next-sentence prediction is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from nasdistill.errors import DataError
from nasdistill.interfaces.base import Example
from nasdistill.interfaces.task import Split
from nasdistill.seeds import derive_seed
from nasdistill_tasks.text_batches import uniform
from nasdistill_tasks.text_lm import LanguageModel, LanguageModelOptions
from nasdistill_tasks.text_task import IGNORED


class MaskedLMOptions(LanguageModelOptions):
    """Options of `masked_lm`."""

    mask_share: float = Field(0.15, gt=0, lt=1, description="Share of the tokens that are to be guessed.")


class MaskedLM(LanguageModel):
    """See the module's text."""

    examples: ClassVar[tuple[Example, ...]] = (
        Example({"max_length": 32}, {"other_options": {"max_length": 24}}, "toy"),
        Example({"layout": "lines", "metric": "bits_per_byte"}, {"other_options": {"mask_share": 0.3}}, "lines"),
    )
    options_model = MaskedLMOptions
    options: MaskedLMOptions
    head = "masked_lm"
    space = "encoder"
    framed = True
    shortest = 1

    def _labels(
        self, rows: Sequence[NDArray[Any]], inputs: dict[str, Tensor], key: int, ids: NDArray[np.int64]
    ) -> Tensor:
        tokens = inputs["input_ids"].numpy()
        real = inputs["attention_mask"].numpy().astype(bool)
        real &= ~np.isin(tokens, list(self._encoder.special_ids))
        width = tokens.shape[1]
        draw = np.where(real, uniform(derive_seed(key, "which"), ids, width), 2.0)
        chosen = (draw < self.options.mask_share) | (real & (draw == draw.min(axis=1, keepdims=True)))
        fate = uniform(derive_seed(key, "how"), ids, width)
        other = (uniform(derive_seed(key, "token"), ids, width) * self._encoder.size).astype(np.int64)
        hidden = np.where(fate < 0.8, np.int64(self._encoder.mask_id or 0), np.where(fate < 0.9, other, tokens))
        inputs["input_ids"] = torch.from_numpy(np.where(chosen, hidden, tokens).astype(np.int64))
        return torch.from_numpy(np.where(chosen, tokens, IGNORED))

    def _key(self, split: Split, epoch: int, seed: int, train: bool) -> int:
        return derive_seed(seed, "mask", split, epoch) if train else derive_seed(0, "mask", split)

    def _check_encoder(self) -> None:
        if self._encoder.mask_id is None:
            raise DataError(
                f"the tokenizer of {self.options.tokenizer} has no mask token",
                hint="Use causal_lm for models that predict the next token.",
            )

    def _also(self) -> dict[str, Any]:
        return {"mask_share": self.options.mask_share}
