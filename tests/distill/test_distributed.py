"""Two processes that share each batch end with the weights that one process gets."""

from __future__ import annotations

import os
import socket
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from toy_elastic import RowSpace
from toys_distill import Attentive, Factory, made, state, toy_task, toy_teacher

from nasdistill.distill import TeacherCache, train
from nasdistill.distill.subnetworks import ladder
from nasdistill.distill.supernet import train_supernet
from nasdistill.seeds import seeded
from nasdistill.spec.config import LossConfig, ObjectiveConfig, TrainingConfig

OBJECTIVE = ObjectiveConfig(losses=(LossConfig(name="kd"), LossConfig(name="maps")))


def trained(folder):
    student = made(Attentive)
    result = train(
        student, toy_task(train=96), toy_teacher(), OBJECTIVE, TrainingConfig(batch_size=16, accumulate=2),
        epochs=2, seed=0, host=Factory(), cache=TeacherCache(folder / "cache"), checkpoint=folder / "checkpoint",
    )  # fmt: skip
    return {name: value.numpy() for name, value in state(student).items()}, result.steps


def trained_together(folder):
    space, task = RowSpace({"width": (8, 12), "depth": (1, 2)}), toy_task(train=96)
    with seeded(0, "net"):
        net = space.supernet(task.io)
    result = train_supernet(
        net, space, ladder(space, task.io), task, toy_teacher(), OBJECTIVE,
        # Adam's first steps would turn the rounding of a gradient near 0 into a step of full size.
        TrainingConfig(batch_size=16, optimizer="sgd", lr=0.05), epochs=1, seed=0,
        host=Factory(), cache=TeacherCache(folder / "cache"),
    )  # fmt: skip
    return {name: value.numpy() for name, value in state(result.net).items()}


def _child(rank, port, folder, queue):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    torch.set_num_threads(1)
    # The second call must find the process group of the first, and the cache's answers for this process's share.
    queue.put((rank, trained(folder), trained(folder), trained_together(folder)))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available() or os.name != "posix", reason="needs fork and gloo")
def test_two_processes_equal_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_child, args=(rank, port, tmp_path, queue)) for rank in range(2)]
    for child in children:
        child.start()
    try:
        results = dict((rank, both) for rank, *both in (queue.get(timeout=60) for _ in children))
    finally:
        for child in children:
            child.join(timeout=10)
            child.kill()
    alone, steps = trained(tmp_path / "alone")
    shared = trained_together(tmp_path / "together")
    for _, _, together in results.values():
        for name, value in shared.items():
            assert np.array_equal(together[name], results[0][2][name])
            np.testing.assert_allclose(together[name], value, rtol=2e-3, atol=2e-5)
    for (weights, taken), (again, _), _ in results.values():
        assert taken == steps == 6
        for name, value in alone.items():
            assert np.array_equal(weights[name], results[0][0][0][name])  # the processes agree to the bit
            assert np.array_equal(weights[name], again[name])
            np.testing.assert_allclose(weights[name], value, rtol=2e-3, atol=2e-5)
