"""Tiny random models of every family whose attention is found by structure, and one forward of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

from nasdistill.bridge import prepare_imports

prepare_imports()
transformers.logging.set_verbosity_error()

TEXT = dict(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
VISION = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
)
PADDING = torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 4 + [0] * 5])
LATER = torch.ones(9, 9, dtype=torch.bool).triu(1)
"""Pairs in which the key comes after the query; True = leave out, as torch's own layers have it."""


def _draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


IDS, OTHER_IDS = (torch.randint(3, 50, (3, 9), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))


@dataclass(frozen=True)
class Family:
    """How one family is made and run.

    Attributes:
        build: makes a model.
        forward: ``forward(model, mask, seed)`` gives its output; `mask` ``(3, 9)`` is used where `padded`.
        padded: takes a padding mask.
        causal: no token sees a later one.
        layers: number of blocks with attention; 0 for convolution networks.
        stages: number of stage maps where it is one.
        refused: why attention of this family has no canonical view.
    """

    build: Callable[[], nn.Module]
    forward: Callable[[nn.Module, torch.Tensor | None, int], torch.Tensor]
    padded: bool = False
    causal: bool = False
    layers: int = 2
    stages: int = 0
    refused: str = ""


def _text(name: str, causal: bool = False, **more: Any) -> Family:
    def build() -> nn.Module:
        config = getattr(transformers, f"{name}Config")(**TEXT, **more)
        return getattr(transformers, f"{name}Model")(config)

    return Family(build, _ids, padded=True, causal=causal)


def _ids(model: nn.Module, mask: torch.Tensor | None, seed: int) -> torch.Tensor:
    return model(input_ids=IDS if seed == 0 else OTHER_IDS, attention_mask=mask)[0]


def _pixels(model: nn.Module, mask: torch.Tensor | None, seed: int) -> torch.Tensor:
    return model(pixel_values=_draw(seed, 2, 3, 32, 32))[0]


def _images(model: nn.Module, mask: torch.Tensor | None, seed: int) -> torch.Tensor:
    return model(_draw(seed, 2, 3, 32, 32))


def _hf(name: str, layers: int = 2, **config: Any) -> Family:
    return Family(
        lambda: getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**config)),
        _pixels,
        layers=layers,
    )


def _timm(name: str, layers: int = 2, stages: int = 0, **options: Any) -> Family:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=5, **options)

    return Family(build, _images, layers=layers, stages=stages)


def _diffusers(
    name: str, forward: Callable[[Any, int], torch.Tensor], layers: int, config: dict[str, Any], refused: str = ""
) -> Family:
    def build() -> nn.Module:
        import diffusers

        return getattr(diffusers, name)(**config)

    return Family(build, lambda model, mask, seed: forward(model, seed), layers=layers, refused=refused)


STEPS = torch.tensor([3, 7])


def _torch_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _leave_out(mask: torch.Tensor | None) -> torch.Tensor | None:
    return None if mask is None else mask == 0


class OneAttention(nn.Module):
    """``nn.MultiheadAttention`` in a block of its own, sequence first.

    Args:
        later: pairs to leave out.
    """

    def __init__(self, later: torch.Tensor | None = None) -> None:
        super().__init__()
        self.later = later
        self.attend = nn.MultiheadAttention(32, 4)
        self.mlp = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor, leave_out: torch.Tensor | None) -> torch.Tensor:
        x = x.transpose(0, 1)
        x = x + self.attend(x, x, x, key_padding_mask=leave_out, attn_mask=self.later, need_weights=False)[0]
        return (x + self.mlp(x)).transpose(0, 1)


_UNET = dict(
    sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4
)
_PLACES = torch.stack([torch.zeros(16), torch.arange(16) // 4, torch.arange(16) % 4], dim=1)  # row by row of 4 x 4
JOINT = "streams attended together"
FAMILIES: dict[str, Family] = {
    "bert": _text("Bert"),
    "roberta": _text("Roberta", max_position_embeddings=40),
    "electra": _text("Electra", embedding_size=16),
    "gpt2": _text("GPT2", causal=True, n_positions=32),
    "llama": _text("Llama", causal=True, num_key_value_heads=2),
    "qwen2": _text("Qwen2", causal=True, num_key_value_heads=2),
    "qwen3": _text("Qwen3", causal=True, num_key_value_heads=2, head_dim=16),
    "vit": _hf("ViT", **VISION),
    "deit": _hf("DeiT", **VISION),
    "swin": _hf("Swin", 3, image_size=32, patch_size=4, embed_dim=16, depths=[2, 1], num_heads=[2, 4], window_size=4),
    "timm_vit": _timm("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48),
    "timm_deit": _timm("deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48),
    "timm_swin": _timm(
        "swin_tiny_patch4_window7_224", 3, img_size=32, embed_dim=16, depths=(2, 1), num_heads=(2, 4), window_size=4
    ),
    "torch_encoder": Family(
        _torch_encoder,
        lambda model, mask, seed: model(_draw(seed, 3, 9, 32), src_key_padding_mask=_leave_out(mask)),
        padded=True,
    ),
    "torch_causal": Family(
        _torch_encoder,
        lambda model, mask, seed: model(_draw(seed, 3, 9, 32), mask=LATER, src_key_padding_mask=_leave_out(mask)),
        padded=True,
        causal=True,
    ),
    "multi_head": Family(
        OneAttention, lambda model, mask, seed: model(_draw(seed, 3, 9, 32), _leave_out(mask)), padded=True, layers=1
    ),
    "multi_head_causal": Family(
        lambda: OneAttention(LATER),
        lambda model, mask, seed: model(_draw(seed, 3, 9, 32), _leave_out(mask)),
        padded=True,
        causal=True,
        layers=1,
    ),
    "unet_condition": _diffusers(
        "UNet2DConditionModel",
        lambda model, seed: model(_draw(seed, 2, 4, 8, 8), STEPS, _draw(seed + 9, 2, 5, 32)).sample,
        3,
        dict(
            **_UNET, cross_attention_dim=32, attention_head_dim=2, mid_block_type=None,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
    ),
    "unet": _diffusers(
        "UNet2DModel",
        lambda model, seed: model(_draw(seed, 2, 4, 8, 8), STEPS).sample,
        3,
        dict(
            **_UNET, attention_head_dim=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"), mid_block_type=None,
        ),
    ),
    "dit": _diffusers(
        "DiTTransformer2DModel",
        lambda model, seed: model(_draw(seed, 2, 4, 8, 8), STEPS, class_labels=torch.tensor([1, 2])).sample,
        2,
        dict(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2, sample_size=8,
            patch_size=2, num_embeds_ada_norm=10, norm_num_groups=8,
        ),
    ),
    "sd3": _diffusers(
        "SD3Transformer2DModel",
        lambda model, seed: model(
            _draw(seed, 2, 4, 8, 8), _draw(seed + 9, 2, 5, 32), pooled_projections=_draw(3, 2, 16), timestep=STEPS
        ).sample,
        2,
        dict(
            sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
            pos_embed_max_size=8, qk_norm="rms_norm",
        ),
        JOINT,
    ),
    "flux": _diffusers(
        "FluxTransformer2DModel",
        lambda model, seed: model(
            _draw(seed, 2, 16, 4), _draw(seed + 9, 2, 5, 32), pooled_projections=_draw(3, 2, 16), timestep=STEPS / 10,
            img_ids=_PLACES, txt_ids=torch.zeros(5, 3),
        ).sample,
        2,
        dict(
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6),
        ),
        JOINT,
    ),
    "resnet": _hf("ResNet", 0, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "convnext": _hf("ConvNext", 0, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
    "timm_resnet": _timm("test_resnet", 0, 5),
    "timm_convnext": _timm("test_convnext", 0, 4),
}  # fmt: skip
ATTENDING = [name for name, family in FAMILIES.items() if family.layers]


def built(name: str) -> nn.Module:
    """Return a random model of a family in eval mode; nothing in it is zero or equal by chance."""
    torch.manual_seed(0)
    model = FAMILIES[name].build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model
