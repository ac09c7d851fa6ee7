"""The teacher cache: the same weights with it and without it, one teacher pass for all, damage never used."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from toys_distill import Attentive, Factory, Perceptron, counting_teacher, made, same, state, toy_task, toy_teacher

from nasdistill.distill import TeacherCache, fill_cache, train
from nasdistill.distill import cache as cache_module
from nasdistill.distill import entries as entries_module
from nasdistill.distill.cache import settled
from nasdistill.interfaces import Batch, Signal, SingleTeacher, Site, Trace
from nasdistill.spec.config import LossConfig, ObjectiveConfig, TrainingConfig

ALL = ObjectiveConfig(losses=(LossConfig(name="kd"), LossConfig(name="hidden"), LossConfig(name="maps")))
KD = ObjectiveConfig()
BATCHES = 4  # of 32, for 100 samples


def run(cache, *, objective=ALL, teacher=None, student=None, epochs=2, task=None, **arguments):
    student = student or made(Attentive)
    training = TrainingConfig(batch_size=32, **arguments.pop("config", {}))
    arguments = {"seed": 0, "data_seed": 1, **arguments}
    train(
        student, task or toy_task(), teacher or toy_teacher(), objective, training, epochs=epochs, host=Factory(),
        cache=cache, **arguments,
    )  # fmt: skip
    return state(student)


def entries(cache):
    return sorted(str(path.parent.relative_to(cache.folder)) for path in cache.folder.glob("*/*/*/manifest.json"))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_same_weights_with_and_without(tmp_path, precision):
    config = {"precision": precision}
    plain = run(None, config=config)
    cache = TeacherCache(tmp_path)
    filling, from_memory = run(cache, config=config), run(cache, config=config)
    from_disk = run(TeacherCache(tmp_path), config=config)
    mapped = run(TeacherCache(tmp_path, memory_mb=0), config=config)
    switched_off = run(cache, config={**config, "teacher_cache": False})
    for other in (filling, from_memory, from_disk, mapped, switched_off):
        assert same(plain, other)
    assert (cache.misses, cache.hits) == (2 * BATCHES, 2 * BATCHES)


def test_one_teacher_pass_for_all_students(tmp_path):
    cache, teacher = TeacherCache(tmp_path), counting_teacher()
    run(cache, teacher=teacher)
    assert teacher.asked == 2 * BATCHES
    for seed in (1, 2):
        run(cache, teacher=teacher, seed=seed, student=made(Attentive, seed, width=8))
        run(cache, teacher=teacher, seed=seed, student=made(Perceptron, seed), objective=KD)
    assert teacher.asked == 2 * BATCHES
    run(cache, teacher=teacher, epochs=1, start_epoch=2)  # an epoch that nobody has seen
    assert teacher.asked == 3 * BATCHES


def test_only_what_is_asked_for_is_kept_and_grows_by_what_is_missing(tmp_path):
    cache, teacher = TeacherCache(tmp_path), counting_teacher()
    run(cache, teacher=teacher, objective=KD, epochs=1)
    (key,) = (path.name for path in tmp_path.iterdir())
    assert entries(cache) == [f"{key}/00000/logits"]
    run(cache, teacher=teacher, objective=ALL, epochs=1)
    # Maps are recomputed from q and k, which are what is kept.
    assert entries(cache) == [f"{key}/00000/{site}" for site in ("hidden.2", "k.2", "logits", "q.2")]
    assert teacher.asked == 2 * BATCHES
    assert same(run(cache, teacher=teacher, epochs=1), run(None, epochs=1, teacher=counting_teacher()))
    assert teacher.asked == 2 * BATCHES
    record = json.loads((tmp_path / key / "key.json").read_text())
    assert record["teacher"] == "counting"
    assert record["seed"] == 1
    assert record["batch_size"] == 32
    manifest = json.loads((tmp_path / key / "00000" / "q.2" / "manifest.json").read_text())
    assert manifest["rows"] == 100
    assert manifest["signals"][""]["layout"] == "heads"
    assert manifest["signals"][""]["scale"] == pytest.approx(8**-0.5)
    assert set(manifest["arrays"]) == {"ids", "tensor"}


def test_other_data_teacher_or_batch_size_is_another_entry(tmp_path):
    cache = TeacherCache(tmp_path)

    def misses(**arguments):
        before = cache.misses
        run(cache, objective=KD, epochs=1, **arguments)
        return cache.misses - before

    assert misses() == BATCHES
    assert misses() == 0
    assert misses(data_seed=2) == BATCHES
    assert misses(teacher=toy_teacher(seed=101)) == BATCHES
    assert misses(task=toy_task(labelled=0.5)) == BATCHES
    assert misses(config={"threads": 2}) == BATCHES
    assert misses(config={"precision": "bf16"}) == BATCHES
    training = TrainingConfig(batch_size=16)
    train(made(Perceptron), toy_task(), toy_teacher(), KD, training, epochs=1, seed=0, data_seed=1, host=Factory(),
          cache=cache)  # fmt: skip
    assert misses() == 0


def test_passes_repeat(tmp_path):
    cache, teacher = TeacherCache(tmp_path), counting_teacher()
    config = {"distinct_epochs": 2}
    cached = run(cache, teacher=teacher, objective=KD, epochs=5, config=config)
    assert teacher.asked == 2 * BATCHES
    assert same(cached, run(None, objective=KD, epochs=5, config=config, teacher=counting_teacher()))
    assert not same(cached, run(None, objective=KD, epochs=5, config={"distinct_epochs": None}))


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a flipped bit": lambda folder: _flip(folder / "tensor.npy"),
    "other ids": lambda folder: _flip(folder / "ids.npy"),
    "a short file": lambda folder: (folder / "tensor.npy").write_bytes((folder / "tensor.npy").read_bytes()[:-100]),
    "a missing file": lambda folder: (folder / "tensor.npy").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: (folder / "manifest.json").write_text('{"format": "nasdistill.teach'),
    "a manifest of something else": lambda folder: (folder / "manifest.json").write_text("[1, 2]"),
    "an empty file": lambda folder: (folder / "ids.npy").write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("memory_mb", [256, 0])
def test_damage_is_found_and_repaired(tmp_path, damage, memory_mb):
    plain = run(None, objective=KD)
    run(TeacherCache(tmp_path), objective=KD)
    (folder,) = tmp_path.glob("*/00001/logits")
    DAMAGE[damage](folder)
    cache = TeacherCache(tmp_path, memory_mb=memory_mb)
    with pytest.warns(UserWarning, match="is damaged"):
        assert same(plain, run(cache, objective=KD))
    assert (cache.rebuilt, cache.hits, cache.misses) == (1, BATCHES, BATCHES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = TeacherCache(tmp_path, memory_mb=memory_mb)
        assert same(plain, run(again, objective=KD))
    assert (again.rebuilt, again.misses) == (0, 0)
    assert not list(tmp_path.rglob(".*"))


def test_an_interrupted_epoch_leaves_nothing(tmp_path):
    cache = TeacherCache(tmp_path)
    calls = iter([False] * 6 + [True])
    run(cache, objective=KD, should_stop=lambda: next(calls))
    assert [entry.split("/")[1] for entry in entries(cache)] == ["00000"]
    assert not list(tmp_path.rglob(".*"))

    def stop(info, terms):
        if info.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cache, objective=KD, on_step=stop)
    assert [entry.split("/")[1] for entry in entries(cache)] == ["00000"]
    assert not list(tmp_path.rglob(".*"))
    assert same(run(cache, objective=KD), run(None, objective=KD))


def test_a_full_disk_never_fails_a_training(tmp_path, monkeypatch):
    plain = run(None, objective=KD)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    cache = TeacherCache(tmp_path / "a")
    with pytest.warns(UserWarning, match="would leave") as caught:
        assert same(plain, run(cache, objective=KD))
    assert len(caught) == 1  # once, not once a batch
    assert entries(cache) == []
    monkeypatch.undo()

    def full(self, data):
        raise OSError(28, "No space left on device")

    cache = TeacherCache(tmp_path / "b")
    monkeypatch.setattr(entries_module._File, "_put", full)
    with pytest.warns(UserWarning, match="No space left") as caught:
        assert same(plain, run(cache, objective=KD))
    assert len(caught) == 1
    monkeypatch.undo()
    assert entries(cache) == []
    assert not list((tmp_path / "b").rglob(".*"))
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be"):
        assert same(plain, run(TeacherCache(tmp_path / "file" / "below"), objective=KD))


def test_a_size_limit_is_kept(tmp_path):
    limit = 20_000  # bytes: less than four epochs of 100 x (4 floats, an id) and their manifests
    cache = TeacherCache(tmp_path, max_gb=limit / 2**30)
    with pytest.warns(UserWarning, match="reached its limit"):
        run(cache, objective=KD, epochs=8)
    assert 1 <= len(entries(cache)) < 8
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= limit
    assert cache.size() > 0
    cache.clear()
    assert cache.size() == 0


def test_what_is_out_of_use_makes_room(tmp_path):
    limit = 20_000 / 2**30
    run(TeacherCache(tmp_path), objective=KD, epochs=3, data_seed=7)
    (old,) = tmp_path.iterdir()
    with pytest.warns(UserWarning, match="reached its limit"):  # it was used just now
        run(TeacherCache(tmp_path, max_gb=limit), objective=KD, epochs=3)
    assert old.exists()
    os.utime(old, (0, 0))
    cache = TeacherCache(tmp_path, max_gb=limit)
    run(cache, objective=KD, epochs=3)
    assert not old.exists()
    assert len(entries(cache)) == 3
    assert cache.size() <= 20_000
    (key,) = tmp_path.iterdir()
    os.utime(key, (0, 0))
    again = TeacherCache(tmp_path, max_gb=limit)
    run(again, objective=KD, epochs=3)
    assert (again.hits, again.misses) == (3 * BATCHES, 0)
    assert key.stat().st_mtime > 1e9  # every use is noted


def test_recent_epochs_stay_in_memory_within_the_bound(tmp_path):
    cache = TeacherCache(tmp_path, memory_mb=8000 / 2**20)  # about two epochs of logits
    run(cache, objective=KD, epochs=4)
    run(cache, objective=KD, epochs=4)
    assert 0 < cache._loaded_bytes <= 8000
    assert 0 < len(cache._loaded) < 4
    assert cache.hits == 4 * BATCHES


def test_teachers_that_change_are_asked_every_time(tmp_path):
    cache, teacher = TeacherCache(tmp_path), counting_teacher()
    teacher.cacheable = False
    run(cache, teacher=teacher, objective=KD)
    run(cache, teacher=teacher, objective=KD)
    assert teacher.asked == 4 * BATCHES
    assert entries(cache) == []


def test_a_task_whose_order_is_not_reproducible_is_noticed(tmp_path):
    task = toy_task()
    run(TeacherCache(tmp_path), objective=KD, task=task, epochs=1)
    original = type(task).batches

    def shifted(split, *, seed=0, **arguments):
        return original(task, split, seed=seed + 1, **arguments)

    task.batches = shifted
    plain = run(None, objective=KD, task=task, epochs=1)
    with pytest.warns(UserWarning, match="another order of samples"):
        assert same(plain, run(TeacherCache(tmp_path), objective=KD, task=task, epochs=1))


class Ensemble(SingleTeacher):
    """Two members beside the mean of their logits."""

    def __init__(self):
        super().__init__(made(Attentive, 100, width=24, depth=3, heads=3), label="two", fingerprint="two")
        self._second = made(Perceptron, 101).eval().requires_grad_(False)

    @property
    def members(self):
        return (self.model, self._second)

    def trace(self, batch, sites, step, tracer):
        first = tracer(self.model, batch, sites)
        second = tracer(self._second, batch, frozenset({Site("logits")}))
        signals = dict(first.signals)
        signals[Site("logits")] = Signal((first.logits + second.logits) / 2, "vector")
        return Trace(signals, (first, second), torch.tensor([0.25, 0.75]))


class EnsembleKD(Factory.losses["kd"]):
    def forward(self, student, teacher, batch, step):
        one, two = teacher.members
        target = teacher.weights[0] * one.logits + teacher.weights[1] * two.logits + teacher.logits
        return {"kd": (student.logits - target).square().mean()}


def test_ensembles(tmp_path, monkeypatch):
    monkeypatch.setitem(Factory.losses, "kd", EnsembleKD)
    plain = run(None, teacher=Ensemble())
    cache = TeacherCache(tmp_path)
    assert same(plain, run(cache, teacher=Ensemble()))
    assert same(plain, run(cache, teacher=Ensemble()))
    assert (cache.hits, cache.misses) == (2 * BATCHES, 2 * BATCHES)


def _trace(batch, **parts):
    facts = {"layout": "heads", "scale": 0.5, "causal": True, "grid": (2, 3)}
    torch.manual_seed(int(batch.ids[0]))
    return Trace({Site("q", 0): Signal(torch.randn(batch.size, 2, 6, 4), **facts, **parts)})


def _batches(sizes):
    begin = 0
    for size in sizes:
        ids = torch.arange(begin, begin + size)
        yield Batch({}, None, ids)
        begin += size


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64, torch.int64]
)
def test_every_part_and_type_comes_back(tmp_path, dtype):
    cache = TeacherCache(tmp_path)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()

    def answer(batch):
        generator = torch.Generator().manual_seed(int(batch.ids[0]))
        bias = torch.randn(batch.size, 1, 6, 6, generator=generator)
        valid = torch.rand(batch.size, 6, generator=generator) > 0.5
        trace = _trace(batch, mask=causal, bias=bias, valid=valid)
        signal = trace.signals[Site("q", 0)]
        tensor = (signal.tensor * 5).to(dtype).transpose(1, 2).contiguous().transpose(1, 2)
        trace.signals[Site("q", 0)] = Signal(
            tensor, "heads", mask=causal, bias=bias, scale=0.5, causal=True, valid=valid, grid=(2, 3)
        )
        return trace

    sites = frozenset({Site("q", 0)})
    for expected_hits in (0, 3):
        with cache.epoch({"of": "test"}, 0, 9, sites) as entry:
            for batch in _batches((4, 4, 1)):
                trace = entry.trace(batch, lambda batch=batch: answer(batch))
                expected = settled(answer(batch))
                for site in trace:
                    found, right = trace.signals[site], expected.signals[site]
                    for part in ("tensor", "mask", "bias", "valid"):
                        one, two = getattr(found, part), getattr(right, part)
                        assert one.dtype == two.dtype
                        assert one.stride() == two.stride()
                        assert torch.equal(one.to(torch.float64), two.to(torch.float64))
                    assert (found.layout, found.scale, found.causal, found.grid) == ("heads", 0.5, True, (2, 3))
        assert cache.hits == expected_hits


def _padded(batch, length):
    """A signal over padded text: as long as the batch's longest sample, with masks."""
    generator = torch.Generator().manual_seed(int(batch.ids[0]))
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return Trace({
        Site("hidden", 0): Signal(torch.randn(batch.size, length, 4, generator=generator), "tokens",
                                  valid=torch.rand(batch.size, length, generator=generator) > 0.3),
        Site("q", 0): Signal(torch.randn(batch.size, 2, length, 3, generator=generator), "heads", mask=causal,
                             scale=0.5, causal=True),
    })  # fmt: skip


@pytest.mark.parametrize("memory_mb", [256, 0])
def test_batches_of_different_lengths_come_back_as_they_were(tmp_path, memory_mb):
    cache = TeacherCache(tmp_path, memory_mb=memory_mb)
    sites = frozenset({Site("hidden", 0), Site("q", 0)})
    sizes, lengths = (4, 4, 4, 1), (6, 6, 9, 2)
    for _ in range(2):
        with cache.epoch({}, 0, sum(sizes), sites) as entry:
            for batch, length in zip(_batches(sizes), lengths, strict=True):
                trace, right = entry.trace(batch, lambda b=batch, n=length: _padded(b, n)), _padded(batch, length)
                for site in sites:
                    for part in ("tensor", "mask", "valid"):
                        one, two = getattr(trace.signals[site], part), getattr(right.signals[site], part)
                        assert (one is None and two is None) or (torch.equal(one, two) and one.is_contiguous())
    assert (cache.hits, cache.misses) == (4, 4)
    with cache.epoch({}, 0, 13, sites) as entry:
        batch = next(_batches((5, 8)))  # the same samples, cut elsewhere: their padding is another
        with pytest.warns(UserWarning, match="another order of samples"):
            entry.trace(batch, lambda: _padded(batch, 9))
    (table,) = tmp_path.glob("*/00000/hidden.0/tensor.blocks.npy")
    _flip(table)
    with pytest.warns(UserWarning, match=r"tensor.blocks.npy does not match"):
        assert TeacherCache(tmp_path).load(table.parent) is None


@pytest.mark.parametrize("padded", [(False, True, False), (True, False, True)])
def test_batches_without_padding_come_back_without_a_mask(tmp_path, padded):
    cache, site = TeacherCache(tmp_path), Site("q", 0)
    generator = torch.Generator().manual_seed(0)
    answers = [
        Signal(torch.randn(3, 2, 5, 4, generator=generator), "heads", scale=0.5,
               mask=torch.rand(3, 1, 1, 5, generator=generator) > 0.3 if some else None)
        for some in padded
    ]  # fmt: skip
    for _ in range(2):
        with cache.epoch({}, 0, 9, frozenset({site})) as entry:
            for batch, right in zip(_batches((3, 3, 3)), answers, strict=True):
                found = entry.trace(batch, lambda one=right: Trace({site: one})).signals[site]
                assert torch.equal(found.tensor, right.tensor)
                assert (found.mask is None) == (right.mask is None)
                assert right.mask is None or torch.equal(found.mask, right.mask)
    assert (cache.hits, cache.misses) == (3, 3)


def test_what_no_array_holds_is_not_kept(tmp_path):
    cache = TeacherCache(tmp_path)
    shapes = iter([(6, 4), (6, 4), (4,)])

    def pass_over(epoch, site, answer):
        with cache.epoch({}, epoch, 9, frozenset({site})) as entry:
            for batch in _batches((3, 3, 3)):
                assert entry.trace(batch, lambda batch=batch: answer(batch)).signals

    with pytest.warns(UserWarning, match="cannot keep hidden"):
        pass_over(0, Site("hidden", 0), lambda batch: Trace(
            {Site("hidden", 0): Signal(torch.zeros(batch.size, *next(shapes)), "tokens")}
        ))  # fmt: skip
    scales = iter([0.5, 0.5, 0.25])
    with pytest.warns(UserWarning, match="changes from batch to batch"):
        pass_over(1, Site("q", 0), lambda batch: Trace(
            {Site("q", 0): Signal(torch.zeros(batch.size, 2, 6, 4), "heads", scale=next(scales))}
        ))  # fmt: skip
    assert entries(cache) == []


def test_cached_values_are_safe_from_losses_that_write_into_them(tmp_path):
    cache = TeacherCache(tmp_path)
    sites = frozenset({Site("q", 0)})
    for _ in range(3):
        with cache.epoch({}, 0, 3, sites) as entry:
            for batch in _batches((3,)):
                trace = entry.trace(batch, lambda batch=batch: _trace(batch))
                assert torch.equal(trace["q.0"], _trace(batch)["q.0"])
                if cache.hits:
                    trace["q.0"].zero_()


def test_the_first_of_two_writers_wins(tmp_path):
    one, two = TeacherCache(tmp_path), TeacherCache(tmp_path)
    sites = frozenset({Site("q", 0)})
    with one.epoch({}, 0, 3, sites) as first, two.epoch({}, 0, 3, sites) as second:
        for batch in _batches((3,)):
            for entry in (first, second):
                entry.trace(batch, lambda batch=batch: _trace(batch))
    assert len(entries(one)) == 1
    assert not list(tmp_path.rglob(".*"))
    assert one.load(next(tmp_path.glob("*/00000/q.0"))) is not None


def _in_process(folder):
    torch.set_num_threads(1)
    return {name: value.numpy() for name, value in run(TeacherCache(folder), objective=KD).items()}


def test_processes_share_a_folder(tmp_path):
    plain = run(None, objective=KD)
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        results = list(pool.map(_in_process, [tmp_path] * 3))
    for found in results:
        assert all(np.array_equal(found[name], value.numpy()) for name, value in plain.items())
    assert len(entries(TeacherCache(tmp_path))) == 2
    assert not list(tmp_path.rglob(".*"))


def test_filling_first(tmp_path):
    cache, teacher, task = TeacherCache(tmp_path), counting_teacher(), toy_task()
    training = TrainingConfig(batch_size=32)
    sites = frozenset({Site("logits")})
    fill = {"epochs": 3, "data_seed": 1}
    assert fill_cache(cache, task, teacher, sites, training, **fill) == 3
    assert fill_cache(cache, task, teacher, sites, training, **fill) == 0
    assert teacher.asked == 3 * BATCHES
    assert same(
        run(cache, objective=KD, teacher=teacher, epochs=3),
        run(None, objective=KD, teacher=counting_teacher(), epochs=3),
    )
    assert teacher.asked == 3 * BATCHES


def test_no_pickle_is_read(tmp_path):
    run(TeacherCache(tmp_path), objective=KD, epochs=1)
    (folder,) = tmp_path.glob("*/00000/logits")
    evil = np.array([{"a": 1}] * 100, dtype=object)
    np.save(folder / "tensor.npy", evil, allow_pickle=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["arrays"]["tensor"]["sha256"] = entries_module._numbers_hash(folder / "tensor.npy")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    cache = TeacherCache(tmp_path)
    with pytest.warns(UserWarning, match="is damaged"):
        run(cache, objective=KD, epochs=1)
    assert cache.rebuilt == 1
