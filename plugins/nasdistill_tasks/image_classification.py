"""Image classification: one label per image.

Data: the embedded ``"digits"`` (scikit-learn's 1,797 real handwritten digits, 8 x 8 pixels, 10 classes) or a path to
an image folder, a zip of one, an ``.npz`` file, a saved ``datasets`` folder or parquet. All pixels live in memory as
stored; a batch is augmented, scaled and normalised when it is made: ``x = (pixel * scale - mean) / std`` per channel.
Files of a folder that would take too much memory are decoded when a batch needs them; large ones may go through timm's
transforms then (:mod:`nasdistill_tasks.lazy_images`).

Few labels: with ``labels < 1`` all training images stay, but only that share of each class keeps its label. The others
carry the label -100 (which ``cross_entropy`` ignores and nothing can mistake for a class) and are False in
``Batch.labelled``.

The test images are read by ``batches("test")`` and by nothing else: mean, std, classes and examples come from the
training images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from nasdistill.errors import ConfigError, DataError
from nasdistill.files import content_hash
from nasdistill.interfaces.base import Example
from nasdistill.interfaces.batch import Batch
from nasdistill.interfaces.info import TeacherInfo
from nasdistill.interfaces.task import Metric, Split, Task
from nasdistill.seeds import torch_generator
from nasdistill.spec.io import IOSpec
from nasdistill.spec.options import ComponentOptions
from nasdistill_tasks import augment, tables
from nasdistill_tasks.fit import logits_of, trial_forward
from nasdistill_tasks.image_files import EXTENSIONS
from nasdistill_tasks.lazy_images import LARGE, Pictures, first_side, timm_transforms
from nasdistill_tasks.loading import check_source, read_source
from nasdistill_tasks.sources import Form, Images
from nasdistill_tasks.splitting import choose_labelled, complete

UNLABELLED = -100
"""Label of a training image whose label may not be used."""

_MEASURED = 512
"""Images that mean and deviation are measured on where they are not in memory."""

Transform = Callable[[Any], Tensor]
"""From a PIL image to an input."""


class ImageClassificationOptions(ComponentOptions):
    """Options of `image_classification`."""

    data: str = Field("digits", min_length=1, description="`digits`, or a path: folder, .zip, .npz, .parquet.")
    image_size: int | tuple[int, int] | None = Field(
        None, description="Side, or [height, width], that images are resized and centre-cropped to."
    )
    channels: Literal[1, 3] | None = Field(None, description="1 (grey) or 3 (colour); as stored when not given.")
    normalise: Literal["train", "none"] = Field(
        "train", description="Mean and deviation of the training images, or none (pixels in [0, 1])."
    )
    mean: tuple[float, ...] | None = Field(None, description="Mean per channel, instead of the training images'.")
    std: tuple[float, ...] | None = Field(None, description="Deviation per channel, given together with `mean`.")
    validation_share: float = Field(0.2, gt=0, lt=1, description="Share of validation images, where we split.")
    test_share: float = Field(0.2, gt=0, lt=1, description="Share of test images, where we split.")
    split_seed: int = Field(0, ge=0, lt=2**32, description="Seed of the split and of the choice of labelled images.")
    labels: float = Field(1.0, gt=0, le=1, description="Share of each class's training images that keep their label.")
    augment: Literal["auto", "none", "shift", "flip", "shift_flip"] = Field(
        "auto", description="What happens to training images; `auto` is `shift`, since a flip can change a meaning."
    )
    shift: int | None = Field(None, ge=0, description="Largest shift in pixels; default 1 up to 16 pixels, else 1/8.")
    validation_shift: int = Field(
        0,
        ge=0,
        le=8,
        description="Judge every validation image at all shifts up to so many pixels: a finer and steadier score.",
    )
    max_gigabytes: float = Field(4.0, gt=0, description="Largest memory that the pixels may take.")
    decode: Literal["auto", "memory", "lazy"] = Field(
        "auto", description="Files of a folder: decoded at once, when a batch needs them, or at once where they fit."
    )
    transforms: Literal["resize", "timm"] = Field(
        "resize", description="`timm`: random crops for training, a centre crop otherwise; for folders of large images."
    )
    interpolation: Literal["bilinear", "bicubic", "lanczos", "nearest"] = Field(
        "bicubic", description="How timm's transforms resize."
    )
    crop: float = Field(0.875, gt=0, le=1, description="Share of the shorter side that timm's centre crop keeps.")
    image_column: str | None = Field(None, description="Column of the images in a table.")
    label_column: str | None = Field(None, description="Column of the labels in a table.")

    @model_validator(mode="after")
    def _consistent(self) -> ImageClassificationOptions:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave nothing to train on")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together")
        if self.std is not None and min(self.std, default=0) <= 0:
            raise ValueError("std must be above 0 for every channel")
        if self.transforms == "timm" and (self.validation_shift or self.channels == 1 or self.decode == "memory"):
            raise ValueError("transforms = 'timm' goes with colour images read lazily, without validation_shift")
        sides = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,)
        if any(side is not None and side < 1 for side in sides):
            raise ValueError("image_size must be at least 1")
        return self


@dataclass(frozen=True, slots=True)
class _State:
    """What `prepare` leaves behind."""

    parts: dict[Split, Images]
    labelled: Tensor | None
    classes: tuple[str, ...]
    io: IOSpec
    scale: float
    mean: Tensor
    std: Tensor
    shift: int
    flip: bool
    fingerprint: str
    transforms: tuple[Transform, Transform] | None = None


class ImageClassification(Task):
    """See the module's text."""

    metric: ClassVar[Metric] = Metric("accuracy")
    examples: ClassVar[tuple[Example, ...]] = (
        Example(name="digits", context={"other_options": {"split_seed": 1}}),
        Example(
            {"labels": 0.3, "augment": "shift_flip", "validation_shift": 1},
            {"other_options": {"labels": 0.2}},
            name="few labels",
        ),
    )
    options_model = ImageClassificationOptions
    options: ImageClassificationOptions

    _state: _State | None = None

    @classmethod
    def adapted(cls, options: Mapping[str, Any], teacher: TeacherInfo) -> dict[str, Any]:
        """Return the teacher's pixels (size, crop, mean, deviation) for a folder of large images; nothing for others.

        What the user says of one of these stays.
        """
        facts, data = teacher.preprocessing, options.get("data", "digits")
        if data == "digits" or not facts or options.get("channels") == 1:
            return {}
        folder = Path(str(data)).expanduser()
        side = first_side(folder, EXTENSIONS) if folder.is_dir() and not tables.is_table(folder) else None
        if side is None or side <= LARGE:
            return {}
        found: dict[str, Any] = {}
        if (
            not {"mean", "std", "normalise"} & set(options)
            and len(facts.get("mean", ())) == len(facts.get("std", ())) == 3
        ):
            found.update(mean=list(facts["mean"]), std=list(facts["std"]))
        if "size" in facts:
            found["image_size"] = list(facts["size"])
        if options.get("transforms", "timm") == "timm" and not {"validation_shift", "decode"} & set(options):
            found["transforms"] = "timm"
            found["crop"] = float(facts.get("crop", 1.0))
            if facts.get("interpolation") in ("bilinear", "bicubic", "lanczos", "nearest"):
                found["interpolation"] = facts["interpolation"]
        return {name: value for name, value in found.items() if name not in options}

    @classmethod
    def suggested(cls, options: Mapping[str, Any], teacher: TeacherInfo) -> dict[str, Any]:
        """Suggest students cut from the teacher where it is a plain vision transformer; nothing for the digits."""
        if options.get("data", "digits") == "digits" or not _plain_vit(teacher):
            return {}
        return {"space": [{"name": "vit", "options": {}}]}

    def prepare(self, cache_dir: Path | None = None, progress: Callable[[str], None] | None = None) -> None:
        """Read, split and measure the data; nothing is written."""
        if self._state is not None:
            return
        options = self.options
        size = (options.image_size,) * 2 if isinstance(options.image_size, int) else options.image_size
        own = options.transforms == "timm"
        if own and size is None:
            size = (224, 224)
        form = Form(
            size, 3 if own else options.channels, int(options.max_gigabytes * 2**30), "lazy" if own else options.decode
        )
        source = read_source(
            options.data,
            form,
            progress,
            image_column=options.image_column,
            label_column=options.label_column,
        )
        for note in source.notes:
            if progress is not None:
                progress(f"note: {note}")
        check_source(source, options.data)
        parts = complete(
            source.splits,
            validation=options.validation_share,
            test=options.test_share,
            seed=options.split_seed,
            origin=options.data,
            classes=source.classes,
        )
        train = parts["train"]
        labelled = None
        if options.labels < 1:
            labelled = choose_labelled(train.labels, options.labels, options.split_seed)
            parts["train"] = Images(train.pixels, train.labels.where(labelled, torch.tensor(UNLABELLED)))
        channels, high, wide = train.pixels.shape[1:]
        if (own or options.decode == "lazy") and not isinstance(train.pixels, Pictures):
            what = "transforms = 'timm'" if own else "decode = 'lazy'"
            raise DataError(f"{options.data} is no folder of image files, which {what} is for")
        mean, std = self._normalisation(train.pixels, source.scale)
        kind = "shift" if options.augment == "auto" else options.augment
        shift = options.shift if options.shift is not None else (1 if min(high, wide) <= 16 else min(high, wide) // 8)
        shift, flip = shift if "shift" in kind else 0, "flip" in kind
        description = {
            "parts": {split: [_hash(part.pixels), _hash(part.labels)] for split, part in parts.items()},
            "classes": list(source.classes),
            "scale": source.scale,
            "mean": mean,
            "std": std,
            "shift": shift,
            "flip": flip,
        }
        transforms = None
        if own:
            shift, flip = 0, False
            transforms = timm_transforms((high, wide), mean, std, options.interpolation, options.crop)
            transforms = transforms if options.augment != "none" else (transforms[1], transforms[1])
            description["transforms"] = [options.interpolation, options.crop, options.augment != "none"]
        self._state = _State(
            parts, labelled, source.classes, IOSpec("image", (channels, high, wide), len(source.classes)), source.scale,
            torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1), shift, flip, content_hash(description),
            transforms,
        )  # fmt: skip

    @property
    def io(self) -> IOSpec:
        """``image C x H x W -> K``."""
        return self._ready.io

    @property
    def fingerprint(self) -> str:
        """Hash of the pixels and labels of every split, the labelled ones, normalisation and augmentation."""
        return self._ready.fingerprint

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes, by label."""
        return self._ready.classes

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How stored pixels become inputs, as JSON: what a saved student's user must do.

        ``input = (pixel * scale - mean) / std`` per channel, after resizing to `size` (height, width).
        """
        state = self._ready
        crop = {"interpolation": self.options.interpolation, "crop": self.options.crop} if state.transforms else {}
        return {
            **crop,
            "size": list(state.io.shape[1:]),
            "channels": state.io.shape[0],
            "scale": state.scale,
            "mean": [round(value, 6) for value in state.mean.flatten().tolist()],
            "std": [round(value, 6) for value in state.std.flatten().tolist()],
            "classes": list(state.classes),
        }

    def size(self, split: Split) -> int:
        """Return the number of images of a split."""
        return len(self._part(split).labels)

    def batches(
        self, split: Split, *, batch_size: int, epoch: int = 0, seed: int = 0, train: bool = False
    ) -> Iterator[Batch]:
        """Yield batches ``{"image": (B, C, H, W)}`` float32 with labels ``(B,)``; see :class:`Task`."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        state, part = self._ready, self._part(split)
        count = len(part.labels)
        ids = torch.arange(count)
        numbers = None
        shift = self.options.validation_shift
        if split == "validation" and shift and not train:
            # Each view is a pass of its own with the same ids. The fingerprint leaves this out: no training changes.
            for moves in augment.all_shifts(shift):
                for chosen in torch.split(ids, batch_size):
                    pixels = augment.shift_flip(
                        part.pixels[chosen], moves.expand(len(chosen), -1), shift=shift, flip=False
                    )
                    yield Batch({"image": self._scaled(pixels)}, part.labels[chosen], chosen, None, epoch)
            return
        if train:
            ids = torch.randperm(count, generator=torch_generator(seed, "order", split, epoch))
            numbers = augment.draw(count, torch_generator(seed, "augment", split, epoch))
        for chosen in torch.split(ids, batch_size):
            if state.transforms is not None:
                image = self._transformed(part, chosen, (seed, split, epoch) if train else ())
            else:
                pixels = part.pixels[chosen]
                if numbers is not None:
                    pixels = augment.shift_flip(pixels, numbers[chosen], shift=state.shift, flip=state.flip)
                image = self._scaled(pixels)
            yield Batch(
                {"image": image},
                part.labels[chosen],
                chosen,
                state.labelled[chosen] if state.labelled is not None and split == "train" else None,
                epoch,
            )

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return ``(B, K)`` logits; models that return an object with ``logits`` (transformers) are read."""
        return logits_of(model(batch.image))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over the labelled images; 0 with a gradient when there is none."""
        if batch.labels is None:
            return output.sum() * 0
        labels = batch.labels
        if batch.labelled is not None:
            if not bool(batch.labelled.any()):
                return output.sum() * 0
            labels = labels.where(batch.labelled, torch.full_like(labels, UNLABELLED))
        return F.cross_entropy(output, labels, ignore_index=UNLABELLED)

    def score(self, outputs: Tensor, labels: Tensor) -> float:
        """Return the accuracy over ``(n, K)`` outputs; images without a label do not count."""
        known = labels != UNLABELLED
        if not bool(known.any()):
            raise ValueError("no labelled image to score on")
        return float((outputs.argmax(dim=1) == labels)[known].double().mean())

    def chance(self, split: Split) -> float | None:
        """Return the share of the commonest class among the labelled images; None where there are none."""
        labels = self._part(split).labels
        known = labels[labels != UNLABELLED]
        return float((known == known.mode().values).double().mean()) if len(known) else None

    def example(self, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return the first training images ``(batch_size, C, H, W)``, not augmented, repeated where they run out."""
        part = self._ready.parts["train"]
        chosen = torch.arange(batch_size) % len(part.pixels)
        if self._ready.transforms is not None:
            return (self._transformed(part, chosen),)
        return (self._scaled(part.pixels[chosen]),)

    def check(self, model: nn.Module, label: str = "model") -> None:
        """Run two images through a copy of nothing: the model itself, in eval mode, left as it was.

        Raises:
            MismatchError: it fails on such images, or gives another shape than ``(2, K)``; names both sides.
        """
        trial_forward(model, self.example(2)[0], self.io, label=label)

    @property
    def _ready(self) -> _State:
        if self._state is None:
            raise RuntimeError(f"{self.id}: call prepare() first")
        return self._state

    def _part(self, split: Split) -> Images:
        parts = self._ready.parts
        if split not in parts:
            raise ValueError(f"no split {split!r}; there are {', '.join(parts)}")
        return parts[split]

    def _transformed(self, part: Images, chosen: Tensor, draws: tuple[int | str, ...] = ()) -> Tensor:
        """Return float32 inputs ``(B, 3, H, W)`` of timm's transforms."""
        transforms = self._ready.transforms
        assert transforms is not None  # callers ask
        assert isinstance(part.pixels, Pictures)  # prepare refuses others
        return part.pixels.transformed(chosen, transforms[0 if draws else 1], *draws)

    def _scaled(self, pixels: Tensor) -> Tensor:
        """Return float32 inputs from stored pixels ``(B, C, H, W)``."""
        state = self._ready
        return pixels.float().mul_(state.scale).sub_(state.mean).div_(state.std)

    def _normalisation(self, pixels: Tensor | Pictures, scale: float) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation per channel, rounded so that the order of summation leaves no trace."""
        options, channels = self.options, pixels.shape[1]
        if options.mean is not None and options.std is not None:
            if len(options.mean) != channels or len(options.std) != channels:
                raise ConfigError(
                    f"{self.id}: mean and std have {len(options.mean)} and {len(options.std)} values, but the images "
                    f"have {channels} channel(s)"
                )
            return list(options.mean), list(options.std)
        if options.normalise == "none":
            return [0.0] * channels, [1.0] * channels
        if options.transforms == "timm":
            return [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's, which nearly all models were trained with
        if isinstance(pixels, Pictures):  # evenly spaced ones say enough
            pixels = pixels[torch.linspace(0, len(pixels) - 1, min(len(pixels), _MEASURED)).long()]
        means, deviations = [], []
        for channel in pixels.unbind(1):
            deviation, mean = torch.std_mean(channel.double() * scale, correction=0)
            means.append(round(float(mean), 6))
            deviations.append(round(float(deviation), 6) or 1.0)  # a constant channel is only centred
        return means, deviations


def _plain_vit(teacher: TeacherInfo) -> bool:
    """Return whether a teacher is a ViT or DeiT whose blocks are the usual ones."""
    model = teacher.model
    if teacher.library == "transformers":
        return model.get("model_type") in ("vit", "deit") and model.get("hidden_act", "gelu") == "gelu"
    usual = {"block": "Block", "activation": "gelu", "qk_norm": False, "pre_norm": False}
    return (
        teacher.library == "timm"
        and str(model.get("class", "")).startswith("VisionTransformer")
        and model.get("global_pool") in ("token", "avg")
        and all(model.get(name) == value for name, value in usual.items())
    )


def _hash(tensor: Tensor | Pictures) -> str:
    if isinstance(tensor, Pictures):
        return tensor.fingerprint()
    head = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    return hashlib.sha256(head + tensor.contiguous().numpy().tobytes()).hexdigest()
