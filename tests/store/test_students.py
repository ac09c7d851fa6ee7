"""Saved students come back bit for bit, and damage is noticed."""

from __future__ import annotations

import resource

import pytest
import torch
from torch import nn

from nasdistill.errors import UsageError
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.io import IOSpec
from nasdistill.store import load_weights, read_student, save_student, save_weights, weights_hash


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 10))
    model.train()(torch.randn(5, 1, 8, 8))
    return model.eval()


def test_round_trip_is_bit_equal(tmp_path):
    model = network()
    arch = Architecture.of("spaces:x", {"a": 1, "b": "two", "c": 0.5})
    io = IOSpec("image", (1, 8, 8), 10)
    save_student(tmp_path / "s", model, arch, io, {"trial": 4})
    loaded_arch, loaded_io, weights, provenance = read_student(tmp_path / "s")
    assert (loaded_arch, loaded_io, provenance["trial"]) == (arch, io, 4)
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 10)).eval()
    other.load_state_dict(weights)
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(other(x), model(x))
    assert weights_hash(other) == weights_hash(model)


def test_one_changed_weight_changes_the_hash():
    model = network()
    before = weights_hash(model)
    with torch.no_grad():
        model[0].bias[0] += 1e-7
    assert weights_hash(model) != before


def test_a_full_disk_is_an_operating_system_error_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.safetensors"
    before = save_weights(network(), path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_weights(network(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    load_weights(path, before)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damaged_weights_are_refused(tmp_path, damage):
    path = tmp_path / "w.safetensors"
    digest = save_weights(network(), path)
    data = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        path.unlink()
    with pytest.raises(UsageError, match=r"w\.safetensors"):
        load_weights(path, digest)


def test_an_incomplete_folder_is_refused(tmp_path):
    save_student(tmp_path / "s", network(), Architecture.of("spaces:x", {}), IOSpec("image", (1, 8, 8), 10), {})
    (tmp_path / "s" / "provenance.json").unlink()
    with pytest.raises(UsageError, match="not a complete saved student"):
        read_student(tmp_path / "s")
