"""How alike the attention maps of a model's layers are: which layers could share one.

    similarity(l, m) = mean over samples, heads and queries of cos(A_l[b, h, i, :], A_m[b, h, i, :])

and the same of what the rows differ in from flat ones (corrected), since flat rows are alike whatever the layers do.
The mean entropy of each layer's rows, as a share of a flat row's, says how flat they are (see
:mod:`nasdistill.trace.similarity`). Layers with other numbers of heads or tokens have no similarity.

Cost: one forward of each model per batch, and L^2 H N^2 multiply-accumulates per sample for L layers.

Source: the analysis in "EchoAtt: Attend, Copy, then Adjust for More Efficient Large Language Models", arXiv 2409.14595,
which finds inner layers alike, the first and the last not, and larger models more so. The correction and the entropies
are ours: untrained models, too, have a plain similarity near 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from torch import nn

from nasdistill.errors import MismatchError
from nasdistill.interfaces import Batch, Diagnostic, Finding, Site, Task, Tracer
from nasdistill.spec.options import ComponentOptions
from nasdistill.trace import describe, valid_tokens
from nasdistill.trace.similarity import MapSimilarity

Matrix = list[list[float | None]]


class AttentionSimilarityOptions(ComponentOptions):
    """Options of the attention similarity."""

    threshold: float = Field(0.8, ge=-1, le=1, description="From which similarity neighbouring layers are counted.")


class AttentionSimilarity(Diagnostic):
    """Layer by layer similarity of attention maps, plain and corrected."""

    options_model = AttentionSimilarityOptions
    options: AttentionSimilarityOptions

    def examine(self, models: Mapping[str, nn.Module], task: Task, batches: Sequence[Batch], tracer: Tracer) -> Finding:
        """Return both maps of every model with attention.

        Raises:
            MismatchError: no model has attention that can be captured.
        """
        values: dict[str, float] = {}
        tables: dict[str, list[dict[str, Any]]] = {}
        figures: dict[str, dict[str, Any]] = {}
        without = []
        for name, model in models.items():
            seen = _seen(model, task, batches, tracer)
            if seen is None:
                without.append(name)
                continue
            plain, corrected = seen.plain(), seen.corrected()
            tables[f"{name}: similarity"] = _rows(seen.layers, plain)
            tables[f"{name}: corrected similarity"] = _rows(seen.layers, corrected)
            tables[f"{name}: layers"] = [
                {"layer": layer, "entropy": entropy, "similarity to the layer before": before, "corrected": sharper}
                for layer, entropy, before, sharper in zip(
                    seen.layers, seen.entropy(), [None, *_neighbours(plain)], [None, *_neighbours(corrected)],
                    strict=True,
                )
            ]  # fmt: skip
            figures[f"{name}: similarity"] = _heatmap(f"{name}: similarity of attention", seen.layers, plain, 0)
            figures[f"{name}: corrected similarity"] = _heatmap(
                f"{name}: similarity beyond flat maps", seen.layers, corrected, -1
            )
            for label, matrix in (("similarity", plain), ("corrected similarity", corrected)):
                known = [value for value in _neighbours(matrix) if value is not None]
                if known:
                    values[f"{name}: mean {label} of neighbours"] = sum(known) / len(known)
                    values[f"{name}: neighbours with {label} from {self.options.threshold:g}"] = float(
                        sum(value >= self.options.threshold for value in known)
                    )
        if not tables:
            raise MismatchError(
                f"{', '.join(models) or 'no model'}: no attention that could be compared",
                hint="Attention is seen where it runs as scaled_dot_product_attention.",
            )
        text = (
            "A similarity of 1 means that two layers attend alike: they could share one map. Where entropies are near "
            "1 maps are nearly flat and alike for that reason alone; the corrected similarity is then the one to read."
        )
        missing = f" Without attention: {', '.join(without)}." if without else ""
        return Finding(values, tables, figures, text + missing)


def _seen(model: nn.Module, task: Task, batches: Sequence[Batch], tracer: Tracer) -> MapSimilarity | None:
    """Return the similarities of a model, looked at in eval mode; None where it has no attention."""
    if not batches:
        return None
    few = batches[0].select(batches[0].ids.new_tensor(range(min(2, batches[0].size))))
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        geometry = describe(model, lambda m: task.forward(m, few))
        sites = sorted(site for site in geometry.sites if site.name == "attention")
        found = MapSimilarity()
        for batch in batches if sites else ():
            _add(found, model, batch, sites, tracer)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return found if found.layers else None


def _add(found: MapSimilarity, model: nn.Module, batch: Batch, sites: Sequence[Site], tracer: Tracer) -> None:
    trace, valid = tracer(model, batch, frozenset(sites)), valid_tokens(batch)
    signals = {site.layer: trace.signal(site) for site in sites}
    for shape in {signal.tensor.shape for signal in signals.values()}:
        alike = {layer: s for layer, s in signals.items() if s.tensor.shape == shape and layer is not None}
        # What some layer may see: a local layer's map is compared with a global one's over the latter's keys.
        allowed = None
        for signal in alike.values():
            pairs = signal.mask if signal.mask is not None else signal.tensor.new_ones(()).bool()
            pairs = pairs.expand(shape)
            allowed = pairs if allowed is None else allowed | pairs
        rows = valid if valid is not None and tuple(valid.shape) == (shape[0], shape[2]) else None
        found.add({layer: signal.tensor for layer, signal in alike.items()}, allowed, rows)


def _neighbours(matrix: Matrix) -> list[float | None]:
    return [matrix[i][i + 1] for i in range(len(matrix) - 1)]


def _rows(layers: Sequence[int], matrix: Matrix) -> list[dict[str, Any]]:
    """Return the map as a table: one row and one column per layer."""
    columns = [f"layer {layer}" for layer in layers]
    return [
        {"layer": column, **dict(zip(columns, row, strict=True))} for column, row in zip(columns, matrix, strict=True)
    ]


def _heatmap(title: str, layers: Sequence[int], matrix: Matrix, lowest: float) -> dict[str, Any]:
    """Return a plotly figure as plain values."""
    names = [str(layer) for layer in layers]
    axis = {"title": {"text": "layer"}, "type": "category"}
    return {
        "data": [
            {"type": "heatmap", "x": names, "y": names, "z": matrix, "zmin": lowest, "zmax": 1,
             "colorscale": "Viridis" if lowest == 0 else "RdBu", "colorbar": {"title": {"text": "cosine"}}}
        ],
        "layout": {
            "title": {"text": title}, "xaxis": axis, "yaxis": {**axis, "autorange": "reversed", "scaleanchor": "x"},
        },
    }  # fmt: skip
