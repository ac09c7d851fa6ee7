"""Bundled transforms: one model into another, one file each. Read when plugins are listed, so it imports no torch."""

from __future__ import annotations

from nasdistill import hookimpl
from nasdistill.spec.component import TransformSpec


@hookimpl
def nasdistill_transforms() -> list[TransformSpec]:
    """Return the bundled transforms."""
    return [
        TransformSpec(
            "echoatt",
            "nasdistill_transforms.echoatt:EchoTransform",
            "Let layers with similar attention share one map, and take the followers' queries and keys out",
            options="nasdistill_transforms.echoatt:EchoTransformOptions",
            references=("arXiv:2409.14595",),
        ),
        TransformSpec(
            "mla_upcycle",
            "nasdistill_transforms.mla_upcycle:MLAUpcycle",
            "Turn the attention of every layer into latent attention, at a fixed or energy-driven rank per layer",
            options="nasdistill_transforms.mla_upcycle:MLAUpcycleOptions",
            references=("arXiv:2503.11132",),
        ),
    ]
