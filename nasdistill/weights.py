"""Content hashes of models: two models with the same hash give the same answers."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from nasdistill.files import content_hash

if TYPE_CHECKING:
    from torch import nn


def state_hash(model: nn.Module) -> str:
    """Return the SHA-256 (hex) of a model's parameters and buffers: names, dtypes, shapes and bytes.

    The same on every device and in every process; independent of train or eval mode.
    """
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, torch.Tensor):  # what get_extra_state returned
            digest.update(f"{name}\x1f{value!r}\x1e".encode())
            continue
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name}\x1f{value.dtype}\x1f{tuple(value.shape)}\x1e".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def model_hash(model: nn.Module) -> str:
    """Return the SHA-256 (hex) of :func:`state_hash` together with the modules' printed structure.

    The structure tells apart models with equal weights that compute something else (another activation, another
    stride), as far as their ``repr`` shows it.
    """
    kind = type(model)
    structure = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model))  # a function shown in a repr; differs by process
    return content_hash(
        {"class": f"{kind.__module__}.{kind.__qualname__}", "structure": structure, "state": state_hash(model)}
    )
