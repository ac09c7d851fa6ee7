"""What finished runs say about distillation pipelines: importance of the choices, and the N best for a new task.

Every distilled student of the given runs is a row: the factors of its pipeline (losses, mapping, temperature, weights,
augmentation), features of its task (kind of input, samples, outputs, the teacher's score and size, the student's size
relative to it), and

    ratio = student score / teacher score        (inverted where a lower score is better)

A forest of random trees and gradient-boosted trees, averaged, learns the ratio. Recommended are the pipelines, of all
combinations of the factors that were seen, with the highest predicted ratio for the new task: train those N, the
prediction is only a way to choose them. The new task's own features are those of its data and of the teacher, which is
evaluated on the validation split (where that has no labels, the runs' mean score stands in). The importance of a factor
is how much the error on held-out rows grows when its column is shuffled there, relative to the error of always
predicting the mean; beside it stands the rank correlation of predicted and true ratios on held-out rows. Where that is
near 0 the runs do not say what works.

Cost: seconds for thousands of rows, and one pass of the teacher over the validation split.

Source: AutoDistiller in "Distiller: A Systematic Study of Model Distillation Methods in NLP", arXiv 2109.11105. There a
data set's texts are embedded among the features; here their place is taken by the plain features above.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import Field, field_validator
from torch import nn

import nasdistill
from nasdistill.distill import evaluate
from nasdistill.errors import UsageError
from nasdistill.interfaces import Batch, Diagnostic, Example, Finding, Task, Tracer
from nasdistill.spec.options import ComponentOptions

FACTORS = (
    "logit", "temperature", "logit_weight", "intermediate", "intermediate_weight", "mapping", "alpha", "task_weight",
    "mixup", "token_noise",
)  # fmt: skip
"""What a pipeline is described by: the axes of the space `kd_pipeline`."""
FEATURES = ("tokens", "log_samples", "log_outputs", "teacher_score", "log_teacher_params", "size_ratio")
LOGIT_LOSSES = ("kd", "logit_mse", "logit_kl", "distilbert")
_FOLDS, _MOST = 5, 20_000

Row = dict[str, Any]


class AutoDistillerOptions(ComponentOptions):
    """Where the rows come from, and how many pipelines to name."""

    runs: tuple[str, ...] = Field((), description="Finished runs to learn from; one may stand without brackets.")
    records: tuple[dict[str, str | float | int | None], ...] = Field(
        (), description="Further rows: factors, features and `ratio`."
    )
    recommend: int = Field(5, ge=1, description="How many pipelines to name.")
    trees: int = Field(200, ge=10, le=5000, description="Trees of the forest.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the trees and shuffles.")

    @field_validator("runs", mode="before")
    @classmethod
    def _one_run(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


def rows_of(run: Any) -> list[Row]:
    """Return a row for every student of a run (:class:`nasdistill.Run`) that was distilled in full.

    Raises:
        UsageError: the run has no teacher's score.
    """
    teacher, config = run.teacher, run.config
    if not teacher.get("score"):
        raise UsageError(f"{run.path} has no teacher's score to compare with")
    better = run.metric.get("higher_is_better", True)
    found = []
    for student in run.students:
        if student.state != "complete" or student.score is None:
            continue
        pair = (student.score, teacher["score"]) if better else (teacher["score"], student.score)
        ratio = pair[0] / pair[1] if pair[1] else math.nan
        params = student.architecture.params
        own = {name: params[f"kd.{name}"] for name in FACTORS if f"kd.{name}" in params}
        features = task_features(
            student.io,
            samples=run.samples,
            score=teacher["score"],
            teacher=teacher.get("params"),
            student=student.params,
        )
        found.append({**(own or configured(config)), **features, "ratio": ratio})
    return [row for row in found if math.isfinite(row["ratio"])]


def configured(config: Any) -> Row:
    """Return the factors of a run's own objective (:class:`nasdistill.spec.config.RunConfig`)."""
    row: Row = {"task_weight": _plain(config.objective.task_weight), "intermediate": "none", "logit": "none"}
    row |= {"mixup": config.training.mixup, "token_noise": config.training.token_noise}
    for loss in config.objective.losses:
        name = loss.name.rpartition(":")[2]
        place = "logit" if name in LOGIT_LOSSES else "intermediate"
        row |= {place: name, f"{place}_weight": _plain(loss.weight)}
        row |= {key: loss.options[key] for key in ("temperature", "mapping", "alpha") if key in loss.options}
    return row


def _plain(weight: Any) -> float:
    """Return a weight, of a schedule its end."""
    return float(getattr(weight, "end", weight))


def task_features(
    io: Any, *, samples: int | None, score: float, teacher: int | None, student: int | None
) -> dict[str, float | None]:
    """Return the features of a task and a pair of models; None where unknown."""
    return {
        "tokens": float(io.kind == "tokens"),
        "log_samples": None if not samples else math.log10(samples),
        "log_outputs": math.log10(max(1, io.outputs)),
        "teacher_score": float(score),
        "log_teacher_params": None if not teacher else math.log10(teacher),
        "size_ratio": None if not teacher or not student else student / teacher,
    }


class Model:
    """The averaged trees over encoded rows.

    Args:
        rows: at least one; categories and numbers are told apart by what they hold.
        trees: of the forest.
        seed: of the trees.
    """

    def __init__(self, rows: Sequence[Row], *, trees: int, seed: int) -> None:
        from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor, VotingRegressor

        self.columns: dict[str, list[Any] | None] = {}  # factor -> its categories, None for a number
        for name in (*FACTORS, *FEATURES):
            values = {row.get(name) for row in rows} - {None}
            words = sorted(value for value in values if isinstance(value, str))
            self.columns[name] = words or None
        self._regressor = VotingRegressor(
            [
                ("forest", RandomForestRegressor(trees, random_state=seed, min_samples_leaf=2)),
                ("boosted", GradientBoostingRegressor(random_state=seed, max_depth=3)),
            ]
        )
        self._regressor.fit(self.encode(rows), np.array([row["ratio"] for row in rows], dtype=float))

    def encode(self, rows: Sequence[Row]) -> np.ndarray:
        """Return ``(rows, columns)``: categories one-hot, numbers as they are, -1 where there is none."""
        out = []
        for row in rows:
            line: list[float] = []
            for name, categories in self.columns.items():
                value = row.get(name)
                if categories is None:
                    line.append(-1.0 if value is None or isinstance(value, str) else float(value))
                else:
                    line += [float(value == category) for category in categories]
            out.append(line)
        return np.array(out, dtype=float)

    def predict(self, rows: Sequence[Row]) -> np.ndarray:
        """Return the predicted ratios."""
        return np.asarray(self._regressor.predict(self.encode(rows)))


def importance(rows: Sequence[Row], *, trees: int, seed: int) -> tuple[dict[str, float], float]:
    """Return factor -> growth of the held-out error when it is shuffled, and the held-out rank correlation.

    The growth is relative to the variance of the ratios: 0 says that nothing is lost without the factor.
    """
    from scipy.stats import spearmanr
    from sklearn.model_selection import KFold

    truth = np.array([row["ratio"] for row in rows])
    spread = float(truth.var()) or 1.0
    rng = np.random.default_rng(seed)
    grown = {name: 0.0 for name in FACTORS if len({row.get(name) for row in rows}) > 1}
    predicted = np.zeros(len(rows))
    for train, test in KFold(min(_FOLDS, len(rows)), shuffle=True, random_state=seed).split(truth):
        model = Model([rows[i] for i in train], trees=trees, seed=seed)
        held = [rows[i] for i in test]
        predicted[test] = model.predict(held)
        base = ((predicted[test] - truth[test]) ** 2).sum()
        for name in grown:
            order = rng.permutation(len(held))
            shuffled = [{**row, name: held[j].get(name)} for row, j in zip(held, order, strict=True)]
            grown[name] += float(((model.predict(shuffled) - truth[test]) ** 2).sum() - base)
    correlation = float(spearmanr(predicted, truth).statistic) if truth.std() and predicted.std() else 0.0
    return {name: value / len(rows) / spread for name, value in grown.items()}, correlation


def candidates(rows: Sequence[Row], *, seed: int) -> list[Row]:
    """Return the combinations of the factors' values that were seen; a drawn part where there are very many.

    What does not matter is left out: no weight, mapping or alpha without a loss between layers.
    """
    values = {name: sorted({row[name] for row in rows if row.get(name) is not None}, key=str) for name in FACTORS}
    values = {name: found for name, found in values.items() if found}
    total = math.prod(len(found) for found in values.values())
    if total <= _MOST:
        drawn = [dict(zip(values, one, strict=True)) for one in itertools.product(*values.values())]
    else:
        rng = random.Random(seed)
        drawn = [{name: rng.choice(found) for name, found in values.items()} for _ in range(_MOST)]
    unique = {}
    for row in drawn:
        if row.get("intermediate", "none") == "none":
            row = {k: v for k, v in row.items() if k not in ("intermediate_weight", "mapping", "alpha")}
        elif row.get("intermediate") != "mi_alpha":
            row = {k: v for k, v in row.items() if k != "alpha"}
        if row.get("task_weight") or row.get("logit_weight") or row.get("intermediate_weight"):
            unique[tuple(sorted(row.items()))] = row
    return list(unique.values())


def _score(teacher: nn.Module | None, task: Task) -> float | None:
    """Return a teacher's score on the validation split; None without a teacher, labels, or a finite score."""
    if teacher is None or not task.has_labels("validation") or not task.size("validation"):
        return None
    score = evaluate(teacher, task).score
    return score if math.isfinite(score) else None


def _doubt(runs: Sequence[str]) -> str:
    """Return what to think of runs whose teacher was at chance; nothing where there is none."""
    if not runs:
        return ""
    return (
        f" Warning: the teacher of {', '.join(runs)} was hardly or no better than chance. How its students compare "
        "with it says nothing of the pipelines, and may be far above 1: leave these runs out."
    )


class AutoDistiller(Diagnostic):
    """See the module's text; the teacher is evaluated, other models are only counted; the task is the new one."""

    options_model = AutoDistillerOptions
    options: AutoDistillerOptions
    examples = (
        Example(
            {
                "records": [
                    {"logit": logit, "intermediate": between, "temperature": t, "logit_weight": 1.0,
                     "intermediate_weight": 0.5, "ratio": 0.9 + 0.05 * (between == "mi_alpha") - 0.01 * t}
                    for logit in ("kd", "logit_mse") for between in ("none", "pkd", "mi_alpha") for t in (1.0, 4.0)
                ],
                "trees": 10,
                "recommend": 2,
            }
        ),
    )  # fmt: skip

    @cached_property
    def _learned_from(self) -> tuple[list[Row], list[str]]:
        """The rows, and the runs whose teacher was warned of as being at chance."""
        rows: list[Row] = [dict(row) for row in self.options.records]
        at_chance = []
        for path in self.options.runs:
            run = nasdistill.load_run(path)
            rows += rows_of(run)
            if run.teacher.get("warning"):
                at_chance.append(path)
        if len(rows) < 10 or not any(len({row.get(name) for row in rows}) > 1 for name in FACTORS):
            raise UsageError(
                f"{self.id}: {len(rows)} distilled students are too few to learn from, it takes 10"
                if len(rows) < 10
                else f"{self.id}: all {len(rows)} students were distilled alike; there is no choice to learn about",
                hint='Give runs of the space kd_pipeline: --set runs=\'["runs/a", "runs/b"]\'.',
            )
        return rows, at_chance

    def check(self) -> None:
        """Read the runs, and refuse those that nothing can be learned from; see :class:`Diagnostic`.

        Raises:
            UsageError: a run is not there, fewer than 10 students were distilled in all, or all in the same way.
        """
        self._learned_from  # noqa: B018  (read once, and kept for `examine`)

    def examine(self, models: Mapping[str, nn.Module], task: Task, batches: Sequence[Batch], tracer: Tracer) -> Finding:
        """Return importance and recommendations; see :class:`Diagnostic`.

        Raises:
            UsageError: fewer than 10 students were distilled in the runs given, or all in the same way.
        """
        rows, at_chance = self._learned_from
        trees, seed = self.options.trees, self.options.seed
        grown, correlation = importance(rows, trees=trees, seed=seed)
        model = Model(rows, trees=trees, seed=seed)
        sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in models.items()}
        own = _score(models.get("teacher"), task)
        known = [row["teacher_score"] for row in rows if row.get("teacher_score") is not None]
        usual = float(np.mean(known)) if known else 1.0
        new = task_features(
            task.io, samples=task.size("train"), score=usual if own is None else own,
            teacher=sizes.get("teacher"),
            student=next((size for name, size in sizes.items() if name != "teacher"), None),
        )  # fmt: skip
        pipelines = candidates(rows, seed=seed)
        predicted = model.predict([{**row, **new} for row in pipelines])
        best = np.argsort(-predicted, kind="stable")[: self.options.recommend]
        ordered = sorted(grown.items(), key=lambda item: -item[1])
        return Finding(
            values={
                "rows": len(rows),
                "held_out_spearman": correlation,
                "pipelines": len(pipelines),
                **({} if own is None else {"teacher_score": own}),
            },
            tables={
                "recommended": [{**pipelines[i], "predicted_ratio": float(predicted[i])} for i in best],
                "importance": [{"factor": name, "error_growth": value} for name, value in ordered],
            },
            figures={
                "importance": {
                    "data": [
                        {"type": "bar", "orientation": "h", "x": [v for _, v in ordered], "y": [n for n, _ in ordered]}
                    ],
                    "layout": {"title": {"text": "Growth of the held-out error without the factor"}},
                }
            },
            text=(
                f"Learned from {len(rows)} students; predicted and true ratios of held-out students agree with a rank "
                f"correlation of {correlation:+.2f}. Train the recommended pipelines: a prediction is no result."
                + _doubt(at_chance)
                + ("" if own is not None else f" The teacher's score on this task is not known; {usual:.4f} was taken.")
            ),
        )
