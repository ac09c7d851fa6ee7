"""What timings depend on: versions, processor, memory, threads. No host name, no user name, no path."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

from nasdistill.files import content_hash

PACKAGES = (
    "nasdistill", "torch", "torchvision", "numpy", "onnx", "onnxruntime", "onnxscript", "timm", "transformers",
    "diffusers", "accelerate", "optuna",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Return the machine and the software as JSON-able data; equal in every process of one machine and install."""
    model, flags = _processor()
    return {
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "os": {"system": platform.system(), "kernel": _digits(platform.release()), "machine": platform.machine()},
        "cpu": {"model": model, "flags": flags, "cores": os.cpu_count(), "usable_cores": _usable_cores()},
        "memory_bytes": _memory(),
        "threads": {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ},
    }


def fingerprint(value: dict[str, Any] | None = None) -> str:
    """Return the SHA-256 (hex) of `value`, by default of :func:`environment`."""
    return content_hash(environment() if value is None else value)


def _version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _digits(release: str) -> str:
    """Return the numeric head of a kernel release; what follows may name a builder or a customer."""
    found = re.match(r"[\d.]+", release)
    return found.group(0).rstrip(".") if found else ""


def _processor() -> tuple[str, str]:
    """Return the processor's name and a digest of its instruction set flags (empty where they are not to be had)."""
    name, flags = platform.processor() or platform.machine(), ""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
            name = found.group(1).strip()
        if found := re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE):
            flags = hashlib.sha256(" ".join(sorted(found.group(1).split())).encode()).hexdigest()[:12]
    return name, flags


def _usable_cores() -> int | None:
    """Return the number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory() -> int | None:
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
