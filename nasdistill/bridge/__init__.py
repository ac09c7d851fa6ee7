"""The only code that touches the internals of transformers, timm, diffusers and torchvision."""

from __future__ import annotations


def prepare_imports() -> None:
    """Make timm, torchvision, transformers and diffusers importable beside a CPU-only torch.

    Call it before importing any of them; it is idempotent, cheap, and does nothing where nothing is missing.
    """
    from nasdistill.bridge._torchvision import ensure

    ensure()
