"""What finished runs say: importance where there is any, recommendations that follow it, refusal of too little."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys_search import tiny, write_digits

from nasdistill.cli import main
from nasdistill.errors import UsageError
from nasdistill.search.run import run_search
from nasdistill.spec.component import Kind
from nasdistill.testing.kit.task import tiny_task
from nasdistill_diagnostics.autodistiller import FACTORS, Model, candidates, importance


def rows(noise: float = 0.002, seed: int = 0):
    """Return rows where the loss between layers decides most, the temperature little, the mapping nothing."""
    rng = np.random.default_rng(seed)
    gain = {"none": 0.0, "pkd": 0.03, "mi_alpha": 0.08}
    return [
        {"intermediate": b, "temperature": t, "mapping": m, "task_weight": 0.5,
         "ratio": 0.85 + gain[b] + 0.004 * t + float(rng.normal(0, noise))}
        for b, t, m, _ in itertools.product(gain, (1.0, 4.0), ("skip", "last"), range(3))
    ]  # fmt: skip


@pytest.mark.paper("2109.11105", "diagnostics:autodistiller")
def test_importance_orders_the_factors_as_they_act():
    found, correlation = importance(rows(), trees=30, seed=0)
    assert found["intermediate"] > found["temperature"] > abs(found["mapping"])
    assert found["intermediate"] > 0.5
    assert correlation > 0.9


def test_without_a_pattern_nothing_is_important():
    rng = np.random.default_rng(1)
    noise = [{**row, "ratio": float(rng.normal(0.9, 0.01))} for row in rows()]
    found, correlation = importance(noise, trees=30, seed=0)
    assert max(found.values()) < 0.5
    assert correlation < 0.5


def test_the_best_pipeline_is_recommended_first():
    model = Model(rows(), trees=30, seed=0)
    found = candidates(rows(), seed=0)
    best = found[int(np.argmax(model.predict(found)))]
    assert (best["intermediate"], best["temperature"]) == ("mi_alpha", 4.0)
    assert all(row["intermediate"] != "none" or "mapping" not in row for row in found)


def test_a_category_that_was_never_seen_is_no_error():
    assert np.isfinite(Model(rows(), trees=10, seed=0).predict([{"intermediate": "new", "temperature": None}])).all()


def test_too_few_students_are_refused(host):
    with pytest.raises(UsageError, match="too few"):
        host.create(Kind.DIAGNOSTIC, "autodistiller", {"records": rows()[:5]}).examine({}, None, (), None)


class Reads(nn.Module):
    """Knows the labels of some digits by their pixels, or answers the same for all."""

    def __init__(self, task, knows: bool) -> None:
        super().__init__()
        [batch] = task.batches("validation", batch_size=1000)
        self.register_buffer("images", batch.image.flatten(1))
        self.register_buffer("answers", F.one_hot(batch.labels if knows else batch.labels * 0, 10).float())

    def forward(self, image):
        return self.answers[torch.cdist(image.flatten(1), self.images).argmin(1)]


@pytest.mark.paper("2109.11105", "diagnostics:autodistiller")
def test_the_new_teachers_own_score_decides(host):
    """Of a good teacher one loss is best, of a bad one the other: the rows say so, and their mean lies between."""
    known = [
        {"logit": logit, "logit_weight": 1.0, "temperature": t, "teacher_score": score,
         "ratio": 0.9 if (logit == "kd") == (score > 0.5) else 0.7}
        for logit, t, score, _ in itertools.product(("kd", "logit_mse"), (1.0, 4.0), (0.1, 0.95), range(3))
    ]  # fmt: skip
    task = tiny_task(samples=100)
    best = {}
    for knows in (True, False):
        diagnostic = host.create(Kind.DIAGNOSTIC, "autodistiller", {"records": known, "trees": 20, "recommend": 1})
        found = diagnostic.examine({"teacher": Reads(task, knows)}, task, (), None)
        assert found.values["teacher_score"] == (1.0 if knows else 0.1)
        best[knows] = found.tables["recommended"][0]["logit"]
    assert best == {True: "kd", False: "logit_mse"}
    unknown = diagnostic.examine({}, task, (), None)
    assert "teacher_score" not in unknown.values
    assert "is not known; 0.5250 was taken" in unknown.text


def test_runs_are_read_and_the_command_prints_what_was_learned(host, tmp_path, capsys):
    data = write_digits(tmp_path / "d.npz", 120)
    options = {
        "student": {"name": "resnet_s0", "options": {"width": [8], "blocks": [1], "stages": [2], "stem_stride": [2]}},
        "temperature": [1.0, 4.0], "logit_weight": [0.0, 1.0], "intermediate": ["none"], "task_weight": [0.0, 0.5],
        "logit": ["kd"], "mixup": [0.0, 0.4],
    }  # fmt: skip
    config = tiny(
        data, space=[{"name": "kd_pipeline", "options": options}], search__strategy="exhaustive",
        search__strategy_options={"epochs": 1}, search__trials=16,
    )  # fmt: skip
    run_search(config, tmp_path / "run", host=host)
    settings = [f"runs={tmp_path / 'run'}", "trees=10", "recommend=3"]
    arguments = [part for text in settings for part in ("--set", text)]
    code = main(
        ["diagnose", "autodistiller", *arguments, "--teacher", "timm:test_resnet", "--data", str(data), "--json",
         "--out", str(tmp_path / "out")]
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert list(found) == ["diagnostic", "values", "tables", "figures", "text"]  # as docs/contracts.md says
    assert found["values"]["rows"] >= 10
    assert (
        f"the teacher of {tmp_path / 'run'} was hardly or no better than chance" in found["text"]
    )  # its weights are random
    assert len(found["tables"]["recommended"]) == 3
    assert {row["factor"] for row in found["tables"]["importance"]} <= set(FACTORS)
    assert (tmp_path / "out" / "importance.html").is_file()
    assert json.loads((tmp_path / "out" / "finding.json").read_text()) == found


@pytest.mark.parametrize(
    ("settings", "message"),
    [((), "0 distilled students are too few"), (("--set", "runs=no/such/run"), "no/such/run")],
)
def test_runs_are_read_before_the_teacher_is_opened(settings, message, capsys):
    assert main(["diagnose", "autodistiller", *settings, "--teacher", "timm:test_resnet"]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "random weights" not in told, "the teacher was opened"


def test_a_student_that_is_not_there_is_told_before_the_teacher_is_opened(capsys):
    assert main(["diagnose", "attention_similarity", "no/such/run", "--teacher", "timm:test_resnet"]) == 2
    told = capsys.readouterr().err
    assert "there is no folder no/such/run" in told
    assert "random weights" not in told, "the teacher was opened"
