"""Denoisers as teachers: loading, the one way of calling them, and what can be wrong with a folder."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers", reason="diffusers is not installed (the extra nasdistill[diffusers])")

from nasdistill.bridge.diffusers import Denoiser, load_denoiser
from nasdistill.bridge.random_models import save_random_denoiser
from nasdistill.errors import DataError, MismatchError, UsageError
from nasdistill.spec.component import Kind


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("denoisers") / "unet"
    save_random_denoiser(folder)
    return folder


@pytest.fixture
def changed(unet, tmp_path):
    """Return a copy of the folder, with another configuration and other tensors."""

    def change(tensors=None, **config):
        folder = tmp_path / "changed"
        shutil.copytree(unet, folder)
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
        if tensors is not None:
            weights = folder / "diffusion_pytorch_model.safetensors"
            state = load_file(weights)
            tensors(state)
            save_file(state, weights, metadata={"format": "pt"})
        return folder

    return change


def test_a_unet_answers_as_diffusers_does(unet, tmp_path):
    from diffusers import UNet2DModel

    stock = UNet2DModel.from_pretrained(unet, low_cpu_mem_usage=False).eval()
    x = torch.randn(2, 1, 10, 10)
    model = load_denoiser(str(unet))
    with torch.no_grad():
        assert torch.equal(model(x, 7), stock(x, 7).sample)
        assert torch.allclose(model(x, torch.tensor([7, 3]))[1:], model(x[1:], 3), atol=1e-5)
        assert torch.equal(model(x), model(x, 0))
    with pytest.raises(MismatchError, match=r"takes no class_label. Did you mean 'class_labels'"):
        model(x, 0, class_label=torch.zeros(2))
    # A pipeline's folder has it inside.
    pipeline = tmp_path / "pipeline"
    shutil.copytree(unet, pipeline / "unet")
    (pipeline / "model_index.json").write_text("{}")
    with torch.no_grad():
        assert torch.equal(load_denoiser(str(pipeline))(x, 7), model(x, 7))


@pytest.mark.parametrize("name", ["UNet2DConditionModel", "DiTTransformer2DModel", "SD3Transformer2DModel",
                                  "FluxTransformer2DModel"])  # fmt: skip
def test_every_family_is_called_one_way(tmp_path, name):
    import diffusers

    small = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
    sizes, sample, conditions = {
        "UNet2DConditionModel": (
            {"sample_size": 8, "in_channels": 2, "out_channels": 2, "layers_per_block": 1, "block_out_channels": (8, 8),
             "norm_num_groups": 4, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
             "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 6, "attention_head_dim": 2},
            torch.randn(2, 2, 8, 8), {"encoder_hidden_states": torch.randn(2, 3, 6)},
        ),
        "DiTTransformer2DModel": (
            {**small, "in_channels": 2, "out_channels": 2, "sample_size": 8, "norm_num_groups": 2,
             "num_embeds_ada_norm": 10},
            torch.randn(2, 2, 8, 8), {"class_labels": torch.tensor([1, 2])},
        ),
        "SD3Transformer2DModel": (
            {**small, "sample_size": 8, "in_channels": 2, "out_channels": 2, "joint_attention_dim": 6,
             "caption_projection_dim": 16, "pooled_projection_dim": 5, "pos_embed_max_size": 8},
            torch.randn(2, 2, 8, 8),
            {"encoder_hidden_states": torch.randn(2, 3, 6), "pooled_projections": torch.randn(2, 5)},
        ),
        "FluxTransformer2DModel": (
            {**small, "num_single_layers": 1, "in_channels": 4, "joint_attention_dim": 6, "pooled_projection_dim": 5,
             "axes_dims_rope": (2, 2, 4), "patch_size": 1},
            torch.randn(2, 4, 4),
            {"encoder_hidden_states": torch.randn(2, 3, 6), "pooled_projections": torch.randn(2, 5),
             "img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(3, 3)},
        ),
    }[name]  # fmt: skip
    stock = getattr(diffusers, name)(**sizes).eval()
    stock.save_pretrained(tmp_path / "saved")
    model = load_denoiser(str(tmp_path / "saved"))
    steps = torch.tensor([3, 3])
    with torch.no_grad():
        first = "sample" if name.startswith("UNet") else "hidden_states"
        expected = stock(**{first: sample}, timestep=steps, **conditions, return_dict=False)[0]
        assert torch.equal(model(sample, 3, **conditions), expected)
    assert isinstance(model, Denoiser)


def test_wrong_folders_are_told(host, changed, tmp_path, unet):
    task = host.create(Kind.TASK, "image_classification")
    task.prepare()
    teacher = host.create(Kind.TEACHER, "diffusers")

    def opened(folder):
        return teacher.open(str(folder), task, cache_dir=tmp_path)

    with pytest.raises(MismatchError, match=r"gives \(1, 8, 8\) per image, but .* 1 x 8 x 8 images of 10 classes"):
        opened(unet)  # 8 x 8 predictions are no 10 classes
    with pytest.raises(UsageError, match="diffusers needs a folder"):
        opened("")
    folder = changed(_class_name="UNet2DModell")
    with pytest.raises(UsageError, match=r"is a UNet2DModell, which diffusers .* does not know. .*'UNet2DModel'"):
        opened(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UsageError, match=r"no class of diffusers(.|\n)*write hf:PATH"):
        opened(folder)
    shutil.rmtree(folder)
    with pytest.raises(MismatchError, match=r"UNet2DModel of 3 channels and side 10\) does not fit .*1 x 8 x 8"):
        opened(changed(in_channels=3))
    shutil.rmtree(folder)
    with pytest.raises(DataError, match=r"1 tensors are missing by its config.json: conv_in.bias"):
        opened(changed(lambda state: state.pop("conv_in.bias")))
    shutil.rmtree(folder)
    folder = changed()
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(DataError, match=r"diffusion_pytorch_model.bin is a pickle"):
        opened(folder)


def test_describe_reads_the_configuration(host, unet):
    info = host.create(Kind.TEACHER, "diffusers").describe(str(unet))
    assert (info.library, info.model["_class_name"], info.model["sample_size"]) == ("diffusers", "UNet2DModel", 10)
