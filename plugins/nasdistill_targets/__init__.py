"""Bundled plugin targets: torch eager and ONNX Runtime on this machine's CPU, and a deterministic simulator."""

from __future__ import annotations

from nasdistill import hookimpl
from nasdistill.spec.component import Requirement, TargetSpec, TargetTags


@hookimpl
def nasdistill_targets() -> list[TargetSpec]:
    """Return the targets of this package."""
    return [
        TargetSpec(
            "torch_cpu",
            "nasdistill_targets.torch_cpu:TorchCpu",
            "the module as it is, torch eager on the CPU",
            options="nasdistill_targets.torch_cpu:TorchCpuOptions",
            references=("https://docs.pytorch.org/docs/stable/generated/torch.autograd.grad_mode.inference_mode.html",),
            tags=TargetTags(clock="cpu"),
        ),
        TargetSpec(
            "onnxruntime_cpu",
            "nasdistill_targets.onnxruntime_cpu:OnnxRuntimeCpu",
            "exported to ONNX and run by ONNX Runtime on the CPU",
            options="nasdistill_targets.onnxruntime_cpu:OnnxRuntimeCpuOptions",
            references=("https://onnxruntime.ai/docs/api/python/api_summary.html",),
            requires=(
                Requirement("onnx", "nasdistill[onnx]"),
                Requirement("onnxruntime", "nasdistill[onnx]"),
            ),
            tags=TargetTags(clock="cpu", exports=True),
        ),
        TargetSpec(
            "simulated",
            "nasdistill_targets.simulated:Simulated",
            "no device at all: a fixed linear function of counted work, for tests and dry runs",
            options="nasdistill_targets.simulated:SimulatedOptions",
            references=("arXiv:2003.13678",),
            left_out="Everything about devices: of the paper only its count of activations as a part of the time.",
            tags=TargetTags(clock="simulated"),
        ),
    ]
