"""What a student answers, in the words of transformers: which Auto class opens its folder, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nasdistill.interfaces import ExportRequest

_RETURN = """        if return_dict is False:
            return ({value},) if loss is None else (loss, {value})
        return {output}(loss=loss, {value}={value})
"""

_IMAGE = """    def forward(self, pixel_values, labels=None, return_dict=None, **kwargs):
        logits = self.network(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits, labels)
""" + _RETURN.format(value="logits", output="ImageClassifierOutput")

_TEXT = """    def forward(
        self, input_ids, attention_mask=None, token_type_ids=None, labels=None, return_dict=None, **kwargs
    ):
{before}        logits = self.network(input_ids, attention_mask, token_type_ids)
{loss}"""

_CLASSES = _TEXT.format(
    before="", loss="        loss = None if labels is None else F.cross_entropy(logits, labels)\n"
) + _RETURN.format(value="logits", output="SequenceClassifierOutput")

_MASKED = _TEXT.format(
    before="",
    loss="        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())\n",
) + _RETURN.format(value="logits", output="MaskedLMOutput")

_SHIFT = """        back = None
        if attention_mask is not None and not attention_mask[:, 0].all():
            # Positions count from the first column, so padding in front goes behind, and its logits come back.
            columns = torch.arange(input_ids.shape[1], device=input_ids.device)
            start = (attention_mask != 0).int().argmax(1, keepdim=True)
            there, back = (columns + start) % len(columns), (columns - start) % len(columns)
            input_ids, attention_mask = input_ids.take_along_dim(there, 1), attention_mask.take_along_dim(there, 1)
"""

_CAUSAL = (
    _TEXT.format(
        before=_SHIFT,
        loss="""        if back is not None:
            logits = logits.take_along_dim(back[..., None], 1)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
""",
    )
    + _RETURN.format(value="logits", output="CausalLMOutputWithPast")
    + """
    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        \"\"\"Every step reads the whole text: this network keeps no keys and values.\"\"\"
        return {"input_ids": input_ids, "attention_mask": attention_mask}
"""
)

_EMBEDDING = """    def forward(self, input_ids, attention_mask=None, token_type_ids=None, return_dict=None, **kwargs):
        hidden = self.network.encode(input_ids, attention_mask, token_type_ids)
        if attention_mask is None:
            pooled = hidden.mean(1)
        else:
            weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        if return_dict is False:
            return hidden, pooled
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)
"""


def preprocessing(request: ExportRequest) -> dict[str, Any]:
    """Return what the task says of how data becomes inputs; empty where it did not say."""
    return dict((request.provenance.get("task") or {}).get("preprocessing") or {})


def padding_side(request: ExportRequest) -> Literal["left", "right"]:
    """Return where the tokenizer of an exported folder fills up: ``generate`` goes on from the last column."""
    return "left" if request.io.head == "causal_lm" else "right"


def class_names(request: ExportRequest) -> list[str]:
    """Return the classes' names, numbered ones where the task has none."""
    return [str(name) for name in preprocessing(request).get("classes") or ()] or [
        f"LABEL_{i}" for i in range(request.io.outputs)
    ]


def _labels(request: ExportRequest) -> dict[str, Any]:
    names = class_names(request)
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def _image(request: ExportRequest) -> dict[str, Any]:
    channels, *size = request.io.shape
    return {**_labels(request), "image_size": size, "num_channels": channels}


def _vocabulary(request: ExportRequest) -> dict[str, Any]:
    return {"vocab_size": request.io.vocabulary}


@dataclass(frozen=True, slots=True)
class HfHead:
    """A kind of model in transformers.

    Attributes:
        auto: the class that opens the folder.
        suffix: of class names.
        what: in a sentence.
        call: what goes in and what comes out.
        main_input: name of the first input.
        output: class of the output object.
        forward: source of the method.
        pipeline: the hub's name for the task.
        config: keys of ``config.json`` that say what is answered.
        code_config: keys that only a network of its own code needs.
        bases: base classes of the model.
    """

    auto: str
    suffix: str
    what: str
    call: str
    main_input: str
    output: str
    forward: str
    pipeline: str
    config: Callable[[ExportRequest], Mapping[str, Any]]
    bases: tuple[str, ...] = ("PreTrainedModel",)
    code_config: Mapping[str, Any] = field(default_factory=dict)


_TOKENS = "Token ids ``(B, N)`` and their mask to"

HEADS: dict[tuple[str, str], HfHead] = {
    ("image", "classes"): HfHead(
        "AutoModelForImageClassification", "ForImageClassification", "An image classifier",
        "Images ``(B, C, H, W)``, preprocessed as the configuration says, to logits ``(B, num_labels)``.",
        "pixel_values", "ImageClassifierOutput", _IMAGE, "image-classification", _image,
    ),
    ("tokens", "classes"): HfHead(
        "AutoModelForSequenceClassification", "ForSequenceClassification", "A text classifier",
        f"{_TOKENS} logits ``(B, num_labels)``.",
        "input_ids", "SequenceClassifierOutput", _CLASSES, "text-classification",
        lambda request: {**_labels(request), **_vocabulary(request)},
    ),
    ("tokens", "embedding"): HfHead(
        "AutoModel", "Model", "An encoder of sentences",
        f"{_TOKENS} hidden states ``(B, N, C)`` and their mean over real tokens ``(B, C)``.",
        "input_ids", "BaseModelOutputWithPooling", _EMBEDDING, "sentence-similarity", _vocabulary,
    ),
    ("tokens", "masked_lm"): HfHead(
        "AutoModelForMaskedLM", "ForMaskedLM", "A masked language model",
        f"{_TOKENS} logits ``(B, N, vocab_size)``.",
        "input_ids", "MaskedLMOutput", _MASKED, "fill-mask", _vocabulary,
    ),
    ("tokens", "causal_lm"): HfHead(
        "AutoModelForCausalLM", "ForCausalLM", "A causal language model",
        f"{_TOKENS} logits ``(B, N, vocab_size)``.",
        "input_ids", "CausalLMOutputWithPast", _CAUSAL, "text-generation", _vocabulary,
        ("PreTrainedModel", "GenerationMixin"), {"use_cache": False, "is_decoder": True},
    ),
}  # fmt: skip
"""By kind of input and head."""
