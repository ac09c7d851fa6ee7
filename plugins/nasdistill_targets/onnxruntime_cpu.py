"""ONNX Runtime on the CPU: the student exported with its weights, the whole graph optimised, one thread.

Export: the TorchScript exporter first (0.1-0.5 s a network; upstream calls it legacy), the ``torch.export`` one where
it fails (2-5 s). Which one it was stands in ``info["exporter"]``; a version of torch without the first falls through to
the second. Batch normalisation and activations are folded into convolutions by the runtime itself. Shapes are those of
the example, so the graph is specialised for its batch.

What is timed is ``InferenceSession.run_with_iobinding`` with inputs and outputs bound once to fixed buffers. Of the
public ways to run a session it has the least overhead (a network of five operators: 5.6 microseconds a call, 8.1 by
``run`` with arrays, 45 by ``run_with_ort_values``), and for students of tens of microseconds overhead is what would be
compared. A server that passes arrays adds those 2.5 microseconds to every network alike.

Threads do not spin while they wait, so a second thread costs no CPU time of others. Peak memory is not reported: the
Python package gives no statistics of its arena, and the growth of the process would be a guess.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from nasdistill.bridge.onnx import OPSET, export_onnx
from nasdistill.errors import TargetUnavailableError, TrialFailure, one_line
from nasdistill.files import atomic_path
from nasdistill.interfaces import Availability, Prepared, PrepareRequest, Target
from nasdistill.spec.options import ComponentOptions


class OnnxRuntimeCpuOptions(ComponentOptions):
    """Options of `onnxruntime_cpu`."""

    threads: int = Field(1, ge=1, le=1024, description="Intra-operator threads; more than one is timed by wall clock.")
    exporter: Literal["auto", "torchscript", "dynamo"] = Field(
        "auto", description="`torchscript` is fast, `dynamo` covers more; `auto` tries them in this order."
    )
    opset: int = Field(OPSET, ge=14, le=23, description="ONNX opset (the TorchScript exporter writes up to 20).")
    optimisation: Literal["none", "basic", "extended", "all"] = Field("all", description="Graph optimisations.")


class OnnxRuntimeCpu(Target):
    """ONNX Runtime's CPU provider."""

    options_model = OnnxRuntimeCpuOptions
    options: OnnxRuntimeCpuOptions

    def probe(self) -> Availability:
        """Look for the two packages without importing them."""
        missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            return Availability(False, f"{' and '.join(missing)} not installed; pip install 'nasdistill[onnx]'")
        return Availability(True)

    def environment(self) -> dict[str, Any]:
        """Return versions, threads and options."""
        import onnx
        import onnxruntime

        return {
            "runtime": f"onnxruntime {onnxruntime.__version__}",
            "onnx": onnx.__version__,
            "provider": "CPUExecutionProvider",
            "precision": "float32",
            **self.options.model_dump(),
        }

    def prepare(self, request: PrepareRequest) -> Prepared:
        """Export to ``FOLDER/NAME.onnx`` and load it.

        Raises:
            TrialFailure: reason ``"export_failed"``, with the exporter's own words shortened; no file is left.
            TargetUnavailableError: onnx or onnxruntime is not installed.
        """
        availability = self.probe()
        if not availability.ok:
            raise TargetUnavailableError(f"target {self.id} cannot be used here: {availability.reason}")
        model = copy.deepcopy(request.model).to("cpu").eval()
        example = tuple(tensor.detach().to("cpu") for tensor in request.example)
        path = request.folder / f"{request.name}.onnx"
        try:
            exporter = self._export(model, example, path)
            return _Session(path, example, self.options, exporter)
        except Exception as error:
            path.unlink(missing_ok=True)
            if isinstance(error, TrialFailure | OSError):
                raise
            raise TrialFailure(
                "export_failed", f"{request.name}: onnxruntime cannot load the exported graph: {one_line(error)}"
            ) from error

    def _export(self, model: nn.Module, example: tuple[Tensor, ...], path: Path) -> str:
        """Write the file by the first exporter that can, and return its name."""
        wanted = self.options.exporter
        failures = []
        for exporter in ("torchscript", "dynamo") if wanted == "auto" else (wanted,):
            try:
                with atomic_path(path) as temporary:
                    export_onnx(model, example, temporary, dynamo=exporter == "dynamo", opset=self.options.opset)
            except OSError:
                raise  # a full disk is not the network's fault
            except Exception as error:
                failures.append((exporter, error))
            else:
                return exporter
        words = "; ".join(f"{exporter}: {one_line(error, 200)}" for exporter, error in failures)
        raise TrialFailure(
            "export_failed", f"{path.stem} cannot be exported to ONNX ({words})",
            hint="Another attention variant or target may do; torch_cpu needs no export.",
        ) from failures[-1][1]  # fmt: skip


class _Session(Prepared):
    """A loaded graph with its inputs and outputs bound to fixed buffers."""

    def __init__(self, path: Path, example: Sequence[Tensor], options: OnnxRuntimeCpuOptions, exporter: str) -> None:
        super().__init__()
        import onnxruntime as ort

        self.artefact = path
        self.clock = "cpu" if options.threads == 1 else "wall"
        self.info.update(
            runtime=f"onnxruntime {ort.__version__}", threads=options.threads, exporter=exporter, opset=options.opset
        )
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        settings.graph_optimization_level = {
            "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
            "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
            "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
            "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        }[options.optimisation]
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.log_severity_level = 3  # errors only
        self._session: Any = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        # An input that the network does not use is not in the graph.
        wanted = [item.name for item in self._session.get_inputs()]
        arrays = {f"input_{i}": np.ascontiguousarray(tensor.numpy()) for i, tensor in enumerate(example)}
        self._inputs = {name: arrays[name] for name in wanted}
        # One ordinary run tells the outputs' shapes; then everything is bound to buffers that stay.
        results = self._session.run(None, self._inputs)
        self._outputs = [ort.OrtValue.ortvalue_from_numpy(np.empty_like(result)) for result in results]
        self._binding: Any = self._session.io_binding()
        for name, array in self._inputs.items():
            self._binding.bind_cpu_input(name, array)
        for item, value in zip(self._session.get_outputs(), self._outputs, strict=True):
            self._binding.bind_ortvalue_output(item.name, value)

    def run(self) -> None:
        """Run the graph once on the bound buffers."""
        self._session.run_with_iobinding(self._binding)

    def outputs(self) -> list[Tensor]:
        """Run the graph once and return copies of the outputs."""
        self.run()
        return [torch.from_numpy(np.array(value.numpy())) for value in self._outputs]

    def close(self) -> None:
        """Release session and buffers."""
        self._binding = None
        self._session = None
        self._outputs = []
