"""Which axes of a search space mattered, for the score and for the latency.

fANOVA (Hutter, Hoos and Leyton-Brown, "An efficient approach for assessing hyperparameter importance", ICML 2014), as
Optuna computes it: a random forest predicts the objective, and an axis is worth the share of the prediction's variance
that it explains by itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from nasdistill.interfaces import Section
from nasdistill.report.charts import Bar, bars
from nasdistill.report.markup import figure, listed, paragraph, short

LEAST = 20
"""Students of a space below which shares would be noise."""

MOST = 300
"""Students that the forest learns from, the latest."""


def importance(run: Mapping[str, Any]) -> Section | None:
    """Return the importances for every space with enough students, or why there are none."""
    spaces = run.get("axes", {})
    title = "Which axes mattered"
    if not spaces:
        return Section(
            title, paragraph("The search spaces of this run are not installed here: their axes are unknown.")
        )
    primary = next(iter(run["teacher"]["latency_ms"]), None)
    rung = common_rung(run)
    html: list[str] = []
    left_out: list[str] = []
    found: dict[str, dict[str, float]] = {}
    for space, axes in spaces.items():
        always = [axis for axis in axes if axis["always"] and len(axis["choices"]) > 1]
        own = [o for o in run.get("outcomes", []) if (o.get("architecture") or {}).get("space") == space]
        objectives = {
            f"score after rung “{rung}”": [
                (o["architecture"]["params"], o["results"][rung]["score"]) for o in own if rung in o.get("results", {})
            ],
            f"latency on {short(primary)}": [
                (o["architecture"]["params"], o["targets"][primary]["latency"]["value_ms"])
                for o in own
                if primary in o.get("targets", {})
            ],
        }
        for objective, rows in objectives.items():
            rows = rows[-MOST:]
            values = {value for _, value in rows}
            if len(rows) < LEAST or len(values) < 2 or len(always) < 2:
                why = (
                    f"only {len(rows)} student{'s' * (len(rows) != 1)}, {LEAST} are the least"
                    if len(rows) < LEAST
                    else "the values do not differ"
                    if len(values) < 2
                    else "fewer than two axes that every student has"
                )
                left_out.append(f"{short(space)}, {objective}: not computed ({why}).")
                continue
            shares = axis_importance(always, rows)
            found[f"{space} {objective}"] = shares
            drawn = [Bar(name, value, f"{value:.0%}") for name, value in list(shares.items())[:10]]
            html.append(figure(bars(drawn, title=f"Importance in {short(space)} for {objective}"),
                               f"{short(space)}: {objective}, {len(rows)} students."))  # fmt: skip
    note = paragraph(
        "Share of the variance that an axis explains by itself (fANOVA). Only axes that every architecture of the "
        "space has are compared. The students were chosen by the search, not drawn at random, so an axis that it "
        "settled early looks less important than it is.",
        "note",
    )
    plots = f'<div class="two">{"".join(html)}</div>' if html else ""
    return Section(title, note + plots + (listed(left_out) if left_out else ""), {"importance": found})


def common_rung(run: Mapping[str, Any]) -> str:
    """Return the rung that most students went through: their scores are comparable."""
    counts: dict[str, int] = {}
    for outcome in run.get("outcomes", []):
        for rung in outcome.get("results", {}):
            counts[rung] = counts.get(rung, 0) + 1
    return max(counts, key=lambda rung: counts[rung]) if counts else "short"


def axis_importance(
    axes: Sequence[Mapping[str, Any]], rows: Sequence[tuple[Mapping[str, Any], float]]
) -> dict[str, float]:
    """Return axis -> share of the variance, the largest first; the shares sum to 1.

    Args:
        axes: ``name`` and ``choices`` of each; every row has a value for all of them.
        rows: (parameters, objective), at least two with different objectives.
    """
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution
    from optuna.importance import FanovaImportanceEvaluator

    spread: dict[str, BaseDistribution] = {
        axis["name"]: CategoricalDistribution(tuple(axis["choices"]))
        for axis in axes
        if len({params[axis["name"]] for params, _ in rows}) > 1
    }
    if not spread:
        return {}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study()
            study.add_trials(
                [
                    optuna.trial.create_trial(
                        params={name: params[name] for name in spread}, distributions=dict(spread), value=float(value)
                    )
                    for params, value in rows
                ]
            )
            shares = optuna.importance.get_param_importances(
                study, evaluator=FanovaImportanceEvaluator(n_trees=32, max_depth=32, seed=0)
            )
    finally:
        optuna.logging.set_verbosity(verbosity)
    return {name: float(value) for name, value in sorted(shares.items(), key=lambda item: -item[1])}
