"""Points of both spaces leave torch: the exported graph computes the same, and computes no shapes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec

onnx = pytest.importorskip("onnx", reason="extra 'onnx' is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="extra 'onnx' is not installed")

SHAPES = {"Shape", "Size", "ConstantOfShape", "Range", "Where", "NonZero"}
POINTS = [
    ("conv_vit", {"width": 32, "depth": 1, "stem_width": 8}, (1, 8, 8), False),
    ("conv_vit", {"width": 32, "depth": 1, "stem_width": 8, "reduction": 1, "block00.heads": 1}, (1, 8, 8), True),
    ("conv_vit", {"width": 32, "depth": 1, "stem_width": 8, "block00.attention": "flow"}, (3, 32, 32), False),
    ("resnet_s0", {"width": 16, "stages": 1, "stage0.blocks": 1, "stem_stride": 2}, (1, 8, 8), False),
    (
        "resnet_s0",
        {"width": 8, "stages": 3, "stage0.blocks": 1, "stage1.blocks": 3, "stage2.blocks": 1},
        (3, 32, 32),
        True,
    ),
]


@pytest.mark.parametrize(("name", "params", "shape", "dynamo"), POINTS, ids=lambda value: str(value)[:40])
def test_exports_and_computes_the_same(host, tmp_path, name, params, shape, dynamo):
    space = host.create(Kind.SEARCH_SPACE, name)
    io = IOSpec("image", shape, 10)
    model = space.build(space.architecture(params), io)
    model.train()(torch.randn(8, *shape))  # statistics that are not 0 and 1
    model.eval()
    image = torch.randn(1, *shape)
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (image,), path, dynamo=dynamo, input_names=["image"], verbose=False)
    ops = {node.op_type for node in onnx.load(path).graph.node}
    assert not ops & SHAPES, ops & SHAPES
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [logits] = session.run(None, {"image": image.numpy()})
    with torch.no_grad():
        assert np.abs(logits - model(image).numpy()).max() < 1e-4
