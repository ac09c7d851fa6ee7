"""Data reducers that are sound but for one thing."""

from __future__ import annotations

import torch
from zoo_base import Broken

from nasdistill.errors import UsageError
from nasdistill.interfaces import Batch, DataReducer, ReducedData
from nasdistill.spec.component import DataReducerSpec


def everything(task):
    """Return the training split as one batch."""
    return next(iter(task.batches("train", batch_size=task.size("train"))))


class Sound(DataReducer):
    """Draws samples without replacement, by how uncertain the student is of them."""

    def reduce(self, task, *, student, build, budget, queried=(), generator=None):
        batch = everything(task)
        free = self.free(torch.tensor([i for i in range(batch.size) if i not in set(queried)]), batch)
        if not len(free):
            raise UsageError("every sample was queried already")
        if student is None:
            raise UsageError("the choice goes by the student's outputs, and there is no student")
        entropy = self.entropy(task, student, batch)[free]
        generator = generator or torch.Generator().manual_seed(0)
        chosen = torch.multinomial(entropy.exp(), min(budget, len(free)), generator=generator)
        return self.told(free[chosen], entropy[chosen])

    def free(self, free, batch):
        return free

    def entropy(self, task, student, batch):
        modes = {module: module.training for module in student.modules()}
        with torch.no_grad():
            p = task.forward(student.eval(), batch).softmax(1)
        for module, mode in modes.items():
            module.training = mode
        return -(p * p.log()).sum(1)

    def told(self, indices, weights):
        return ReducedData(indices=indices, weights=weights, report={"mean": float(weights.mean())})


class Means(DataReducer):
    """Synthesises samples: each the mean of some images of one class."""

    def reduce(self, task, *, student, build, budget, queried=(), generator=None):
        batch = everything(task)
        generator = generator or torch.Generator().manual_seed(0)
        images, labels = [], []
        for number in range(min(budget, batch.size)):
            label = number % task.io.outputs
            rows = torch.nonzero(batch.labels == label).squeeze(1)
            some = rows[torch.randperm(len(rows), generator=generator)[: max(1, len(rows) // 2)]]
            images.append(batch.image[some].mean(0))
            labels.append(label)
        return ReducedData(self.made(torch.stack(images), torch.tensor(labels)))

    def made(self, images, labels):
        return Batch({"image": images}, labels, torch.arange(len(images)))


class Neither(Sound):
    """Returns nothing but a report."""

    def told(self, indices, weights):
        return ReducedData(report={"chosen": len(indices)})


class Spendthrift(Means):
    """Makes one sample for each class, whatever the budget."""

    def reduce(self, task, **arguments):
        return super().reduce(task, **{**arguments, "budget": max(arguments["budget"], 30)})


class Short(Sound):
    """Returns indices of 32 bits."""

    def told(self, indices, weights):
        return ReducedData(indices=indices.int(), weights=weights)


class FromOne(Sound):
    """Counts from the end of the split."""

    def told(self, indices, weights):
        return ReducedData(indices=-indices - 1, weights=weights)


class Flat(Means):
    """Loses the images' axes."""

    def made(self, images, labels):
        return Batch({"image": images.flatten(1)}, labels, torch.arange(len(images)))


class Eleven(Means):
    """Counts classes from 1."""

    def made(self, images, labels):
        return super().made(images, labels + 1)


class Attached(Means):
    """Returns images that are still being optimised."""

    def made(self, images, labels):
        return super().made(images.requires_grad_(), labels)


class Negative(Sound):
    """Weighs by the negative entropy."""

    def told(self, indices, weights):
        return super().told(indices, -weights)


class Curve(Sound):
    """Reports a tensor."""

    def told(self, indices, weights):
        return ReducedData(indices=indices, weights=weights, report={"curve": weights})


class Peeking(Sound):
    """Looks at the validation split."""

    def entropy(self, task, student, batch):
        next(iter(task.batches("validation", batch_size=8)))
        return super().entropy(task, student, batch)


class Whitening(Sound):
    """Normalises the images in their place."""

    def entropy(self, task, student, batch):
        batch.image.sub_(batch.image.mean())
        return super().entropy(task, student, batch)


class Switching(Sound):
    """Leaves the student in eval mode."""

    def entropy(self, task, student, batch):
        with torch.no_grad():
            p = task.forward(student.eval(), batch).softmax(1)
        return -(p * p.log()).sum(1)


class Global(Sound):
    """Draws from torch's own generator."""

    def reduce(self, task, **arguments):
        return super().reduce(task, **{**arguments, "generator": torch.default_generator})


class Trusting(Means):
    """Builds networks without asking whether it may."""

    def reduce(self, task, *, build, **arguments):
        build()
        return super().reduce(task, build=build, **arguments)


class Halving(Means):
    """Gives each class its share of the budget, and stumbles when that is nothing."""

    def reduce(self, task, *, budget, **arguments):
        share = budget // 10
        return super().reduce(task, budget=10 * share, **arguments)


class Greedy(Sound):
    """Expects that there is as much as it is asked for."""

    def reduce(self, task, *, budget, **arguments):
        assert budget <= task.size("train"), "too few samples"
        return super().reduce(task, budget=budget, **arguments)


class Repeating(Sound):
    """Chooses the same ones again."""

    def free(self, free, batch):
        return torch.arange(batch.size)


def spec(name, cls):
    return DataReducerSpec(name, f"{__name__}:{cls.__name__}", "one of the zoo", references=("original",))


SOUND = [spec("sound", Sound), spec("means", Means)]
BROKEN = [
    Broken("gives_samples_or_positions", spec("neither", Neither), "neither a batch nor indices"),
    Broken("budget_is_kept", spec("spendthrift", Spendthrift), "with a budget of 10 it returns 30"),
    Broken("indices_are_positions", spec("short", Short), "torch.int32"),
    Broken("indices_are_positions", spec("from_one", FromOne), "of 60 samples"),
    Broken("batch_fits_the_task", spec("flat", Flat), "(10, 64)"),
    Broken("batch_fits_the_task", spec("eleven", Eleven), "from 1 to 10"),
    Broken("batch_fits_the_task", spec("attached", Attached), "not detached"),
    Broken("weights_fit", spec("negative", Negative), "weights go from"),
    Broken("report_is_json", spec("curve", Curve), "not JSON"),
    Broken("reads_the_training_split_only", spec("peeking", Peeking), "it reads validation"),
    Broken("task_is_left_alone", spec("whitening", Whitening), "changes image"),
    Broken("student_is_left_alone", spec("switching", Switching), "train/eval mode"),
    Broken("draws_from_the_generator", spec("global", Global), "with other global seeds"),
    Broken("what_is_missing_is_named", spec("trusting", Trusting), "without a build it raises TypeError"),
    Broken("smallest_budget", spec("halving", Halving), "with a budget of 1 it raises RuntimeError"),
    Broken("largest_budget", spec("greedy", Greedy), "AssertionError"),
    Broken("second_round_brings_others", spec("repeating", Repeating), "are chosen again"),
]
