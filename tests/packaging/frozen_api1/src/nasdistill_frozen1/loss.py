"""Mean absolute difference of the logits."""

from __future__ import annotations

from nasdistill.errors import MismatchError
from nasdistill.interfaces import DistillationLoss, Site, SiteNeeds

LOGITS = Site("logits")


class L1(DistillationLoss):
    """Mean absolute difference of the logits, one vector per sample."""

    def build(self, student, teacher, layer_map):
        ours, theirs = student[LOGITS].shape, teacher[LOGITS].shape
        if ours != theirs or len(ours) != 1:
            raise MismatchError(f"{self.id}: {student.label} gives {ours}, {teacher.label} gives {theirs}")

    def sites(self):
        return SiteNeeds.of(["logits"], ["logits"])

    def forward(self, student, teacher, batch, step):
        return {"l1": (student.logits.float() - teacher.logits.detach().float()).abs().mean()}
