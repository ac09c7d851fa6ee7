"""The SuperLM: one set of weights of encoders, of which every architecture of a sub-space is a slice.

Source: "AutoDistil: Few-shot Task-agnostic Neural Architecture Search for Distilling Large Language Models", arXiv
2201.12507; how, says :mod:`nasdistill_spaces.sliced`.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from nasdistill_spaces.sliced import SlicedWeights


class SuperLm(SlicedWeights):
    """Shared weights of encoders; ``shared`` and ``active`` are :class:`EncoderNet`."""

    stem: ClassVar[str] = "encoder.layer."

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Compute the set architecture; as :meth:`EncoderNet.forward`."""
        return self.run(input_ids, attention_mask, token_type_ids)
