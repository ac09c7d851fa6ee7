"""Reading the user's own images: folders, zips, arrays, tables; and every way in which they can be wrong."""

from __future__ import annotations

import builtins
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from nasdistill.errors import DataError, MissingExtraError, NasdistillError
from nasdistill_tasks.image_classification import ImageClassification

SPLITS = ("train", "validation", "test")


def load(data, **options) -> ImageClassification:
    task = ImageClassification({"data": str(data), "normalise": "none", **options})
    task.prepare()
    return task


def content(task, split="train"):
    batches = list(task.batches(split, batch_size=1000))
    return torch.cat([b.image for b in batches]), torch.cat([b.labels for b in batches])


def same_content(first, second):
    return all(
        all(torch.equal(a, b) for a, b in zip(content(first, s), content(second, s), strict=True)) for s in SPLITS
    )


def pictures(count=8, classes=("ant", "bee"), size=(5, 6), seed=0):
    """Return ``(image, class)`` pairs of random colour pictures, `count` per class."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 256, (*size, 3), dtype=np.uint8), c) for c in classes for _ in range(count)]


def write_folder(root, pairs, suffix="png"):
    for i, (array, name) in enumerate(pairs):
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / name / f"{i:03d}.{suffix}")
    return root


# ---- round trips -------------------------------------------------------------------------------------------------


def test_folder_with_classes_only_is_split(tmp_path):
    task = load(write_folder(tmp_path, pictures(10)))
    assert [task.size(split) for split in SPLITS] == [12, 4, 4]
    assert task.classes == ("ant", "bee")
    assert task.io.shape == (3, 5, 6)
    assert all(torch.bincount(content(task, split)[1]).unique().numel() == 1 for split in SPLITS)


def test_all_forms_of_the_same_images_agree(tmp_path):
    """Folder, zip, zip with a folder around, npz (both axis orders), saved table, parquet folder: equal batches."""
    import datasets

    parts = {"train": pictures(6, seed=1), "val": pictures(3, seed=2), "test": pictures(2, seed=3)}
    folder = tmp_path / "folder"
    for name, pairs in parts.items():
        write_folder(folder / name, pairs)
    expected = load(folder)
    for prefix in ("", "around/"):
        archive = tmp_path / f"{len(prefix)}.zip"
        with zipfile.ZipFile(archive, "w") as stream:
            stream.writestr("__MACOSX/._x.png", b"no image")
            for path in sorted(folder.rglob("*.png")):
                stream.write(path, prefix + str(path.relative_to(folder)))
        assert same_content(load(archive), expected)
    arrays = {}
    for name, pairs in parts.items():
        arrays[f"x_{name}"] = np.stack([image for image, _ in pairs])
        arrays[f"y_{name}"] = np.array([name for _, name in pairs])
    np.savez(tmp_path / "last.npz", **arrays)
    first = {key: value.transpose(0, 3, 1, 2) if key[0] == "x" else value for key, value in arrays.items()}
    np.savez(tmp_path / "first.npz", **first)
    numbers = {
        key: np.unique(value, return_inverse=True)[1] if key[0] == "y" else value for key, value in arrays.items()
    }
    np.savez(tmp_path / "numbers.npz", classes=np.array(["ant", "bee"]), **numbers)
    for name in ("last", "first", "numbers"):
        task = load(tmp_path / f"{name}.npz")
        assert same_content(task, expected)
        assert task.classes == ("ant", "bee")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    tables = datasets.DatasetDict({
        ("validation" if name == "val" else name): datasets.Dataset.from_dict(
            {"image": [Image.fromarray(image) for image, _ in pairs], "label": [c for _, c in pairs]}, features=features
        )
        for name, pairs in parts.items()
    })  # fmt: skip
    tables.save_to_disk(str(tmp_path / "saved"))
    assert same_content(load(tmp_path / "saved"), expected)
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for name, table in tables.items():
        table.to_parquet(str(tmp_path / "hub" / "data" / f"{name}-00000-of-00001.parquet"))
    assert same_content(load(tmp_path / "hub"), expected)
    single = load(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    assert sum(single.size(split) for split in SPLITS) == 12


def test_single_saved_table_with_text_labels_and_own_columns(tmp_path):
    import datasets

    pairs = pictures(6)
    table = datasets.Dataset.from_dict({
        "picture": [image.tolist() for image, _ in pairs], "animal": [c for _, c in pairs], "label": [0] * len(pairs)
    })  # fmt: skip
    table.save_to_disk(str(tmp_path / "t"))
    with pytest.raises(DataError, match=r"cannot tell which column holds the images; columns: 'picture'"):
        load(tmp_path / "t")
    with pytest.raises(DataError, match="no column 'pict' "):
        load(tmp_path / "t", image_column="pict")
    task = load(tmp_path / "t", image_column="picture", label_column="animal")
    assert task.classes == ("ant", "bee")
    assert task.io.shape == (3, 5, 6)


def test_fingerprint_is_of_content_not_of_place(tmp_path):
    one, two = write_folder(tmp_path / "a", pictures()), write_folder(tmp_path / "b", pictures())
    assert load(one).fingerprint == load(two).fingerprint
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save(next(two.rglob("*.png")))
    assert load(one).fingerprint != load(two).fingerprint


def test_missing_validation_or_test_is_split_off_train(tmp_path):
    for name in ("train", "test"):
        write_folder(tmp_path / "a" / name, pictures(8))
        write_folder(tmp_path / "b" / {"train": "train", "test": "valid"}[name], pictures(8))
    with_test, with_validation = load(tmp_path / "a"), load(tmp_path / "b")
    assert [with_test.size(split) for split in SPLITS] == [12, 4, 16]
    assert [with_validation.size(split) for split in SPLITS] == [12, 16, 4]


def test_sizes_differ_unless_asked_for_one(tmp_path):
    write_folder(tmp_path, pictures(6))
    Image.fromarray(np.full((9, 4, 3), 200, np.uint8)).save(tmp_path / "bee" / "zz.png")
    with pytest.raises(DataError, match=r"ant/000.png has 5 x 6 pixels, .*bee/zz.png has 9 x 4") as caught:
        load(tmp_path)
    assert "image_size" in caught.value.hint
    assert load(tmp_path, image_size=4).io.shape == (3, 4, 4)


def test_resize_keeps_proportions_and_flat_colours(tmp_path):
    for i in range(6):
        for name in ("a", "b"):
            (tmp_path / name).mkdir(exist_ok=True)
            array = np.full((10, 30, 3), 77, np.uint8)
            array[:, :9] = 255  # lies outside the centre square
            Image.fromarray(array).save(tmp_path / name / f"{i}.png")
    images, _ = content(load(tmp_path, image_size=5))
    assert images.shape[1:] == (3, 5, 5)
    assert torch.equal(images, torch.full_like(images, 77 / 255).float())


def test_grey_and_colour_files_do_not_mix_unless_asked_for(tmp_path):
    write_folder(tmp_path, pictures(6))
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(tmp_path / "ant" / "grey.png")
    with pytest.raises(DataError, match=r"differ in channels: .*000.png has 3, .*grey.png has 1"):
        load(tmp_path)
    assert load(tmp_path, channels=1).io.shape == (1, 5, 6)
    assert load(tmp_path, channels=3).io.shape == (3, 5, 6)


def test_luma_is_pillows(tmp_path):
    pairs = pictures(6)
    write_folder(tmp_path, pairs)
    images, _ = content(load(tmp_path, channels=1))
    paths = sorted((tmp_path / "ant").iterdir()) + sorted((tmp_path / "bee").iterdir())
    pillow = {np.asarray(Image.open(path).convert("L")).tobytes() for path in paths}
    ours = (images * 255).round().to(torch.uint8)
    nearest = [
        min(np.abs(np.frombuffer(p, np.uint8).astype(int) - o.numpy().ravel()).max() for p in pillow) for o in ours
    ]
    assert max(nearest) <= 1


# ---- bad folders and zips ----------------------------------------------------------------------------------------


def test_unreadable_image_is_named(tmp_path):
    write_folder(tmp_path, pictures(6))
    (tmp_path / "bee" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"cannot read image .*bee/broken.png"):
        load(tmp_path)


def test_truncated_image_is_named(tmp_path):
    write_folder(tmp_path, pictures(6, size=(40, 40)), suffix="jpg")
    path = next((tmp_path / "ant").iterdir())
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=f"cannot read image .*{path.name}"):
        load(tmp_path)


def test_deep_pixels_are_refused(tmp_path):
    write_folder(tmp_path, pictures(6))
    Image.fromarray(np.zeros((5, 6), np.uint16)).save(tmp_path / "bee" / "deep.png")
    with pytest.raises(DataError, match=r"deep.png has I;16 pixels; only 8-bit"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["nothing", "texts", "loose"])
def test_folder_without_class_folders(tmp_path, kind):
    if kind == "texts":
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "b.txt").write_text("x")
    elif kind == "loose":
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="no image files" if kind != "loose" else "x.png lies in no class folder"):
        load(tmp_path)


def test_one_class_only(tmp_path):
    with pytest.raises(DataError, match="all training images are of one class"):
        load(write_folder(tmp_path, pictures(9, classes=("ant",))))


def test_too_few_images_to_split(tmp_path):
    with pytest.raises(
        DataError, match=r"too few images of 'bee' \(1\).* train, validation and test data; 5 of each class"
    ):
        load(write_folder(tmp_path, pictures(8, classes=("ant",)) + pictures(1, classes=("bee",))))


def test_classes_unknown_to_train(tmp_path):
    write_folder(tmp_path / "train", pictures(6))
    write_folder(tmp_path / "val", pictures(6, classes=("ant", "cat")))
    with pytest.raises(DataError, match=r"validation folder has class\(es\) 'cat' that the train folder has not"):
        load(tmp_path)


def test_classes_missing_in_validation_are_noted(tmp_path):
    write_folder(tmp_path / "train", pictures(6))
    write_folder(tmp_path / "val", pictures(6, classes=("ant",)))
    lines = []
    ImageClassification({"data": str(tmp_path)}).prepare(progress=lines.append)
    assert any("validation folder has no image of 'bee'" in line for line in lines)


def test_split_folders_without_train_or_with_strangers(tmp_path):
    write_folder(tmp_path / "a" / "val", pictures(6))
    with pytest.raises(DataError, match="'val' but no 'train' folder"):
        load(tmp_path / "a")
    write_folder(tmp_path / "b" / "train", pictures(6))
    write_folder(tmp_path / "b" / "extra", pictures(6))
    with pytest.raises(DataError, match="beside 'train' there is 'extra'"):
        load(tmp_path / "b")
    for name in ("train", "val", "validation"):
        write_folder(tmp_path / "c" / name, pictures(6))
    with pytest.raises(DataError, match="several folders mean the same split"):
        load(tmp_path / "c")


def test_splits_of_different_size_or_channels(tmp_path):
    write_folder(tmp_path / "train", pictures(6))
    for i, (shape, match) in enumerate((((9, 9, 3), "differ in size"), ((5, 6), "differ in channels"))):
        folder = tmp_path / "test" / "ant"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros(shape, np.uint8)).save(folder / "x.png")
        with pytest.raises(DataError, match=match):
            load(tmp_path)
        assert i < 2


@pytest.mark.parametrize("name", ["x.zip", "x.npz", "x.parquet"])
@pytest.mark.parametrize("text", [b"", b"rubbish", b"PK\x03\x04broken"])
def test_rubbish_files(tmp_path, name, text):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(DataError, match=f"cannot read .*{name}"):
        load(tmp_path / name)


def test_encrypted_zip_entry(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as stream:
        for i in range(6):
            for name in "ab":
                buffer = io.BytesIO()
                Image.fromarray(np.zeros((2, 2), np.uint8)).save(buffer, "png")
                stream.writestr(f"{name}/{i}.png", buffer.getvalue())
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1  # the flag that says: encrypted
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"cannot read image .*a/0.png.*(encrypted|password)"):
        load(path)


def test_other_suffix_and_missing_path(tmp_path):
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"cannot tell what .*x.csv is") as caught:
        load(tmp_path / "x.csv")
    assert "--task text_classification" in str(caught.value.hint)
    with pytest.raises(DataError, match="there is no data at"):
        load(tmp_path / "none")


def test_memory_limit(tmp_path):
    write_folder(tmp_path, pictures(10))
    with pytest.raises(DataError, match=r"20 images of 3 x 5 x 6 take .* GiB"):
        load(tmp_path, max_gigabytes=1e-6, decode="memory")


# ---- bad arrays --------------------------------------------------------------------------------------------------


def good_arrays(**changes):
    x = np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4)
    return {"x": x, "y": np.arange(20) % 2, **changes}


def nan_pixels():
    x = good_arrays()["x"].astype(np.float32)
    x[3, 1, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"images": np.zeros(3)}, "no training images.*it has 'images'"),
        ({"x": np.zeros((4, 2, 2))}, "has 'x' but no 'y'; it has 'x'"),
        (good_arrays(x_test=np.zeros((2, 4, 4))), "has 'x_test' but no 'y_test'"),
        (good_arrays(x_train=np.zeros((2, 4, 4)), y_train=np.zeros(2)), "has both 'x' and 'x_train'"),
        (good_arrays(y=np.arange(19) % 2), r"shape \(19,\), but there are 20 images"),
        (good_arrays(y=np.zeros((20, 2))), r"shape \(20, 2\)"),
        (good_arrays(y=np.arange(20) % 2 - 1), "10 of 20 are negative"),
        (good_arrays(y=np.linspace(0, 1, 20)), "labels must be integers"),
        (good_arrays(y=np.arange(20) % 2 * 2), "1 of 3 classes have no training image: 1"),
        (good_arrays(y=np.full(20, 10**12)), "the largest label is 1000000000000"),
        (good_arrays(y=np.zeros(20, int)), "all training images are of one class"),
        (good_arrays(x=nan_pixels()), "1 of 20 images have pixels that are NaN or infinite, first image 3"),
        (good_arrays(x=np.full((20, 4, 4), np.inf)), "20 of 20 images"),
        (good_arrays(x=np.full((20, 4, 4), 300)), r"0 \.\.\. 255, found 300"),
        (good_arrays(x=np.zeros((20, 4, 4), bool)), "dtype bool"),
        (good_arrays(x=np.zeros((20, 4, 4, 5))), r"shape \(20, 4, 4, 5\)"),
        (good_arrays(x=np.zeros((20, 16))), r"shape \(20, 16\)"),
        (good_arrays(x=np.zeros((0, 4, 4)), y=np.zeros(0)), "is empty"),
        (good_arrays(x_test=np.zeros((2, 4, 4), np.float32), y_test=[0, 1]), "integers .* others floats"),
        (good_arrays(x_test=np.zeros((2, 5, 4), np.uint8), y_test=[0, 1]), "4 x 4 pixels, test images 5 x 4"),
        (good_arrays(x_test=np.zeros((2, 3, 4, 4), np.uint8), y_test=[0, 1]), r"1 channel\(s\), test images 3"),
        (good_arrays(x_test=np.zeros((2, 4, 4), np.uint8), y_test=[0, 2]), "test labels go up to 2, .* only 2 classes"),
        (good_arrays(x_test=np.zeros((2, 4, 4), np.uint8), y_test=["a", "b"]), "some label arrays are numbers"),
        (good_arrays(y=np.array(["a", "b"] * 10), x_val=np.zeros((1, 4, 4), np.uint8), y_val=["c"]), "'c' are not"),
        (good_arrays(classes=np.array(["only"])), "go up to 1, but there are only 1 classes"),
    ],
)  # fmt: skip
def test_bad_arrays(tmp_path, arrays, match):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=match) as caught:
        load(tmp_path / "x.npz")
    assert "x.npz" in str(caught.value)


def test_object_arrays_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.array([{}, {}], dtype=object), y=np.zeros(2))
    with pytest.raises(DataError, match=r"cannot read .*x.npz"):
        load(tmp_path / "x.npz")


def test_a_bare_array_is_refused(tmp_path):
    with (tmp_path / "x.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(DataError, match="one array, not named arrays"):
        load(tmp_path / "x.npz")


def test_floats_are_taken_as_they_are(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 4, 4))
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(20.0) % 2)
    images = torch.cat([content(load(tmp_path / "x.npz"), split)[0] for split in SPLITS])
    assert sorted(images.flatten().tolist()) == sorted(x.astype(np.float32).ravel().tolist())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    x=hnp.arrays(
        st.sampled_from([np.uint8, np.int16, np.float32, np.float64, np.bool_]),
        hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=7),
    ),
    y=st.one_of(
        hnp.arrays(st.sampled_from([np.int8, np.uint64, np.float32]), hnp.array_shapes(max_dims=2, max_side=7)),
        hnp.arrays(np.dtype("U2"), hnp.array_shapes(max_dims=1, max_side=7)),
    ),
)
def test_any_arrays_load_or_give_one_of_our_errors(tmp_path, x, y):
    np.savez(tmp_path / "x.npz", x=x, y=y)
    try:
        task = load(tmp_path / "x.npz")
    except NasdistillError as error:
        assert str(error)
    else:
        assert torch.isfinite(content(task)[0]).all()


# ---- tables ------------------------------------------------------------------------------------------------------


def test_tables_need_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"nasdistill\[data\]"):
        load(tmp_path / "x.parquet")


def table(tmp_path, **columns):
    import datasets

    datasets.Dataset.from_dict(columns).to_parquet(str(tmp_path / "x.parquet"))
    return tmp_path / "x.parquet"


def test_tables_with_bad_rows(tmp_path):
    images = [image.tolist() for image, _ in pictures(6)]
    with pytest.raises(DataError, match="rows without a label"):
        load(table(tmp_path, image=images, label=[None, *([0, 1] * 5), 0]))
    with pytest.raises(DataError, match="are negative"):
        load(table(tmp_path, image=images, label=[-1] + [0] * 11))
    with pytest.raises(DataError, match="must hold integers"):
        load(table(tmp_path, image=images, label=[0.5] * 12))
    with pytest.raises(DataError, match=r"cannot read image .*train row 0"):
        load(table(tmp_path, image=["text"] * 12, label=[0, 1] * 6))
    with pytest.raises(DataError, match=r"row 0: pixels in lists must be integers 0 \.\.\. 255"):
        load(table(tmp_path, image=[[[[999] * 3] * 6] * 5] * 12, label=[0, 1] * 6))
    with pytest.raises(DataError, match="cannot tell which column holds the labels; columns: 'image', 'kind'"):
        load(table(tmp_path, image=images, kind=[0] * 12))


def test_saved_table_that_was_damaged(tmp_path):
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    with pytest.raises(DataError, match="cannot read"):
        load(tmp_path)


# ---- real data ---------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_cifar_subset_reads_from_its_zip(data_folder):
    task = load(data_folder / "cifar10_subset" / "cifar10_subset.zip")
    assert [task.size(split) for split in SPLITS] == [7500, 2500, 2000]
    assert str(task.io) == "image 3 x 32 x 32 -> 10"
    assert task.classes[0] == "airplane"
    for split in SPLITS:
        counts = torch.bincount(content(task, split)[1])
        assert counts.min() == counts.max() == task.size(split) // 10
