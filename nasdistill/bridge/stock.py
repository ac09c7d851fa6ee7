"""Opening a folder of transformers as its user would, and calling what is inside like any network of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nasdistill.bridge._torchvision import ensure


class Called(nn.Module):
    """A model of transformers behind positional inputs: images alone, or ids with their mask, to one tensor.

    Args:
        model: the model; encoders of sentences answer the mean of their last hidden states over real tokens.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, first: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits, or the pooled hidden states ``(B, C)`` of a model without logits."""
        if first.is_floating_point():
            out: Any = self.model(pixel_values=first)
        else:
            out = self.model(input_ids=first, attention_mask=mask)
        logits = getattr(out, "logits", None)
        if isinstance(logits, Tensor):
            return logits
        hidden: Tensor = out.last_hidden_state
        if mask is None:
            return hidden.mean(1)
        weights = mask.to(hidden.dtype)[..., None]
        pooled: Tensor = (hidden * weights).sum(1) / weights.sum(1).clamp_min(1e-9)
        return pooled


def open_stock(folder: Path, auto: str) -> tuple[nn.Module, str]:
    """Open a folder with a class of transformers.

    Args:
        folder: with ``config.json`` and ``model.safetensors``.
        auto: the class, such as ``AutoModelForSequenceClassification``.

    Returns:
        The model behind positional inputs, in eval mode, and which tensors are missing or left over (empty when none).
    """
    ensure()
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = getattr(transformers, auto).from_pretrained(
            str(folder), local_files_only=True, output_loading_info=True
        )
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    found = [f"{key.replace('_', ' ')}: {sorted(info[key])[:3]}" for key in _TOLD if info.get(key)]
    return Called(model.eval()), "; ".join(found)


_TOLD = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
