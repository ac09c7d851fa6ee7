"""Tasks that are sound but for one thing."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
import torch.nn.functional as F
from zoo_base import Broken

from nasdistill.interfaces import Example, Metric
from nasdistill.seeds import torch_generator
from nasdistill.spec.component import TaskSpec
from nasdistill.spec.io import IOSpec
from nasdistill.testing.kit.task import TinyTask


class Sound(TinyTask):
    """Eighty digits."""

    examples = (
        Example({"samples": 80}, {"other_options": {"first": 100}}),
        Example({"samples": 80, "labels": 0.5, "side": 10, "channels": 3, "classes": 4}, name="few labels"),
    )


class Simple(Sound):
    """One way to use it, so that a broken one fails once."""

    examples = Sound.examples[:1]


class Tokens(Simple):
    """The pixels as token ids; the loss and the metric are those of classes."""

    @property
    def io(self):
        return IOSpec("tokens", (64,), self.options.classes, vocabulary=17)

    def tokens(self, images):
        return images.flatten(1).mul(3).round().long().clamp(0, 16)

    def batches(self, split, **arguments):
        for batch in super().batches(split, **arguments):
            yield replace(batch, inputs={"input_ids": self.tokens(batch.image)})

    def forward(self, model, batch):
        return model(batch.inputs["input_ids"])

    def example(self, batch_size=1):
        return (self.tokens(super().example(batch_size)[0]),)


class Batched(Simple):
    """Counts the batch axis as part of a sample."""

    @property
    def io(self):
        return IOSpec("image", (1, 1, 8, 8), 10)


class ShortIds(Simple):
    """Its ids are 32 bits wide."""

    def batches(self, split, **arguments):
        for batch in super().batches(split, **arguments):
            yield replace(batch, ids=batch.ids.int())


class Decided(Simple):
    """Returns the class instead of the logits."""

    def forward(self, model, batch):
        return super().forward(model, batch).argmax(1)

    def loss(self, output, batch):
        return output.double().mean()


class Growing(Simple):
    """Reads its data once more at every prepare."""

    def prepare(self, cache_dir=None, progress=None):
        again = hasattr(self, "_parts")
        super().prepare()
        if again:
            images, labels = self._parts["train"]
            self._parts["train"] = images.repeat(2, 1, 1, 1), labels.repeat(2)


class Counted(Simple):
    """Every instance has a fingerprint of its own."""

    count = itertools.count()

    def prepare(self, cache_dir=None, progress=None):
        super().prepare()
        self._number = next(self.count)

    @property
    def fingerprint(self):
        return f"task number {self._number}"


class Deaf(Simple):
    """Its fingerprint is its name."""

    @property
    def fingerprint(self):
        return "digits"


class OneMore(Simple):
    """Counts from one."""

    def size(self, split):
        return super().size(split) + 1


class Restarting(Simple):
    """Its ids are positions in the batch."""

    def batches(self, split, **arguments):
        for batch in super().batches(split, **arguments):
            yield replace(batch, ids=batch.ids % 8)


class Shifted(Simple):
    """Its ids begin with one."""

    def batches(self, split, **arguments):
        for batch in super().batches(split, **arguments):
            yield replace(batch, ids=batch.ids + 1)


class Dropping(Simple):
    """Leaves the last batch out in training, when it is smaller."""

    def batches(self, split, *, batch_size, train=False, **arguments):
        for batch in super().batches(split, batch_size=batch_size, train=train, **arguments):
            if not train or batch.size == batch_size:
                yield batch


class Replacing(Simple):
    """Draws training samples with replacement."""

    def batches(self, split, *, epoch=0, seed=0, train=False, **arguments):
        for batch in super().batches(split, epoch=epoch, seed=seed, train=train, **arguments):
            yield batch.select(torch.nonzero(batch.ids != 5).squeeze(1)) if train else batch


class Leaking(Simple):
    """Tests on what it trains on."""

    def prepare(self, cache_dir=None, progress=None):
        super().prepare()
        self._parts["test"] = self._parts["train"]


class FromOne(Simple):
    """Counts the classes of its test split from one."""

    def prepare(self, cache_dir=None, progress=None):
        if not hasattr(self, "_parts"):
            super().prepare()
            images, labels = self._parts["test"]
            self._parts["test"] = images, labels + 1


class Promising(Simple):
    """Says that its test split has labels, and has none."""

    def batches(self, split, **arguments):
        for batch in super().batches(split, **arguments):
            yield replace(batch, labels=None) if split == "test" else batch


class Modest(Simple):
    """Says that its test split has no labels, and has them."""

    def has_labels(self, split):
        return split != "test"


class Tensors(Simple):
    """Says with a tensor how it normalises."""

    @property
    def preprocessing(self):
        return {"mean": torch.tensor([0.3])}


class Global(Simple):
    """Draws its noise from the global generator."""

    def batches(self, split, *, train=False, **arguments):
        noise = torch.randn(1) if train else 0.0
        for batch in super().batches(split, train=train, **arguments):
            yield replace(batch, inputs={"image": batch.image + noise})


class Monotonous(Simple):
    """Shuffles alike in every epoch."""

    def batches(self, split, *, epoch=0, **arguments):
        for batch in super().batches(split, epoch=0, **arguments):
            yield replace(batch, epoch=epoch)


class Stubborn(Simple):
    """Shuffles alike for every seed."""

    def batches(self, split, *, seed=0, **arguments):
        return super().batches(split, seed=0, **arguments)


class Shuffling(Simple):
    """Shuffles when it should not."""

    def batches(self, split, *, batch_size, epoch=0, seed=0, train=False):
        if train:
            yield from super().batches(split, batch_size=batch_size, epoch=epoch, seed=seed, train=True)
            return
        [batch] = super().batches(split, batch_size=10**6, epoch=epoch)
        order = torch.randperm(batch.size, generator=torch_generator(seed, epoch))
        for rows in torch.split(order, batch_size):
            yield batch.select(rows)


class PerBatch(Simple):
    """Brightens every batch by a draw of its own."""

    def batches(self, split, *, epoch=0, seed=0, train=False, **arguments):
        generator = torch_generator(seed, "brightness", epoch)
        for batch in super().batches(split, epoch=epoch, seed=seed, train=train, **arguments):
            bright = torch.randn(1, generator=generator) if train else 0.0
            yield replace(batch, inputs={"image": batch.image + bright})


class Squeezing(Simple):
    """Loses the batch axis of a batch of one."""

    def batches(self, split, *, batch_size, train=False, **arguments):
        for batch in super().batches(split, batch_size=batch_size, train=train, **arguments):
            yield replace(batch, inputs={"image": batch.image.squeeze(0)}) if batch_size == 1 else batch


class Whole(Simple):
    """Yields full batches only, outside training."""

    def batches(self, split, *, batch_size, train=False, **arguments):
        for batch in super().batches(split, batch_size=batch_size, train=train, **arguments):
            if batch_size <= self.size(split):
                yield batch


class Timeless(Simple):
    """Never says which epoch it is."""

    def batches(self, split, **arguments):
        for batch in super().batches(split, **arguments):
            yield replace(batch, epoch=0)


class Summing(Simple):
    """Adds up the loss over the batch."""

    def loss(self, output, batch):
        if batch.labels is None:
            return super().loss(output, batch)
        return super().loss(output, batch) * (batch.size if batch.labelled is None else 1)


class Separate(Simple):
    """Returns one loss per sample where all are labelled."""

    def loss(self, output, batch):
        if batch.labels is not None and batch.labelled is None and output.requires_grad:
            return F.cross_entropy(output, batch.labels, reduction="none")
        return super().loss(output, batch)


class Cheating(Simple):
    """Learns from every label there is."""

    def loss(self, output, batch):
        some = batch.labelled is not None and bool(batch.labelled.any())
        return super().loss(output, replace(batch, labelled=None) if some else batch)


class Empty(Simple):
    """Takes the mean over no sample at all."""

    def loss(self, output, batch):
        if batch.labelled is None:
            return super().loss(output, batch)
        return F.cross_entropy(output[batch.labelled], batch.labels[batch.labelled])


class Constant(Simple):
    """Returns a plain zero when it has no labels."""

    def loss(self, output, batch):
        value = super().loss(output, batch)
        return torch.zeros(()) if batch.labelled is not None and not bool(batch.labelled.any()) else value


class Unnamed(Simple):
    """Does not say what its score is."""

    metric = None


class Errors(Simple):
    """Counts errors and says that higher is better."""

    def score(self, outputs, labels):
        return 1 - super().score(outputs, labels)


class Percent(Simple):
    """Gives its share in percent."""

    def score(self, outputs, labels):
        return 100 * super().score(outputs, labels)


class Falling(Simple):
    """An error rate that is right, and so is its chance: sound."""

    metric = Metric("error", higher_is_better=False)

    def score(self, outputs, labels):
        return 1 - super().score(outputs, labels)

    def chance(self, split):
        return 1 - commonest(self, split)


def commonest(task, split):
    """Return the share of the commonest class of a split."""
    labels = torch.cat([batch.labels for batch in task.batches(split, batch_size=100)])
    return float(labels.bincount().max() / len(labels))


class Guessing(Simple):
    """States what the commonest class scores: sound."""

    def chance(self, split):
        return commonest(self, split)


class Balanced(Simple):
    """Takes its classes for equally frequent."""

    def chance(self, split):
        return 1 / self.options.classes


class Demanding(Simple):
    """Demands twice of what a class scores."""

    def chance(self, split):
        return 2 * commonest(self, split)


class Hundredth(Simple):
    """States its level in whole percent."""

    def chance(self, split):
        return round(100 * commonest(self, split))


class Single(Simple):
    """Gives one example, whatever is asked for."""

    def example(self, batch_size=1):
        return super().example(1)


class Doubles(Simple):
    """Gives examples of another type than its batches."""

    def example(self, batch_size=1):
        return (super().example(batch_size)[0].double(),)


class Welcoming(Simple):
    """Takes every model."""

    def check(self, model, label="model"):
        pass


class Terse(Simple):
    """Refuses without saying why."""

    def check(self, model, label="model"):
        from nasdistill.errors import MismatchError

        try:
            super().check(model, label)
        except MismatchError:
            raise MismatchError(f"{label} does not fit") from None


class Switching(Simple):
    """Leaves the model in eval mode."""

    def check(self, model, label="model"):
        super().check(model, label)
        model.eval()


def spec(name, cls):
    return TaskSpec(
        name, f"{__name__}:{cls.__name__}", "one of the zoo", references=("original",),
        options="nasdistill.testing.kit.task:TinyTaskOptions",
    )  # fmt: skip


SOUND = [spec("sound", Sound), spec("tokens", Tokens), spec("falling", Falling), spec("guessing", Guessing)]
BROKEN = [
    Broken("says_its_input_and_output", spec("batched", Batched), "(1, 1, 8, 8) is not (C, H, W)"),
    Broken("gives_batches", spec("short_ids", ShortIds), "torch.int32"),
    Broken("forward_gives_outputs", spec("decided", Decided), "(16,) for 16 samples"),
    Broken("prepare_can_be_repeated", spec("growing", Growing), "sizes are [96, 16, 16]"),
    Broken("fingerprint_is_stable", spec("counted", Counted), "task number"),
    Broken("fingerprint_sees_the_data", spec("deaf", Deaf), "{'first': 100}"),
    Broken("size_is_true", spec("one_more", OneMore), "size('train') is 49, and a pass yields 48"),
    Broken("ids_are_positions", spec("restarting", Restarting), "8 of them different"),
    Broken("ids_are_positions", spec("shifted", Shifted), "[1, 2, 3, 4, 5, 6]"),
    Broken("every_sample_once", spec("dropping", Dropping), "yields 42 samples"),
    Broken("every_sample_once", spec("replacing", Replacing), "yields 47 samples"),
    Broken("splits_are_disjoint", spec("leaking", Leaking), "100% of the inputs of train occur in test"),
    Broken("labels_are_classes", spec("from_one", FromOne), "is 10, and there are 10 classes"),
    Broken("has_labels_is_true", spec("promising", Promising), "has_labels('test') is True"),
    Broken("has_labels_is_true", spec("modest", Modest), "has_labels('test') is False"),
    Broken("preprocessing_is_json", spec("tensors", Tensors), "not JSON"),
    Broken("same_arguments_same_batches", spec("global", Global), "batch['image']"),
    Broken("order_varies", spec("monotonous", Monotonous), "epoch 0 and epoch 1"),
    Broken("order_varies", spec("stubborn", Stubborn), "seed 0 and seed 1"),
    Broken("plain_passes_are_plain", spec("shuffling", Shuffling), "depends on seed or epoch"),
    Broken("batch_size_plays_no_part", spec("per_batch", PerBatch), "looks different"),
    Broken("any_batch_size_works", spec("squeezing", Squeezing), "image has the shape (1, 8, 8)"),
    Broken("any_batch_size_works", spec("whole", Whole), "yields 0 samples"),
    Broken("batches_say_their_epoch", spec("timeless", Timeless), "epoch 0"),
    Broken("loss_is_a_mean", spec("summing", Summing), "when each sample is there twice"),
    Broken("loss_is_a_mean", spec("separate", Separate), "(16,), not a scalar"),
    Broken("unlabelled_samples_do_not_count", spec("cheating", Cheating), "have a gradient"),
    Broken("loss_without_labels_is_zero", spec("empty", Empty), "nan"),
    Broken("loss_without_labels_is_zero", spec("constant", Constant), "no gradient"),
    Broken("metric_is_declared", spec("unnamed", Unnamed), "None"),
    Broken("score_follows_its_direction", spec("errors", Errors), "right outputs score 0, wrong ones 1"),
    Broken("score_follows_its_direction", spec("percent", Percent), "the unit is a share"),
    Broken("chance_is_what_a_constant_scores", spec("balanced", Balanced), "is 0.1, and the same answer for every"),
    Broken("chance_is_what_a_constant_scores", spec("demanding", Demanding), "the best class for every sample scores"),
    Broken("chance_is_what_a_constant_scores", spec("hundredth", Hundredth), "neither a finite float nor None"),
    Broken("example_is_an_input", spec("single", Single), "example(3) has the shapes [(1, 1, 8, 8)]"),
    Broken("example_is_an_input", spec("doubles", Doubles), "torch.float64"),
    Broken("refuses_models_that_do_not_fit", spec("welcoming", Welcoming), "accepts a model with 13 outputs"),
    Broken("refuses_models_that_do_not_fit", spec("terse", Terse), "does not name 13"),
    Broken("check_leaves_the_model_alone", spec("switching", Switching), "train/eval mode"),
]
