"""Distillation losses that break one rule each."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import nn
from zoo_base import Broken

from nasdistill.errors import MismatchError
from nasdistill.interfaces import DistillationLoss, Example, Site, SiteNeeds
from nasdistill.spec.component import LossSpec, LossTags
from nasdistill.testing.kit.pairs import Pair
from nasdistill.testing.kit.traces import Vision

LOGITS = Site("logits")


def mean(values, valid):
    """Mean over the valid tokens of each sample, then over samples."""
    values = values.reshape(len(values), -1)
    if valid is None:
        return values.mean()
    return (torch.where(valid, values, 0.0).sum(1) / valid.sum(1).clamp_min(1)).mean()


class Logits(DistillationLoss):
    """Distance of the class probabilities."""

    def build(self, student, teacher, layer_map):
        if student[LOGITS].shape != teacher[LOGITS].shape:
            raise MismatchError(
                f"{student.label} has outputs {student[LOGITS].shape}, {teacher.label} {teacher[LOGITS].shape}"
            )

    def sites(self):
        return SiteNeeds.of([LOGITS], [LOGITS])

    def forward(self, student, teacher, batch, step):
        return {"logits": self.compare(student.signal(LOGITS), teacher.signal(LOGITS).detach(), batch)}

    def compare(self, ours, theirs, batch):
        return mean(self.distance(ours.tensor, theirs.tensor), ours.valid)

    def distance(self, ours, theirs):
        return (torch.softmax(ours.float(), -1) - torch.softmax(theirs.float(), -1)).square().sum(-1)


class Embedding(DistillationLoss):
    """Distance of the mean features, each sample's own, with a learned map where widths differ."""

    def build(self, student, teacher, layer_map):
        self.ours, self.theirs = self.last(student), self.last(teacher)
        widths = student[self.ours].width, teacher[self.theirs].width
        self.map = nn.Identity() if widths[0] == widths[1] else nn.Linear(*widths)

    def last(self, geometry):
        return geometry.resolve(Site("hidden" if geometry.count("hidden") else "features", -1))

    def sites(self):
        return SiteNeeds.of([self.ours], [self.theirs])

    def forward(self, student, teacher, batch, step):
        ours, theirs = self.pooled(student.signal(self.ours)), self.pooled(teacher.signal(self.theirs).detach())
        return {"mean": self.distance(self.map(ours), theirs)}

    def pooled(self, signal):
        tokens = (signal.tensor.flatten(2).transpose(1, 2) if signal.layout == "map" else signal.tensor).float()
        if signal.valid is None:
            return tokens.mean(1)
        kept = torch.where(signal.valid[..., None], tokens, 0.0).sum(1)
        return kept / signal.valid.sum(1, keepdim=True).clamp_min(1)

    def distance(self, ours, theirs):
        return F.smooth_l1_loss(ours, theirs)


class Tokens(Embedding):
    """Distance token by token; without a map, so the widths have to agree."""

    def build(self, student, teacher, layer_map):
        self.ours, self.theirs = self.last(student), self.last(teacher)
        shapes = student[self.ours].shape, teacher[self.theirs].shape
        if shapes[0] != shapes[1]:
            raise MismatchError(f"{student.label} has {shapes[0]} at {self.ours}, {teacher.label} {shapes[1]}")

    def forward(self, student, teacher, batch, step):
        ours, theirs = student.signal(self.ours), teacher.signal(self.theirs).detach()
        gap = (ours.tensor.float() - theirs.tensor.float()).abs()
        return {"tokens": mean(gap.flatten(2).mean(-1), ours.valid) if ours.layout == "tokens" else gap.mean()}


class Maps(DistillationLoss):
    """Distance of the last attention maps, head by head."""

    def build(self, student, teacher, layer_map):
        for geometry in (student, teacher):
            if not geometry.count("q"):
                raise MismatchError(f"{geometry.label} has no attention")
        self.ours, self.theirs = (g.resolve(Site("attention", -1)) for g in (student, teacher))
        if self.shape(student[self.ours]) != self.shape(teacher[self.theirs]):
            raise MismatchError(f"{student.label} has {student[self.ours]}, {teacher.label} {teacher[self.theirs]}")

    def shape(self, site):
        return site.shape[:2]

    def sites(self):
        return SiteNeeds.of([self.ours], [self.theirs])

    def forward(self, student, teacher, batch, step):
        ours, theirs = student.signal(self.ours), teacher.signal(self.theirs)
        return {"maps": mean((ours.tensor - theirs.tensor.detach()).square().sum((1, 3)), ours.valid)}


class Right(Logits):
    """The same on samples whose label the teacher names; all of them where none has a label."""

    def compare(self, ours, theirs, batch):
        distance, labels = self.distance(ours.tensor, theirs.tensor), batch.labels
        told = 1.0 + (theirs.tensor.argmax(-1) == labels).float() * (labels >= 0)
        return mean(distance * told, ours.valid)


class Together(Logits):
    """Trains both models towards each other."""

    wants_teacher_grad = True

    def forward(self, student, teacher, batch, step):
        return {"logits": self.compare(student.signal(LOGITS), teacher.signal(LOGITS), batch)}


class Queue(Embedding):
    """Compares with running means too, kept as buffers; starts from a random one."""

    def build(self, student, teacher, layer_map):
        super().build(student, teacher, layer_map)
        self.register_buffer("centre", torch.randn(teacher[self.theirs].width))

    def distance(self, ours, theirs):
        return F.smooth_l1_loss(ours - self.centre, theirs - self.centre)


FINE = Pair("fine", lambda: Vision(16, 2, 1, stride=1), {"teacher": lambda: Vision(24, 2, 2, stride=1)})


class OfItsOwn(Embedding):
    """Is tried on a pair of its own."""

    examples = (Example(context={"pairs": ("zoo_loss:FINE", "vit")}),)


# -- broken ones ------------------------------------------------------------------------------------------------------


class Nameless(Logits):
    """Returns a tensor, not terms."""

    def forward(self, *arguments):
        return super().forward(*arguments)["logits"]


class PerSample(Logits):
    """Returns one value per sample."""

    def forward(self, student, teacher, batch, step):
        return {"logits": torch.ones(batch.size) * super().forward(student, teacher, batch, step)["logits"]}


class Logarithm(Logits):
    """Takes the logarithm of 0."""

    def forward(self, *arguments):
        return {"logits": (0.0 * super().forward(*arguments)["logits"]).log()}


class Offset(Logits):
    """Never reaches 0."""

    def distance(self, ours, theirs):
        return super().distance(ours, theirs) + 0.01


class Leaking(Logits):
    """Lets the gradient into the teacher."""

    def forward(self, student, teacher, batch, step):
        return {"logits": self.compare(student.signal(LOGITS), teacher.signal(LOGITS), batch)}


class Reluctant(Logits):
    """Wants to train the teacher, and does not."""

    wants_teacher_grad = True


class Cut(Logits):
    """Cuts the student off."""

    def forward(self, *arguments):
        return {name: term.detach() for name, term in super().forward(*arguments).items()}

    def distance(self, ours, theirs):
        return super().distance(ours, theirs)


class Summed(Embedding):
    """Sums over the batch."""

    def distance(self, ours, theirs):
        return super().distance(ours, theirs) * len(ours)


class Padded(Logits):
    """Averages over the padding too."""

    def compare(self, ours, theirs, batch):
        return self.distance(ours.tensor, theirs.tensor).mean()


class Diluted(Logits):
    """Divides by the number of tokens with the padding."""

    def compare(self, ours, theirs, batch):
        distance = self.distance(ours.tensor, theirs.tensor)
        return distance.mean() if ours.valid is None else torch.where(ours.valid, distance, 0.0).mean()


class Exponential(Logits):
    """Writes the softmax out without taking out the largest logit."""

    def distance(self, ours, theirs):
        ours, theirs = (x.float().exp() / x.float().exp().sum(-1, keepdim=True) for x in (ours, theirs))
        return (ours - theirs).square().sum(-1)


class Expanded(Embedding):
    """Writes the distance out, |a|^2 - 2 ab + |b|^2, of features that are not centred, and leaves ab to autocast."""

    def distance(self, ours, theirs):
        ours, theirs = ours.float() + 2, theirs.float() + 2
        products = (ours @ theirs.T).diagonal().float()
        return (ours.square().sum(1) - 2 * products + theirs.square().sum(1)).mean()


class Hopeful(Embedding):
    """Finds out in forward only whether both have the same tokens."""

    def forward(self, student, teacher, batch, step):
        ours, theirs = student.signal(self.ours), teacher.signal(self.theirs)
        if ours.layout == theirs.layout == "tokens":
            ours.tensor.mean(-1) - theirs.tensor.mean(-1)
        return super().forward(student, teacher, batch, step)


class Blunt(Maps):
    """Refuses networks without attention with an error of its own."""

    def build(self, student, teacher, layer_map):
        if not student.count("q") or not teacher.count("q"):
            raise RuntimeError("no attention here")
        super().build(student, teacher, layer_map)


class Vague(Tokens):
    """Refuses without a number."""

    def build(self, student, teacher, layer_map):
        try:
            super().build(student, teacher, layer_map)
        except MismatchError:
            raise MismatchError(self.told(student, teacher)) from None

    def told(self, student, teacher):
        return f"{student.label} and {teacher.label} do not fit"


class OneSided(Vague):
    """Refuses with the student's shape only."""

    def told(self, student, teacher):
        return f"{student.label} has {student[self.ours].shape}, which does not fit {teacher.label}"


class AnyMaps(Maps):
    """Compares the mean map, whatever the number of heads."""

    def shape(self, site):
        return site.shape[1]

    def forward(self, student, teacher, batch, step):
        ours, theirs = student.signal(self.ours), teacher.signal(self.theirs)
        gap = ours.tensor.mean(1) - theirs.tensor.mean(1).detach()
        return {"maps": mean(gap.square().sum(-1), ours.valid)}


class Hoarding(Logits):
    """Asks for more than it reads."""

    def build(self, student, teacher, layer_map):
        super().build(student, teacher, layer_map)
        self.first = Site("hidden" if student.count("hidden") else "features", 0)

    def sites(self):
        return SiteNeeds.of([LOGITS, self.first], [LOGITS])


class Beside(Embedding):
    """Looks at the features beside the logits."""

    def build(self, student, teacher, layer_map):
        super().build(student, teacher, layer_map)
        self.map = nn.Identity()

    def sites(self):
        return SiteNeeds.of([self.ours, LOGITS], [LOGITS])

    def forward(self, student, teacher, batch, step):
        ours, theirs = student.signal(LOGITS), teacher.signal(LOGITS).detach()
        size = student.signal(self.ours).tensor.float().mean() * 0
        return {
            "logits": mean((ours.tensor.float().mean(-1) - theirs.tensor.float().mean(-1)).abs(), ours.valid) + size
        }


class MapsBeside(Maps):
    """Looks at the maps beside the hidden states."""

    def build(self, student, teacher, layer_map):
        super().build(student, teacher, layer_map)
        self.hidden = student.resolve(Site("hidden", -1)), teacher.resolve(Site("hidden", -1))

    def sites(self):
        return SiteNeeds.of([self.ours, self.hidden[0]], [self.theirs, self.hidden[1]])

    def forward(self, student, teacher, batch, step):
        unused = student[self.hidden[0]].float().mean() * 0 + teacher[self.hidden[1]].float().detach().mean() * 0
        return {name: term + unused for name, term in super().forward(student, teacher, batch, step).items()}


class Peeking(Hoarding):
    """Reads what it did not ask for."""

    def sites(self):
        return SiteNeeds.of([LOGITS], [LOGITS])

    def forward(self, student, teacher, batch, step):
        live = student[self.first].numel() > 0
        return {name: live * term for name, term in super().forward(student, teacher, batch, step).items()}


class Secretive(Embedding):
    """Keeps its map in a tuple, where nobody finds it."""

    def build(self, student, teacher, layer_map):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().build(student, teacher, layer_map)
        self.parts = (self.map,)
        del self.map

    def forward(self, student, teacher, batch, step):
        ours, theirs = self.pooled(student.signal(self.ours)), self.pooled(teacher.signal(self.theirs).detach())
        return {"mean": self.distance(self.parts[0](ours), theirs)}


class Spare(Embedding):
    """Has a part that it never uses."""

    def build(self, student, teacher, layer_map):
        super().build(student, teacher, layer_map)
        self.spare = nn.Linear(3, 3)


class Random(Embedding):
    """Keeps a random projection out of its state."""

    def build(self, student, teacher, layer_map):
        super().build(student, teacher, layer_map)
        self.projection = torch.randn(teacher[self.theirs].width, 8)

    def distance(self, ours, theirs):
        return super().distance(ours @ self.projection, theirs @ self.projection)


class Guarded(Logits):
    """Keeps a lock when built."""

    def build(self, student, teacher, layer_map):
        super().build(student, teacher, layer_map)
        self.lock = threading.Lock()


class Strict(Right):
    """Cannot do without labels."""

    def compare(self, ours, theirs, batch):
        if bool((batch.labels.reshape(len(batch.labels), -1)[:, 0] < 0).any()):
            raise IndexError("index -100 is out of bounds")
        return super().compare(ours, theirs, batch)


class InPlace(Logits):
    """Softens the logits in place."""

    def distance(self, ours, theirs):
        return super().distance(ours.div_(2.0), theirs / 2.0)


class Backwards(Logits):
    """Has its student run away."""

    def distance(self, ours, theirs):
        return -super().distance(ours, theirs)


class Uphill(Offset):
    """Has the gradient of the opposite."""

    def distance(self, ours, theirs):
        value = super().distance(ours, theirs)
        return 2 * value.detach() - value


def spec(name, cls, **tags):
    return LossSpec(
        name, f"{__name__}:{cls.__name__}", "one of the zoo", references=("original",), tags=LossTags(**tags)
    )


CLASSES = {"same_classes": True}
OWNED = {"level": "feature", "owns_parameters": True}
SOUND = [
    spec("logits", Logits, **CLASSES),
    spec("embedding", Embedding, **OWNED),
    spec("tokens", Tokens, level="feature", same_width=True),
    spec("maps", Maps, level="attention", same_heads=True),
    spec("mean_maps", AnyMaps, level="attention"),
    spec("right", Right, needs_labels=True, **CLASSES),
    spec("together", Together, **CLASSES),
    spec("queue", Queue, **OWNED),
    spec("of_its_own", OfItsOwn, **OWNED),
    spec("offset", Offset, zero_at_identity=False, **CLASSES),
]
BROKEN = [
    Broken("terms_are_finite_scalars", spec("nameless", Nameless, **CLASSES), "no dict of terms"),
    Broken("terms_are_finite_scalars", spec("per_sample", PerSample, **CLASSES), "(4,) instead of a scalar"),
    Broken("terms_are_finite_scalars", spec("logarithm", Logarithm, **CLASSES), "is -inf"),
    Broken("zero_at_identity_is_true", spec("never_zero", Offset, **CLASSES), "with itself gives 0.01"),
    Broken("teacher_gradient_is_as_declared", spec("leaking", Leaking, **CLASSES), "teacher's logits"),
    Broken("teacher_gradient_is_as_declared", spec("reluctant", Reluctant, **CLASSES), "wants_teacher_grad=True"),
    Broken("student_gets_a_gradient", spec("cut", Cut, **CLASSES), "no gradient flows into the student"),
    Broken("repeating_the_batch_changes_nothing", spec("summed", Summed, **OWNED), "every sample twice"),
    Broken("padding_has_no_influence", spec("padded", Padded, **CLASSES), "noise at padded positions"),
    Broken("padding_has_no_influence", spec("diluted", Diluted, **CLASSES), "padded to 11"),
    Broken("large_signals_stay_finite", spec("exponential", Exponential, **CLASSES), "size 1e4"),
    Broken("autocast_gives_nearly_the_same", spec("expanded", Expanded, **OWNED), "within bfloat16 autocast"),
    Broken("impossible_pairs_are_refused_in_build", spec("hopeful", Hopeful, **OWNED), "must match the size"),
    Broken(
        "impossible_pairs_are_refused_in_build", spec("blunt", Blunt, level="attention", same_heads=True), "Runtime"
    ),
    Broken(
        "impossible_pairs_are_refused_in_build", spec("vague", Vague, level="feature", same_width=True), "shape of both"
    ),
    Broken(
        "impossible_pairs_are_refused_in_build",
        spec("one_sided", OneSided, level="feature", same_width=True),
        "shape of both",
    ),
    Broken("nonzero_at_identity_is_true", spec("zero", Logits, zero_at_identity=False, **CLASSES), "gives 0"),
    Broken("level_is_true", spec("no_logits", Embedding, owns_parameters=True), "features and nothing else"),
    Broken("level_is_true", spec("no_maps", Embedding, **{**OWNED, "level": "attention"}), "and nothing else"),
    Broken("level_is_true", spec("no_features", Logits, level="feature", **CLASSES), "logits and nothing else"),
    Broken("level_is_true", spec("too_deep", Beside), "the student's features, too"),
    Broken(
        "level_is_true", spec("mapped", MapsBeside, level="feature", same_heads=True), "the student's attention, too"
    ),
    Broken("same_width_is_true", spec("any_width", Embedding, same_width=True, **OWNED), "are accepted"),
    Broken("same_width_is_true", spec("one_width", Tokens, level="feature"), "are refused"),
    Broken("same_heads_is_true", spec("any_heads", AnyMaps, level="attention", same_heads=True), "are accepted"),
    Broken("same_heads_is_true", spec("own_heads", Maps, level="attention"), "(2) and the text teacher (4)"),
    Broken("same_classes_is_true", spec("own_classes", Logits), "(5) and the conv teacher (9)"),
    Broken("same_classes_is_true", spec("any_classes", Embedding, same_classes=True, **OWNED), "are accepted"),
    Broken("reads_exactly_its_sites", spec("peeking", Peeking, **CLASSES), "features.0 was not captured"),
    Broken(
        "reads_exactly_its_sites",
        spec("hoarding", Hoarding, level="relation", **CLASSES),
        "features.0, which is not read",
    ),
    Broken("owns_parameters_is_true", spec("undeclared", Embedding, level="feature"), "it has 2 parameters"),
    Broken("owns_parameters_is_true", spec("without", Logits, owns_parameters=True, **CLASSES), "on none of 5 pairs"),
    Broken("owns_parameters_is_true", spec("secretive", Secretive, level="feature"), "no registered parameters"),
    Broken("owned_parameters_are_trained", spec("spare", Spare, **OWNED), "spare.weight"),
    Broken("state_survives_saving", spec("random", Random, **OWNED), "after load_state_dict"),
    Broken("built_losses_can_be_copied", spec("guarded", Guarded, **CLASSES), "lock"),
    Broken("needs_labels_is_true", spec("unlabelled", Logits, needs_labels=True, **CLASSES), "other labels give"),
    Broken("needs_labels_is_true", spec("labelled", Right, **CLASSES), "with labels and without"),
    Broken("samples_without_a_label_are_allowed", spec("strict", Strict, needs_labels=True, **CLASSES), "no label"),
    Broken("signals_are_left_alone", spec("in_place", InPlace, **CLASSES), "student's logits in place"),
    Broken("training_lowers_it", spec("backwards", Backwards, **CLASSES), "0 is the minimum"),
    Broken("training_lowers_it", spec("uphill", Uphill, zero_at_identity=False, **CLASSES), "20 steps of Adam"),
]
