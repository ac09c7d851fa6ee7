"""How often the models answer the same."""

from __future__ import annotations

import torch

from nasdistill.interfaces import Diagnostic, Finding, Site

LOGITS = Site("logits")


class Agreement(Diagnostic):
    """See the module's text."""

    def examine(self, models, task, batches, tracer):
        answers = {
            name: torch.cat([tracer(model, batch, frozenset({LOGITS})).logits for batch in batches]).argmax(1)
            for name, model in models.items()
        }
        first = next(iter(answers.values()))
        rows = [{"model": name, "same": float((found == first).double().mean())} for name, found in answers.items()]
        figure = {"data": [{"type": "bar", "x": [r["model"] for r in rows], "y": [r["same"] for r in rows]}]}
        return Finding(
            {"agreement": min(row["same"] for row in rows)}, {"with the first": rows}, {"agreement": figure},
            "Where all answer the same, nothing is left to be taught.",
        )
