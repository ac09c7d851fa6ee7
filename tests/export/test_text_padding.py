"""Texts of different lengths in one batch, through the tokenizer of the exported folder."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from export_toys import scramble
from toys_ids import SPECIAL, save_tokenizer

from nasdistill.interfaces import ExportRequest
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec

WORDS = [f"w{i}" for i in range(36)]
TEXTS = ["w1 w2 w3", "w4 w5 w31 w32 w33 w34 w7", "w8"]
VOCABULARY = len(SPECIAL) + len(WORDS)
TEACHER = {"layers": 2, "hidden": 24, "heads": 3, "mlp": 48, "positions": 32}
SIZES = {"hidden": [24], "heads": [2, 3], "layers": [1, 2], "mlp_ratio": [1.0, 2.0]}
CASES = {
    "stock-classes": ("encoder", {"heads": 3}, {"teacher": TEACHER, **SIZES}, "classes"),
    "code-classes": ("encoder", {"heads": 2}, {"teacher": TEACHER, **SIZES}, "classes"),
    "stock-gpt2": ("decoder", {}, {}, "causal_lm"),
    "code-gpt2": ("decoder", {"heads": 2}, {}, "causal_lm"),
}


@pytest.fixture
def foreign_code(monkeypatch, tmp_path):
    """Let transformers keep the code of folders in a folder of this test; asking whether it may run is an error."""

    def asked(*_):
        raise AssertionError("a question on the terminal")

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    # Code of an earlier test of this process lies elsewhere, and would be found first.
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p) / "transformers_modules").is_dir()])

    def forget():
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
            del sys.modules[name]

    forget()
    yield
    forget()


def exported(host, case: str, root: Path, tokenizer: Path) -> tuple[Path, torch.nn.Module]:
    """Export a student whose weights no initialisation gives; return its folder and its network."""
    name, params, options, head = CASES[case]
    vocabulary = VOCABULARY if name == "encoder" else None
    space = host.create(Kind.SEARCH_SPACE, name, options)
    vocabulary = vocabulary or space.options.model_dump().get("vocabulary") or VOCABULARY
    io = IOSpec("tokens", (10,), 3 if head == "classes" else vocabulary, vocabulary, head)
    known = {axis.name: axis.choices for axis in space.axes()}
    arch = space.architecture({key: value if value in known[key] else known[key][-1] for key, value in params.items()})
    ids = torch.arange(10)[None] % vocabulary
    folder = root / case
    folder.mkdir()
    told = {"tokenizer": str(tokenizer), "padding_side": "right", "pairs": head == "classes"}
    provenance = {"task": {"preprocessing": told}}
    model = scramble(space.build(arch, io))
    request = ExportRequest(model, arch, io, (ids, torch.ones_like(ids)), provenance, folder, space, case)
    facts = host.create(Kind.EXPORTER, "hf").export(request)
    assert (facts["stock"] is not None) == case.startswith("stock"), case
    return folder, model


@pytest.mark.slow
def test_a_batch_gives_what_its_texts_give_alone(host, tmp_path, foreign_code):
    tokenizer = save_tokenizer(tmp_path / "tokenizer", *WORDS)
    declared = tokenizer / "tokenizer_config.json"
    for case, (*_, head) in CASES.items():
        language = head == "causal_lm"
        wrong = "right" if language else "left"
        gives = ["input_ids", "token_type_ids", "attention_mask"]
        settings = {**json.loads(declared.read_text()), "padding_side": wrong, "model_input_names": gives}
        declared.write_text(json.dumps(settings))
        folder, student = exported(host, case, tmp_path, tokenizer)
        written = json.loads((folder / "tokenizer_config.json").read_text())
        assert not {"local_files_only", "is_local"} & written.keys(), case
        # What the README says, as it stands there.
        card = (folder / "README.md").read_text()
        [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        assert card.count("trust_remote_code=True") == (2 if case.startswith("code") else 0)
        names: dict[str, object] = {}
        exec(code.replace("path/to/this/folder", str(folder)), names)
        model, opened = names["model"], names["tokenizer"]
        assert opened.padding_side == written["padding_side"] == ("left" if language else "right")
        inputs = names["inputs"]
        assert ("token_type_ids" in inputs) == (case != "stock-gpt2")  # which would look them up among its words
        if not language:
            assert inputs["token_type_ids"].any()
            with torch.no_grad():
                expected = student(**inputs)
                assert torch.allclose(names["logits"], expected, atol=1e-6), case
                untyped = student(inputs["input_ids"], inputs["attention_mask"])
            assert (untyped - expected).abs().max() > 1e-4, case
        batch = opened(TEXTS, padding=True, return_tensors="pt")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        assert mask.sum(1).unique().numel() == 3
        alone = [opened([text], return_tensors="pt")["input_ids"] for text in TEXTS]
        if language:
            how = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
            together = model.generate(ids, attention_mask=mask, **how)[:, ids.shape[1] :]
            each = [model.generate(one, **how)[0, one.shape[1] :] for one in alone]
            assert together.tolist() == torch.stack(each).tolist(), case
            assert len(set(map(tuple, together.tolist()))) > 1
            if case == "stock-gpt2":  # transformers counts positions from the first column, as the README says
                assert 'set `tokenizer.padding_side = "right"`' in card
                opened.padding_side = "right"
                batch = opened(TEXTS, padding=True, return_tensors="pt")
                ids, mask = batch["input_ids"], batch["attention_mask"]
        with torch.no_grad():
            logits = model(ids, attention_mask=mask).logits
            for row, real, one in zip(logits, mask.bool(), alone, strict=True):
                single = model(one).logits[0]
                assert torch.allclose(row[real] if language else row, single, atol=1e-6), case
