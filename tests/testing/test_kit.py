"""What checks and tests work on is what it says it is."""

from __future__ import annotations

import torch

from nasdistill.testing.kit.models import DIGITS
from nasdistill.testing.kit.task import tiny_task
from nasdistill.testing.kit.teacher import accuracy, tiny_teacher


def test_the_tiny_teacher_knows_digits_that_it_never_saw():
    teacher = tiny_teacher()
    assert accuracy(teacher) > 0.85
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_every_tiny_teacher_is_a_copy():
    first, second = tiny_teacher(), tiny_teacher()
    with torch.no_grad():
        first.fc.weight.zero_()
    assert second.fc.weight.any()
    assert accuracy(tiny_teacher()) > 0.85


def test_the_tiny_teacher_fits_the_tiny_task():
    task = tiny_task()
    assert task.io == DIGITS
    task.check(tiny_teacher(), "the tiny teacher")
