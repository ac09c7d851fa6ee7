"""Every option that decides what batches hold changes the fingerprint, and never finds the tokens of another one."""

from __future__ import annotations

from itertools import count, pairwise

import pytest
from toys_text import tokenizer_folder

from nasdistill_tasks.causal_lm import CausalLM
from nasdistill_tasks.masked_lm import MaskedLM
from nasdistill_tasks.sentence_similarity import SentenceSimilarity
from nasdistill_tasks.text_classification import TextClassification

TASKS = (TextClassification, SentenceSimilarity, MaskedLM, CausalLM)
TABLES = TASKS[:2]

FREE = {
    "metric": ("mcc", "bits_per_byte"),  # how a student is judged
    "positive": ("good",),  # likewise
    "score_range": ((-1, 9),),  # likewise: the loss beside the metric
    "vocabulary": (500,),  # ids that models know, not those that texts become
    "reference_length": (5,),  # of costs
}
"""Options that change no batch, with values."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write the data; return what every option is changed from and to, by task, as options that differ in it alone."""
    folder = tmp_path_factory.mktemp("data")
    words = str(tokenizer_folder(folder / "words"))
    numbers, animals = ("one", "two", "red", "blue", "old"), ("cat", "dog", "tree")

    def lines(name, form, rows=60):
        (folder / name).write_text("".join(form(i, animals[i % 3], numbers[i % 5]) + "\n" for i in range(rows)))
        return str(folder / name)

    for kind, word in ((TextClassification, ("bad", "good")), (SentenceSimilarity, (1, 2))):

        def row(i, animal, number, word=word):
            return f"the {animal} ran {i}\ta {number} house\t{word[i % 2]}\t{i % 3}"

        lines(f"{kind.__name__}.tsv", row)
        lines(f"{kind.__name__}-b.tsv", lambda i, animal, number, row=row: row(i, number, animal))
    lines("texts.tsv", lambda i, animal, number: f"{animal};{number};{i % 2};red\thouse\t{i % 3}")
    lines("a.txt", lambda i, animal, number: f"the {animal} ran on the {number}", 300)
    lines("b.txt", lambda i, animal, number: f"a {animal} was {number}", 300)

    def changes(kind):
        table = kind in TABLES
        first, other = (kind.__name__ + ".tsv", kind.__name__ + "-b.tsv") if table else ("a.txt", "b.txt")
        base = {"data": str(folder / first), "tokenizer": words}
        if table:
            base |= {"text_column": 0, "pair_column": 1, "label_column": 2, "header": False}
        elif kind is CausalLM:
            base |= {"layout": "lines"}
        found = {
            "data": (None, str(folder / other)), "validation_data": (None, str(folder / other)),
            "test_data": (None, str(folder / other)), "tokenizer": (None, "chars"), "max_length": (128, 5),
            "pad_to_multiple_of": (1, 96), "validation_share": (0.1, 0.2), "test_share": (0.1, 0.2),
            "layout": ("packed", "lines"), "mask_share": (0.15, 0.5), "split_seed": (0, 1), "text_column": (0, 3),
            "pair_column": (1, 3), "label_column": (2, 3), "header": (False, True), "delimiter": ("\t", ";"),
            "classes": (("bad", "good"), ("good", "bad")),
        }  # fmt: skip
        cases = {}
        for name, values in found.items():
            here = {**base, **({"data": str(folder / "texts.tsv")} if name == "delimiter" else {})}
            cases[name] = [here if value is None else {**here, name: value} for value in values]
        return base, cases

    return changes


def state(kind, cache, options):
    """Return the fingerprint, and everything that batches hold."""
    task = kind(options)
    task.prepare(cache)
    held = []
    for split in ("train", "validation", "test"):
        for batch in task.batches(split, batch_size=32):
            held += [*batch.inputs.values(), *([] if batch.labels is None else [batch.labels])]
    return task.fingerprint, [(tuple(each.shape), each.flatten().tolist()) for each in held]


@pytest.mark.parametrize("kind", TASKS)
def test_every_option_changes_the_fingerprint_or_no_batch(tmp_path, files, kind):
    base, changes = files(kind)
    unknown = set(kind.options_model.model_fields) - set(changes) - set(FREE)
    assert not unknown, "say whether these change batches"
    usual, number = state(kind, tmp_path / "shared", base), count()
    for name in kind.options_model.model_fields:
        if name in FREE:
            value = FREE[name][-1 if kind not in TABLES else 0]
            assert state(kind, tmp_path / "shared", {**base, name: value}) == usual, name
            continue
        found = []
        for options in changes[name]:
            found.append(state(kind, tmp_path / "shared", options))
            assert found[-1] == state(kind, tmp_path / str(next(number)), options), f"{name}: not what the options say"
        for one, other in pairwise(found):
            assert one[1] != other[1], f"{name}: the values make no difference, so nothing is tested"
            assert one[0] != other[0], name


@pytest.mark.parametrize("kind", TABLES)
def test_the_same_bytes_are_read_by_their_suffix(tmp_path, files, kind):
    base, _ = files(kind)
    found = {}
    for suffix in (".csv", ".tsv"):
        path = tmp_path / f"a{suffix}"
        path.write_text("".join(f'"the cat, old",{i % 2},{i % 3}\n' for i in range(60)))
        options = {**base, "data": str(path), "delimiter": ","}
        found[suffix] = state(kind, tmp_path / "shared", options)
        assert found[suffix] == state(kind, tmp_path / suffix, options)
    assert found[".csv"][0] != found[".tsv"][0]
    assert found[".csv"][1] != found[".tsv"][1]


def test_options_that_say_what_is_found_anyway_change_nothing(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\n" + "".join(f"text {i}\t{i % 2}\n" for i in range(40)))
    said: list[str] = []
    found = set()
    for options in ({}, {"header": True}, {"delimiter": "\t"}, {"text_column": "text"}):
        task = TextClassification({"data": str(path), **options})
        task.prepare(tmp_path / "cache", said.append)
        found.add(task.fingerprint)
    assert len(found) == len(said) == 1


def test_a_header_that_was_taken_for_a_text_is_none_when_told(tmp_path):
    """What was tokenised with the header as a text is not found again."""
    path = tmp_path / "a.tsv"
    path.write_text("Phrase\tgood\n" + "".join(f"Phrase {i}\t{('bad', 'good')[i % 2]}\n" for i in range(60)))
    sizes, prints = [], []
    for header in (None, True):
        task = TextClassification({"data": str(path), "text_column": 0, "label_column": 1, "header": header})
        task.prepare(tmp_path / "cache")
        sizes.append(sum(task.size(split) for split in ("train", "validation", "test")))
        prints.append(task.fingerprint)
    assert sizes == [61, 60]
    assert prints[0] != prints[1]
