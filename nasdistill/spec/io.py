"""What goes into a model and what comes out, as data: the part of a task that an architecture needs to be built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Head = Literal["classes", "embedding", "masked_lm", "causal_lm"]
"""What a model answers: a row of class logits, a vector, or logits over the vocabulary for every token."""


@dataclass(frozen=True, slots=True)
class IOSpec:
    """Input and output of the models of a task.

    A model of kind ``tokens`` is called ``model(input_ids, attention_mask=None, token_type_ids=None)``, all ``(B, N)``,
    1 in the mask at real tokens, N up to what its position table holds. One of kind ``image`` is called
    ``model(image)``.

    Attributes:
        kind: what the input is; decides which spaces and teachers fit.
        shape: shape of one sample without the batch axis: ``(C, H, W)`` for images, ``(N,)`` for token ids: the length
            at which costs are counted and latencies measured; other lengths are allowed.
        outputs: size of the last axis of the output (number of classes; vocabulary size); 0 for an embedding, which has
            the model's own width.
        vocabulary: number of token ids, for text inputs.
        head: what comes out: ``classes`` ``(B, K)``, ``embedding`` ``(B, D)``, ``masked_lm`` and ``causal_lm``
            ``(B, N, V)``.
    """

    kind: Literal["image", "tokens", "series", "other"]
    shape: tuple[int, ...]
    outputs: int
    vocabulary: int | None = None
    head: Head = "classes"

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the positional inputs that `Task.example` gives, in order."""
        return ("input_ids", "attention_mask") if self.kind == "tokens" else ("input",)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        value = {"kind": self.kind, "shape": list(self.shape), "outputs": self.outputs, "vocabulary": self.vocabulary}
        # Left out where it says nothing: the hashes of what was saved before there were heads stay as they were.
        return value if self.head == "classes" else {**value, "head": self.head}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> IOSpec:
        """Read the JSON form."""
        return cls(
            value["kind"],
            tuple(value["shape"]),
            value["outputs"],
            value.get("vocabulary"),
            value.get("head", "classes"),
        )

    def __str__(self) -> str:
        size = " x ".join(str(part) for part in self.shape)
        out = str(self.outputs) if self.head == "classes" else self.head.replace("_", " ")
        return f"{self.kind} {size} -> {out}"


@dataclass(frozen=True, slots=True)
class Cost:
    """Analytic cost of one forward of one sample.

    Attributes:
        params: trainable parameters.
        macs: multiply-accumulates of matrix products and convolutions (normalisation, activations, pooling not
            counted).
        activations: elements written by those products (what memory traffic follows).
    """

    params: int
    macs: int
    activations: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs, self.activations + other.activations)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.params * times, self.macs * times, self.activations * times)

    @classmethod
    def linear(cls, inputs: int, outputs: int, *, tokens: int = 1, bias: bool = True) -> Cost:
        """Cost of a linear layer applied to `tokens` vectors."""
        params = inputs * outputs + (outputs if bias else 0)
        return cls(params, tokens * inputs * outputs, tokens * outputs)

    @classmethod
    def conv2d(
        cls, inputs: int, outputs: int, kernel: int, *, height: int, width: int, groups: int = 1, bias: bool = False
    ) -> Cost:
        """Cost of a 2-D convolution; `height` and `width` are those of its output."""
        weights = outputs * (inputs // groups) * kernel * kernel
        positions = height * width
        return cls(weights + (outputs if bias else 0), weights * positions, outputs * positions)

    @classmethod
    def norm(cls, channels: int) -> Cost:
        """Cost of a normalisation with scale and shift: parameters only."""
        return cls(2 * channels, 0, 0)


def conv_output(size: int, kernel: int, stride: int, padding: int) -> int:
    """Return the output length of a convolution along one axis."""
    return math.floor((size + 2 * padding - kernel) / stride) + 1
