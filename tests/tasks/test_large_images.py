"""Images that stay in their files, timm's transforms on them, and what follows from a teacher's preprocessing."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from nasdistill.errors import ConfigError, DataError
from nasdistill.interfaces import TeacherInfo
from nasdistill_tasks.image_classification import ImageClassification

TIMM = {"transforms": "timm", "image_size": [24, 32]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty photographs' stand-ins of two classes: gradients with noise, of different sizes."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(40):
        high, wide = 70 + number % 5, 90 - number % 7
        ramp = np.linspace(0, 200, wide)[None, :, None] * np.ones((high, 1, 3))
        ramp = ramp if number % 2 else ramp[:, ::-1]
        pixels = (ramp + generator.integers(0, 50, (high, wide, 3))).clip(0, 255).astype(np.uint8)
        path = root / ("up" if number % 2 else "down") / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


def load(data, **options):
    task = ImageClassification({"data": str(data), **options})
    task.prepare()
    return task


def images(task, **arguments):
    batches = list(task.batches("train", batch_size=arguments.pop("batch_size", 7), **arguments))
    ids = torch.cat([batch.ids for batch in batches])
    return torch.cat([batch.image for batch in batches])[ids.argsort()]


def test_lazy_images_are_those_in_memory(folder):
    options = {"image_size": 16, "normalise": "none", "augment": "shift_flip"}
    lazy, whole = load(folder, decode="lazy", **options), load(folder, decode="memory", **options)
    assert not isinstance(lazy._state.parts["train"].pixels, torch.Tensor)
    for train in (False, True):
        assert torch.equal(images(lazy, train=train, epoch=2), images(whole, train=train, epoch=2))
    assert torch.equal(lazy.example(3)[0], whole.example(3)[0])
    few = load(folder, max_gigabytes=1e-6, image_size=16, normalise="none")  # it would not fit
    assert not isinstance(few._state.parts["train"].pixels, torch.Tensor)
    assert isinstance(load(folder, image_size=16)._state.parts["train"].pixels, torch.Tensor)
    measured = load(folder, decode="lazy", image_size=16).preprocessing
    assert measured["mean"] == pytest.approx(load(folder, image_size=16).preprocessing["mean"], abs=1e-6)
    assert (
        load(folder, decode="lazy", image_size=16).fingerprint == load(folder, decode="lazy", image_size=16).fingerprint
    )
    assert lazy.fingerprint != load(folder, decode="lazy", image_size=12).fingerprint


def test_timm_transforms(folder):
    from timm.data.transforms_factory import create_transform

    task = load(folder, **TIMM)
    assert (task.io.shape, task.io.outputs) == ((3, 24, 32), 2)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    plain = create_transform((3, 24, 32), interpolation="bicubic", mean=mean, std=std, crop_pct=0.875)
    name, path = task._state.parts["train"].pixels.files[3]
    assert name.endswith(path.name)
    assert torch.equal(images(task)[3], plain(Image.open(path).convert("RGB")))
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    moved = images(task, train=True, epoch=1, seed=4)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])
    assert not torch.equal(moved, images(task))
    torch.manual_seed(99)
    assert torch.equal(moved, images(task, train=True, epoch=1, seed=4, batch_size=3))  # of the image, not the batch
    for other in ({"epoch": 2, "seed": 4}, {"epoch": 1, "seed": 5}):
        assert not torch.equal(moved, images(task, train=True, **other))
    still = load(folder, augment="none", **TIMM)
    assert torch.equal(images(still, train=True), images(task))
    assert len({still.fingerprint, task.fingerprint, load(folder, crop=1.0, **TIMM).fingerprint}) == 3
    facts = task.preprocessing
    assert (facts["interpolation"], facts["crop"], facts["mean"], facts["size"]) == ("bicubic", 0.875, mean, [24, 32])


def test_refusals(folder, tmp_path):
    for options in ({"validation_shift": 1}, {"channels": 1}, {"decode": "memory"}):
        with pytest.raises(ConfigError, match="goes with colour images read lazily"):
            ImageClassification({**TIMM, **options})
    with pytest.raises(DataError, match="digits is no folder of image files, which transforms = 'timm' is for"):
        load("digits", **TIMM)
    with pytest.raises(DataError, match="digits is no folder of image files, which decode = 'lazy' is for"):
        load("digits", decode="lazy")
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for number in range(10):
            stream = io.BytesIO()
            Image.new("RGB", (20, 20), (number, 0, 0)).save(stream, "PNG")
            (tmp_path / kind / f"{number}.png").write_bytes(stream.getvalue())
    (tmp_path / "b" / "7.png").write_bytes(b"no image")
    task = load(tmp_path, **TIMM)
    (where,) = (
        split for split, part in task._state.parts.items() if any("b/7.png" in name for name, _ in part.pixels.files)
    )
    batches = task.batches(where, batch_size=40)
    with pytest.raises(DataError, match=r"cannot read image .*b/7.png"):
        next(batches)
    Image.new("RGB", (20, 21)).save(tmp_path / "b" / "7.png")
    with pytest.raises(DataError, match=r"images differ in size: .*a/0.png has 20 x 20 pixels, .*b/7.png has 21 x 20"):
        load(tmp_path, decode="lazy")


def test_pixels_follow_from_the_teacher(folder, tmp_path):
    facts = {"mean": [0.5] * 3, "std": [0.25] * 3, "size": [32, 32], "interpolation": "bilinear", "crop": 0.9}
    info = TeacherInfo("timm", preprocessing=facts)
    adapted = ImageClassification.adapted
    assert adapted({}, info) == adapted({"data": "digits"}, info) == {}
    found = adapted({"data": str(folder)}, info)
    assert found == {
        "mean": [0.5] * 3, "std": [0.25] * 3, "image_size": [32, 32], "transforms": "timm", "crop": 0.9,
        "interpolation": "bilinear",
    }  # fmt: skip
    task = load(folder, **found)
    assert task.io.shape == (3, 32, 32)
    assert task.preprocessing["mean"] == [0.5] * 3
    assert adapted({"data": str(folder)}, TeacherInfo()) == {}
    own = adapted({"data": str(folder), "normalise": "none", "image_size": 48, "transforms": "resize"}, info)
    assert own == {}
    assert adapted({"data": str(folder), **found}, info) == {}
    Image.new("RGB", (32, 32)).save(tmp_path / "small.png")
    assert adapted({"data": str(tmp_path)}, info) == {}
    assert adapted({"data": str(tmp_path / "nothing")}, info) == {}
