"""Let torchvision (and with it timm, transformers, diffusers) import beside a CPU-only torch.

The torchvision wheel on PyPI links its operator library against CUDA. Beside a CPU build of torch that library does not
load, and ``import torchvision`` then fails with "operator torchvision::nms does not exist", because two Python
functions are registered for operators that only the library would declare. Declaring the two operators by their schemas
is enough: everything but detection post-processing (which then fails by name when called) is plain Python.

:func:`ensure` must run before the first import of torchvision, hence before timm, and before any image model of
transformers or diffusers. It does nothing where nothing is missing: a torch with CUDA or ROCm, a torchvision whose
library loads, no torchvision at all.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import threading
from pathlib import Path
from typing import Any

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_lock = threading.Lock()
_library: Any = None  # a torch.library.Library takes its definitions back when it is collected
_done = False


def ensure() -> None:
    """Declare ``torchvision::nms`` and ``torchvision::qnms`` if torchvision needs it; cheap when called again."""
    global _done, _library
    with _lock:
        if _done:
            return
        import torch

        if torch.version.cuda is None and getattr(torch.version, "hip", None) is None and _library_is_missing():
            absent = [schema for name, schema in _SCHEMAS.items() if not hasattr(torch.ops.torchvision, name)]
            if absent:
                # A fragment, so that a package doing the same as we do, before or after, is no conflict.
                _library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
                for schema in absent:
                    _library.define(schema)
        _done = True


def _library_is_missing() -> bool:
    """Return whether torchvision is installed, not yet imported, and without a loadable operator library.

    The library is tried, not guessed from versions: a torchvision built for this CPU torch declares the operators
    itself, and declaring them twice would abort its loading.
    """
    import torch

    if "torchvision" in sys.modules:
        return False
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    folder = str(Path(next(iter(spec.submodule_search_locations))))
    finder = importlib.machinery.FileFinder(
        folder, (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    )
    extension = finder.find_spec("_C")
    if extension is None or extension.origin is None:
        return True
    try:
        torch.ops.load_library(extension.origin)  # type: ignore[no-untyped-call]
    except (ImportError, OSError):
        return True
    return False
