"""Text students as folders of transformers, stock or with code, opened where nasdistill is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from export_toys import scramble
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from nasdistill.errors import TrialFailure
from nasdistill.interfaces import ExportRequest
from nasdistill.library import load_student
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec
from nasdistill.store import save_student

VOCABULARY, LENGTH = 40, 10
OPEN = """
import json, sys
import torch


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0].startswith("nasdistill"):
            raise ImportError(f"{name} must not be needed here")


sys.meta_path.insert(0, Blocker())
# What the tests' machine needs, not the folders: torchvision's wheel declares its operators for CUDA builds only.
if torch.version.cuda is None:
    fragment = torch.library.Library("torchvision", "FRAGMENT")
    for schema in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
                   "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"):
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            fragment.define(schema)
import transformers
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
root = sys.argv[1]
for folder, auto, trust in json.loads(sys.argv[2]):
    cls = getattr(transformers, auto)
    model, info = cls.from_pretrained(f"{root}/{folder}", trust_remote_code=trust, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    inputs = load_file(f"{root}/{folder}.inputs")
    with torch.no_grad():
        out = model.eval()(inputs["ids"], attention_mask=inputs["mask"])
    answer = out.logits if "logits" in out else out.last_hidden_state
    save_file({"answer": answer.contiguous()}, f"{root}/{folder}.answer")
    if auto == "AutoModelForCausalLM":
        made = model.generate(inputs["ids"][:1, :3], max_new_tokens=6)
        save_file({"made": made}, f"{root}/{folder}.made")
        assert model.generation_config.pad_token_id == 0
"""

ENCODER = {"teacher": {"layers": 2, "hidden": 24, "heads": 3, "mlp": 48, "positions": 32}}
SIZES = {"hidden": [24], "heads": [2, 3], "layers": [1, 2], "mlp_ratio": [1.0, 2.0]}
CASES = {
    "stock-classes": ("encoder", {"heads": 3, "hidden": 24}, ENCODER | SIZES, "classes"),
    "stock-embedding": ("encoder", {"heads": 3, "hidden": 24}, ENCODER | SIZES, "embedding"),
    "code-classes": ("bert_free", {"layer00.heads": 2}, ENCODER, "classes"),
    "code-embedding": ("encoder", {"heads": 2, "hidden": 24}, ENCODER | SIZES, "embedding"),
    "code-masked": ("encoder", {"heads": 2, "hidden": 24, "attention": "flow"},
                    ENCODER | SIZES | {"attention": ["softmax", "flow"]}, "masked_lm"),
    "stock-decoder": ("decoder", {}, {}, "causal_lm"),
    "stock-decoder-classes": ("decoder", {}, {"padding_id": 0}, "classes"),
    "stock-llama-classes": ("decoder", {"queries": 1}, {"style": "llama", "kv_heads": 2, "padding_id": 0}, "classes"),
    "code-decoder-classes": ("decoder", {"heads": 2}, {"padding_id": 0}, "classes"),
    "code-decoder": ("decoder", {"heads": 2}, {}, "causal_lm"),
}  # fmt: skip
AUTO = {
    "classes": "AutoModelForSequenceClassification", "embedding": "AutoModel", "masked_lm": "AutoModelForMaskedLM",
    "causal_lm": "AutoModelForCausalLM",
}  # fmt: skip


def greedy(model, ids, steps: int, end: int | None = None):
    """Continue a text ``(1, N)`` by the likeliest tokens, up to an end."""
    with torch.no_grad():
        for _ in range(steps):
            ids = torch.cat([ids, model(ids, torch.ones_like(ids))[:, -1].argmax(-1, keepdim=True)], dim=1)
            if ids[0, -1] == end:
                break
    return ids


def tokenizer(folder: Path, size: int = VOCABULARY, end: int | None = None) -> Path:
    """Write a tokenizer of words; `end` is the id of its end token."""
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *(f"w{i}" for i in range(size - 2))])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"} | ({} if end is None else {"eos_token": f"w{end - 2}"})
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(str(folder))
    return folder


def student(host, case: str, folder: Path, provenance=None) -> ExportRequest:
    """Return a request for a student whose weights no initialisation gives."""
    name, params, options, head = CASES[case]
    space = host.create(Kind.SEARCH_SPACE, name, options)
    vocabulary = VOCABULARY if name != "decoder" else space.options.model_dump().get("vocabulary") or VOCABULARY
    outputs = {"classes": 3, "embedding": 0}.get(head, vocabulary)
    io = IOSpec("tokens", (LENGTH,), outputs, vocabulary, head)
    assert space.accepts(io) is None, space.accepts(io)
    known = {axis.name: axis.choices for axis in space.axes()}
    params = {key: value if value in known[key] else known[key][-1] for key, value in params.items()}
    arch = space.architecture(params)
    model = scramble(space.build(arch, io))
    ids = torch.arange(LENGTH)[None] % vocabulary
    folder.mkdir(parents=True)
    return ExportRequest(model, arch, io, (ids, torch.ones_like(ids)), provenance or {}, folder, space, case)


@pytest.mark.slow
def test_folders_open_where_nasdistill_is_not_and_answer_the_same(host, tmp_path):
    words = tokenizer(tmp_path / "tokenizer")
    preprocessing = {"tokenizer": str(words), "max_length": 16, "classes": ["bad", "fair", "good"]}
    todo, expected = [], {}
    generator = torch.Generator().manual_seed(1)
    made = {}
    for case in CASES:
        request = student(host, case, tmp_path / case, {"task": {"preprocessing": preprocessing}})
        ids = torch.randint(2, request.io.vocabulary, (3, 7), generator=generator)
        if request.io.head == "causal_lm":  # whose end is a token that the student says soon
            end = int(greedy(request.model, ids[:1, :3], 3)[0, -1])
            own = tokenizer(tmp_path / f"{case}-tokenizer", request.io.vocabulary, end)
            request = replace(request, provenance={"task": {"preprocessing": {"tokenizer": str(own)}}})
            made[case] = greedy(request.model, ids[:1, :3], 6, end)
            assert made[case].shape[1] <= 6
        facts = host.create(Kind.EXPORTER, "hf").export(request)
        assert (facts["stock"] is not None) == case.startswith("stock")
        assert facts["auto"] == AUTO[request.io.head]
        trusted = "" if facts["stock"] else ", trust_remote_code=True"
        assert facts["opens_with"] == f"{facts['auto']}.from_pretrained(folder{trusted})"
        assert "notes" not in facts
        assert (tmp_path / case / "tokenizer.json").is_file()
        mask = (torch.arange(7)[None] < torch.tensor([7, 4, 1])[:, None]).long()
        if case == "stock-llama-classes":
            mask = mask.flip(1)
        ids = ids * mask  # 0 is [PAD]
        save_file({"ids": ids, "mask": mask}, tmp_path / f"{case}.inputs")
        with torch.no_grad():
            expected[case] = request.model(ids, mask), mask
        todo.append([case, facts["auto"], facts["stock"] is None])
        card = (tmp_path / case / "README.md").read_text()
        assert ("trust_remote_code" in card) == (facts["stock"] is None)
        config = json.loads((tmp_path / case / "config.json").read_text())
        assert config.get("use_cache", True) == (case != "code-decoder")  # stock models keep keys when they generate
    command = [sys.executable, "-I", "-c", OPEN, str(tmp_path), json.dumps(todo)]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for case, (answer, mask) in expected.items():
        found = load_file(tmp_path / f"{case}.answer")["answer"]
        if CASES[case][3] == "embedding":
            found = (found * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        real = mask.bool() if answer.ndim == 3 else slice(None)
        assert torch.allclose(found[real], answer[real], atol=1e-5, rtol=1e-5), case
    for case, continued in made.items():
        assert load_file(tmp_path / f"{case}.made")["made"].tolist() == continued.tolist(), case


def test_a_classifier_keeps_its_class_names_and_an_encoder_of_sentences_says_how_it_pools(host, tmp_path):
    classes = ["bad", "fair", "good"]
    request = student(host, "stock-classes", tmp_path / "a", {"task": {"preprocessing": {"classes": classes}}})
    facts = host.create(Kind.EXPORTER, "hf").export(request)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert list(config["id2label"].values()) == classes
    assert "no tokenizer is recorded" in facts["notes"][0]
    host.create(Kind.EXPORTER, "hf").export(student(host, "stock-embedding", tmp_path / "b"))
    pooling = json.loads((tmp_path / "b" / "1_Pooling" / "config.json").read_text())
    assert pooling == {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}
    assert [m["type"].rpartition(".")[2] for m in json.loads((tmp_path / "b" / "modules.json").read_text())] == [
        "Transformer", "Pooling",
    ]  # fmt: skip


def test_what_differs_per_layer_is_said_in_transformers_words(host, tmp_path):
    request = student(host, "code-classes", tmp_path / "a")
    host.create(Kind.EXPORTER, "hf").export(request)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["num_hidden_layers"] == len(config["per_layer_config"])
    for layer, values in config["per_layer_config"].items():
        shape = request.model.shape.layers[int(layer)]
        assert values == {"num_attention_heads": shape.heads, "intermediate_size": shape.mlp}


def test_a_stock_model_that_computes_something_else_is_refused(host, tmp_path, monkeypatch):
    request = student(host, "stock-classes", tmp_path / "a")
    stock = request.space.stock_model(request.architecture, request.io)
    doubled = type(stock)(stock.config, lambda state: {k: 2 * v for k, v in stock.weights(state).items()})
    monkeypatch.setattr(type(request.space), "stock_model", lambda *_: doubled)
    with pytest.raises(TrialFailure, match="deviates"):
        host.create(Kind.EXPORTER, "hf").export(request)
    assert not any((tmp_path / "a").iterdir())
    short = type(stock)(stock.config, lambda state: dict(list(stock.weights(state).items())[1:]))
    monkeypatch.setattr(type(request.space), "stock_model", lambda *_: short)
    with pytest.raises(TrialFailure, match="missing keys"):
        host.create(Kind.EXPORTER, "hf").export(request)


@pytest.mark.parametrize("case", ["stock-embedding", "stock-decoder"])
def test_onnx_serves_any_batch_and_length(host, tmp_path, case):
    request = student(host, case, tmp_path / "a")
    facts = host.create(Kind.EXPORTER, "onnx").export(request)
    assert list(facts["inputs"]) == ["input_ids", "attention_mask"]
    assert facts["inputs"]["input_ids"]["shape"] == ["batch", "tokens"]
    assert facts["parity"]["max_rel"] < 1e-5


def test_a_students_own_tokenizer_comes_along_wherever_the_teachers_folder_is(host, tmp_path):
    assets = tokenizer(tmp_path / "assets")
    gone = {"task": {"preprocessing": {"tokenizer": "/nowhere", "max_length": 16}}}
    request = replace(student(host, "stock-classes", tmp_path / "a", gone), assets=assets)
    facts = host.create(Kind.EXPORTER, "hf").export(request)
    assert "notes" not in facts
    assert (tmp_path / "a" / "tokenizer.json").is_file()
    assert "AutoTokenizer" in (tmp_path / "a" / "README.md").read_text()
    bare = student(host, "stock-classes", tmp_path / "b", gone)
    assert "cannot be read here" in host.create(Kind.EXPORTER, "hf").export(bare)["notes"][0]
    assert "AutoTokenizer" not in (tmp_path / "b" / "README.md").read_text()
    folder = tmp_path / "saved"
    save_student(folder, request.model, request.architecture, request.io, {}, assets=assets)
    opened = load_student(folder, host=host)
    assert opened.assets is not None
    assert (opened.assets / "tokenizer.json").read_bytes() == (assets / "tokenizer.json").read_bytes()
    (tmp_path / "c").mkdir()
    host.create(Kind.EXPORTER, "torch").export(replace(request, folder=tmp_path / "c"))
    assert (tmp_path / "c" / "assets" / "tokenizer.json").is_file()
