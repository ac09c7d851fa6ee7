"""Latent attention in the place of every layer's attention, started from the layer's weights.

Each layer gets the attention variant `mla`: a joint singular value decomposition of its keys and values, cut to a fixed
rank, to a share of the cache, or, layer by layer, where the spectrum has reached a share of its energy. The first and
the last layer may keep a rank of their own. Embeddings, norms, output projections and MLPs are copied. The ranks that
came out are in the report, and in the config, from which a fresh model gets the same structure.

Cost: two singular value decompositions per layer, O(C^3).

Source: "X-EcoMLA: Upcycling Pre-Trained Attention into MLA for Efficient and Extreme KV Compression", arXiv 2503.11132.
What follows there, distillation of the logits from the model itself or a larger one, is a training like any other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from nasdistill.bridge.attention import apply_attention, set_attention
from nasdistill.bridge.views import attention_views
from nasdistill.errors import DataError
from nasdistill.interfaces import Batch, Example, Transform, Transformed
from nasdistill.spec.options import ComponentOptions


class MLAUpcycleOptions(ComponentOptions):
    """Options of the conversion."""

    kv_rank: int | None = Field(None, ge=1, description="The same rank for every layer.")
    energy: float | None = Field(None, gt=0, le=1, description="Share of the squared singular values to keep at most.")
    cache: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Cached numbers as a share of softmax attention's; where no rank and energy is given.",
    )
    edge_rank: int | None = Field(None, ge=1, description="Rank of the first and the last layer, if another one.")
    layers: tuple[int, ...] | None = Field(None, description="Layers to convert; all unless given.")
    variant: dict[str, Any] = Field(
        default_factory=dict, description="Further options of the attention variant mla (q_rank, rope_dim, init ...)."
    )

    @model_validator(mode="after")
    def _one_rule(self) -> MLAUpcycleOptions:
        if self.kv_rank is not None and self.energy is not None:
            raise ValueError("give kv_rank or energy, not both")
        twice = sorted({"kv_rank", "energy", "cache"} & set(self.variant))
        if twice:
            raise ValueError(f"variant holds {', '.join(twice)}, which are options of their own here")
        return self


class MLAUpcycle(Transform):
    """Converts every layer to latent attention."""

    options_model = MLAUpcycleOptions
    options: MLAUpcycleOptions
    # A network whose attention is a module of its own: where a block attends itself, nothing can take the place.
    examples = (
        Example(
            {"energy": 0.9, "edge_rank": 12}, {"model": "nasdistill.testing.kit.attention:SmallEncoder"}, name="energy"
        ),
        Example(
            {"cache": 1.0, "variant": {"q_rank": "full"}},
            {"model": "nasdistill.testing.kit.attention:SmallEncoder"},
            name="identity",
        ),
    )

    def apply(
        self, model: nn.Module, calibration: Sequence[Batch], forward: Callable[[nn.Module, Batch], Tensor]
    ) -> Transformed:
        """Return the converted copy; the calibration data only shows where the model attends.

        Raises:
            DataError: there is no calibration batch.
            MismatchError: a layer has no attention of the kind that can be converted.
        """
        run = tiny_run(calibration, forward, self.id)
        views = attention_views(model, run)
        order = sorted(views)
        chosen = [layer for layer in order if self.options.layers is None or layer in self.options.layers]
        made = copy.deepcopy(model)
        record = set_attention(
            made,
            {layer: ("mla", self._options(layer in (order[0], order[-1]))) for layer in chosen},
            self.host,
            run=run,
        )
        rows = []
        for path, spec in record:
            geometry, options = views[spec["layer"]].geometry, spec["options"]
            before = geometry.kv_heads * (geometry.head_dim + geometry.value_dim)
            rows.append(
                {
                    "layer": spec["layer"], "path": path, "kv_rank": options["kv_rank"], "q_rank": options["q_rank"],
                    "cached": options["kv_rank"] + options["rope_dim"], "cached_before": before,
                }
            )  # fmt: skip
        kept = sum(row["cached"] for row in rows) + sum(
            view.geometry.kv_heads * (view.geometry.head_dim + view.geometry.value_dim)
            for layer, view in views.items()
            if layer not in chosen
        )
        whole = sum(v.geometry.kv_heads * (v.geometry.head_dim + v.geometry.value_dim) for v in views.values())
        return Transformed(
            made, {"layers": rows, "cache_share": kept / whole}, {"record": [list(entry) for entry in record]}
        )

    def rebuild(self, model: nn.Module, config: Mapping[str, Any]) -> nn.Module:
        """Return a copy of an unconverted model with the recorded structure."""
        return apply_attention(copy.deepcopy(model), config["record"], self.host)

    def _options(self, edge: bool) -> dict[str, Any]:
        chosen = self.options
        if edge and chosen.edge_rank is not None:
            return {**chosen.variant, "kv_rank": chosen.edge_rank}
        return {**chosen.variant, "kv_rank": chosen.kv_rank, "energy": chosen.energy, "cache": chosen.cache}


def tiny_run(
    calibration: Sequence[Batch], forward: Callable[[nn.Module, Batch], Tensor], who: str
) -> Callable[[nn.Module], Tensor]:
    """Return one forward on the first two samples, for dry runs.

    Raises:
        DataError: there is no batch.
    """
    if not calibration:
        raise DataError(f"{who} needs a calibration batch, to see where the model attends")
    first = calibration[0]
    few = first.select(torch.arange(min(2, first.size), device=first.ids.device))
    return lambda model: forward(model, few)
