"""Attention maps shared between layers of any model: the attention variant `echoatt` as a step of its own.

The calibration batches say which layers attend alike, where groups follow from that. The report tells the groups, the
similarities and how many parameters went; from the config a fresh model gets the same structure.

Source: "EchoAtt: Attend, Copy, then Adjust for More Efficient Large Language Models", arXiv 2409.14595.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from pydantic import Field
from torch import Tensor, nn

from nasdistill.bridge.attention import convert_attention
from nasdistill.interfaces import Batch, Example, Transform, Transformed
from nasdistill.spec.component import Kind
from nasdistill.spec.options import ComponentOptions
from nasdistill_transforms.mla_upcycle import tiny_run


class EchoTransformOptions(ComponentOptions):
    """Options of the conversion."""

    layers: tuple[int, ...] | None = Field(None, description="Layers that may be changed; all unless given.")
    variant: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of the attention variant echoatt (block, first, last, by, groups ...).",
    )


class EchoTransform(Transform):
    """Shares attention maps."""

    options_model = EchoTransformOptions
    options: EchoTransformOptions
    examples = (
        Example({"variant": {"first": 0, "last": 0}}, {"model": "SmallViT"}, name="pairs"),
        Example({"variant": {"block": 1}}, {"model": "SmallViT"}, name="identity"),
    )

    def apply(
        self, model: nn.Module, calibration: Sequence[Batch], forward: Callable[[nn.Module, Batch], Tensor]
    ) -> Transformed:
        """Return the converted copy.

        Raises:
            DataError: there is no calibration batch.
            MismatchError: the model has no attention whose maps could be shared.
        """
        return convert_attention(
            model, ("echoatt", self.options.variant), self.host, run=tiny_run(calibration, forward, self.id),
            layers=self.options.layers, calibration=calibration,
        )  # fmt: skip

    def rebuild(self, model: nn.Module, config: Mapping[str, Any]) -> nn.Module:
        """Return a copy of an unconverted model with the same sharing."""
        variant = self.host.create(Kind.ATTENTION, "echoatt", self.options.variant)
        return cast("nn.Module", variant.rebuild(model, config))
