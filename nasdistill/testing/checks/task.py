"""Checks of tasks: the same data in every process, every sample once, a loss and a metric that mean what they say.

An example's context may say ``other_options`` (options under which the data are others: the fingerprint must tell) and
``model`` (a callable from the task's :class:`~nasdistill.spec.io.IOSpec` to a network that fits; without it a small
network of the kit is used, which reads its first input).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasdistill.errors import MismatchError
from nasdistill.interfaces import Batch, Metric, Split, Task
from nasdistill.measure.guard import Guard
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec
from nasdistill.testing.kit.task import AnyNet
from nasdistill.testing.registry import check, exercise, fail, skip
from nasdistill.testing.state import same
from nasdistill.testing.subject import Subject

SPLITS: tuple[Split, ...] = get_args(Split)


def fresh(subject: Subject, seed: int = 0, options: Any = None) -> Task:
    """Return a new task that has read its data, whatever the global random state is."""
    with seeded(seed, "prepare"):
        task: Task = subject.create(options)
        task.prepare()
    return task


def shared(subject: Subject) -> Task:
    """Return a prepared task for checks that only look."""
    return subject.once("task", lambda: fresh(subject))


def model_for(subject: Subject, task: Task, **changes: Any) -> nn.Module:
    """Return a network that fits the task; with `changes` one that does not."""
    make: Callable[..., nn.Module] = subject.context("model") or AnyNet
    with seeded(subject.seed, "model"):
        return AnyNet(task.io, **changes) if changes else make(task.io)


def one_pass(task: Task, split: Split, *, batch_size: int = 16, state: int = 0, **arguments: Any) -> list[Batch]:
    """Return the batches of one pass; `state` is the global random state, which must play no part."""
    with seeded(state, "pass"):
        return list(task.batches(split, batch_size=batch_size, **arguments))


def first(task: Task, split: Split = "train", size: int = 16) -> Batch:
    """Return the first plain batch of a split."""
    with seeded(0, "pass"):
        return next(iter(task.batches(split, batch_size=size)))


def ids_of(batches: list[Batch]) -> list[int]:
    """Return the ids in the order in which they came."""
    return [int(number) for batch in batches for number in batch.ids]


def output_for(subject: Subject, task: Task, batch: Batch, state: int = 0) -> Tensor:
    """Return made-up outputs in the form that `forward` gives, as a leaf with a gradient."""
    with torch.no_grad():
        form = task.forward(model_for(subject, task).eval(), batch)
    generator = torch.Generator().manual_seed(state)
    return torch.randn(form.shape, generator=generator, dtype=form.dtype).requires_grad_()


@exercise(Kind.TASK)
def use(subject: Subject) -> list[Any]:
    """Read the data; call a model on a batch of each kind and take the loss."""
    with subject.seeded():
        task: Task = subject.create()
        task.prepare()
        found: list[Any] = []
        model = model_for(subject, task).eval()
        for train in (False, True):
            batch = next(iter(task.batches("train", batch_size=8, train=train)))
            output = task.forward(model, batch)
            found += [dict(batch.inputs), batch.ids, output, task.loss(output, batch)]
        return found


# -- gates ------------------------------------------------------------------------------------------------------------


@check(Kind.TASK, gate=True, hint="Return an IOSpec whose shape is that of one sample, without the batch axis.")
def says_its_input_and_output(subject: Subject) -> None:
    """After `prepare`, `io` is an IOSpec with positive sizes, and token tasks name their vocabulary."""
    io = shared(subject).io
    if not isinstance(io, IOSpec):
        fail(f"io is {type(io).__name__}, not an IOSpec")
    if not io.shape or any(side < 1 for side in io.shape) or io.outputs < 1:
        fail(f"io is {io.shape} -> {io.outputs}; sizes must be positive")
    if io.kind == "image" and len(io.shape) != 3:
        fail(f"io.kind is 'image', and its shape {io.shape} is not (C, H, W)")
    if io.kind == "tokens" and not io.vocabulary:
        fail("io.kind is 'tokens', and io.vocabulary is not given")


@check(Kind.TASK, gate=True, hint="Yield Batch(inputs, labels, ids, labelled) with one row per sample in each.")
def gives_batches(subject: Subject) -> None:
    """Every split yields batches: named tensors, labels and ids with one row per sample, ids int64."""
    task = shared(subject)
    for split, train in itertools.product(SPLITS, (False, True)):
        where = f"batches({split!r}, train={train})"
        batches = one_pass(task, split, train=train)
        if not batches:
            fail(f"{where} yields nothing")
        for batch in batches:
            _well_formed(batch, where)


@check(Kind.TASK, gate=True, hint="Return the model's raw outputs: for classification logits (B, K).")
def forward_gives_outputs(subject: Subject) -> None:
    """`forward` returns a tensor with a row per sample and io.outputs numbers on the last axis, finite."""
    task = shared(subject)
    batch = first(task)
    with torch.no_grad():
        found = task.forward(model_for(subject, task).eval(), batch)
    if not isinstance(found, Tensor):
        fail(f"forward returns {type(found).__name__}, not a tensor")
    if found.ndim < 2 or found.shape[0] != batch.size or found.shape[-1] != task.io.outputs:
        fail(f"forward returns {tuple(found.shape)} for {batch.size} samples and {task.io.outputs} outputs")
    if not bool(found.isfinite().all()):
        fail("forward returns numbers that are not finite, from a network with finite weights")


# -- data -------------------------------------------------------------------------------------------------------------


@check(Kind.TASK, hint="Return at once when the data are there already.")
def prepare_can_be_repeated(subject: Subject) -> None:
    """Preparing again changes nothing: the same sizes and the same samples."""
    task = fresh(subject)
    sizes, before = [task.size(split) for split in SPLITS], first(task)
    task.prepare()
    if [task.size(split) for split in SPLITS] != sizes:
        fail(f"after a second prepare the sizes are {[task.size(split) for split in SPLITS]} instead of {sizes}")
    difference = _differ(before, first(task))
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


# -- order and augmentation -------------------------------------------------------------------------------------------


@check(Kind.TASK, hint="Derive every draw from the arguments: nasdistill.seeds.torch_generator(seed, name, epoch).")
def same_arguments_same_batches(subject: Subject) -> None:
    """The same (seed, epoch) gives the same batches, bit for bit, in another task under another global random state."""
    passes = [one_pass(fresh(subject), "train", train=True, epoch=2, seed=3, state=state) for state in (0, 1)]
    for number, (one, other) in enumerate(zip(*passes, strict=False)):
        difference = _differ(one, other)
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
                difference = _differ(one, again)
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
    for number, (a, b) in enumerate(zip(_samples(one), _samples(other), strict=False)):
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
            _well_formed(batch, f"batches({split!r}, batch_size=1)")
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


# -- loss and metric --------------------------------------------------------------------------------------------------


@check(Kind.TASK, hint="Return the mean over the samples as a 0-dimensional tensor that autograd knows.")
def loss_is_a_mean(subject: Subject) -> None:
    """The loss is a finite scalar with a finite gradient, and the same for a batch that is there twice."""
    task = shared(subject)
    batch = _labelled(first(task))
    output = output_for(subject, task, batch)
    value = task.loss(output, batch)
    if not isinstance(value, Tensor) or value.ndim:
        fail(f"loss returns {tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}, not a scalar")
    number = float(value.detach())
    if not math.isfinite(number):
        fail(f"the loss of ordinary outputs is {number}")
    if not value.requires_grad:
        fail("the loss has no gradient")
    (gradient,) = torch.autograd.grad(value, output)
    if not bool(gradient.isfinite().all()) or not bool(gradient.any()):
        fail("the gradient of the loss with respect to the outputs is zero, or not finite")
    twice = torch.arange(batch.size).repeat(2)
    doubled = float(task.loss(output[twice], batch.select(twice)).detach())
    if not math.isclose(doubled, number, rel_tol=1e-4, abs_tol=1e-6):
        fail(f"the loss is {number:.6g}, and {doubled:.6g} when each sample is there twice")


@check(Kind.TASK, hint="Leave out the samples where batch.labelled is False.")
def unlabelled_samples_do_not_count(subject: Subject) -> None:
    """Samples whose label may not be used have no influence on the loss, and no gradient."""
    task = shared(subject)
    batch = _labelled(first(task))
    if batch.size < 2:
        skip("too few labelled samples")
    usable = torch.arange(batch.size) % 2 == 0
    some = replace(batch, labelled=usable)
    output = output_for(subject, task, batch)
    value = task.loss(output, some)
    (gradient,) = torch.autograd.grad(value, output)
    if bool(gradient[~usable].any()):
        fail("outputs of unlabelled samples have a gradient")
    index = torch.nonzero(usable).squeeze(1)
    half = replace(batch.select(index), labelled=torch.ones(len(index), dtype=torch.bool))
    alone = float(task.loss(output.detach()[index], half))
    number = float(value.detach())
    if not math.isclose(alone, number, rel_tol=1e-4, abs_tol=1e-6):
        fail(f"with half of the labels the loss is {number:.6g}, over that half alone {alone:.6g}")


@check(Kind.TASK, hint="Return output.sum() * 0 when no label may be used.")
def loss_without_labels_is_zero(subject: Subject) -> None:
    """When no label may be used the loss is 0, with a gradient of zeros."""
    task = shared(subject)
    batch = first(task)
    nothing = replace(batch, labelled=torch.zeros(batch.size, dtype=torch.bool))
    for empty, what in ((nothing, "no usable label"), (replace(batch, labels=None, labelled=None), "labels=None")):
        output = output_for(subject, task, batch)
        value = task.loss(output, empty)
        if not isinstance(value, Tensor) or value.ndim or float(value.detach()) != 0:
            fail(f"with {what} the loss is {value!r}, not 0")
        if not value.requires_grad:
            fail(f"with {what} the loss has no gradient, so a step on it fails")
        (gradient,) = torch.autograd.grad(value, output, allow_unused=True)
        if gradient is not None and bool(gradient.any()):
            fail(f"with {what} the gradient is not zero")


@check(Kind.TASK, hint="Set the class attribute `metric`, with the direction in which the score is better.")
def metric_is_declared(subject: Subject) -> None:
    """`metric` is a Metric with a name."""
    found = getattr(subject.load(), "metric", None)
    if not isinstance(found, Metric) or not found.name.strip():
        fail(f"the class attribute metric is {found!r}")


@check(Kind.TASK, hint="Return a float that grows (or falls) with quality as Metric.higher_is_better says.")
def score_follows_its_direction(subject: Subject) -> None:
    """Right outputs score better than wrong ones in the metric's direction; a share lies in 0 .. 1."""
    task = shared(subject)
    if not isinstance(getattr(task, "metric", None), Metric):
        skip("it declares no metric")
    split = next((split for split in reversed(SPLITS) if task.has_labels(split)), None)
    if split is None:
        skip("no split has labels")
    batches = [_labelled(batch) for batch in one_pass(task, split)]
    labels = torch.cat([batch.labels for batch in batches if batch.labels is not None])
    form = tuple(output_for(subject, task, first(task)).shape[1:])
    right, wrong = _answers(labels, form, 0), _answers(labels, form, 1)
    good, bad = task.score(right, labels), task.score(wrong, labels)
    for value in (good, bad):
        if not isinstance(value, float) or not math.isfinite(value):
            fail(f"score returned {value!r}, not a finite float")
    if task.metric.unit == "share" and not (0 <= good <= 1 and 0 <= bad <= 1):
        fail(f"the unit is a share, and the scores are {good:g} and {bad:g}")
    if (good > bad) is not task.metric.higher_is_better or good == bad:
        fail(f"right outputs score {good:g}, wrong ones {bad:g}; higher is better: {task.metric.higher_is_better}")


# -- models -----------------------------------------------------------------------------------------------------------


@check(Kind.TASK, hint="Return the model's positional inputs as a tuple, with as many rows as asked for.")
def example_is_an_input(subject: Subject) -> None:
    """`example(n)` is a tuple of tensors with n rows, in the form of io and the batches, and a model runs on it."""
    task = shared(subject)
    for size in (1, 3):
        found = task.example(size)
        if not isinstance(found, tuple) or not found or not all(isinstance(item, Tensor) for item in found):
            fail(f"example({size}) is {type(found).__name__}, not a tuple of tensors")
        if any(not item.ndim or len(item) != size for item in found):
            fail(f"example({size}) has the shapes {[tuple(item.shape) for item in found]}")
        if task.io.kind == "image" and tuple(found[0].shape[1:]) != task.io.shape:
            fail(f"example({size}) has the shape {tuple(found[0].shape)}, and io says {task.io.shape} per sample")
        dtypes = {tensor.dtype for tensor in first(task).inputs.values()}
        if found[0].dtype not in dtypes:
            fail(f"example({size}) is {found[0].dtype}, the batches' inputs are {', '.join(map(str, dtypes))}")
        model = model_for(subject, task).eval()
        try:
            with torch.no_grad():
                model(*found)
        except Exception as error:
            fail(f"a model that fits the task does not run on example({size}): {error}")


@check(Kind.TASK, hint="Run a trial forward (the base class's `check` does) and raise MismatchError with both shapes.")
def refuses_models_that_do_not_fit(subject: Subject) -> None:
    """`check` lets a model pass that fits, and refuses others with a MismatchError that names both shapes."""
    task = shared(subject)
    try:
        task.check(model_for(subject, task), "the student")
    except MismatchError as error:
        fail(f"check refuses a model that fits: {error}")
    more, less = task.io.outputs + 3, max(2, math.prod(task.io.shape) // 2)
    misfits = {f"{more} outputs": (model_for(subject, task, outputs=more), str(more))}
    if task.io.kind != "tokens" and math.prod(task.io.shape) != less:
        misfits["another input"] = (model_for(subject, task, kept=less), str(less))
    for what, (model, number) in misfits.items():
        try:
            task.check(model, "the student")
        except MismatchError as error:
            lacking = [text for text in ("the student", number, str(task.io.outputs)) if text not in str(error)]
            if lacking:
                fail(f"the error for a model with {what} does not name {', '.join(lacking)}: {error}")
        except Exception as error:
            fail(f"check of a model with {what} raised {type(error).__name__}: {error}")
        else:
            fail(f"check accepts a model with {what}; the task has {task.io}")


@check(Kind.TASK, hint="Put the model into eval mode and every module's mode back in a `finally`; use no_grad.")
def check_leaves_the_model_alone(subject: Subject) -> None:
    """`check` changes nothing of the model: each module's mode, weights, statistics."""
    task = shared(subject)
    model = model_for(subject, task).train()
    for part in itertools.islice(model.children(), 1):
        part.eval()  # frozen statistics are no exception: one mode for the whole model will not do
    guard = Guard({"model": model})
    with seeded(subject.seed, "check"):
        task.check(model, "the student")
    changed = guard.settle()
    if changed:
        fail(f"check changes {', '.join(changed[:3])}{' and more' if len(changed) > 3 else ''}")


# -- details ----------------------------------------------------------------------------------------------------------


def _well_formed(batch: Any, where: str) -> None:
    """Fail unless a batch has the documented form."""
    if not isinstance(batch, Batch):
        fail(f"{where} yields {type(batch).__name__}, not a Batch")
    if batch.ids.dtype != torch.int64 or batch.ids.ndim != 1:
        fail(f"{where}: ids are {batch.ids.dtype} of shape {tuple(batch.ids.shape)}, not int64 of shape (B,)")
    rows: dict[str, Any] = {**batch.inputs, "labels": batch.labels, "labelled": batch.labelled}
    for name, tensor in rows.items():
        if tensor is None and name in ("labels", "labelled"):
            continue
        if not isinstance(tensor, Tensor):
            fail(f"{where}: {name} is {type(tensor).__name__}, not a tensor")
        if not tensor.ndim or len(tensor) != batch.size:
            fail(f"{where}: {name} has the shape {tuple(tensor.shape)} for {batch.size} ids")
    if not batch.inputs:
        fail(f"{where}: a batch without inputs")
    if batch.labelled is not None and batch.labelled.dtype != torch.bool:
        fail(f"{where}: labelled is {batch.labelled.dtype}, not bool")


def _differ(one: Batch, other: Batch) -> str:
    """Return where two batches differ."""
    parts = [
        {"ids": batch.ids, **batch.inputs, "labels": batch.labels, "labelled": batch.labelled} for batch in (one, other)
    ]
    return same(parts[0], parts[1], "batch")


def _samples(batches: list[Batch]) -> Iterator[dict[str, Tensor]]:
    """Yield the inputs sample by sample."""
    for batch in batches:
        for row in range(batch.size):
            yield {name: tensor[row] for name, tensor in batch.inputs.items()}


def _contents(batches: list[Batch]) -> Iterator[bytes]:
    """Yield each sample's inputs as bytes."""
    for sample in _samples(batches):
        yield b"".join(
            tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in sample.values()
        )


def _overlap(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return both tensors cut to their common sizes: a batch may be padded to its longest sample."""
    part = tuple(slice(min(sizes)) for sizes in zip(one.shape, other.shape, strict=True))
    return one[part], other[part]


def _labelled(batch: Batch) -> Batch:
    """Return the samples whose label may be used."""
    if batch.labels is None:
        skip("the split has no labels")
    if batch.labelled is None:
        return batch
    return replace(batch.select(torch.nonzero(batch.labelled).squeeze(1)), labelled=None)


def _answers(labels: Tensor, form: tuple[int, ...], off: int) -> Tensor:
    """Return outputs ``(n, *form)`` that are right, or wrong by `off`."""
    if labels.is_floating_point():
        if labels[0].numel() != math.prod(form):
            skip(f"nothing is known of right outputs of shape {form} for labels of shape {tuple(labels.shape[1:])}")
        return labels.reshape(-1, *form) + 10.0 * off
    if (*labels.shape[1:], form[-1]) != form or form[-1] < 2:
        skip(f"nothing is known of right outputs of shape {form} for labels of shape {tuple(labels.shape[1:])}")
    return 10.0 * F.one_hot((labels.clamp(min=0) + off) % form[-1], form[-1]).float()
