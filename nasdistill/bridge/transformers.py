"""Models of transformers as this code sees them; see :class:`TokenModel`."""

from __future__ import annotations

from nasdistill.bridge.tokenizers import load_tokenizer

__all__ = ["load_tokenizer"]
