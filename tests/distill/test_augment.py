"""Augmentation by the engine: the same for every student, honest about labels, and the cache knows of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasdistill.distill.augment import LABELS, SHARE, augmented, exchange_tokens, mix, task_loss
from nasdistill.interfaces import Batch
from nasdistill.seeds import torch_generator
from nasdistill.spec.component import Kind
from nasdistill.spec.config import TrainingConfig


def text(n: int = 12, size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 50, (size, n), generator=generator)
    mask = (torch.arange(n)[None] < torch.tensor([n, n - 3, 2, 1])[:size, None]).long()
    return Batch({"input_ids": ids, "attention_mask": mask}, None, torch.arange(size))


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 0.99), st.integers(0, 1000))
def test_only_inner_real_tokens_are_exchanged(share, seed):
    batch = text()
    out = exchange_tokens(batch, share, 50, torch_generator(seed, "x")).inputs["input_ids"]
    changed = out != batch.inputs["input_ids"]
    lengths = batch.inputs["attention_mask"].sum(1)
    for row, length in enumerate(lengths.tolist()):
        assert not changed[row, 0]
        assert not changed[row, length - 1 :].any()
    assert out.max() < 50


def test_the_share_of_exchanged_tokens_is_the_one_asked_for():
    ids = torch.full((64, 102), 7)
    batch = Batch({"input_ids": ids}, None, torch.arange(64))
    out = exchange_tokens(batch, 0.3, 10_000, torch_generator(0, "x")).inputs["input_ids"]
    assert float((out[:, 1:-1] != 7).float().mean()) == pytest.approx(0.3, abs=0.02)


def test_mixed_images_are_what_the_share_says_and_so_is_the_loss(host):
    task = host.create(Kind.TASK, "image_classification")
    task.prepare()
    batch = next(task.batches("train", batch_size=6))
    mixed = mix(batch, 0.4, torch_generator(3, "x"))
    share = float(mixed.extra[SHARE][0])
    assert 0 < share < 1

    found = []
    for i in range(6):
        [j] = [
            j for j in range(6) if torch.allclose(mixed.image[i], share * batch.image[i] + (1 - share) * batch.image[j])
        ]
        found.append(j)
    assert torch.equal(mixed.extra[LABELS], batch.labels[found])
    output = torch.randn(6, 10)
    want = share * nn.functional.cross_entropy(output, batch.labels)
    want += (1 - share) * nn.functional.cross_entropy(output, batch.labels[found])
    assert torch.allclose(task_loss(task, output, mixed), want)
    assert torch.equal(task_loss(task, output, batch), task.loss(output, batch))


def test_batches_depend_on_seed_epoch_and_place_alone(host):
    task = host.create(Kind.TASK, "image_classification")
    task.prepare()
    training = TrainingConfig(mixup=0.5)

    def images(epoch, seed):
        batches = task.batches("train", batch_size=256)
        return [b.image for b in augmented(batches, training, task, epoch=epoch, seed=seed)]

    first = images(0, 0)
    assert all(map(torch.equal, first, images(0, 0)))
    assert not any(map(torch.equal, first, images(1, 0)))
    assert not any(map(torch.equal, first, images(0, 1)))
    plain = [b.image for b in augmented(task.batches("train", batch_size=256), TrainingConfig(), task, epoch=0, seed=0)]
    assert all(map(torch.equal, plain, [b.image for b in task.batches("train", batch_size=256)]))


def test_mixing_leaves_token_ids_alone():
    batch = text()
    assert mix(batch, 0.4, torch_generator(0, "x")) is batch
    assert replace(batch).extra == {}
