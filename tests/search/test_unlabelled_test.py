"""A search on texts whose test split keeps its labels to itself (-1), as those of GLUE do."""

from __future__ import annotations

import pytest
from toys_search import tiny
from toys_text import WORDS, tokenizer_folder

from nasdistill.bridge.random_models import save_random_model
from nasdistill.cli.search import closing_lines
from nasdistill.host import Host
from nasdistill.report import write_report
from nasdistill.search.run import resume_search, run_search
from nasdistill.store import RunDirectory


def test_a_test_split_without_labels_ends_no_search(tmp_path, monkeypatch):
    monkeypatch.setenv("NASDISTILL_CACHE", str(tmp_path / "cache"))
    data, teacher, run = tmp_path / "data", tmp_path / "teacher", tmp_path / "run"
    data.mkdir()
    for split, rows in {"train": 24, "validation": 8, "test": 6}.items():
        lines = [f"{WORDS[i]} {WORDS[i + 7]}\t{-1 if split == 'test' else i % 2}" for i in range(rows)]
        (data / f"{split}.tsv").write_text("\n".join(["text\tlabel", *lines, ""]))
    save_random_model(teacher, "bert", "classes")
    tokenizer_folder(teacher)
    config = tiny(
        data, task={"name": "text_classification", "options": {"data": str(data), "max_length": 8}},
        teacher={"name": f"hf:{teacher}"}, space=[{"name": "encoder"}], proxy=[{"name": "params"}],
        search__strategy="exhaustive", search__strategy_options={"epochs": 1}, search__trials=1,
    )  # fmt: skip

    def cut(event):
        if event.text.startswith("no test scores"):
            raise KeyboardInterrupt

    host = Host.load(third_party=False)
    with pytest.raises(KeyboardInterrupt):
        run_search(config, run, host=host, listener=cut)
    events = []
    result = resume_search(run, host=host, listener=events.append)
    assert result["state"] == "finished"
    assert [item["test_score"] for item in (result["teacher"], *result["front"])] == [None, None]
    assert not any("evaluating the teacher and" in event.text for event in events)
    assert any("the test split has no labels" in line for line in closing_lines(result))
    baselines = RunDirectory.open(run).read("baselines.json")["baselines"]
    assert baselines
    assert all(item["score"] is not None and item["test_score"] is None for item in baselines)
    page = write_report(RunDirectory.open(run), host).path.read_text(encoding="utf-8")
    assert "There are no test scores: the test split has no labels." in page
    assert "not known yet" not in page
