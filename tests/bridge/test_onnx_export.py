"""Exports to ONNX by torch.export: torch's table of operators is built once, and torch is left as found."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nasdistill.bridge import onnx


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_table_of_operators_is_built_once_and_torch_left_as_found(tmp_path, monkeypatch):
    registration = pytest.importorskip("torch.onnx._internal.exporter._registration")
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx, "_OPERATORS", {})
    before = vars(registration.ONNXRegistry)["from_torchlib"]
    x = torch.randn(2, 4)
    for number, net in enumerate([nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 4), nn.GELU())]):
        path = tmp_path / f"{number}.onnx"
        onnx.export_onnx(net.eval(), (x,), path, dynamo=True, inputs=["x"])
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), net(x).detach())
        if not number:
            first = dict(onnx._OPERATORS)
    assert first
    assert first == onnx._OPERATORS
    assert vars(registration.ONNXRegistry)["from_torchlib"] is before
    with pytest.raises(Exception, match="nothing"):
        onnx.export_onnx(_Raising().eval(), (x,), tmp_path / "2.onnx", dynamo=True)
    assert vars(registration.ONNXRegistry)["from_torchlib"] is before


class _Raising(nn.Module):
    def forward(self, x):
        raise RuntimeError("nothing")
