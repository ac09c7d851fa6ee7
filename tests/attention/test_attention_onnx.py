"""Every core exports with both exporters and computes the same in onnxruntime, in few operations."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from torch import nn

from nasdistill.host import Host
from nasdistill.interfaces import AttentionContext, AttentionGeometry, AttentionMask, TokenLayout, static_shape
from nasdistill.spec.component import Kind

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

HOST = Host.load(third_party=False)
CORES = [
    record.id
    for record in HOST.specs(Kind.ATTENTION)
    if record.spec.tags.level == "core" and record.spec.tags.exportable
]


class Call(nn.Module):
    """A core with a fixed mask, on the first `n` tokens of its inputs."""

    def __init__(self, name, n, *, mask=None, layout=None, options=None):
        super().__init__()
        geometry = AttentionGeometry(32, 2, 16, layout=layout)
        self.core, self.n, self.mask = HOST.create(Kind.ATTENTION, name, options, geometry=geometry), n, mask

    def forward(self, q, k, v):
        if static_shape(q)[2] != self.n:
            q, k, v = (x[:, :, : self.n] for x in (q, k, v))
        return self.core(q, k, v, AttentionContext(mask=self.mask)).out


class Calls(nn.Module):
    """Many calls in one graph: an export takes seconds, whatever its size."""

    def __init__(self, calls):
        super().__init__()
        self.calls = nn.ModuleList(calls)

    def forward(self, q, k, v):
        return [call(q, k, v) for call in self.calls]


def export(module, inputs, path, *, dynamo):
    """Export with an open batch axis; return the session and the operations left after onnxruntime's optimisation."""
    if dynamo:
        options = {"dynamic_shapes": tuple({0: torch.export.Dim("batch", min=1, max=64)} for _ in inputs)}
    else:
        options = {"dynamic_axes": {name: {0: "batch"} for name in "qkv"}}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), inputs, str(path), input_names=list("qkv"), dynamo=dynamo, verbose=False, **options
        )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    settings.optimized_model_filepath = str(path.with_suffix(".optimised.onnx"))
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return session, [node.op_type for node in onnx.load(settings.optimized_model_filepath).graph.node]


def tensors(n, batch=2):
    return tuple(torch.randn(batch, 2, n, 16) for _ in range(3))


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True])
def test_parity(dynamo, tmp_path):
    """Small and large, bidirectional and causal, tiles on a grid; exported at one batch size, run at others."""
    torch.manual_seed(0)
    grid = TokenLayout(grid=(16, 16), prefix=1)
    causal = AttentionMask(causal=True)
    calls = [Call(name, 64) for name in CORES] + [Call("flow", 150, mask=causal)]
    calls += [Call("window", 257, layout=grid, options={"window": 3})]
    if not dynamo:  # this exporter takes a second per call
        calls += [Call(name, n) for name in CORES for n in (4, 257)]
        calls += [Call(name, n, mask=causal) for name in CORES for n in (16, 150)]
        calls += [Call("sigmoid", 16, options={"normalise": True}), Call("flow", 16, options={"source_clamp": 1.0})]
    module = Calls(calls)
    session, _ = export(module, tensors(257), tmp_path / "cores.onnx", dynamo=dynamo)
    for batch in (1, 3):
        inputs = tensors(257, batch)
        outs = session.run(None, {name: x.numpy() for name, x in zip("qkv", inputs, strict=True)})
        for call, out, expected in zip(calls, outs, module(*inputs), strict=True):
            error = (torch.from_numpy(out) - expected).abs().max() / expected.abs().max()
            assert error < 1e-5, (call.core.id, call.n, call.mask)


@pytest.mark.parametrize(("name", "n", "most"), [
    ("softmax", 16, 3), ("sigmoid", 16, 3), ("window", 16, 4), ("linear", 16, 8), ("flow", 16, 17),
    ("softmax", 64, 3), ("sigmoid", 64, 3), ("window", 64, 4), ("linear", 64, 9), ("flow", 64, 21),
])  # fmt: skip
def test_the_plain_case_takes_few_operations(name, n, most, tmp_path):
    """Each operation costs about 3 microseconds in onnxruntime, much of a tiny student's time."""
    _, operations = export(Call(name, n), tensors(n), tmp_path / "core.onnx", dynamo=False)
    assert len(operations) <= most, operations


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")  # the call itself
@pytest.mark.parametrize("name", CORES)
def test_tracing_gives_no_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(Call(name, 40).eval(), tensors(40), check_trace=False)
    inputs = tensors(40, batch=3)
    torch.testing.assert_close(traced(*inputs), Call(name, 40)(*inputs))


def test_long_grids_gather_tiles(tmp_path):
    call = Call("window", 257, layout=TokenLayout(grid=(16, 16), prefix=1), options={"window": 3})
    _, operations = export(call, tensors(257), tmp_path / "core.onnx", dynamo=False)
    assert operations.count("Gather") >= 4
    assert len(operations) <= 20
