"""Teachers: timm models, the user's own networks, and the bundled one, with everything that can be wrong with them."""

from __future__ import annotations

import itertools
import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nasdistill.errors import BrokenComponentError, DataError, MismatchError, NasdistillError, UsageError
from nasdistill.files import cache_folder, read_json
from nasdistill.spec.component import Kind
from nasdistill.weights import model_hash, state_hash


@pytest.fixture(scope="session")
def digits(host):
    task = host.create(Kind.TASK, "image_classification", {"data": "digits"})
    task.prepare()
    return task


@pytest.fixture(scope="session")
def colours(host, tmp_path_factory):
    """A task of 24 x 24 colour images in 5 classes."""
    path = tmp_path_factory.mktemp("colours") / "x.npz"
    x = np.random.default_rng(0).integers(0, 256, (100, 24, 24, 3), dtype=np.uint8)
    np.savez(path, x=x, y=np.arange(100) % 5)
    task = host.create(Kind.TASK, "image_classification", {"data": str(path)})
    task.prepare()
    return task


@pytest.fixture
def opened(host, tmp_path):
    """Open a teacher; returns the session and the lines it said."""

    def open_it(name, task, **options):
        lines: list[str] = []
        kind, _, locator = name.partition(":")
        teacher = host.create(Kind.TEACHER, kind, options)
        return teacher.open(locator, task, cache_dir=tmp_path / "cache", progress=lines.append), lines

    return open_it


# ---- hashes --------------------------------------------------------------------------------------------------------


def test_state_hash_sees_every_part():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    first = state_hash(model)
    assert state_hash(model.eval()) == first
    with torch.no_grad():
        model[1].running_mean[0] = 1e-30
    second = state_hash(model)
    assert len({first, second, state_hash(model.double()), state_hash(nn.Sequential(model))}) == 4
    assert state_hash(nn.Linear(1, 1).bfloat16()) != state_hash(nn.Linear(1, 1).half())


def test_model_hash_sees_the_structure():
    assert state_hash(nn.ReLU()) == state_hash(nn.GELU())
    assert model_hash(nn.ReLU()) != model_hash(nn.GELU())


# ---- timm ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm:test_resnet", {}),
        ("timm:test_vit", {"model_options": {"patch_size": 4}}),
        ("timm:vit_tiny_patch16_224", {"model_options": {"patch_size": 2, "depth": 2, "embed_dim": 48}}),
    ],
)
def test_timm_models_fit_the_digits(opened, digits, name, options):
    session, lines = opened(name, digits, **options)
    batch = next(digits.batches("validation", batch_size=5))
    assert digits.forward(session.model, batch).shape == (5, 10)
    assert session.label == name
    assert not session.model.training
    assert not any(p.requires_grad for p in session.model.parameters())
    assert any("random weights" in line and line.startswith("warning") for line in lines)


def test_timm_models_fit_other_images(opened, colours):
    for name, options in (("timm:test_resnet", {}), ("timm:test_vit", {"patch_size": 8})):
        session, _ = opened(name, colours, model_options=options)
        assert session.model(colours.example(2)[0]).shape == (2, 5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", "wrapped"])
def test_timm_local_weights_round_trip(opened, digits, tmp_path, suffix):
    source, _ = opened("timm:test_resnet", digits, seed=7)
    state = {name: value.clone() for name, value in source.model.state_dict().items()}
    path = tmp_path / ("w.safetensors" if suffix == ".safetensors" else "w.pth")
    if suffix == ".safetensors":
        save_file(state, path)
    elif suffix == ".pth":
        torch.save(state, path)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    loaded, lines = opened("timm:test_resnet", digits, weights=str(path))
    assert loaded.fingerprint == source.fingerprint
    assert not any("random" in line for line in lines)


def test_timm_unknown_name(opened, digits):
    with pytest.raises(UsageError, match=r"timm has no model 'resnet19'. Did you mean .*'resnet"):
        opened("timm:resnet19", digits)
    with pytest.raises(UsageError, match="timm needs the name of a model"):
        opened("timm:", digits)


def test_timm_weights_for_another_task(opened, digits, colours, tmp_path):
    save_file(opened("timm:test_resnet", colours)[0].model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(
        MismatchError, match=r"image 1 x 8 x 8 -> 10.* is \(\d+, 3, .*in the file and \(\d+, 1, "
    ) as error:
        opened("timm:test_resnet", digits, weights=str(tmp_path / "w.safetensors"))
    assert "3 channels and 5 classes" in error.value.hint


def test_timm_weights_of_another_model(opened, digits, tmp_path):
    save_file(
        opened("timm:test_vit", digits, model_options={"patch_size": 4})[0].model.state_dict(),
        tmp_path / "w.safetensors",
    )
    with pytest.raises(MismatchError, match=r"holds the weights of another model: .* missing .* unknown"):
        opened("timm:test_resnet", digits, weights=str(tmp_path / "w.safetensors"))


class Unsafe:
    def __reduce__(self):
        return (os.system, ("echo unsafe",))


@pytest.mark.parametrize("content", ["rubbish", "unsafe", "list", "missing"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_timm_unreadable_weights(opened, digits, tmp_path, content, name):
    path = tmp_path / name
    if content == "rubbish":
        path.write_bytes(b"rubbish")
    elif content == "unsafe":
        torch.save(Unsafe(), path)
    elif content == "list":
        torch.save({"a": [1, 2]}, path)
    with pytest.raises(DataError, match=name):
        opened("timm:test_resnet", digits, weights=str(path))


def test_timm_images_too_small(opened, digits):
    with pytest.raises(MismatchError, match=r"vgg11 .*1 x 8 x 8 images") as error:
        opened("timm:vgg11", digits)
    assert "image_size" in error.value.hint
    with pytest.raises(MismatchError, match=r"vit_tiny_patch16_224 .*1 x 8 x 8 images.*"):
        opened("timm:vit_tiny_patch16_224", digits, model_options={"depth": 1})


def test_timm_wrong_options(opened, digits):
    with pytest.raises(UsageError, match="does not take the model option 'dephts'"):
        opened("timm:test_vit", digits, model_options={"dephts": 3})
    with pytest.raises(UsageError, match="weights or pretrained, not both"):
        opened("timm:test_vit", digits, weights="x", pretrained=True)


def test_timm_pretrained_for_other_classes_is_refused_before_the_download(opened, digits):
    with pytest.raises(
        MismatchError, match=r"3 x 224 x 224 images and give 1000 classes, but .* 1 x 8 x 8 .* 10 classes"
    ):
        opened("timm:resnet18", digits, pretrained=True)
    with pytest.raises(UsageError, match="has no pretrained weights"):
        opened("timm:coatnet_0_224", digits, pretrained=True)


def test_timm_pretrained_without_network(opened, digits, monkeypatch):
    """Only the task's shape is pretended: 1000 classes, so that the download is tried (and refused: offline)."""
    import huggingface_hub.constants

    from nasdistill.spec.io import IOSpec

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(type(digits), "io", IOSpec("image", (3, 160, 160), 1000))
    with pytest.raises(NasdistillError, match="cannot get the pretrained weights of timm:test_resnet") as error:
        opened("timm:test_resnet", digits, pretrained=True)
    assert "weights" in error.value.hint


@pytest.mark.data
def test_timm_on_the_cifar_subset(host, opened, data_folder):
    path = data_folder / "cifar10_subset" / "cifar10_subset.zip"
    task = host.create(Kind.TASK, "image_classification", {"data": str(path)})
    task.prepare()
    for name in ("timm:test_resnet", "timm:test_vit"):
        session, _ = opened(name, task)
        batch = next(task.batches("validation", batch_size=4))
        assert task.forward(session.model, batch).shape == (4, 10)


# ---- torch -------------------------------------------------------------------------------------------------------


MODULE = """
import threading
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels=1, outputs=10):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.head = nn.Linear(4, outputs)
    def forward(self, image):
        return self.head(self.conv(image).mean((2, 3)))

def plain(): return Net()
def from_io(io): return Net(io.shape[0], io.outputs)
def from_anything(what): return Net(what.shape[0], what.outputs)
def optional(width=3, *, io=None): return Net(outputs=io.outputs)
def with_default(outputs=10, pretrained=False): return Net(outputs=outputs)
def two(a, b): return Net()
def colour(): return Net(3)
def many(): return Net(outputs=1000)
def text(): return "net"
def fails(): raise KeyError("no such checkpoint")
def leaves(): raise SystemExit(3)
class Zoo:
    @staticmethod
    def small(): return Net()
ready = Net()
def shared(): return ready
def locked():
    net = Net()
    net.lock = threading.Lock()
    return net
number = 3
"""


NUMBER = itertools.count()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A current folder with a module `mine_<unique>`; returns the module's name."""
    folder = tmp_path / "project"
    folder.mkdir()
    name = f"mine_{next(NUMBER)}"
    (folder / f"{name}.py").write_text(MODULE)
    (folder / f"{name}_broken.py").write_text("import no_such_package_at_all")
    (folder / f"{name}_raises.py").write_text("raise RuntimeError('on import\\nsecond line')")
    monkeypatch.chdir(folder)
    yield name
    for key in [key for key in sys.modules if key.startswith(name)]:
        del sys.modules[key]


@pytest.mark.parametrize(
    "function", ["plain", "from_io", "from_anything", "optional", "with_default", "Net", "Zoo.small", "ready"]
)
def test_own_network(opened, digits, project, function):
    path, random = list(sys.path), torch.get_rng_state()
    session, _ = opened(f"torch:{project}:{function}", digits)
    assert session.model(digits.example(3)[0]).shape == (3, 10)
    assert session.label == f"torch:{project}:{function}"
    assert not any(p.requires_grad for p in session.model.parameters())
    assert sys.path == path
    assert torch.equal(random, torch.get_rng_state())
    assert opened(f"torch:{project}:{function}", digits)[0].fingerprint == session.fingerprint


@pytest.mark.parametrize("function", ["ready", "shared"])
def test_a_network_in_use_elsewhere_is_left_as_it_was(opened, digits, project, function):
    session, _ = opened(f"torch:{project}:{function}", digits)
    ready = sys.modules[project].ready
    assert session.model is not ready
    assert ready.training
    assert all(module.training for module in ready.modules())
    assert all(parameter.requires_grad for parameter in ready.parameters())
    with torch.no_grad():
        ready.head.weight.zero_()
    assert session.model.head.weight.any()


def test_own_network_in_a_package(opened, digits, project, tmp_path):
    package = tmp_path / "project" / f"{project}_package" / "inner"
    package.mkdir(parents=True)
    (package / "models.py").write_text(MODULE)
    session, _ = opened(f"torch:{project}_package.inner.models:plain", digits)
    assert session.model(digits.example(1)[0]).shape == (1, 10)


def test_edited_source_is_another_teacher(opened, digits, project, tmp_path):
    first = opened(f"torch:{project}:plain", digits)[0].fingerprint
    file = tmp_path / "project" / f"{project}.py"
    file.write_text(MODULE.replace("image).mean", "2 * image).mean"))
    assert opened(f"torch:{project}:plain", digits)[0].fingerprint != first


@pytest.mark.parametrize(
    ("locator", "error", "match"),
    [
        ("nosuchmodule_xyz:f", UsageError, "there is no module 'nosuchmodule_xyz'"),
        ("torch.nosuch:f", UsageError, "there is no module 'torch.nosuch'"),
        ("justmodule", UsageError, "does not name a network"),
        (":f", UsageError, "does not name a network"),
        ("a b:c", UsageError, "does not name a network"),
        ("{}:plane", UsageError, "has no 'plane'. Did you mean 'plain'"),
        ("{}:Zoo.smal", UsageError, "has no 'Zoo.smal'. Did you mean 'small'"),
        ("{}:number", UsageError, "number is int, not something to call"),
        ("{}:text", UsageError, r"returned str, not a torch.nn.Module"),
        ("{}:two", UsageError, r"needs 2 arguments \(a, b\)"),
        ("{}:fails", BrokenComponentError, "failed: KeyError: 'no such checkpoint'"),
        ("{}:leaves", BrokenComponentError, r"failed: it called sys.exit\(3\)"),
        ("{}:locked", BrokenComponentError, "cannot be copied: TypeError: cannot pickle"),
        ("{}_broken:f", BrokenComponentError, "failed: ModuleNotFoundError: No module named 'no_such_package_at_all'"),
        ("{}_raises:f", BrokenComponentError, "failed: RuntimeError: on import$"),
        ("{}:colour", MismatchError, "3-channel images, the task gives 1 x 8 x 8 images of 10 classes"),
        ("{}:many", MismatchError, r"gives \(1000,\) per image, but the task gives 1 x 8 x 8 images of 10 classes"),
    ],
)
def test_own_network_that_is_wrong(opened, digits, project, locator, error, match):
    with pytest.raises(error, match=match) as caught:
        opened("torch:" + locator.format(project), digits)
    if error is BrokenComponentError:
        assert caught.value.__cause__ is not None
        assert "\n" not in caught.value.message


# ---- builtin -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """The digits teacher in small, so that its training takes no time; the real one is tested below."""
    import nasdistill_teachers.builtin as module

    choices = {
        name: value[:1] if name == "attention" else [8] for name, value in module.BUILTINS["digits"].choices.items()
    }
    choices |= {"depth": [1], "heads": [1], "mlp_ratio": [1], "reduction": [0]}
    entry = replace(module.BUILTINS["digits"], choices=choices, plan=module.SupervisedPlan(epochs=1))
    monkeypatch.setitem(module.BUILTINS, "digits", entry)


def test_builtin_unknown_name(opened, digits):
    with pytest.raises(UsageError, match=r"no teacher 'builtin:digit'. Did you mean 'digits'"):
        opened("builtin:digit", digits)


def test_builtin_for_another_task(opened, colours):
    with pytest.raises(MismatchError, match=r"image 1 x 8 x 8 -> 10 .*image 3 x 24 x 24 -> 5"):
        opened("builtin:digits", colours)


def test_builtin_trains_once_deterministically_and_keeps(opened, host, tmp_path):
    """The real network for one epoch on a fifth of the images."""
    few = host.create(Kind.TASK, "image_classification", {"data": "digits", "validation_share": 0.6})
    few.prepare()
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    first, lines = opened("builtin:digits", few, epochs=1)
    assert torch.equal(random, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert any(line.startswith("training builtin:digits on 359 images") for line in lines)
    assert any("s left" in line for line in lines)
    assert sum(p.numel() for p in first.model.parameters()) == 1_230_698
    second, lines = opened("builtin:digits", few, epochs=1)
    assert [line.split(",")[0] for line in lines] == ["builtin:digits: from the cache"]
    assert second.fingerprint == first.fingerprint
    elsewhere = host.create(Kind.TEACHER, "builtin", {"epochs": 1})
    third = elsewhere.open("digits", few, cache_dir=tmp_path / "other")
    assert third.fingerprint == first.fingerprint
    for a, b in zip(first.model.state_dict().values(), third.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_builtin_notices_a_damaged_cache(small, opened, digits, tmp_path):
    first, _ = opened("builtin:digits", digits)
    (weights,) = (tmp_path / "cache" / "teachers").glob("*.safetensors")
    record = weights.with_suffix(".json")
    good = weights.read_bytes()
    text = record.read_text()
    for damage in ("flipped bit", "cut", "no json", "record gone"):
        if damage == "flipped bit":
            weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        elif damage == "cut":
            weights.write_bytes(good[:100])
        elif damage == "no json":
            record.write_text("{")
        else:
            record.unlink()
        again, lines = opened("builtin:digits", digits)
        assert again.fingerprint == first.fingerprint
        assert any("cannot be used" in line for line in lines) == (damage != "record gone")
        assert weights.read_bytes() == good
        assert read_json(record)["weights"] == json.loads(text)["weights"]


def test_builtin_without_a_writable_cache(small, host, digits, tmp_path):
    (tmp_path / "file").write_text("")
    lines = []
    teacher = host.create(Kind.TEACHER, "builtin")
    session = teacher.open("digits", digits, cache_dir=tmp_path / "file", progress=lines.append)
    assert session.model(digits.example(1)[0]).shape == (1, 10)
    assert any("cannot be kept" in line for line in lines)


def test_builtin_follows_the_split_and_normalisation_but_not_the_labels(small, opened, host, digits, monkeypatch):
    import nasdistill_teachers.builtin as module

    seen, real = [], module.train
    monkeypatch.setattr(module, "train", lambda model, task, *rest: seen.append(task) or real(model, task, *rest))

    def learns(**options):
        task = host.create(Kind.TASK, "image_classification", {"data": "digits", **options})
        task.prepare()
        session, lines = opened("builtin:digits", task)
        return session, lines

    learns(labels=0.05, augment="none")
    _, lines = learns()
    assert [task.fingerprint for task in seen] == [digits.fingerprint]  # the second came from the cache
    assert "from the cache" in lines[-1]
    learns(split_seed=4, normalise="none")
    assert seen[-1].options.split_seed == 4
    assert seen[-1].options.normalise == "none"


def test_builtin_on_other_data_of_the_same_form_says_so(small, opened, host, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((100, 8, 8)), y=np.arange(100) % 10)
    task = host.create(Kind.TASK, "image_classification", {"data": str(tmp_path / "x.npz")})
    task.prepare()
    _, lines = opened("builtin:digits", task)
    assert any("warning" in line and "not on this task's data" in line for line in lines)


def test_training_that_diverges_is_an_error(digits):
    from nasdistill_teachers.training import SupervisedPlan, train

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(NasdistillError, match="the loss is nan"):
        train(model, digits, SupervisedPlan(epochs=1), lambda line: None)


def test_training_equals_a_plain_loop_without_averaging(digits):
    """With ema = 0 and no warm-up the loop is AdamW on smoothed cross-entropy under a cosine, step by step."""
    import math

    from nasdistill_teachers.training import SupervisedPlan, train

    def linear():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    plan = SupervisedPlan(epochs=2, batch_size=256, ema=0.0, warmup=0.0, clip=1e9, seed=3)
    ours = train(linear(), digits, plan, lambda line: None)
    model, step, total = linear(), 0, 2 * math.ceil(1078 / 256)
    decayed = {"params": [model[1].weight], "weight_decay": plan.weight_decay}
    optimizer = torch.optim.AdamW([decayed, {"params": [model[1].bias], "weight_decay": 0.0}])
    for epoch in range(2):
        for batch in digits.batches("train", batch_size=256, epoch=epoch, seed=3, train=True):
            for group in optimizer.param_groups:
                group["lr"] = plan.lr * (0.5 + 0.5 * math.cos(math.pi * step / total))
            loss = nn.functional.cross_entropy(model(batch.image), batch.labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    assert torch.allclose(ours[1].weight, model[1].weight, atol=1e-6)


def test_stochastic_depth_has_the_whole_network_as_its_mean_and_leaves_nothing_behind():
    from nasdistill_teachers.training import _stochastic_depth

    class Residual(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x):
            return x + self.factor * x

    model = nn.Module()
    model.blocks = nn.ModuleList(Residual(factor) for factor in (0.5, -0.25, 1.0))
    torch.manual_seed(0)
    results = []
    for _ in range(4000):
        with _stochastic_depth(model, 0.5):
            x = torch.ones(())
            for block in model.blocks:
                x = block(x)
        results.append(float(x))
    assert set(results) == {1.5, 1.5 * 3, 1.5 * (2 / 3), 4.5 * (2 / 3)}  # the first always runs; kept ones count more
    assert sum(results) / 4000 == pytest.approx(1.5 * 0.75 * 2, abs=0.06)
    assert not any("forward" in vars(block) for block in model.blocks)


@pytest.mark.slow
def test_builtin_digits_reaches_98_percent(host, digits):
    """The real recipe, into the cache that the environment names (so that other tests find it)."""
    from nasdistill_teachers.training import accuracy

    session = host.create(Kind.TEACHER, "builtin").open("digits", digits, cache_dir=cache_folder())
    assert accuracy(session.model, digits, "test") >= 0.98
