"""The image classification task on the embedded digits: splits, order, augmentation, labels, loss, score, check."""

from __future__ import annotations

import hashlib
import inspect
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasdistill.errors import ConfigError, DataError, MismatchError
from nasdistill.interfaces import Batch, TeacherInfo
from nasdistill.spec.component import Kind
from nasdistill_tasks import augment
from nasdistill_tasks.image_classification import UNLABELLED, ImageClassification

SPLITS = ("train", "validation", "test")


def digits(**options) -> ImageClassification:
    task = ImageClassification({"data": "digits", **options})
    task.prepare()
    return task


@pytest.fixture(scope="module")
def task() -> ImageClassification:
    return digits()


def whole(task, split, **arguments):
    batches = list(task.batches(split, batch_size=64, **arguments))
    return (
        torch.cat([b.image for b in batches]),
        torch.cat([b.labels for b in batches]),
        torch.cat([b.ids for b in batches]),
    )


def test_the_host_makes_it(host):
    task = host.create(Kind.TASK, "image_classification", {"data": "digits"})
    assert (task.id, task.options.data) == ("tasks:image_classification", "digits")


def test_io_and_sizes(task):
    assert str(task.io) == "image 1 x 8 x 8 -> 10"
    assert [task.size(split) for split in SPLITS] == [1078, 359, 360]
    assert task.classes == tuple("0123456789")


def test_split_is_sklearns_and_disjoint(task):
    """The documented procedure, written out, on the raw data."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    rest, parts = np.arange(1797), {}
    parts["train"], rest = train_test_split(rest, test_size=0.4, stratify=data.target, random_state=0)
    parts["validation"], parts["test"] = train_test_split(
        rest, test_size=0.5, stratify=data.target[rest], random_state=0
    )
    plain = digits(normalise="none")
    for split, index in parts.items():
        images, labels, _ = whole(plain, split)
        index = np.sort(index)
        assert torch.equal(images[:, 0], torch.tensor(data.images[index], dtype=torch.float32) / 16)
        assert labels.tolist() == data.target[index].tolist()
    assert len(set().union(*(part.tolist() for part in parts.values()))) == 1797


def test_split_is_stratified(task):
    shares = [torch.bincount(whole(task, split)[1], minlength=10) / task.size(split) for split in SPLITS]
    assert max(float((share - shares[0]).abs().max()) for share in shares) < 0.003


def test_another_split_seed_gives_other_images(task):
    assert digits(split_seed=1).fingerprint != task.fingerprint


def test_normalisation_comes_from_the_training_images(task):
    images = whole(task, "train")[0]
    assert float(images.mean()) == pytest.approx(0, abs=1e-4)
    assert float(images.std()) == pytest.approx(1, abs=1e-3)
    record = task.preprocessing
    raw = whole(digits(normalise="none"), "train")[0]
    assert torch.allclose((raw - record["mean"][0]) / record["std"][0], images, atol=1e-5)
    assert record["scale"] == 1 / 16
    assert record["size"] == [8, 8]


def test_given_mean_and_std():
    task = digits(mean=[0.5], std=[0.25])
    plain = whole(digits(normalise="none"), "validation")[0]
    assert torch.equal(whole(task, "validation")[0], (plain - 0.5) / 0.25)
    with pytest.raises(ConfigError, match="have 3 and 3 values, but the images have 1 channel"):
        digits(mean=[0.5] * 3, std=[0.25] * 3)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"labels": 0}, "labels"),
        ({"validation_share": 0.5, "test_share": 0.5}, "leave nothing to train on"),
        ({"mean": [0.5]}, "given together"),
        ({"mean": [0.5], "std": [0.0]}, "above 0"),
        ({"image_size": 0}, "at least 1"),
        ({"channels": 2}, "channels"),
        ({"augmnt": "shift"}, "Did you mean 'augment'"),
    ],
)
def test_wrong_options_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        ImageClassification(options)


def test_unknown_data_names_what_is_close():
    with pytest.raises(DataError, match="Did you mean 'digits'"):
        ImageClassification({"data": "digit"}).prepare()


def test_before_prepare_it_says_so():
    with pytest.raises(RuntimeError, match="call prepare"):
        _ = ImageClassification().io


def test_size_and_channels_can_be_changed():
    task = digits(image_size=[12, 16], channels=3)
    assert task.io.shape == (3, 12, 16)
    image = next(task.batches("train", batch_size=2)).image
    assert torch.equal(image[:, 0], image[:, 1])


# ---- order and augmentation ------------------------------------------------------------------------------------


def by_id(task, batch_size, **arguments):
    images = {}
    for batch in task.batches("train", batch_size=batch_size, train=True, **arguments):
        images.update(zip(batch.ids.tolist(), batch.image, strict=True))
    return images


@pytest.mark.parametrize("kind", ["shift", "flip", "shift_flip"])
def test_augmented_image_depends_on_seed_epoch_and_id_only(kind):
    task = digits(augment=kind)
    first, second = by_id(task, 64, epoch=3, seed=5), by_id(task, 7, epoch=3, seed=5)
    assert sorted(first) == list(range(1078))
    assert all(torch.equal(first[i], second[i]) for i in first)
    other_epoch, other_seed = by_id(task, 64, epoch=4, seed=5), by_id(task, 64, epoch=3, seed=6)
    for other in (other_epoch, other_seed):
        assert sum(not torch.equal(first[i], other[i]) for i in first) > 200


def digests(task):
    """Return the fingerprint and the hashes of the first batches, augmented and plain."""
    found = [task.fingerprint]
    for train in (True, False):
        batches = list(task.batches("train", batch_size=50, epoch=2, seed=3, train=train))[:3]
        found += [hashlib.sha256(b.image.numpy().tobytes() + b.labels.numpy().tobytes()).hexdigest() for b in batches]
    return found


@pytest.mark.slow
def test_batches_are_the_same_in_another_process(task):
    code = "import hashlib\nfrom nasdistill_tasks.image_classification import ImageClassification\n"
    code += inspect.getsource(digests) + "task = ImageClassification()\ntask.prepare()\nprint(*digests(task))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.split() == digests(task)


@settings(max_examples=40, deadline=None)
@given(
    shift=st.integers(0, 3), flip=st.booleans(), high=st.integers(1, 6), wide=st.integers(1, 6), seed=st.integers(0, 99)
)
def test_shift_and_flip_equal_a_naive_loop(shift, flip, high, wide, seed):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(1, 256, (5, 2, high, wide), generator=generator, dtype=torch.uint8)
    numbers = augment.draw(5, generator)
    expected = torch.zeros_like(pixels)
    for b in range(5):
        down, right = int(numbers[b, 0] * (2 * shift + 1)) - shift, int(numbers[b, 1] * (2 * shift + 1)) - shift
        for y in range(high):
            for x in range(wide):
                from_x = (wide - 1 - x if flip and numbers[b, 2] < 0.5 else x) + right
                if 0 <= y + down < high and 0 <= from_x < wide:
                    expected[b, :, y, x] = pixels[b, :, y + down, from_x]
    assert torch.equal(augment.shift_flip(pixels, numbers, shift=shift, flip=flip), expected)


def test_all_shifts_occur_about_equally_often():
    numbers = augment.draw(9000, torch.Generator().manual_seed(0))
    pixels = torch.zeros(9000, 1, 3, 3)
    pixels[:, :, 1, 1] = 1
    counts = augment.shift_flip(pixels, numbers, shift=1, flip=False).sum((0, 1))
    assert counts.sum() == 9000
    assert counts.min() > 850


def test_fingerprint_covers_what_changes_the_batches(task):
    variants = [
        {"augment": "none"}, {"shift": 2}, {"labels": 0.5}, {"normalise": "none"}, {"image_size": 16}, {"channels": 3},
        {"split_seed": 3}, {"test_share": 0.1},
    ]  # fmt: skip
    prints = {digits(**options).fingerprint for options in variants} | {task.fingerprint}
    assert len(prints) == len(variants) + 1
    assert digits(augment="shift", shift=1).fingerprint == task.fingerprint


# ---- few labels --------------------------------------------------------------------------------------------------


def test_label_share_is_balanced_and_hides_the_other_labels():
    task, full = digits(labels=0.1), digits()
    masks = torch.cat([b.labelled for b in task.batches("train", batch_size=64)])
    labels, truth = whole(task, "train")[1], whole(full, "train")[1]
    assert torch.equal(labels[masks], truth[masks])
    assert set(labels[~masks].tolist()) == {UNLABELLED}
    for label in range(10):
        assert int(masks[truth == label].sum()) == round(0.1 * int((truth == label).sum()))
    assert next(task.batches("validation", batch_size=8)).labelled is None
    assert torch.equal(whole(task, "validation")[1], whole(full, "validation")[1])
    assert torch.equal(whole(task, "train")[0], whole(full, "train")[0])


def test_smaller_label_shares_are_subsets_and_keep_one_per_class():
    def chosen(share):
        return set(torch.nonzero(whole(digits(labels=share), "train")[1] >= 0).flatten().tolist())

    few, some, many = chosen(1e-6), chosen(0.1), chosen(0.3)
    assert len(few) == 10
    assert few < some < many


# ---- loss, score, check ------------------------------------------------------------------------------------------


def test_loss_is_the_mean_over_the_labelled(task):
    batch = next(task.batches("train", batch_size=6))
    output = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(task.loss(output, batch), nn.functional.cross_entropy(output, batch.labels))
    mask = torch.tensor([True, False, True, True, False, False])
    half = Batch(batch.inputs, batch.labels, batch.ids, mask)
    assert float(task.loss(output, half)) == pytest.approx(
        float(nn.functional.cross_entropy(output[mask], batch.labels[mask])), abs=1e-6
    )


def test_score_is_accuracy(task):
    outputs = torch.eye(4)
    assert task.score(outputs, torch.tensor([0, 1, 2, 0])) == 0.75
    assert task.score(outputs, torch.tensor([0, 1, UNLABELLED, 0])) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no labelled"):
        task.score(outputs, torch.full((4,), UNLABELLED))
    labels = torch.cat([batch.labels for batch in task.batches("validation", batch_size=64)])
    classes = torch.eye(10)
    assert task.chance("validation") == max(task.score(row.expand(len(labels), 10), labels) for row in classes)


def test_example_is_real_and_repeats(task):
    (image,) = task.example(1080)
    assert image.shape == (1080, 1, 8, 8)
    assert torch.equal(image[:1078], whole(task, "train")[0])
    assert torch.equal(image[1078:], image[:2])


class Net(nn.Module):
    def __init__(self, channels=1, outputs=10):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, outputs)

    def forward(self, image):
        return self.head(self.drop(self.norm(self.conv(image))).mean((2, 3)))


def test_check_names_both_shapes(task):
    with pytest.raises(MismatchError, match=r"student .*3-channel.*1 x 8 x 8 images of 10 classes"):
        task.check(Net(channels=3), "student")
    with pytest.raises(MismatchError, match=r"gives \(1000,\) per image.*1 x 8 x 8 images of 10 classes"):
        task.check(Net(outputs=1000))
    with pytest.raises(MismatchError, match="returns str"):
        task.check(type("Odd", (nn.Module,), {"forward": lambda self, image: "cat"})())


def test_check_names_what_a_large_model_takes(task):
    import timm
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16)
    with pytest.raises(MismatchError, match="it takes 3 x 16 x 16"):
        task.check(ViTForImageClassification(config))
    with pytest.raises(MismatchError, match="timm:test_vit does not take this data: it takes 3 x 160 x 160"):
        task.check(timm.create_model("test_vit"), "timm:test_vit")


def test_forward_reads_logits_of_transformers_models(task):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4,
        num_channels=1, num_labels=10,
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    task.check(model)
    batch = next(task.batches("validation", batch_size=3))
    assert torch.equal(task.forward(model, batch), model(batch.image).logits)
    keyed = type("Keyed", (nn.Module,), {"forward": lambda self, image: {"logits": image.flatten(1)}})()
    assert task.forward(keyed, batch).shape == (3, 64)


def test_test_images_are_read_by_their_batches_only(monkeypatch, task):
    """With the test pixels made unreadable everything but `batches("test")` still works."""
    from nasdistill_tasks.sources import Images

    fresh = digits()
    parts = fresh._state.parts
    monkeypatch.setitem(parts, "test", Images(None, parts["test"].labels))
    whole(fresh, "train", train=True)
    whole(fresh, "validation")
    fresh.check(Net())
    assert fresh.example()[0].shape == (1, 1, 8, 8)
    with pytest.raises(TypeError):
        whole(fresh, "test")


def test_validation_may_be_judged_at_every_shift():
    """Nine views of one pixel; each is the image moved by hand, and labels and test images stay as they are."""
    plain, moved = ImageClassification(), ImageClassification({"validation_shift": 1})
    plain.prepare()
    moved.prepare()
    assert moved.fingerprint == plain.fingerprint
    images = torch.cat([batch.image for batch in plain.batches("validation", batch_size=100)])
    views = [batch for batch in moved.batches("validation", batch_size=400)]
    assert len(views) == 9
    black = ((torch.zeros(1, 1, 1, 1) - moved._ready.mean) / moved._ready.std).item()
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=black)
    for view, (row, column) in zip(views, [(r, c) for r in range(3) for c in range(3)], strict=True):
        torch.testing.assert_close(view.image, padded[:, :, row : row + 8, column : column + 8])
        assert torch.equal(view.labels, views[0].labels)
    torch.testing.assert_close(views[4].image, images)
    test = [torch.cat([b.image for b in task.batches("test", batch_size=64)]) for task in (plain, moved)]
    assert torch.equal(*test)


def test_a_plain_vit_suggests_students_cut_from_it(host, tmp_path):
    from nasdistill.bridge.timm_info import describe_timm
    from nasdistill.spec.config import parse_config

    kind = host.load(Kind.TASK, "image_classification")
    infos = {
        "vit": describe_timm("vit_tiny_patch16_224", {}),
        "deit": TeacherInfo("transformers", {"model_type": "deit", "hidden_size": 16}),
        "norms of q and k": describe_timm("vit_tiny_patch16_224", {"qk_norm": True}),
        "swin": TeacherInfo("transformers", {"model_type": "swin"}),
        "another": describe_timm("resnet18", {}),
        "nothing known": TeacherInfo(),
    }
    found = {name: kind.suggested({"data": str(tmp_path)}, info) for name, info in infos.items()}
    assert [name for name, tables in found.items() if tables] == ["vit", "deit"]
    config = parse_config({"task": {"name": "image_classification"}, **found["vit"]}, where="suggested")
    space = host.load(Kind.SEARCH_SPACE, config.space[0].name)
    assert space.adapted({}, infos["vit"])["teacher"]["embed"] == 192
    assert kind.suggested({}, infos["vit"]) == {}
