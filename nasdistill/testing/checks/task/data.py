"""Checks of the data: fingerprint, sizes, ids, splits, labels, preprocessing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import torch

from nasdistill.interfaces import Batch
from nasdistill.spec.component import Kind
from nasdistill.testing.checks.task.cases import SPLITS, differ, first, fresh, ids_of, one_pass, samples, shared
from nasdistill.testing.registry import check, fail, skip
from nasdistill.testing.subject import Subject


@check(Kind.TASK, hint="Return at once when the data are there already.")
def prepare_can_be_repeated(subject: Subject) -> None:
    """Preparing again changes nothing: the same sizes and the same samples."""
    task = fresh(subject)
    sizes, before = [task.size(split) for split in SPLITS], first(task)
    task.prepare()
    if [task.size(split) for split in SPLITS] != sizes:
        fail(f"after a second prepare the sizes are {[task.size(split) for split in SPLITS]} instead of {sizes}")
    difference = differ(before, first(task))
    if difference:
        fail(f"a second prepare changes the samples: {difference}")


@check(Kind.TASK, hint="Hash the data, splits and preprocessing with nasdistill.files.content_hash, nothing else.")
def fingerprint_is_stable(subject: Subject) -> None:
    """The fingerprint is a text that is the same for two new instances, and after preparing again."""
    task, other = fresh(subject), fresh(subject, seed=1)
    found = task.fingerprint
    if not isinstance(found, str) or not found.strip():
        fail(f"the fingerprint is {found!r}")
    if other.fingerprint != found:
        fail(f"two instances with equal options have the fingerprints {found[:16]} and {other.fingerprint[:16]}")
    task.prepare()
    if task.fingerprint != found:
        fail("the fingerprint changes when prepare is called again")


@check(Kind.TASK, hint="Let the fingerprint cover what the option changes: data, splits, normalisation.")
def fingerprint_sees_the_data(subject: Subject) -> None:
    """Options that give other data give another fingerprint."""
    options = subject.context("other_options")
    if options is None:
        skip("no example's context names `other_options`, which give other data")
    task, other = shared(subject), fresh(subject, options={**subject.example.options, **options})
    if other.fingerprint == task.fingerprint:
        fail(f"with {dict(options)} the fingerprint is the same, so a cache would be taken for another's")


@check(Kind.TASK, hint="Count the samples that `batches` yields, after all splitting and filtering.")
def size_is_true(subject: Subject) -> None:
    """`size` is the number of samples that a pass over the split yields (or of each view, where there are several)."""
    task = shared(subject)
    for split in SPLITS:
        yielded, size = len(ids_of(one_pass(task, split))), task.size(split)
        if size < 1 or yielded % size or (split == "train" and yielded != size):
            fail(f"size({split!r}) is {size}, and a pass yields {yielded} samples")


@check(Kind.TASK, hint="Give each sample its position in the split as id, the same in every pass.")
def ids_are_positions(subject: Subject) -> None:
    """The ids of a split are 0 to n - 1, once each in the training split, equally often elsewhere."""
    for split in SPLITS:
        found = ids_of(one_pass(shared(subject), split))
        views = found.count(0)
        if (
            not views
            or (split == "train" and views > 1)
            or sorted(found) != sorted([*range(len(found) // views)] * views)
        ):
            fail(f"the {len(found)} ids of {split} are {sorted(found)[:6]} ..., {len(set(found))} of them different")


@check(Kind.TASK, hint="Keep the last, smaller batch, and shuffle without replacement.")
def every_sample_once(subject: Subject) -> None:
    """A training pass shows every sample of the split exactly once, whatever the batch size."""
    task = shared(subject)
    plain = sorted(ids_of(one_pass(task, "train")))
    for size in (16, 7):
        found = sorted(ids_of(one_pass(task, "train", train=True, batch_size=size)))
        if found != plain:
            fail(f"with batches of {size} a training pass yields {len(found)} samples, {len(set(found))} of them "
                 f"different; the split has {len(plain)}")  # fmt: skip


@check(Kind.TASK, hint="Split before anything else, and by sample.")
def splits_are_disjoint(subject: Subject) -> None:
    """No split consists of samples of another: less than a fifth of a split's inputs occur in another one."""
    task = shared(subject)
    contents = {split: set(_contents(one_pass(task, split))) for split in SPLITS}
    for one, other in itertools.permutations(SPLITS, 2):
        common = len(contents[one] & contents[other]) / len(contents[one])
        if common >= 0.2:
            fail(f"{common:.0%} of the inputs of {one} occur in {other}, too")


@check(Kind.TASK, hint="Return labels from 0 to K - 1; mark unlabelled samples in `labelled`.")
def labels_are_classes(subject: Subject) -> None:
    """Whole-numbered labels that may be used lie in 0 .. io.outputs - 1 (negative ones mark positions to ignore)."""
    task, seen = shared(subject), False
    for split in SPLITS:
        for batch in one_pass(task, split):
            labels = batch.labels
            if labels is None or labels.is_floating_point():
                continue
            used = labels if batch.labelled is None else labels[batch.labelled]
            seen = seen or bool((used >= 0).any())
            if used.numel() and int(used.max()) >= task.io.outputs:
                fail(f"a label of {split} is {int(used.max())}, and there are {task.io.outputs} classes")
            if used.ndim == 1 and used.numel() and int(used.min()) < 0:
                fail(f"a label of {split} that may be used is {int(used.min())}")
    if not seen:
        skip("its labels are no classes")


@check(Kind.TASK, hint="Return what the split's batches show: labels or None.")
def has_labels_is_true(subject: Subject) -> None:
    """`has_labels` is true of a split exactly when its batches have labels."""
    task = shared(subject)
    for split in SPLITS:
        said, found = task.has_labels(split), [batch.labels is not None for batch in one_pass(task, split)]
        if any(item != said for item in found):
            fail(f"has_labels({split!r}) is {said}, and {sum(found)} of {len(found)} batches have labels")


@check(Kind.TASK, hint="Return numbers, texts and lists of them; no tensors, arrays or paths.")
def preprocessing_is_json(subject: Subject) -> None:
    """`preprocessing` is JSON, the same when asked again."""
    found = shared(subject).preprocessing
    try:
        text = json.dumps(dict(found), allow_nan=False)
    except (TypeError, ValueError) as error:
        fail(f"preprocessing is not JSON: {error}")
    if json.dumps(dict(shared(subject).preprocessing)) != text:
        fail("preprocessing is another one when asked again")


def _contents(batches: list[Batch]) -> Iterator[bytes]:
    """Yield each sample's inputs as bytes."""
    for sample in samples(batches):
        yield b"".join(
            tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in sample.values()
        )
