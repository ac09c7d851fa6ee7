"""Exported students compute what the student does, in processes that have never heard of nasdistill."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from export_toys import CASES, DIGITS, request, scramble
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nasdistill.errors import TrialFailure, UsageError
from nasdistill.interfaces import ExportRequest
from nasdistill.spec.component import Kind
from nasdistill.spec.measurement import Latency, TargetReport

BLOCKER = """
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0].startswith("nasdistill"):
            raise ImportError(f"{name} must not be needed here")


sys.meta_path.insert(0, Blocker())
for path in [path for path in sys.path if "search_spaces" in path or "plugins" in path]:
    sys.path.remove(path)
"""

LOAD_HF = (
    BLOCKER
    + """
import torch

# What the tests' machine needs, not the folder: torchvision's wheel declares its operators for CUDA builds only.
if torch.version.cuda is None:
    fragment = torch.library.Library("torchvision", "FRAGMENT")
    for schema in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
                   "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"):
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            fragment.define(schema)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

torch.set_num_threads(1)
for folder in sys.argv[1:]:
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    assert not model.training
    assert all(tensor.data_ptr() % 64 == 0 for tensor in (*model.parameters(), *model.buffers()))
    images = load_file(folder + "/../images.safetensors")["images"]
    with torch.no_grad():
        logits = model(pixel_values=images).logits
    loss = model(images, labels=torch.zeros(len(images), dtype=torch.long)).loss
    loss.backward()  # it can be trained on
    model.save_pretrained(folder + "/../again")
    again = AutoModelForImageClassification.from_pretrained(folder + "/../again", trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(again(images).logits, logits)
    save_file({"logits": logits}, folder + "/../logits.safetensors")
assert not any(name.startswith("nasdistill") for name in sys.modules)
"""
)

RUN_ONNX = (
    BLOCKER
    + """
import numpy
import onnxruntime

for path in sys.argv[1:]:
    session = onnxruntime.InferenceSession(path + "/model.onnx", providers=["CPUExecutionProvider"])
    images = numpy.load(path + "/../images.npy")
    for size in (1, 3, len(images)):
        [logits] = session.run(["output"], {"input": images[:size]})
        numpy.save(f"{path}/../logits-{size}.npy", logits)
assert "torch" not in sys.modules
"""
)


def alone(code: str, *words: object, **env: str) -> None:
    """Run code in an isolated interpreter."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, *map(str, words)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **env}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def exported(host, tmp_path_factory):
    """Every case in every format: name -> (folder, model)."""
    root = tmp_path_factory.mktemp("exported")
    found = {}
    for name in CASES:
        for to in ("torch", "onnx", "hf"):
            wanted = request(host, root / name / to, name, name)
            facts = host.create(Kind.EXPORTER, to).export(wanted)
            found[name, to] = (wanted, facts)
    return root, found


def images(io, count=5):
    return torch.randn(count, *io.shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.slow
def test_hugging_face_folders_load_where_nasdistill_is_not_and_are_bit_equal(exported, tmp_path):
    root, found = exported
    for name, (_, _, _, io) in CASES.items():
        save_file({"images": images(io)}, root / name / "images.safetensors")
    alone(LOAD_HF, *(root / name / "hf" for name in CASES), HF_MODULES_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    for name, (_, _, _, io) in CASES.items():
        with torch.no_grad():
            expected = found[name, "hf"][0].model(images(io))
        assert torch.equal(load_file(root / name / "logits.safetensors")["logits"], expected), name


def test_onnx_files_run_in_onnxruntime_alone_at_any_batch_size(exported):
    root, found = exported
    for name, (_, _, _, io) in CASES.items():
        np.save(root / name / "images.npy", images(io).numpy())
    alone(RUN_ONNX, *(root / name / "onnx" for name in CASES))
    for name, (_, _, _, io) in CASES.items():
        wanted, facts = found[name, "onnx"]
        assert facts["parity"]["max_rel"] <= 1e-4
        assert len(set(facts["parity"]["batch_sizes"])) >= 3
        for size in (1, 3, 5):
            with torch.no_grad():
                expected = wanted.model(images(io)[:size]).numpy()
            np.testing.assert_allclose(np.load(root / name / f"logits-{size}.npy"), expected, atol=1e-4)


def test_torch_folders_give_the_student_back_bit_equal(exported, host):
    import nasdistill

    root, found = exported
    for name, (_, _, _, io) in CASES.items():
        student = nasdistill.load_student(root / name / "torch", host=host)
        with torch.no_grad():
            assert torch.equal(student.model()(images(io)), found[name, "torch"][0].model(images(io)))


def test_the_blocks_of_a_pit_are_said_in_transformers_words(exported):
    """Stages are of different widths; the width of the whole is that after the last one, as in transformers' Swin."""
    config = json.loads((exported[0] / "pit" / "hf" / "config.json").read_text())
    assert {key: config[key] for key in ("hidden_size", "num_hidden_layers", "head_dim")} == {
        "hidden_size": 12, "num_hidden_layers": 3, "head_dim": 4,
    }  # fmt: skip
    first, other = ({"hidden_size": 4 * a, "num_attention_heads": a, "intermediate_size": 4 * a} for a in (2, 3))
    assert config["per_layer_config"] == {"0": first, "1": other, "2": other}


def test_the_configuration_has_lists_per_layer_and_the_card_the_lineage(host, tmp_path):
    latency = Latency(1.5, 1.4, 1.6, 0.5, 3.0, 20, 3, "cpu")
    provenance = {
        "teacher": {"name": "timm:some", "fingerprint": "t" * 64},
        "task": {
            "name": "image_classification", "fingerprint": "d" * 64, "metric": {"name": "accuracy"},
            "preprocessing": {
                "size": [8, 8], "scale": 0.0625, "mean": [0.3], "std": [0.4], "classes": [*"abcdefghij"],
            },
        },
        "objective": {"task_weight": 0.5, "losses": [{"name": "kd", "weight": 2.0}]},
        "seed": 11, "epochs": 40,
        "validation": {"score": 0.9375}, "test": {"score": 0.9125}, "cost": {"params": 12345, "macs": 67890},
        "targets": {"targets:onnxruntime_cpu": TargetReport("targets:onnxruntime_cpu", latency).to_json()},
    }  # fmt: skip
    wanted = request(host, tmp_path, "0007-abcdef", "sincos", provenance)
    host.create(Kind.EXPORTER, "hf").export(wanted)
    config = json.loads((tmp_path / "config.json").read_text())
    network = config["network"]
    assert network["attention"] == ["window", "sigmoid"]
    assert network["attention_options"] == [{"window": 3}, {"normalise": True}]
    assert len(network["heads"]) == len(network["mlp_hidden"]) == 2
    assert config["id2label"]["2"] == "c"
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModelForImageClassification"}
    card = (tmp_path / "README.md").read_text()
    for fact in (
        "timm:some",
        "t" * 64,
        "d" * 64,
        "kd x 2.0",
        "| seed | 11 |",
        "0.9375",
        "0.9125",
        "12,345",
        "1.4 to 1.6",
    ):
        assert fact in card, fact
    assert json.loads((tmp_path / "provenance.json").read_text()) == json.loads(json.dumps(provenance))


def test_no_code_of_ours_is_imported_by_the_folder(exported):
    root, _ = exported
    for path in root.glob("*/hf/*.py"):
        text = path.read_text()
        assert not any(line.lstrip().startswith(("import nasdistill", "from nasdistill")) for line in text.splitlines())
        assert "import pydantic" not in text
        assert "from pydantic" not in text


@pytest.mark.parametrize("space_name", ["conv_vit", "resnet_s0"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000))
def test_the_copied_code_equals_the_space_for_any_point(host, tmp_path, space_name, seed):
    """The exporter compares bit by bit itself, and raises where anything differs."""
    options = {"width": (32, 64)} if space_name == "conv_vit" else {"blocks": (1, 3), "width": (8, 16)}
    space = host.create(Kind.SEARCH_SPACE, space_name, options)
    arch = space.sample(random.Random(seed))
    model = scramble(space.build(arch, DIGITS))
    folder = tmp_path / str(seed)
    folder.mkdir(exist_ok=True)
    wanted = ExportRequest(model, arch, DIGITS, (torch.randn(1, 1, 8, 8),), {}, folder, space, "x")
    facts = host.create(Kind.EXPORTER, "hf").export(wanted)
    assert facts["parity"]["max_abs"] == 0.0
    saved = load_file(folder / "model.safetensors")
    assert {f"network.{name}" for name in model.state_dict()} <= set(saved)


def test_the_comparison_sees_another_network(host, tmp_path, monkeypatch):
    wanted = request(host, tmp_path, case="sincos")
    source = wanted.space.modeling_source(wanted.architecture, wanted.io)
    other = dict(source.config) | {
        "attention": ["sigmoid", "window"],
        "attention_options": source.config["attention_options"][::-1],
    }
    monkeypatch.setattr(
        wanted.space, "modeling_source", lambda arch, io: type(source)(source.factory, other, source.parts)
    )
    with pytest.raises(TrialFailure, match="does not compute what the student does") as failure:
        host.create(Kind.EXPORTER, "hf").export(wanted)
    assert failure.value.reason == "parity"


def test_a_space_that_does_not_say_how_is_refused_in_words(host, tmp_path, monkeypatch):
    wanted = request(host, tmp_path)
    monkeypatch.setattr(wanted.space, "modeling_source", lambda arch, io: None)
    with pytest.raises(UsageError, match="does not say how its networks are built") as failure:
        host.create(Kind.EXPORTER, "hf").export(wanted)
    assert "torch or onnx" in str(failure.value)
    assert list(tmp_path.iterdir()) == []


def test_an_onnx_file_that_deviates_is_refused_and_removed(host, tmp_path):
    wanted = request(host, tmp_path, case="flow")
    with pytest.raises(TrialFailure, match="deviate from torch") as failure:
        host.create(Kind.EXPORTER, "onnx", {"tolerance": 1e-12, "exporter": "torchscript"}).export(wanted)
    assert failure.value.reason == "parity"
    assert list(tmp_path.iterdir()) == []


def test_a_file_by_torch_export_does_not_say_where_the_code_stood(host, tmp_path):
    wanted = request(host, tmp_path, case="resnet")
    host.create(Kind.EXPORTER, "onnx", {"exporter": "dynamo"}).export(wanted)
    content = (tmp_path / "model.onnx").read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content
    assert b"Traceback" not in content
    assert b'File "' not in content


def test_onnx_facts_stand_in_the_file_too(host, tmp_path):
    onnx = pytest.importorskip("onnx", reason="extra 'onnx' is not installed")
    provenance = {"task": {"preprocessing": {"mean": [0.5]}}}
    facts = host.create(Kind.EXPORTER, "onnx").export(request(host, tmp_path, "s", "resnet", provenance))
    assert facts["preprocessing"] == {"mean": [0.5]}
    stated = {item.key: json.loads(item.value) for item in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert stated["nasdistill.preprocessing"] == {"mean": [0.5]}
    assert stated["nasdistill.student"] == "s"


THIRD_PARTY = '''
"""A variant and a space of somebody else."""
from __future__ import annotations

import math
import torch
from torch import Tensor, nn
from nasdistill.interfaces import AttentionCore, AttentionResult, ModelingSource
from nasdistill.spec.io import Cost
from nasdistill.spec.options import ComponentOptions
from acme_helpers import halve

TWICE = 2 * math.pi
"""Not a round number."""


class Options(ComponentOptions):
    strength: float = 3.0


class Odd(AttentionCore):
    """Owns a parameter and a table that it does not save."""

    options_model = Options
    options: Options

    def __init__(self, options=None, *, geometry, host=None):
        super().__init__(options, geometry=geometry, host=host)
        self.gain = nn.Parameter(torch.ones(geometry.heads, 1, 1))
        self.register_buffer("table", torch.arange(geometry.head_dim).float(), persistent=False)

    def forward(self, q, k, v, ctx):
        weights = (q @ k.transpose(-1, -2) * self.options.strength / TWICE).softmax(-1)
        return AttentionResult(halve(weights @ v * self.gain + self.table))

    @classmethod
    def cost(cls, geometry, n, m, options=None):
        return Cost(geometry.heads, n * m)


class AsksItsHost(Odd):
    def forward(self, q, k, v, ctx):
        return self.host.create("attention", "softmax", geometry=self.geometry)(q, k, v, ctx)


class KeepsATensor(Odd):
    def __init__(self, options=None, *, geometry, host=None):
        super().__init__(options, geometry=geometry, host=host)
        self.secret = torch.ones(1)

    def forward(self, q, k, v, ctx):
        return AttentionResult(v * self.secret)
'''


@pytest.fixture
def acme(tmp_path, monkeypatch):
    """A third party's plugin, found on the path."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "acme_variants.py").write_text(THIRD_PARTY)
    (tmp_path / "site" / "acme_helpers.py").write_text("def halve(x):\n    return x / 2  # exact\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    from nasdistill import hookimpl
    from nasdistill.host import Host
    from nasdistill.spec.component import AttentionSpec, AttentionTags

    class Plugin:
        @staticmethod
        @hookimpl
        def nasdistill_attention_variants():
            tags = AttentionTags(owns_parameters=True)
            names = {"odd": "Odd", "asks": "AsksItsHost", "keeps": "KeepsATensor"}
            return [AttentionSpec(name, f"acme_variants:{target}", "x", tags=tags) for name, target in names.items()]

    host = Host.load(third_party=False)
    host.add(Plugin(), "acme")
    yield host
    for name in ("acme_variants", "acme_helpers"):
        sys.modules.pop(name, None)


def acme_request(host, folder, variant):
    space = host.create(Kind.SEARCH_SPACE, "conv_vit", {"attention": [variant, "softmax"], "depth": [2]})
    arch = space.architecture({"width": 32, "block00.attention": variant, "block01.attention": "softmax"})
    folder.mkdir()
    return ExportRequest(
        scramble(space.build(arch, DIGITS)), arch, DIGITS, (torch.randn(1, 1, 8, 8),), {}, folder, space, "x"
    )


@pytest.mark.slow
def test_a_third_partys_variant_is_exported_without_its_help(acme, tmp_path):
    wanted = acme_request(acme, tmp_path / "hf", "odd")
    facts = acme.create(Kind.EXPORTER, "hf").export(wanted)
    assert {"acme_variants.py", "acme_helpers.py"} <= set(facts["code"])
    save_file({"images": images(DIGITS)}, tmp_path / "images.safetensors")
    alone(LOAD_HF, tmp_path / "hf", HF_MODULES_CACHE=str(tmp_path / "modules"), HF_HUB_OFFLINE="1")
    with torch.no_grad():
        assert torch.equal(load_file(tmp_path / "logits.safetensors")["logits"], wanted.model(images(DIGITS)))


@pytest.mark.parametrize("variant", ["asks", "keeps"])
def test_code_that_cannot_stand_alone_is_refused(acme, tmp_path, variant):
    with pytest.raises(TrialFailure, match="cannot be copied: the copy does not run") as failure:
        acme.create(Kind.EXPORTER, "hf").export(acme_request(acme, tmp_path / "hf", variant))
    assert failure.value.reason == "export_failed"


def test_listing_exporters_needs_no_torch():
    code = (
        "import sys\nfrom nasdistill.host import Host\nfrom nasdistill.spec.component import Kind\n"
        "names = [item.name for item in Host.load(third_party=False).specs(Kind.EXPORTER)]\n"
        "assert {'hf', 'onnx', 'torch'} <= set(names), names\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
