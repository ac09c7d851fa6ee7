"""The bundled targets on real, tiny networks."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nasdistill.errors import ConfigError, TargetUnavailableError, TrialFailure
from nasdistill.interfaces import PrepareRequest
from nasdistill.measure import Meter, count_work
from nasdistill.measure.references import ReferenceAttention
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.spec.measurement import Budget
from nasdistill_targets.onnxruntime_cpu import OnnxRuntimeCpu
from nasdistill_targets.simulated import Simulated, SimulatedOptions
from nasdistill_targets.torch_cpu import TorchCpu, allocator_peak

QUICK = Budget(max_seconds=1.0, min_pairs=10, max_pairs=10)


class SmallConv(nn.Module):
    """Convolutions with batch normalisation whose statistics are not trivial."""

    def __init__(self, width: int = 8, depth: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 10)
        nn.init.uniform_(self.norm.running_mean, -1, 1)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(block(x))
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class SmallViT(nn.Module):
    """A patch stem and transformer blocks."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 2, 2)
        self.blocks = ReferenceAttention(width, 1, 2)

    def forward(self, x):
        return self.blocks(self.stem(x).flatten(2).transpose(1, 2))


class Several(nn.Module):
    """Two inputs of which one is used twice and one not at all, outputs in a mapping."""

    def forward(self, x, unused, y):
        return {"sum": x + y, "both": (x * y, None)}


class Eigenvalues(nn.Module):
    """No exporter knows this operator."""

    def forward(self, x):
        return torch.linalg.eigvalsh(x[0, 0])


def built(make):
    with seeded(0, "test"):
        return make().eval()


@pytest.fixture
def image():
    return (torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)


@pytest.mark.parametrize("make", [SmallConv, SmallViT])
@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_computes_what_torch_computes(make, batch, image, tmp_path):
    example = (image[0].repeat(batch, 1, 1, 1),)
    with Meter(OnnxRuntimeCpu(), tmp_path, QUICK) as meter:
        report = meter.report(built(make), example, "student")
    assert report.max_rel_error < 1e-5
    assert report.artefact_bytes == (tmp_path / "student.onnx").stat().st_size
    assert report.info["exporter"] == "torchscript"
    assert report.latency.clock == "cpu"
    assert 0 < report.latency.low_ms <= report.latency.value_ms <= report.latency.high_ms


@pytest.mark.parametrize("target", [OnnxRuntimeCpu, TorchCpu, Simulated])
def test_inputs_and_outputs_of_any_shape(target, tmp_path):
    example = (torch.randn(2, 3), torch.randn(1), torch.randn(2, 3))
    with Meter(target(), tmp_path, QUICK) as meter:
        prepared = meter.prepare(built(Several), example)
        assert prepared.info["max_rel_error"] < 1e-6
        assert [tuple(t.shape) for t in prepared.outputs()] == [(2, 3), (2, 3)]
        prepared.run()
        prepared.close()


def test_the_second_exporter_covers_what_the_first_cannot(image, tmp_path, capfd):
    model = nn.RMSNorm(8).eval()
    with pytest.raises(TrialFailure, match="torchscript: UnsupportedOperatorError") as caught:
        OnnxRuntimeCpu({"exporter": "torchscript"}).prepare(PrepareRequest(model, image, tmp_path))
    assert caught.value.reason == "export_failed"
    assert list(tmp_path.iterdir()) == []
    with Meter(OnnxRuntimeCpu(), tmp_path, QUICK) as meter:
        prepared = meter.prepare(model, image)
    assert prepared.info["exporter"] == "dynamo"
    assert prepared.info["max_rel_error"] < 1e-5
    assert capfd.readouterr().out == ""  # the failing exporter prints its graph, and must not


def test_a_failing_export_leaves_no_file(image, tmp_path):
    model = built(Eigenvalues)
    state, threads = torch.random.get_rng_state(), threading.active_count()
    with (
        Meter(OnnxRuntimeCpu(), tmp_path, QUICK) as meter,
        pytest.raises(TrialFailure, match=r"student cannot be exported to ONNX .torchscript: .*; dynamo: ") as caught,
    ):
        meter.report(model, image, "student")
    assert caught.value.reason == "export_failed"
    assert len(str(caught.value)) < 800
    assert list(tmp_path.rglob("*student*")) == []
    assert list(tmp_path.rglob("*.tmp")) == []
    assert torch.equal(torch.random.get_rng_state(), state)
    assert threading.active_count() <= threads + 1


def test_onnx_without_its_packages_says_which_extra(image, tmp_path, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    target = OnnxRuntimeCpu()
    assert not target.probe().ok
    assert "nasdistill[onnx]" in target.probe().reason
    with pytest.raises(TargetUnavailableError, match=r"nasdistill\[onnx\]"):
        target.prepare(PrepareRequest(built(SmallConv), image, tmp_path))


def test_the_session_reads_its_input_every_time(image, tmp_path):
    prepared = OnnxRuntimeCpu().prepare(PrepareRequest(built(SmallConv), image, tmp_path))
    first = prepared.outputs()[0].clone()
    prepared._inputs["input_0"][:] = 0
    assert not torch.equal(prepared.outputs()[0], first)
    prepared.close()
    prepared.close()


def test_eager_networks_are_private_copies(image):
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.cache = None

        def forward(self, x):
            if self.cache is None:
                self.cache = x.new_ones(8) * 2
            return self.layer(x) * self.cache

    model = built(Caching)
    prepared = TorchCpu().prepare(PrepareRequest(model, image, None))
    prepared.run()
    assert model.cache is None  # an inference tensor here would break training
    assert not prepared.outputs()[0].requires_grad
    with torch.no_grad():
        model.layer.weight.zero_()
    assert prepared.outputs()[0].abs().sum() > 0


def test_eager_peak_memory_is_exact(image):
    class Two(nn.Module):
        def forward(self, x):
            wide = x.repeat(1, 4, 1, 1)  # 4 * 256 bytes
            return (wide + 1).sum()  # the same again, then 4 bytes

    prepared = TorchCpu().prepare(PrepareRequest(Two().eval(), image, None))
    peak = prepared.peak_memory_bytes()
    assert peak == prepared.peak_memory_bytes()
    assert 2 * 1024 <= peak <= 2 * 1024 + 256
    assert allocator_peak(lambda: None) is None


def test_threads_are_the_targets_own(image, tmp_path):
    before = torch.get_num_threads()
    with Meter(TorchCpu({"threads": 2}), tmp_path, QUICK) as meter:
        report = meter.report(built(SmallConv), image)
    assert (report.latency.clock, report.info["threads"]) == ("wall", 2)
    assert torch.get_num_threads() == before


def test_the_simulator_follows_its_formula_and_nothing_else(image, tmp_path):
    options = {"overhead_ns": 100.0, "mac_ns": 2.0, "element_ns": 3.0, "operator_ns": 5.0}
    model = built(SmallConv)
    work = count_work(model, image)
    expected = 100 + 2 * work.macs + 3 * work.activations + 5 * work.operators
    reports = []
    for _ in range(2):
        with Meter(Simulated(options), tmp_path) as meter:
            reports.append(meter.report(model, image))
    assert reports[0].latency == reports[1].latency
    assert reports[0].latency.value_ms * 1e6 == pytest.approx(expected)
    assert (reports[0].latency.clock, reports[0].latency.low_ms) == ("simulated", reports[0].latency.value_ms)
    assert SimulatedOptions().nanoseconds(count_work(built(SmallViT), image)) > 0


@pytest.mark.parametrize("target", [OnnxRuntimeCpu, TorchCpu, Simulated])
def test_fifty_times_the_work_is_slower(target, image, tmp_path):
    models = {"small": built(lambda: SmallConv(8, 1)), "large": built(lambda: SmallConv(48, 12))}
    assert count_work(models["large"], image).macs > 50 * count_work(models["small"], image).macs
    with Meter(target(), tmp_path, QUICK) as meter:
        found = meter.report_together(models, image, baseline="small")
        again = meter.report_together(models, image, baseline="small")
    assert found["large"].latency.low_ms > found["small"].latency.high_ms
    assert again["large"].info["ratio"]["low"] > 1


def test_identical_networks_are_alike(image, tmp_path):
    models = {name: built(SmallConv) for name in "ab"}
    with Meter(OnnxRuntimeCpu(), tmp_path, Budget(min_pairs=40, max_pairs=40)) as meter:
        ratio = meter.report_together(models, image, baseline="a")["b"].info["ratio"]
    assert 0.5 < ratio["value"] < 2


def test_references_run_in_the_targets_runtime(tmp_path):
    meter = Meter(OnnxRuntimeCpu(), tmp_path, QUICK)
    references = meter.references()
    assert {item.info["runtime"].split()[0] for item in references.values()} == {"onnxruntime"}
    assert all(item.info["max_rel_error"] < 1e-5 for item in references.values())
    meter.close()
    assert all(item._session is None for item in references.values())


@pytest.mark.parametrize("name", ["torch_cpu", "onnxruntime_cpu", "simulated"])
def test_the_host_knows_them(host, name):
    target = host.create(Kind.TARGET, name)
    assert target.id == f"targets:{name}"
    assert target.probe().ok
    assert isinstance(target.environment()["runtime"], str)
    with pytest.raises(ConfigError, match="unknown key 'thread'"):
        host.create(Kind.TARGET, name, {"thread": 1})


def test_listing_targets_imports_nothing_heavy():
    code = (
        "import sys, nasdistill_targets as t; t.nasdistill_targets();"
        "print([m for m in ('torch', 'numpy', 'onnx', 'onnxruntime', 'pydantic') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_probing_imports_no_runtime():
    code = (
        "import sys; from nasdistill_targets.onnxruntime_cpu import OnnxRuntimeCpu; assert OnnxRuntimeCpu().probe().ok;"
        "print([m for m in ('onnx', 'onnxruntime') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_outputs_are_numpy_free_copies(image, tmp_path):
    prepared = OnnxRuntimeCpu().prepare(PrepareRequest(built(SmallConv), image, tmp_path))
    first = prepared.outputs()[0]
    prepared._outputs[0].numpy()  # the runtime's buffer is another one
    first.zero_()
    assert np.abs(prepared.outputs()[0].numpy()).sum() > 0
