"""Export to ONNX by either of torch's exporters, quietly."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OPSET = 20
"""Newest opset that both exporters write without conversion."""


def export_onnx(
    model: nn.Module,
    example: Sequence[Tensor],
    path: Path,
    *,
    dynamo: bool,
    opset: int = OPSET,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    any_batch: bool = False,
    any_length: bool = False,
) -> None:
    """Write a network in eval mode to one ONNX file with its weights.

    Args:
        model: the network.
        example: positional inputs; their shapes are fixed in the graph.
        path: the file.
        dynamo: by ``torch.export``, which covers more (1-4 s a network), instead of TorchScript (0.1-0.5 s).
        opset: of the graph.
        inputs: names of the inputs; ``input_0 ...`` by default.
        outputs: names of the outputs; the exporter's by default.
        any_batch: leave the first axis of all inputs and outputs open.
        any_length: leave the second axis of the inputs open too: the tokens.

    Raises:
        Exception: whatever the exporter raises.
    """
    names = list(inputs) or [f"input_{i}" for i in range(len(example))]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if dynamo:
            axes = {0: torch.export.Dim("batch")} if any_batch else {}
            axes |= {1: torch.export.Dim("tokens", min=2)} if any_length else {}
            with _kept_operators():
                torch.onnx.export(
                    model, tuple(example), path, dynamo=True, opset_version=opset, input_names=names,
                    output_names=list(outputs) or None, external_data=False, verbose=False,
                    dynamic_shapes=tuple(dict(axes) for _ in example) if axes else None,
                )  # fmt: skip
        else:
            named = {name: {0: "batch"} for name in (*names, *outputs)} if any_batch else {}
            for name in names if any_length else ():
                named.setdefault(name, {})[1] = "tokens"
            with _silent_stdout():
                torch.onnx.export(
                    model, tuple(example), path, dynamo=False, opset_version=opset, input_names=names,
                    output_names=list(outputs) or None, do_constant_folding=True, dynamic_axes=named or None,
                )  # fmt: skip


_OPERATORS: dict[Any, Any] = {}
"""Tables of operators, by what torch was asked for and whether torchvision's operators were there."""


@contextlib.contextmanager
def _kept_operators() -> Iterator[None]:
    """Let torch use one table of ONNX operators for all exports in here.

    It builds the table anew for each, which takes longer than a small network does, and changes it only for operators
    that a caller brings, as we do not. The class is private: where it is another, all is left as it is.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        original = vars(ONNXRegistry)["from_torchlib"]
    except (ImportError, KeyError):
        yield
        return

    def from_torchlib(cls: Any, *args: Any, **more: Any) -> Any:
        key = (cls, args, tuple(more.items()), "torchvision" in sys.modules)
        if key not in _OPERATORS:
            _OPERATORS[key] = original.__get__(None, cls)(*args, **more)
        return _OPERATORS[key]

    ONNXRegistry.from_torchlib = classmethod(from_torchlib)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = original  # type: ignore[method-assign]


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Send the process's standard output nowhere for a moment.

    When the TorchScript exporter fails, its C++ part prints the whole graph there, with no way to ask it not to; the
    command line's standard output is for results. Nothing else is printed while a network is exported.
    """
    try:
        sys.stdout.flush()
        saved = os.dup(1)
    except (OSError, ValueError, AttributeError):  # there is no standard output
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        with contextlib.suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).fflush(None)  # what C++ still holds back must go nowhere too
        os.dup2(saved, 1)
        os.close(saved)
