"""Checks of order and augmentation: the same arguments give the same batches, in every process."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.testing.checks.task.cases import (
    SPLITS,
    differ,
    first,
    fresh,
    ids_of,
    one_pass,
    samples,
    shared,
    well_formed,
)
from nasdistill.testing.registry import check, fail, skip
from nasdistill.testing.subject import Subject


@check(Kind.TASK, hint="Derive every draw from the arguments: nasdistill.seeds.torch_generator(seed, name, epoch).")
def same_arguments_same_batches(subject: Subject) -> None:
    """The same (seed, epoch) gives the same batches, bit for bit, in another task under another global random state."""
    passes = [one_pass(fresh(subject), "train", train=True, epoch=2, seed=3, state=state) for state in (0, 1)]
    for number, (one, other) in enumerate(zip(*passes, strict=False)):
        difference = differ(one, other)
        if difference:
            fail(f"batch {number} of epoch 2 differs between two tasks: {difference}")


@check(Kind.TASK, hint="Let both `seed` and `epoch` enter the order of a training pass.")
def order_varies(subject: Subject) -> None:
    """In training, another epoch and another seed bring another order."""
    task = shared(subject)
    if task.size("train") < 8:
        skip("too few samples to tell orders apart")
    usual = ids_of(one_pass(task, "train", train=True))
    for name in ("epoch", "seed"):
        if ids_of(one_pass(task, "train", train=True, **{name: 1})) == usual:
            fail(f"with {name} 0 and {name} 1 the order is the same")


@check(Kind.TASK, hint="Shuffle and augment only when `train` is true.")
def plain_passes_are_plain(subject: Subject) -> None:
    """Without `train` samples come in the order of their ids, the same for every epoch and seed, bit for bit."""
    task = shared(subject)
    for split in SPLITS:
        usual = one_pass(task, split)
        for other in (one_pass(task, split, epoch=1), one_pass(task, split, seed=1)):
            for one, again in zip(usual, other, strict=True):
                difference = differ(one, again)
                if difference:
                    fail(f"a plain pass over {split} depends on seed or epoch: {difference}")
    ids = ids_of(one_pass(task, "train"))
    if len(set(ids)) == len(ids) and ids != sorted(ids):  # ids that occur twice are caught elsewhere
        fail(f"a plain pass begins with the ids {ids[:6]}")


@check(Kind.TASK, hint="Draw order and augmentation for the whole split at once, and index by sample.")
def batch_size_plays_no_part(subject: Subject) -> None:
    """A training pass with another batch size has the same order, and each sample looks the same in it."""
    task = shared(subject)
    one, other = (one_pass(task, "train", train=True, batch_size=size, epoch=1) for size in (16, 7))
    pairs = zip(ids_of(one), ids_of(other), strict=False)  # that no sample is lost is checked elsewhere
    if any(a != b for a, b in pairs):
        fail("the order with batches of 16 is another one than with batches of 7")
    for number, (a, b) in enumerate(zip(samples(one), samples(other), strict=False)):
        for name in a:
            x, y = _overlap(a[name], b[name])
            if not torch.equal(x, y):
                fail(f"sample {ids_of(one)[number]} looks different with batches of 16 and of 7: input {name!r} "
                     f"differs by up to {float((x.double() - y.double()).abs().max()):.3g}")  # fmt: skip


@check(Kind.TASK, hint="Take the number of samples from the data: the last batch may be smaller, a batch may be one.")
def any_batch_size_works(subject: Subject) -> None:
    """Batches of one sample and batches larger than the split are no exception."""
    task = shared(subject)
    for split in SPLITS:
        usual = ids_of(one_pass(task, split))
        with seeded(0, "pass"):
            single = list(itertools.islice(task.batches(split, batch_size=1), 2))
        ranks = {name: tensor.ndim for name, tensor in first(task, split).inputs.items()}
        for batch in single:
            well_formed(batch, f"batches({split!r}, batch_size=1)")
            for name, rank in ranks.items():
                if batch.inputs[name].ndim != rank:
                    fail(f"in a batch of one, {name} has the shape {tuple(batch.inputs[name].shape)}")
        if ids_of(single) != usual[: len(single)] or any(batch.size != 1 for batch in single):
            fail(f"batches of one of {split} have {[batch.size for batch in single]} samples, ids {ids_of(single)}")
        size = task.size(split) + 5
        whole = one_pass(task, split, batch_size=size)
        if sorted(ids_of(whole)) != sorted(usual) or not whole:
            fail(f"with batch_size={size} a pass over {split} yields {len(ids_of(whole))} samples, not {len(usual)}")


@check(Kind.TASK, hint="Pass `epoch` on into each Batch.")
def batches_say_their_epoch(subject: Subject) -> None:
    """A training batch says which epoch it is of: with its ids it names an augmented sample in the teacher's cache."""
    for batch in one_pass(shared(subject), "train", train=True, epoch=3):
        if batch.epoch != 3:
            fail(f"a batch of epoch 3 says that it is of epoch {batch.epoch}")


def _overlap(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return both tensors cut to their common sizes: a batch may be padded to its longest sample."""
    part = tuple(slice(min(sizes)) for sizes in zip(one.shape, other.shape, strict=True))
    return one[part], other[part]
