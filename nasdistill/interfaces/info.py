"""What is known of a teacher before it is loaded, and of a task's text, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class TeacherInfo:
    """What is known of a teacher before it is loaded: what tasks and search spaces adapt to.

    All of it is plain data, because it ends in the configuration of a run, in the options of the task and the spaces.

    Attributes:
        library: whose model it is; decides how `model` is read.
        model: its sizes, as the library's own configuration says them (for transformers the content of
            ``config.json``); empty where unknown.
        tokenizer: folder or name that the tokenizer loads from; None without one.
        max_length: longest input in tokens, special ones included; None where it has no limit.
        labels: names of its classes, in order; empty where it says none.
        preprocessing: how pixels become its input: ``mean``, ``std`` (per channel, of pixels in [0, 1]), ``size``
            (height, width), ``interpolation``, ``crop`` (share of the shorter side that is kept); what is unknown is
            left out.
    """

    library: Literal["", "transformers", "timm", "diffusers"] = ""
    model: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    max_length: int | None = None
    labels: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TextInfo:
    """How a task's text becomes token ids: what a teacher is compared with before any training.

    Attributes:
        tokenizer: folder or name that the tokenizer was loaded from.
        vocabulary_sha256: hash of its vocabulary, as `nasdistill.bridge.tokenizers.vocabulary_sha256` computes it;
            empty where unknown.
        max_length: longest input in tokens, special ones included, that the task produces.
        padding_side: where the task's batches are filled up, ``"right"`` or ``"left"``; what its tokenizer is declared
            to do counts only where the task lets it pad.
        pad_id: id of the padding token; None where the tokenizer has none.
    """

    tokenizer: str
    vocabulary_sha256: str = ""
    max_length: int = 0
    padding_side: str = "right"
    pad_id: int | None = None
