"""What text tasks refuse in their own words: a tokenizer without tokens, and too few texts of a class to split."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasdistill.errors import DataError
from nasdistill_tasks.causal_lm import CausalLM
from nasdistill_tasks.masked_lm import MaskedLM
from nasdistill_tasks.sentence_similarity import SentenceSimilarity
from nasdistill_tasks.splitting import divide
from nasdistill_tasks.text_classification import TextClassification


@pytest.fixture(scope="module", params=[True, False], ids=["framed", "bare"])
def silent(request, tmp_path_factory):
    """Save a tokenizer of one word that no text has; return its folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate([*special, "zz"])}, []))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if request.param:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    folder = tmp_path_factory.mktemp("silent")
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", mask_token="[MASK]").save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("kind", "options"), [
    (TextClassification, {}),
    (SentenceSimilarity, {}),
    (MaskedLM, {}),
    (MaskedLM, {"layout": "lines"}),
    (CausalLM, {}),
    (CausalLM, {"layout": "lines"}),
])  # fmt: skip
def test_a_tokenizer_without_tokens_is_named(tmp_path, silent, kind, options):
    with pytest.raises(DataError, match=f"the tokenizer {silent} makes no tokens of the text in .*toy/") as caught:
        kind({"tokenizer": silent, **options}).prepare(tmp_path)
    assert "saved in full" in str(caught.value.hint)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_files_without_text_are_still_named(tmp_path, silent):
    (tmp_path / "a.txt").write_text("\n \n" * 20)
    for layout in ("packed", "lines"):
        with pytest.raises(DataError, match=r"a.txt: there is no text"):
            CausalLM({"data": str(tmp_path / "a.txt"), "tokenizer": silent, "layout": layout}).prepare(tmp_path / "c")
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + " \tgood\n \tbad\n" * 9)
    with pytest.raises(DataError, match=r"a\.tsv has no rows with text"):
        TextClassification({"data": str(tmp_path / "a.tsv"), "tokenizer": silent}).prepare(tmp_path / "c")


def test_too_few_texts_of_a_class_are_named(tmp_path):
    rows = ["w1 w2\tneg", "w31\tpos"]
    (tmp_path / "a.tsv").write_text("sentence\tlabel\n" + "\n".join(rows))
    with pytest.raises(DataError) as caught:
        TextClassification({"data": str(tmp_path / "a.tsv")}).prepare(tmp_path / "cache")
    told = str(caught.value)
    assert "too few texts of 'neg' (1), 'pos' (1) to have each class in train, validation and test data" in told
    assert "validation_data and test_data in the task's options" in str(caught.value.hint)
    assert "ValueError" not in told
    enough = int(told.split("; ")[1].split()[0])
    (tmp_path / "a.tsv").write_text("sentence\tlabel\n" + "\n".join(f"{row}\n" * enough for row in rows))
    task = TextClassification({"data": str(tmp_path / "a.tsv")})
    task.prepare(tmp_path / "cache")
    assert sum(task.size(split) for split in ("train", "validation", "test")) == 2 * enough
    (tmp_path / "t.tsv").write_text("sentence\tlabel\nw1\tneg\nw31\tpos\n")
    (tmp_path / "a.tsv").write_text("sentence\tlabel\n" + "\n".join(rows))
    options = {"data": str(tmp_path / "a.tsv"), "test_data": str(tmp_path / "t.tsv")}
    with pytest.raises(DataError, match=r"in train and validation data; \d+ of each class are enough"):
        TextClassification(options).prepare(tmp_path / "cache")
    task = TextClassification({**options, "validation_data": str(tmp_path / "t.tsv")})  # as the hint says
    task.prepare(tmp_path / "cache")
    assert [task.size(split) for split in ("train", "validation", "test")] == [2, 2, 2]


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=5), st.floats(0.05, 0.45), st.floats(0.05, 0.45),
    st.sampled_from([("train",), ("train", "validation"), ("train", "test")]), st.integers(0, 9),
)  # fmt: skip
def test_a_division_is_whole_and_what_is_said_to_be_enough_is(counts, validation, test, splits, seed):
    how = {"validation": validation, "test": test, "seed": seed, "origin": "data"}
    for _ in range(2):
        labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
        try:
            found = divide(labels, splits, **how)
        except DataError as error:
            enough = int(str(error).split("; ")[1].split()[0])
            assert min(counts) < enough
            counts = [max(count, enough) for count in counts]
            continue
        assert np.array_equal(np.sort(np.concatenate(list(found.values()))), np.arange(len(labels)))
        assert all(len(part) for part in found.values())  # a small part may lack a rare class
        if len(splits) == 1:
            rest = math.ceil((validation + test) * len(labels))
            assert len(found["validation"]) + len(found["test"]) == rest
        return
    pytest.fail(f"{counts} are not enough")
