"""What is known of a teacher before it is loaded, as plain data."""

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
            (height, width), ``interpolation``, ``crop``; empty where unknown.
    """

    library: Literal["", "transformers", "timm", "diffusers"] = ""
    model: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    max_length: int | None = None
    labels: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
