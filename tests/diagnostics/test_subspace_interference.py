"""The cosines between gradients of sub-networks: against vectors made by hand, and what the finding says of them."""

from __future__ import annotations

import math

import pytest
import torch
from toy_elastic import nasdistill_search_spaces
from toys_distill import toy_task, toy_teacher

from nasdistill.distill.subnetworks import find_subspace, ladder
from nasdistill.errors import UsageError
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.testing.hosts import isolated_host
from nasdistill.trace import make_tracer
from nasdistill_diagnostics.subspace_interference import cosines


@pytest.fixture(scope="module")
def rows_host():
    return isolated_host(*nasdistill_search_spaces())


@pytest.fixture(scope="module")
def seen():
    task = toy_task()
    return task, toy_teacher(), list(task.batches("train", batch_size=40))


def examine(host, seen, models=None, **options):
    task, teacher, batches = seen
    diagnostic = host.create(
        Kind.DIAGNOSTIC, "subspace_interference", {"space": "local:rows", "loss": "kd", "students": 3, **options}
    )
    return diagnostic.examine({"teacher": teacher.model, **(models or {})}, task, batches, make_tracer(task.forward))


def test_cosines_are_over_the_entries_that_both_use():
    a = {"w": torch.tensor([1.0, 2.0, 0.0]), "only": torch.tensor([5.0])}
    b = {"w": torch.tensor([3.0, 0.0, 4.0])}
    c = {"w": torch.tensor([-2.0, 1.0, 0.0])}
    matrix = cosines([a, b, c, {"else": torch.ones(1)}])
    assert [matrix[i][i] for i in range(4)] == pytest.approx([1.0] * 4)
    assert matrix[0][1] == matrix[1][0] == pytest.approx(1.0)  # of one shared entry
    assert matrix[0][2] == pytest.approx(0.0)
    assert matrix[1][2] == pytest.approx(-1.0)
    assert matrix[0][3] is None


@pytest.mark.paper("2201.12507", "diagnostics:subspace_interference")
def test_it_equals_gradients_taken_one_by_one(rows_host, seen):
    task, teacher, batches = seen
    space = rows_host.create(Kind.SEARCH_SPACE, "local:rows")
    found = examine(rows_host, seen, subspaces=("narrow",), students=2)
    with seeded(0, "supernet"):
        net = space.supernet(task.io, teacher.model)
    rungs = ladder(space, task.io, find_subspace(space, "narrow"))
    gradients = []
    for arch in (rungs[0], rungs[-1]):
        net.zero_grad()
        net.set_arch(arch)
        for batch in batches:
            with torch.no_grad():
                target = teacher.model(batch.image)
            temperature = 4.0
            student = torch.log_softmax(net(batch.image) / temperature, -1)
            loss = torch.nn.functional.kl_div(
                student, torch.log_softmax(target / temperature, -1), reduction="batchmean", log_target=True
            )
            (loss * temperature**2 * batch.size / 100).backward()
        gradients.append(
            torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in net.parameters()])
        )
    both = (gradients[0] != 0) & (gradients[1] != 0)
    expected = torch.cosine_similarity(gradients[0][both], gradients[1][both], dim=0)
    assert found.figures["cosines"]["data"][0]["z"][0][1] == pytest.approx(float(expected), abs=1e-4)
    assert found.values["mean cosine within sub-spaces"] == pytest.approx(float(expected), abs=1e-4)
    assert not any("across" in name for name in found.values)


def test_the_table_sums_up_the_matrix(rows_host, seen):
    found = examine(rows_host, seen)
    matrix = torch.tensor(found.figures["cosines"]["data"][0]["z"])
    assert matrix.shape == (6, 6)
    assert torch.equal(matrix, matrix.T)
    rows = {(row["first"], row["second"]): row for row in found.tables["sub-spaces"]}
    assert set(rows) == {("narrow", "narrow"), ("narrow", "wide"), ("wide", "wide")}
    across = matrix[:3, 3:]
    assert rows["narrow", "wide"]["pairs"] == 9
    assert rows["narrow", "wide"]["mean cosine"] == pytest.approx(float(across.mean()), abs=1e-6)
    assert rows["narrow", "wide"]["conflicts"] == pytest.approx(float((across < 0).float().mean()))
    assert found.values["mean cosine across sub-spaces"] == pytest.approx(float(across.mean()), abs=1e-6)
    within = [float(matrix[i, j]) for i, j in ((0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5))]
    assert found.values["mean cosine within sub-spaces"] == pytest.approx(math.fsum(within) / 6, abs=1e-6)
    params = [row["params"] for row in found.tables["students"]]
    assert params[:3] == sorted(params[:3])
    assert params[3:] == sorted(params[3:])


def test_trained_shared_weights_may_be_given(rows_host, seen):
    task, teacher, _ = seen
    space = rows_host.create(Kind.SEARCH_SPACE, "local:rows")
    with seeded(0, "supernet"):
        same = space.supernet(task.io, teacher.model)
    with seeded(1, "other"):
        other = space.supernet(task.io)
    plain = examine(rows_host, seen)
    assert examine(rows_host, seen, {"supernet": same}).values == plain.values
    assert examine(rows_host, seen, {"supernet": other}).values != plain.values
    assert all(parameter.grad is None for parameter in other.parameters())


def test_what_it_cannot_look_at_is_said(rows_host, seen):
    task, teacher, batches = seen
    with pytest.raises(UsageError, match="has no supernet"):
        examine(rows_host, seen, space="resnet_s0")
    with pytest.raises(UsageError, match="no sub-space 'wied'"):
        examine(rows_host, seen, subspaces=("wied",))
    diagnostic = rows_host.create(Kind.DIAGNOSTIC, "subspace_interference", {"space": "local:rows"})
    with pytest.raises(UsageError, match="a model called 'teacher', not only student"):
        diagnostic.examine({"student": teacher.model}, task, batches, make_tracer(task.forward))
