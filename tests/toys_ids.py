"""A task of random token ids, whose every claim about itself can be set, and small tokenizers."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from nasdistill.interfaces import Batch, Metric, Task, TextInfo
from nasdistill.spec.io import IOSpec

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")


def save_tokenizer(folder: Path, *words: str, pad: bool = True) -> Path:
    """Save a tokenizer of whole words: the special tokens first, then `words`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel({word: i for i, word in enumerate((*SPECIAL, *words))}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    named = {"pad_token": "[PAD]"} if pad else {}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", **named
    )
    fast.save_pretrained(folder)
    return folder


class ToyText(Task):
    """Ids of 4 to 12 tokens, padded where its text says, on the right without any."""

    metric = Metric("accuracy")

    def __init__(
        self, *, head="classes", outputs=3, vocabulary=60, classes=(), text=None, rows=None, kind="tokens"
    ) -> None:  # fmt: skip
        super().__init__()
        self._io = IOSpec(kind, (12,), outputs, vocabulary, head)
        self._classes, self._text, self._rows = tuple(classes), text, rows

    def prepare(self, cache_dir=None, progress=None):
        """Nothing to read."""

    @property
    def io(self):
        return self._io

    @property
    def text(self) -> TextInfo | None:
        return self._text

    @property
    def classes(self):
        return self._classes

    @property
    def fingerprint(self):
        return "toy"

    def size(self, split):
        return 20

    def rows(self, count):
        if self._rows is not None:
            return tuple(part[torch.arange(count) % len(part)] for part in self._rows)
        ids = torch.randint(3, self._io.vocabulary, (count, 12), generator=torch.Generator().manual_seed(0))
        mask = (torch.arange(12) < (4 + torch.arange(count) % 9).unsqueeze(1)).long()
        if self._text is not None and self._text.padding_side == "left":
            mask = mask.flip(1)
        return ids * mask, mask

    def batches(self, split, *, batch_size, epoch=0, seed=0, train=False):
        ids, mask = self.rows(20)
        for rows in torch.arange(20).split(batch_size):
            inputs = {"input_ids": ids[rows], "attention_mask": mask[rows]}
            yield Batch(inputs, rows % max(2, self._io.outputs), rows)

    def forward(self, model, batch):
        return model(batch.inputs["input_ids"], batch.inputs["attention_mask"])

    def loss(self, output, batch):
        return F.cross_entropy(output, batch.labels)

    def score(self, outputs, labels):
        return 0.0

    def example(self, batch_size=1):
        return self.rows(batch_size)
