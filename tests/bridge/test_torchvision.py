"""The guard that lets torchvision import beside a CPU-only torch; each case in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

GUARD = """
from nasdistill.bridge import prepare_imports
prepare_imports()
import torch
torch.set_num_threads(1)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_libraries_import_and_run_after_the_guard():
    code = """
import timm
assert timm.create_model("resnet10t", num_classes=3).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification
config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8,
                   patch_size=4, num_labels=3)
assert ViTForImageClassification(config)(torch.zeros(1, 3, 8, 8)).logits.shape == (1, 3)
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
import torchvision.datasets, torchvision.models, torchvision.transforms.v2
prepare_imports()
"""
    result = run(GUARD + code)
    assert result.returncode == 0, result.stderr[-2000:]


def test_a_failed_import_can_be_repeated_after_the_guard():
    result = run("try:\n    import torchvision\nexcept RuntimeError:\n    pass\n" + GUARD + "import torchvision")
    assert result.returncode == 0, result.stderr[-2000:]


def test_nothing_is_declared_beside_a_cuda_torch():
    code = "import torch\ntorch.version.cuda = '13.0'\n" + GUARD
    result = run(code + "print(hasattr(torch.ops.torchvision, 'nms'))")
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == "False"


def test_operators_that_exist_are_left_alone():
    code = (
        "import torch\nlib = torch.library.Library('torchvision', 'DEF')\n"
        "lib.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "lib.impl('nms', lambda d, s, t: torch.tensor([7]), 'CPU')\n" + GUARD + "import torchvision\n"
        "print(torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5).item())"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == "7"


def test_bridge_package_imports_no_torch():
    result = run("import sys, nasdistill.bridge\nprint('torch' in sys.modules)")
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == "False"
