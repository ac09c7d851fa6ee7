"""Bundled plugin `teachers`: who supervises."""

from __future__ import annotations

from nasdistill import hookimpl
from nasdistill.spec.component import Requirement, TeacherSpec, TeacherTags


@hookimpl
def nasdistill_teachers() -> list[TeacherSpec]:
    """Return the bundled teacher providers."""
    return [
        TeacherSpec(
            "builtin",
            "nasdistill_teachers.builtin:BuiltinTeacher",
            "Trained on first use and kept in the cache: `builtin:digits`, a convolution-stem transformer.",
            options="nasdistill_teachers.builtin:BuiltinOptions",
            references=("arXiv:2106.14881",),
            tags=TeacherTags(locator="name of a bundled teacher"),
        ),
        TeacherSpec(
            "diffusers",
            "nasdistill_teachers.diffusers_model:DiffusersTeacher",
            "A saved denoiser of diffusers, U-Net or transformer: `diffusers:./my-unet`.",
            options="nasdistill_teachers.diffusers_model:DiffusersOptions",
            requires=(Requirement("diffusers", "nasdistill[diffusers]"),),
            references=("https://github.com/huggingface/diffusers",),
            left_out="Loading, calling and sites only: tasks of diffusion and spaces of denoisers do not come with it.",
            tags=TeacherTags(locator="folder of a denoiser or pipeline"),
        ),
        TeacherSpec(
            "hf",
            "nasdistill_teachers.hf_model:HfTeacher",
            "A saved transformers model, with the head that the task asks for: `hf:./my-bert`.",
            options="nasdistill_teachers.hf_model:HfOptions",
            references=("arXiv:1910.03771",),
            tags=TeacherTags(locator="folder or name of a transformers model"),
        ),
        TeacherSpec(
            "timm",
            "nasdistill_teachers.timm_model:TimmTeacher",
            "Any timm classification model, with local, pretrained or random weights: `timm:resnet18`.",
            options="nasdistill_teachers.timm_model:TimmOptions",
            references=("https://github.com/huggingface/pytorch-image-models",),
            tags=TeacherTags(locator="name of a timm model"),
        ),
        TeacherSpec(
            "torch",
            "nasdistill_teachers.torch_module:TorchTeacher",
            "Your own network: `torch:package.module:callable` is imported and called.",
            options="nasdistill_teachers.torch_module:TorchOptions",
            references=("https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html",),
            tags=TeacherTags(locator="package.module:callable"),
        ),
    ]
