"""Models of transformers, loaded from a folder of safetensors and called the one way this code calls models.

A *token model* is called ``model(input_ids, attention_mask=None, token_type_ids=None)``, an image model
``model(image)``; both give a tensor. The stock model is the child `model` of the wrapper, so a name of a stock state
dict is found below ``model.``. Nothing is downloaded unless the name says so, no pickle is opened and no code that lies
beside the weights is run; what a checkpoint lacks or has too much is told before anything is computed with it.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasdistill.bridge import prepare_imports
from nasdistill.bridge.hub import model_folder
from nasdistill.bridge.sizes import SITES, told_sizes
from nasdistill.bridge.tokenizers import load_tokenizer
from nasdistill.errors import DataError, NasdistillError, UsageError, did_you_mean, one_line
from nasdistill.files import canonical_json, content_hash, read_json
from nasdistill.seeds import seeded
from nasdistill.weights import model_hash

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from nasdistill.spec.io import Head

__all__ = [
    "ImageModel",
    "Pooling",
    "TokenModel",
    "answer_hash",
    "load_model",
    "load_tokenizer",
    "masked_mean",
    "quiet",
    "read_config",
]

Pooling = Literal["mean", "cls"]
"""How token vectors become one: the mean over real tokens, or the first token's."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

HEADS: Mapping[tuple[str, str], tuple[str, str]] = {
    ("tokens", "classes"): ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING", "sequence classification"),
    ("tokens", "embedding"): ("MODEL_MAPPING", "token vectors"),
    ("tokens", "masked_lm"): ("MODEL_FOR_MASKED_LM_MAPPING", "masked language modelling"),
    ("tokens", "causal_lm"): ("MODEL_FOR_CAUSAL_LM_MAPPING", "causal language modelling"),
    ("image", "classes"): ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", "image classification"),
}
"""Kind of input and head -> transformers' table of model classes, and what messages call it."""

HARMLESS = ("pooler.", "position_ids", "inv_freq", ".masked_bias", ".attn.bias", "token_type_ids")
"""Parts of the names of tensors that checkpoints carry and models compute or do without."""


class TokenModel(nn.Module):
    """A transformers model of text, called as every token model is.

    Args:
        model: the stock model, which stays the child `model`.
        head: what comes out: ``classes`` ``(B, K)``, ``embedding`` ``(B, D)``, ``masked_lm`` and ``causal_lm``
            ``(B, N, V)``; always single precision.
        pooling: of an embedding.
        normalize: whether an embedding is scaled to length 1.
    """

    def __init__(
        self, model: PreTrainedModel, head: Head, *, pooling: Pooling = "mean", normalize: bool = False
    ) -> None:
        super().__init__()
        self.model = cast("nn.Module", model)
        self.head: Head = head
        self.pooling: Pooling = pooling
        self.normalize = normalize
        accepted = inspect.signature(model.forward).parameters
        # GPT-2 takes token types too, and adds the *word* embedding of their number: only where there is a table.
        self._typed = "token_type_ids" in accepted and (getattr(model.config, "type_vocab_size", 0) or 0) > 1
        self._plain = {"use_cache": False} if "use_cache" in accepted or "past_key_values" in accepted else {}

    @property
    def config(self) -> PreTrainedConfig:
        """The stock model's configuration."""
        return cast("PreTrainedConfig", self.model.config)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Return what `head` says.

        Args:
            input_ids: ``(B, N)``.
            attention_mask: ``(B, N)``, 1 at real tokens; None means that all are.
            token_type_ids: ``(B, N)``; ignored by models without token types.
        """
        given: dict[str, Any] = {"token_type_ids": token_type_ids} if self._typed and token_type_ids is not None else {}
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **given, **self._plain)
        if self.head != "embedding":
            logits: Tensor = output.logits
            return logits.float()
        hidden: Tensor = output.last_hidden_state.float()
        pooled = hidden[:, 0] if self.pooling == "cls" else masked_mean(hidden, attention_mask)
        return F.normalize(pooled, dim=-1) if self.normalize else pooled

    def extra_repr(self) -> str:
        """Return the head, and how an embedding is made."""
        return self.head + (f", {self.pooling}, normalize={self.normalize}" if self.head == "embedding" else "")


class ImageModel(nn.Module):
    """A transformers model of images, called ``model(image)``: ``(B, C, H, W)`` to single-precision ``(B, K)`` logits.

    Args:
        model: the stock model, which stays the child `model`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = cast("nn.Module", model)
        self.head: Head = "classes"

    @property
    def config(self) -> PreTrainedConfig:
        """The stock model's configuration."""
        return cast("PreTrainedConfig", self.model.config)

    def forward(self, image: Tensor) -> Tensor:
        """Return ``(B, K)`` logits of images ``(B, C, H, W)``."""
        parameter = next(self.model.parameters())
        logits: Tensor = self.model(pixel_values=image.to(parameter.dtype)).logits
        return logits.float()


def masked_mean(hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Return the mean over real tokens: ``(B, N, D)`` and ``(B, N)`` to ``(B, D)``; 0 where no token is real."""
    if attention_mask is None:
        return hidden.mean(1)
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


def load_model(
    source: str,
    head: Head,
    *,
    kind: Literal["tokens", "image"] = "tokens",
    dtype: str = "float32",
    pooling: Pooling = "mean",
    normalize: bool = False,
    revision: str | None = None,
    label: str = "",
    say: Callable[[str], None] | None = None,
) -> TokenModel | ImageModel:
    """Load a saved model with one of its heads, in eval mode.

    Args:
        source: a folder, a name in the hub's local cache, or ``hub:NAME``.
        head: which head.
        kind: what goes in.
        dtype: ``float32``, ``bfloat16`` or ``float16``, whatever the file has.
        pooling: of an embedding.
        normalize: see :class:`TokenModel`.
        revision: of a hub name.
        label: how messages call it.
        say: told, in a line, which tensors of the file are not used.

    Raises:
        UsageError: there is no such model, its type is unknown, or it has no such head.
        DataError: its files cannot be read, are no safetensors, or do not hold the model that its config describes.
    """
    label = label or source
    folder = model_folder(source, revision=revision, weights=True, label=label)
    config = read_config(folder, label=label)
    model_class = head_class(config, kind, head, label)
    check_weight_files(folder, label)
    arguments: dict[str, Any] = {}
    if head == "embedding" and "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        arguments["add_pooling_layer"] = False  # its output is not used; without weights it would be random
    try:
        # What the file lacks is drawn at random, then refused: no one else's random state pays for it.
        with quiet(), seeded(0, "transformers"):
            loaded: Any = cast("Any", model_class).from_pretrained(
                str(folder),
                config=config,
                dtype=DTYPES[dtype],
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, all at once
                **arguments,
            )
    except NasdistillError:
        raise
    except Exception as error:  # whatever the library raises on files that are not what they say
        raise DataError(
            f"{label} cannot be loaded: {one_line(error)}", hint="Save it again with model.save_pretrained(FOLDER)."
        ) from error
    model, info = loaded
    unused = _check_loaded(model, info, label, HEADS[kind, head][1])
    if unused and say is not None:
        say(f"{label}: not used: {_some(unused)}")
    _check_finite(model, label)
    wrapped = ImageModel(model) if kind == "image" else TokenModel(model, head, pooling=pooling, normalize=normalize)
    return wrapped.eval()


def read_config(folder: Path, *, label: str = "") -> PreTrainedConfig:
    """Read the configuration of a saved model; no weights are read and no model is built.

    Raises:
        DataError: there is none, or it is no valid one.
        UsageError: it is of a type that this transformers does not know, or belongs to another library.
    """
    label, path = label or str(folder), folder / "config.json"
    try:
        raw = read_json(path)
    except FileNotFoundError:
        raise DataError(f"{label} has no config.json", hint="Name the folder that save_pretrained wrote.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{label}: config.json cannot be read: {one_line(error)}") from error
    if not isinstance(raw, dict):
        raise DataError(f"{label}: config.json holds no table")
    if not raw.get("model_type"):
        other = "timm" if "architecture" in raw else "diffusers" if "_class_name" in raw else ""
        raise UsageError(
            f"{label}: its config.json names no model_type"
            + (f"; it was written by {other}" if other else ", so its kind and sizes are not known"),
            hint=f"Write {other}:PATH." if other else "Save it with transformers' save_pretrained.",
        )
    prepare_imports()
    from transformers import AutoConfig, __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = str(raw["model_type"])
    if kind not in CONFIG_MAPPING:
        own = " and comes with code of its own, which is not run" if raw.get("auto_map") else ""
        raise UsageError(
            f"{label} is of model type {kind!r}, which transformers {__version__} does not know{own}. Missing are its "
            f"layers, as no class builds their modules: none of the sites {', '.join(SITES)} can be found. Of its "
            f"sizes, {told_sizes(raw)}. {did_you_mean(kind, CONFIG_MAPPING.keys())}",
            hint="Correct model_type; or write a function that returns the network, use "
            "torch:package.module:callable (or a plugin's teacher), and give the space its sizes as options: "
            "such a teacher says none.",
        )
    if raw.get("quantization_config"):
        raise UsageError(
            f"{label} is quantised ({raw['quantization_config'].get('quant_method', 'unknown method')}); students "
            "cannot start from such weights",
            hint="Name the folder of the model before quantisation.",
        )
    try:
        with quiet():
            config: Any = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library checks values in many ways
        raise DataError(f"{label}: config.json is not valid for {kind!r}: {one_line(error)}") from error
    return cast("PreTrainedConfig", config)


def config_json(config: PreTrainedConfig) -> dict[str, Any]:
    """Return a configuration as plain JSON data, defaults filled in."""
    value: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    value.pop("_name_or_path", None)
    return value


def head_class(config: PreTrainedConfig, kind: str, head: str, label: str) -> type[PreTrainedModel]:
    """Return the stock class of a configuration's model with this head.

    Raises:
        UsageError: transformers has none; names the heads that there are.
    """
    from transformers.models.auto import modeling_auto

    if (kind, head) not in HEADS:
        raise UsageError(f"{label}: no model of transformers takes {kind} input and gives {head}")
    table, name = HEADS[kind, head]
    kinds = type(config)
    if kinds in getattr(modeling_auto, table):
        if config.is_encoder_decoder:
            raise UsageError(
                f"{label} ({config.model_type}) is an encoder-decoder, which takes two inputs; it cannot be used here",
                hint="Name a model that is an encoder or a decoder.",
            )
        found = getattr(modeling_auto, table)[kinds]
        return cast("type[PreTrainedModel]", found[0] if isinstance(found, tuple) else found)
    there = [other for own, (table, other) in HEADS.items() if kinds in getattr(modeling_auto, table) and own[1]]
    raise UsageError(
        f"{label} ({config.model_type}) has no head for {name} in transformers; it has: {', '.join(there) or 'none'}",
        hint="Choose a task that fits it, or another model.",
    )


def check_weight_files(folder: Path, label: str) -> None:
    """Refuse a folder without complete safetensors.

    Raises:
        DataError: names what is missing; pickled weights are named and not opened.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return
    if not index.is_file():
        pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
        raise DataError(
            f"{label} has no model.safetensors"
            + (f"; {pickled[0]} is a pickle, which is not opened" if pickled else ""),
            hint="Convert it where you trust it: AutoModel... .from_pretrained(FOLDER).save_pretrained(NEW_FOLDER).",
        )
    try:
        shards = sorted(set(read_json(index)["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{label}: {index.name} cannot be read: {one_line(error)}") from error
    missing = [name for name in shards if not (folder / str(name)).is_file()]
    if missing:
        raise DataError(
            f"{label}: {index.name} names {missing[0]}, which is not there ({len(missing)} of {len(shards)})"
        )


def answer_hash(model: TokenModel | ImageModel) -> str:
    """Return the SHA-256 (hex) of all that a model's answers depend on: weights, structure, configuration, pooling."""
    ignored = {"transformers_version", "architectures", "dtype", "_attn_implementation_autoset"}
    config = {name: value for name, value in config_json(model.config).items() if name not in ignored}
    return content_hash({"model": model_hash(model), "config": canonical_json(config)})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from writing reports and progress bars; what matters of them is told by whoever calls."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _check_loaded(model: Any, info: Mapping[str, Any], label: str, head: str) -> list[str]:
    """Refuse a checkpoint that does not hold the model, and return the tensors that were not used."""
    config = model.config
    if info["error_msgs"]:
        raise DataError(f"{label} cannot be loaded: {one_line(RuntimeError(info['error_msgs'][0]))}")
    wrong = sorted(info["mismatched_keys"])
    if wrong:
        name, found, wanted = wrong[0]
        raise DataError(
            f"{label}: {name} is {tuple(found)} in the file and {tuple(wanted)} by config.json"
            + (f", and {len(wrong) - 1} more do not fit" if len(wrong) > 1 else ""),
            hint="config.json and the weights are of different models.",
        )
    missing = sorted(info["missing_keys"])
    if missing:
        saved = ", ".join(config.architectures or ()) or "another model"
        base = f"{model.base_model_prefix}."
        body = [name for name in missing if name.startswith(base) and not _harmless(name)]
        tied = " Or, if input and output embeddings are one: set tie_word_embeddings to true in config.json." if any(
            name in (getattr(model, "_tied_weights_keys", None) or {}) for name in missing
        ) else ""  # fmt: skip
        raise DataError(
            f"{label} lacks {_some(missing)}" + ("" if body else f": it was saved as {saved}, without {head}"),
            hint=("Save the whole model again." if body else "Fine-tune it for this first, or choose a task that it "
                  "was trained for.") + tied,
        )  # fmt: skip
    own = {name for name, _ in (getattr(model, model.base_model_prefix, model)).named_children()}
    extra = sorted(info["unexpected_keys"])
    inside = [name for name in extra if not _harmless(name) and _inside(name, model.base_model_prefix, own)]
    if inside:
        raise DataError(
            f"{label} has tensors that its config.json knows nothing of: {_some(inside)}",
            hint="config.json and the weights are of different models (another number of layers, another variant).",
        )
    _check_tied(model, label)
    return extra


def _check_tied(model: Any, label: str) -> None:
    """Refuse tensors that the configuration calls one and the file holds twice with different values."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return
    for first, second in (getattr(model, "_tied_weights_keys", None) or {}).items():
        try:
            one, other = model.get_parameter(first), model.get_parameter(second)
        except AttributeError:  # patterns, and parts that this instance does without
            continue
        if one is not other and not torch.equal(one, other):
            raise DataError(
                f"{label}: config.json ties {first} to {second}, but the file holds both with different values",
                hint="Set tie_word_embeddings to false in config.json, or save the model again.",
            )


def _check_finite(model: nn.Module, label: str) -> None:
    """Refuse weights that are not numbers."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise DataError(
                f"{label}: {name} holds NaN or infinity in {str(parameter.dtype).removeprefix('torch.')}",
                hint='Load it with dtype = "float32", or save it again: its file is broken.'
                if parameter.dtype == torch.float16
                else "Its file is broken: save the model again, or take an earlier checkpoint.",
            )


def _harmless(name: str) -> bool:
    return any(part in name for part in HARMLESS)


def _inside(name: str, prefix: str, own: Iterable[str]) -> bool:
    """Return whether a tensor's name lies within the body of a model, whether the file has the body's prefix or not."""
    return name.removeprefix(f"{prefix}.").split(".")[0] in own


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
