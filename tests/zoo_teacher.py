"""Teachers that are sound but for one thing."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from pydantic import Field
from zoo_base import Broken

from nasdistill.errors import MismatchError, UsageError, did_you_mean
from nasdistill.interfaces import Example, Signal, SingleTeacher, Site, Teacher, Trace
from nasdistill.seeds import seeded
from nasdistill.spec.component import TeacherSpec, TeacherTags
from nasdistill.spec.options import ComponentOptions
from nasdistill.testing.kit.models import SmallResNet, SmallViT
from nasdistill.weights import model_hash

MODELS = {"convolutions": SmallResNet, "attention": SmallViT}


class Options(ComponentOptions):
    """Options of the zoo's teachers."""

    seed: int = Field(0, description="Seed of the weights.")


class Sound(Teacher):
    """A network by name, with random weights."""

    options_model = Options
    examples = (Example({}, {"locator": "convolutions", "other_options": {"seed": 1}}),)
    session = SingleTeacher

    @classmethod
    def locators(cls):
        return tuple(MODELS)

    def open(self, locator, task, *, cache_dir, device="cpu", progress=None):
        label = f"zoo:{locator}"
        if locator not in MODELS:
            raise UsageError(f"there is no {label}. {did_you_mean(locator, MODELS)}")
        model = self.build(locator)
        task.check(model, label)
        if progress is not None:
            progress(f"{label} is here")
        return self.session(model, label=label, fingerprint=self.hash(locator, model))

    def build(self, locator):
        with seeded(self.options.seed, locator):
            return MODELS[locator]()

    def hash(self, locator, model):
        return model_hash(model)


class Attentive(Sound):
    """A transformer."""

    examples = (Example({}, {"locator": "attention", "other_locator": "convolutions"}),)


class Only(Sound):
    """There is one, so it takes no locator."""

    examples = (Example({}, {"other_options": {"seed": 1}}),)

    @classmethod
    def locators(cls):
        return ()

    def open(self, locator, task, **context):
        if locator:
            raise UsageError(f"there is one teacher, and {locator!r} is not it")
        return super().open("convolutions", task, **context)


class Averaging(SingleTeacher):
    """Follows the student's first numbers: a moving average in small."""

    cacheable = False

    def after_step(self, student, step):
        with torch.no_grad():
            self.model.fc.bias.add_(next(student.parameters()).mean())


class Following(Sound):
    """Changes with its student, and says so."""

    session = Averaging


class Nameless(Sound):
    """Does not say who it is."""

    def open(self, locator, task, **context):
        session = super().open(locator, task, **context)
        session.label = ""
        return session


class Thawed(SingleTeacher):
    def __init__(self, model, *, label, fingerprint):
        super().__init__(model, label=label, fingerprint=fingerprint)
        model.fc.bias.requires_grad_(True)


class Trainable(Sound):
    """Leaves a parameter free; whoever asks turns gradients off."""

    session = Thawed


class Awake(SingleTeacher):
    def trace(self, batch, sites, step, tracer):
        found = super().trace(batch, sites, step, tracer)
        self.model.pool.train()
        return found


class Waking(Sound):
    """Leaves a module in training mode when it has answered."""

    session = Awake


class Global(Sound):
    """Draws its weights from the global generator."""

    def build(self, locator):
        return MODELS[locator]()


class ByName(Sound):
    """Takes its name for a fingerprint."""

    def hash(self, locator, model):
        return f"teacher {locator}"


class Wide(SingleTeacher):
    def trace(self, batch, sites, step, tracer):
        found = super().trace(batch, sites, step, tracer)
        logits = found.logits
        found.signals[Site("logits")] = Signal(torch.cat([logits, logits], 1), "vector")
        return found


class Doubled(Sound):
    """Answers with the logits of two networks side by side."""

    session = Wide


class Reserved(SingleTeacher):
    def trace(self, batch, sites, step, tracer):
        return super().trace(batch, sites & {Site("logits")}, step, tracer)


class LogitsOnly(Sound):
    """Gives nothing but its logits."""

    session = Reserved


class Graphed(SingleTeacher):
    def trace(self, batch, sites, step, tracer):
        found = super().trace(batch, sites, step, tracer)
        if torch.is_grad_enabled():
            with torch.enable_grad():
                logits = (found.logits + torch.zeros((), requires_grad=True)).clone()
            found = Trace({**found.signals, Site("logits"): Signal(logits, "vector")})
        return found


class Attached(Sound):
    """Answers with a gradient history."""

    session = Graphed


class Secret(Averaging):
    cacheable = True


class Unsteady(Sound):
    """Changes with its student, and says that its answers may be kept."""

    session = Secret


class Noise(SingleTeacher):
    def trace(self, batch, sites, step, tracer):
        found = super().trace(batch, sites, step, tracer)
        noise = torch.randn(found.logits.shape)
        return Trace({**found.signals, Site("logits"): Signal(found.logits + noise, "vector")})


class Noisy(Sound):
    """Adds noise from the global generator."""

    session = Noise


class Raising(Sound):
    """Looks names up and lets the error through."""

    def open(self, locator, task, **context):
        MODELS[locator]
        return super().open(locator, task, **context)


class Curt(Sound):
    """Names what it does not know, and nothing that it knows."""

    def open(self, locator, task, **context):
        if locator not in MODELS:
            raise UsageError(f"there is no teacher {locator!r}")
        return super().open(locator, task, **context)


class Deaf(Only):
    """Takes no locator, and opens whatever it is given."""

    def open(self, locator, task, **context):
        return super().open("", task, **context)


class Unfit(Sound):
    """Does not look whether it fits."""

    def open(self, locator, task, **context):
        if locator not in MODELS:
            return super().open(locator, task, **context)
        model = self.build(locator)
        return SingleTeacher(model, label=locator, fingerprint=model_hash(model))


class Terse(Sound):
    """Refuses without a shape."""

    def open(self, locator, task, **context):
        try:
            return super().open(locator, task, **context)
        except MismatchError:
            raise MismatchError("the teacher does not fit the task") from None


class Silent(SingleTeacher):
    def trace(self, batch, sites, step, tracer):
        return tracer(self.model, batch, sites)


class Uncounted(Sound):
    """Answers for free."""

    session = Silent


class Freezing(SingleTeacher):
    def start(self, student):
        self.first = copy.deepcopy(student.eval())


class Meddling(Sound):
    """Puts the student into eval mode to copy it."""

    session = Freezing


class Littering(Sound):
    """Keeps its weights where it stands."""

    def open(self, locator, task, **context):
        session = super().open(locator, task, **context)
        if not any(Path().iterdir()):
            Path("teacher.bin").write_bytes(b"weights")
        return session


class Rambling(Sound):
    """Tells in paragraphs."""

    def open(self, locator, task, *, progress=None, **context):
        if progress is not None:
            progress("a long time ago\nin a file far away")
        return super().open(locator, task, progress=progress, **context)


def spec(name, cls, locator="name of a network", **tags):
    return TeacherSpec(
        name, f"{__name__}:{cls.__name__}", "one of the zoo", references=("original",), options=f"{__name__}:Options",
        tags=TeacherTags(locator=locator, **tags),
    )  # fmt: skip


SOUND = [
    spec("sound", Sound),
    spec("attentive", Attentive),
    spec("only", Only, locator=""),
    spec("following", Following, cacheable=False),
]
BROKEN = [
    Broken("gives_a_session", spec("nameless", Nameless), "label is ''"),
    Broken("networks_are_frozen", spec("trainable", Trainable), "fc.bias wants a gradient"),
    Broken("networks_are_frozen", spec("waking", Waking), "after an answer, pool is in training mode"),
    Broken("opens_the_same_again", spec("global", Global), "its fingerprints are"),
    Broken("other_weights_other_fingerprint", spec("by_name", ByName), "{'seed': 1}"),
    Broken("logits_fit_the_task", spec("doubled", Doubled), "(6, 20)"),
    Broken("trace_has_the_sites", spec("logits_only", LogitsOnly), "the trace has no"),
    Broken("answers_are_detached", spec("attached", Attached), "requires a gradient"),
    Broken("cacheable_is_true", spec("unsteady", Unsteady), "after a student's steps"),
    Broken("cacheable_is_true", spec("noisy", Noisy), "asked twice"),
    Broken("cacheable_is_true", spec("modest", Sound, cacheable=False), "the tag says cacheable=False"),
    Broken("unknown_names_are_refused", spec("raising", Raising), "KeyError"),
    Broken("unknown_names_are_refused", spec("curt", Curt), "without saying that there is convolutions"),
    Broken("unknown_names_are_refused", spec("deaf", Deaf, locator=""), "the tag says that it takes no locator"),
    Broken("refuses_tasks_that_do_not_fit", spec("unfit", Unfit), "does not take the images"),
    Broken("refuses_tasks_that_do_not_fit", spec("terse", Terse), "does not name this"),
    Broken("queries_are_counted", spec("uncounted", Uncounted), "0, 0 and 0"),
    Broken("leaves_the_student_alone", spec("meddling", Meddling), "train/eval mode"),
    Broken("writes_to_the_cache_only", spec("littering", Littering), "teacher.bin"),
    Broken("tells_in_lines", spec("rambling", Rambling), "far away"),
]
