"""What the losses on paired layers share: choosing the pairs, a linear map where widths differ, adding up."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from nasdistill.errors import MismatchError
from nasdistill.interfaces import (
    Batch,
    DistillationLoss,
    ModelGeometry,
    Signal,
    Site,
    SiteNeeds,
    StepInfo,
    Terms,
    Trace,
)
from nasdistill_losses._mapping import LayerOptions, combine, map_layers, pair_name
from nasdistill_losses._pairs import Pair, shapes_text
from nasdistill_losses._tokens import align, comparable


class LayerwiseLoss(DistillationLoss):
    """A loss that compares student and teacher pair by pair.

    Attributes:
        name: of the component, for messages.
        shared_map: whether one linear map serves all pairs of the same widths; otherwise each pair has its own.
        pairs: the sites that are compared.
        projectors: the linear maps, by pair or by widths.
    """

    options_model = LayerOptions
    options: LayerOptions
    name: ClassVar[str]
    shared_map: ClassVar[bool] = False

    def build(self, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int]) -> None:
        """Pair the layers and create the maps.

        Raises:
            MismatchError: no such layers, or signals that cannot be compared.
        """
        self.pairs = map_layers(self.options, student, teacher, layer_map, self.name)
        self.projectors = nn.ModuleDict()
        self._map_of: dict[Pair, str] = {}
        for pair in self.pairs:
            self.prepare(student, pair[0], teacher, pair[1])
            widths = student[pair[0]].width, teacher[pair[1]].width
            if widths[0] != widths[1] or self.always_projected():
                key = f"{widths[0]}_to_{widths[1]}" if self.shared_map else pair_name(pair)
                self._map_of[pair] = key
                if key not in self.projectors:
                    self.projectors[key] = nn.Linear(*widths)

    def prepare(self, student: ModelGeometry, ours: Site, teacher: ModelGeometry, theirs: Site) -> None:
        """Refuse a pair that `gather` cannot bring together. Raises MismatchError."""
        if not comparable(student[ours], teacher[theirs]):
            raise MismatchError(
                f"{self.name} cannot compare different tokens: {shapes_text(student, ours, teacher, theirs)}",
                hint="Only image models of known grids can be resized; choose `kd`, `pkd` or `relation`.",
            )

    def always_projected(self) -> bool:
        """Whether equal widths get a map, too."""
        return False

    def sites(self) -> SiteNeeds:
        """The paired layers."""
        return SiteNeeds.of([ours for ours, _ in self.pairs], [theirs for _, theirs in self.pairs])

    def gather(self, pair: Pair, student: Signal, teacher: Signal) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what is compared: the same tokens ``(B, N, Cs)`` and ``(B, N, Ct)``, and which are valid."""
        return align(student, teacher)

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
        """Return the value of one pair, of equal widths."""

    def forward(self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo) -> Terms:
        """Return one term per pair, divided by the number of pairs; ``emd`` for transport; the embeddings' beside."""
        values = []
        for pair in self.pairs:
            ours, theirs, valid = self.gather(pair, student.signal(pair[0]), teacher.signal(pair[1]).detach())
            if pair in self._map_of:
                ours = self.projectors[self._map_of[pair]](ours.to(self._dtype()))
            values.append(self.compare(ours, theirs, valid))
        return combine(self.options, self.pairs, values)

    def _dtype(self) -> torch.dtype:
        return next(self.projectors.parameters()).dtype
