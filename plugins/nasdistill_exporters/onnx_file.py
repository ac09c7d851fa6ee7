"""One ONNX file with its weights, for any batch size, compared with torch before it counts as written.

For text the length is open too, where the network's attention allows it: a graph that is right at one length only is
written for the reference length, and ``inputs`` says so.

The TorchScript exporter is tried first (0.1-0.5 s a network), then the one by ``torch.export``. Each result is run in
onnxruntime on the example and on noise at batch sizes 1, 2 and 7, because a graph can be right at the batch it was
traced with and at no other; the first that agrees is kept. The largest absolute difference is the parity number.

The file needs onnxruntime and nothing of ours. Its metadata repeats the preprocessing and where the student comes from.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from nasdistill.bridge.onnx import OPSET, export_onnx
from nasdistill.errors import TrialFailure, one_line
from nasdistill.interfaces import Example, Exporter, ExportRequest
from nasdistill.spec.options import ComponentOptions
from nasdistill_exporters._files import BATCHES, answer, copy_assets, told, trial_inputs


class OnnxOptions(ComponentOptions):
    """Options of `onnx`."""

    exporter: Literal["auto", "torchscript", "dynamo"] = Field("auto", description="`auto` tries them in this order.")
    opset: int = Field(OPSET, ge=14, le=23, description="ONNX opset (the TorchScript exporter writes up to 20).")
    tolerance: float = Field(
        1e-4, gt=0, description="Largest deviation from torch that is accepted, relative to the largest output."
    )


class OnnxFile(Exporter):
    """``model.onnx`` with inputs ``input`` (text: ``input_ids``, ``attention_mask``) and output ``output``."""

    # What `auto` tries first, and alone: a refusal need not wait for the slower exporter to fail as well.
    examples: ClassVar[tuple[Example, ...]] = (Example({"exporter": "torchscript"}),)
    options_model = OnnxOptions
    options: OnnxOptions

    def export(self, request: ExportRequest) -> dict[str, Any]:
        """Write ``model.onnx``; see :class:`Exporter`.

        Returns:
            ``exporter``, ``opset``, ``inputs`` and ``output``, ``parity`` (``max_abs``, ``max_rel``, ``inputs``,
            ``batch_sizes``, ``onnxruntime``), ``preprocessing``.
        """
        path = request.folder / "model.onnx"
        names = _input_names(request)
        wanted = self.options.exporter
        failures: list[tuple[str, Exception]] = []
        exporters = ("torchscript", "dynamo") if wanted == "auto" else (wanted,)
        lengths = (True, False) if request.io.kind == "tokens" else (False,)
        for any_length, exporter in itertools.product(lengths, exporters):
            try:
                export_onnx(
                    request.model, _traced(request.example), path, dynamo=exporter == "dynamo",
                    opset=self.options.opset, inputs=names, outputs=["output"], any_batch=True, any_length=any_length,
                )  # fmt: skip
                _describe(path, request)
                parity = self._compare(path, request, names, any_length)
            except OSError:
                raise  # a full disk is not the network's fault
            except Exception as error:
                failures.append((exporter, error))
                path.unlink(missing_ok=True)
            else:
                copy_assets(request, request.folder / "assets")
                return {
                    "exporter": exporter,
                    "opset": self.options.opset,
                    "inputs": {
                        name: {
                            "shape": ["batch", *(["tokens"] if any_length else x.shape[1:])],
                            "dtype": str(x.dtype).removeprefix("torch."),
                        }
                        for name, x in zip(names, request.example, strict=True)
                    },
                    "output": "output",
                    "parity": parity,
                    "preprocessing": _preprocessing(request),
                }
        words = "; ".join(f"{exporter}: {one_line(error, 200)}" for exporter, error in failures)
        last = failures[-1][1]
        raise TrialFailure(
            last.reason if isinstance(last, TrialFailure) else "export_failed",
            f"student {request.name} cannot be exported to ONNX for any batch size ({words})",
            hint="The exporters torch and hf need no graph.",
        ) from last

    def _compare(self, path: Path, request: ExportRequest, names: Sequence[str], lengths: bool) -> dict[str, Any]:
        """Return how far onnxruntime is from torch.

        Raises:
            TrialFailure: further than the tolerance, or another shape.
        """
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.log_severity_level = 4  # a graph that is right at one length only is tried as one for all
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        used = {item.name for item in session.get_inputs()}
        largest = relative = 0.0
        compared = list(trial_inputs(request, lengths=lengths))
        for inputs in compared:
            expected = told(request, inputs, answer(request.model, inputs)).numpy()
            feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True) if name in used}
            [found] = session.run(["output"], feed)
            if found.shape != expected.shape:
                raise TrialFailure("parity", f"gives {found.shape}, torch {expected.shape}")
            found = told(request, inputs, torch.from_numpy(found)).numpy()
            difference = float(np.abs(found - expected).max())
            largest, scale = max(largest, difference), float(np.abs(expected).max())
            relative = max(relative, difference / scale if scale else difference)
        if not relative <= self.options.tolerance:  # NaN too
            raise TrialFailure("parity", f"outputs deviate from torch by {relative:.2g} of the largest")
        return {
            "max_abs": largest,
            "max_rel": relative,
            "inputs": len(compared),
            "batch_sizes": [len(request.example[0]), *BATCHES],
            "onnxruntime": onnxruntime.__version__,
        }


def _input_names(request: ExportRequest) -> list[str]:
    known, count = request.io.input_names, len(request.example)
    return list(known[:count]) if count <= len(known) else [f"input_{i}" for i in range(count)]


def _traced(example: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return two samples: an axis of length 1 is taken for a constant by some exporters."""
    return tuple(x[:1].repeat_interleave(2, 0) for x in example)


def _preprocessing(request: ExportRequest) -> dict[str, Any]:
    task = request.provenance.get("task") or {}
    return dict(task.get("preprocessing") or {})


def _describe(path: Path, request: ExportRequest) -> None:
    """Write into the file what it is, and take out which lines of code on this machine it was traced from."""
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model)
    graphs: list[Any] = [model.graph, *model.functions]
    for graph in graphs:
        for node in graph.node:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
            # The branches of an If and the body of a Loop are graphs of their own.
            graphs += [part for item in node.attribute for part in (item.g, *item.graphs) if part.node]
    facts = {
        "student": request.name,
        "architecture": request.architecture.to_json(),
        "preprocessing": _preprocessing(request),
    }
    onnx.helper.set_model_props(model, {f"nasdistill.{key}": json.dumps(value) for key, value in facts.items()})
    onnx.save(model, path)
