"""Recipes that are sound but for one thing."""

from __future__ import annotations

import dataclasses

import torch
from zoo_base import Broken

from nasdistill.errors import TrialFailure
from nasdistill.interfaces import Recipe, SingleTeacher, Stage
from nasdistill.seeds import seeded
from nasdistill.spec.component import RecipeSpec
from nasdistill.testing.kit.models import SmallResNet

TEACHER = "builtin:digits"
IMITATE = Stage("imitate", teacher=TEACHER, losses={"kd": {"weight": 2.0, "temperature": 2.0}}, epochs=2.5)
FINISH = Stage(
    "finish", teacher=TEACHER, losses={"task": 1.0, "kd": 0.5}, trains=("fc.*", "stage2.*"), steps=10,
    optimizer={"lr": 1e-4}, carry=("losses",),
)  # fmt: skip


class Sound(Recipe):
    """Imitates first, looks at the labels later."""

    stages = (IMITATE, FINISH)

    def plan(self):
        return self.stages

    def run(self, student, runner):
        for stage in self.stages:
            student = self.step(stage, student, runner)
        return student

    def step(self, stage, student, runner):
        return runner.train(stage, student).student


class Assisted(Recipe):
    """Teacher, assistant, student; then rounds while they help, three at most."""

    def run(self, student, runner):
        assistant = self.build()
        found = runner.train(Stage("assistant", teacher=TEACHER, losses={"kd": 1.0}, epochs=3), assistant)
        runner.register_teacher("assistant", SingleTeacher(found.student, label="assistant", fingerprint="assistant"))
        best = runner.evaluate(student).score
        for number in range(self.rounds):
            stage = Stage(f"round_{number}", teacher="assistant", losses={"kd": 1.0, "task": 1.0}, epochs=1)
            student = runner.train(stage, student).student
            score = runner.evaluate(student).score
            if score <= best:
                break
            best = score
        return student

    rounds = 3

    def build(self):
        with seeded(0, "assistant"):
            return SmallResNet(width=12)


def changed(**fields):
    """Return stages of which the first is another one, to be run and planned."""
    return (dataclasses.replace(IMITATE, **fields), FINISH)


class Forgetful(Sound):
    """Forgets to return the network."""

    def run(self, student, runner):
        super().run(student, runner)


class Twins(Sound):
    """Has two stages of one name."""

    stages = (IMITATE, FINISH, IMITATE)


class Slashed(Sound):
    """Has a stage whose name is a path."""

    stages = changed(name="../imitate")


class Both(Sound):
    """Gives epochs and steps."""

    stages = changed(steps=3)


class Misspelt(Sound):
    """Names a loss that there is not."""

    stages = changed(losses={"knowledge": 1.0})


class WrongOption(Sound):
    """Names an option that the loss does not have."""

    stages = changed(losses={"kd": {"warmth": 2.0}})


class Nobody(Sound):
    """Asks a teacher that there is not."""

    stages = changed(teacher="nobody:home")


class Alone(Sound):
    """Compares with no teacher."""

    stages = changed(teacher=None)


class Frozen(Sound):
    """Trains a part that there is not."""

    stages = changed(trains=("classifier.*",))


class Heavy(Sound):
    """Carries what the recipe hands over itself."""

    stages = changed(carry=("student",))


class Tuned(Sound):
    """Sets a training option that there is not."""

    stages = changed(optimizer={"learning_rate": 1e-3})


class Downloading(Sound):
    """Takes its data from elsewhere."""

    stages = changed(data="imagenet")


class Reversed(Sound):
    """Plans its stages the other way round."""

    def plan(self):
        return self.stages[::-1]


class Dearer(Sound):
    """Takes longer than planned."""

    def plan(self):
        return changed(epochs=1.0)


class Pruning(Sound):
    """Prunes by itself after a stage."""

    def step(self, stage, student, runner):
        student = super().step(stage, student, runner)
        with torch.no_grad():
            student.fc.weight.mul_(student.fc.weight.abs() > 0.01)
        return student


class Freezing(Sound):
    """Freezes by itself before a stage."""

    def step(self, stage, student, runner):
        student.stem.requires_grad_(False)
        return super().step(stage, student, runner)


class Unseeded(Assisted):
    """Builds an assistant by the state of the process."""

    def build(self):
        return SmallResNet(width=12)


class Counting(Sound):
    """Counts its runs."""

    count = 0

    def step(self, stage, student, runner):
        self.count += 1
        return super().step(dataclasses.replace(stage, epochs=None, steps=self.count), student, runner)

    def plan(self):
        return ()


class Hopeful(Sound):
    """Goes on until it has learned something."""

    def run(self, student, runner):
        student = super().run(student, runner)
        number = 0
        while runner.evaluate(student).score <= 0.0:
            number += 1
            student = runner.train(dataclasses.replace(FINISH, name=f"more_{number}"), student).student
        return student


class Stumbling(Sound):
    """Goes on with what a failed stage did not give."""

    def step(self, stage, student, runner):
        try:
            found = runner.train(stage, student)
        except TrialFailure:
            found = None
        return found.student


class Stubborn(Sound):
    """Lets nothing stop it."""

    def step(self, stage, student, runner):
        try:
            return super().step(stage, student, runner)
        except BaseException:
            return student


def spec(name, cls):
    return RecipeSpec(name, f"{__name__}:{cls.__name__}", "one of the zoo", references=("original",))


SOUND = [spec("sound", Sound), spec("assisted", Assisted)]
BROKEN = [
    Broken("returns_a_trained_network", spec("forgetful", Forgetful), "returns NoneType"),
    Broken("stage_names_are_unique", spec("twins", Twins), "2 stages are called 'imitate'"),
    Broken("stage_names_are_unique", spec("slashed", Slashed), "cannot name a file"),
    Broken("budgets_are_stated", spec("both", Both), "epochs=2.5 and steps=3"),
    Broken("losses_exist", spec("misspelt", Misspelt), "'knowledge'"),
    Broken("losses_exist", spec("wrong_option", WrongOption), "warmth"),
    Broken("teachers_are_known", spec("nobody", Nobody), "nobody:home"),
    Broken("teachers_are_known", spec("alone", Alone), "has no teacher for kd"),
    Broken("trains_something", spec("frozen", Frozen), "classifier.*"),
    Broken("carries_what_can_be_carried", spec("heavy", Heavy), "carries 'student'"),
    Broken("training_options_exist", spec("tuned", Tuned), "learning_rate"),
    Broken("data_sources_exist", spec("downloading", Downloading), "'imagenet'"),
    Broken("plan_agrees", spec("reversed", Reversed), "not run in its place"),
    Broken("plan_agrees", spec("dearer", Dearer), "planned with epochs=1.0"),
    Broken("trains_through_the_runner", spec("pruning", Pruning), "fc.weight had been changed outside"),
    Broken("trains_through_the_runner", spec("freezing", Freezing), "requires_grad of stem"),
    Broken("decides_by_the_runner_alone", spec("unseeded", Unseeded), "with other global seeds"),
    Broken("can_be_run_again", spec("counting", Counting), "a second run"),
    Broken("ends_without_progress", spec("hopeful", Hopeful), "does not end"),
    Broken("failures_pass_through", spec("stumbling", Stumbling), "AttributeError"),
    Broken("interrupts_pass_through", spec("stubborn", Stubborn), "swallowed"),
]
