"""What timm models say of themselves, and timm's folders."""

from __future__ import annotations

import json
import shutil

import pytest
import timm
import torch
from timm.models import save_for_hf

from nasdistill.bridge.timm_info import model_sizes
from nasdistill.errors import DataError, MismatchError, UsageError
from nasdistill.spec.component import Kind

SMALL = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 10, "embed_dim": 24, "depth": 3, "num_heads": 3}


@pytest.fixture(scope="module")
def digits(host):
    task = host.create(Kind.TASK, "image_classification")
    task.prepare()
    return task


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small ViT and the folder that timm saved it in."""
    model = timm.create_model("test_vit", **SMALL).eval()
    folder = tmp_path_factory.mktemp("timm") / "vit"
    names = [f"digit {index}" for index in range(10)]
    save_for_hf(model, folder, model_config={"label_names": names}, safe_serialization=True)
    return model, folder


def test_sizes_are_those_of_the_built_model(host):
    options = {"model_options": {key: value for key, value in SMALL.items() if key not in ("in_chans", "num_classes")}}
    info = host.create(Kind.TEACHER, "timm", options).describe("vit_tiny_patch16_224")
    assert info.library == "timm"
    assert info.preprocessing == {}  # random weights expect nothing
    found = info.model
    assert (found["embed_dim"], found["depth"], found["num_heads"], found["mlp_ratio"]) == (24, 3, 3, 4.0)
    assert (found["img_size"], found["patch_size"], found["in_chans"]) == ([8, 8], [4, 4], 3)
    assert (found["class_token"], found["distilled"], found["qkv_bias"], found["layer_scale"]) == (
        True,
        False,
        True,
        False,
    )
    json.dumps(dict(found))
    deit = host.create(Kind.TEACHER, "timm").describe("deit_tiny_distilled_patch16_224").model
    assert (deit["distilled"], deit["embed_dim"], deit["architecture"]) == (
        True,
        192,
        "deit_tiny_distilled_patch16_224",
    )
    assert model_sizes(torch.nn.Linear(1, 1)) == {"class": "Linear"}


def test_sizes_rebuild_the_model(host):
    found = host.create(Kind.TEACHER, "timm").describe("vit_small_patch14_reg4_dinov2").model
    keys = ("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads",
            "mlp_ratio", "qkv_bias", "qk_norm", "class_token", "reg_tokens",
            "no_embed_class", "pre_norm", "global_pool")  # fmt: skip
    with torch.device("meta"):
        own = timm.models.VisionTransformer(
            **{key: found[key] for key in keys}, init_values=1.0 if found["layer_scale"] else None
        )
        stock = timm.create_model("vit_small_patch14_reg4_dinov2")
    assert {k: v.shape for k, v in own.state_dict().items()} == {k: v.shape for k, v in stock.state_dict().items()}


def test_pretrained_names_say_their_preprocessing(host):
    info = host.create(Kind.TEACHER, "timm", {"pretrained": True}).describe("resnet18")
    assert info.preprocessing["size"] == [224, 224]
    assert info.preprocessing["mean"] == [0.485, 0.456, 0.406]
    assert {"std", "interpolation", "crop"} < set(info.preprocessing)
    with pytest.raises(UsageError, match=r"no model 'resnet19'"):
        host.create(Kind.TEACHER, "timm").describe("resnet19")


def test_folders_open(host, digits, saved, tmp_path):
    model, folder = saved
    teacher = host.create(Kind.TEACHER, "timm")
    info = teacher.describe(str(folder))
    assert (info.model["architecture"], info.model["embed_dim"], info.labels[3]) == ("test_vit", 24, "digit 3")
    assert info.preprocessing["size"] == [8, 8]
    images = digits.example(3)[0]
    session = teacher.open(str(folder), digits, cache_dir=tmp_path)
    with torch.no_grad():
        assert torch.equal(session.model(images), model(images))
    with pytest.raises(UsageError, match="is a folder with weights of its own"):
        host.create(Kind.TEACHER, "timm", {"pretrained": True}).open(str(folder), digits, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"architecture": "test_vitt"}, UsageError, r"architecture 'test_vitt' is not known.*'test_vit'"),
        ({"architecture": None, "model_type": "vit"}, UsageError, r"no architecture of timm(.|\n)*write hf:"),
        (
            {"num_classes": 7, "model_args": {}, "label_names": None},
            MismatchError,
            r"has 7 classes, the task .* has 10",
        ),
        ({"label_names": [str(9 - i) for i in range(10)]}, MismatchError, r"same classes in another order: 9, 8"),
    ],
)
def test_folders_that_do_not_fit(host, digits, saved, tmp_path, change, error, message):
    folder = tmp_path / "changed"
    shutil.copytree(saved[1], folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(error, match=message):
        host.create(Kind.TEACHER, "timm").open(str(folder), digits, cache_dir=tmp_path)
    (folder / "config.json").write_text("[")
    with pytest.raises(DataError, match="cannot be read"):
        host.create(Kind.TEACHER, "timm").describe(str(folder))
