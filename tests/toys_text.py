"""Small real parts for the tests of text tasks: tokenizers, networks, prepared tasks."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasdistill.seeds import seeded

WORDS = """
the a cat dog sat ran on under mat tree is was good bad film plot great dull and not very it i you we they red blue
house river small large old new child woman man plays reads sings fast slow
""".split()  # noqa: SIM905


def tokenizer_folder(folder: Path, *, pad: bool = True, end: bool = True, frame: bool = True) -> Path:
    """Save a tokenizer of about 60 words, framed as BERT's is; return its folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[END]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if frame:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = {"unk_token": "[UNK]"}
    names |= {"pad_token": "[PAD]"} if pad else {}
    names |= {"eos_token": "[END]"} if end else {}
    names |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"} if frame else {}
    PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **names
    ).save_pretrained(folder)
    return folder


class Reader(nn.Module):
    """A one-layer transformer over token ids, with any head.

    Args:
        vocabulary: number of ids.
        outputs: numbers of the head; 0 for the mean vector itself.
        width: of the vectors.
        heads: of the attention.
        per_token: an answer for every token.
    """

    def __init__(self, vocabulary: int, outputs: int, width: int = 16, heads: int = 2, per_token: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.head = nn.Linear(width, outputs) if outputs else nn.Identity()
        self.heads, self.per_token = heads, per_token

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids=None) -> Tensor:
        """Return ``(B, K)`` or ``(B, N, K)``."""
        x = self.embed(input_ids)
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        mask = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        if not self.per_token:
            weight = torch.ones_like(x[..., :1]) if attention_mask is None else attention_mask[..., None].to(x.dtype)
            x = (x * weight).sum(1) / weight.sum(1)
        return self.head(x)


def reader(task, seed: int = 0, width: int = 16) -> Reader:
    """Return a network that fits a prepared task."""
    io = task.io
    with seeded(seed, "reader"):
        return Reader(io.vocabulary, io.outputs, width, per_token=io.head in ("masked_lm", "causal_lm"))
