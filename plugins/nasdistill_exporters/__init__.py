"""Bundled exporters: a student for torch, for onnxruntime, for transformers. Read when plugins are listed: no torch."""

from __future__ import annotations

from nasdistill import hookimpl
from nasdistill.spec.component import ExporterSpec, Requirement


@hookimpl
def nasdistill_exporters() -> list[ExporterSpec]:
    """Return the bundled exporters."""
    return [
        ExporterSpec(
            "torch",
            "nasdistill_exporters.torch_folder:TorchFolder",
            "architecture.json, model.safetensors, provenance.json: what nasdistill.load reads",
            references=("https://huggingface.co/docs/safetensors",),
        ),
        ExporterSpec(
            "onnx",
            "nasdistill_exporters.onnx_file:OnnxFile",
            "model.onnx for any batch size, compared with torch in onnxruntime",
            options="nasdistill_exporters.onnx_file:OnnxOptions",
            references=("https://docs.pytorch.org/docs/stable/onnx.html",),
            requires=(
                Requirement("onnx", "nasdistill[onnx]"),
                Requirement("onnxruntime", "nasdistill[onnx]"),
                Requirement("onnxscript", "nasdistill[onnx]"),
            ),
        ),
        ExporterSpec(
            "hf",
            "nasdistill_exporters.hf:HuggingFaceFolder",
            "a folder that transformers opens without nasdistill: a stock model where one fits, else with its code",
            options="nasdistill_exporters.hf:HuggingFaceOptions",
            references=("https://huggingface.co/docs/transformers/custom_models",),
        ),
    ]
