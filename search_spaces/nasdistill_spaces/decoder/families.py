"""Decoders of transformers: their configuration as options of the space, and their weights under our names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.errors import MismatchError
from nasdistill_spaces.decoder.model import DecoderNet, DecoderShape

SERVED = ("gpt2", "llama", "qwen2", "mistral")
"""Values of ``model_type`` that the space has a style for."""

HEADS = {"causal_lm": "ForCausalLM", "classes": "ForSequenceClassification"}
"""Ends of the names of stock classes."""

OUTPUTS = ("lm_head.weight", "score.weight")
"""Output matrices, which lie beside the body there too."""

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "silu": "silu",
               "swish": "silu", "relu": "relu"}  # fmt: skip


def sizes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of a decoder as options of the space.

    Args:
        config: the content of its ``config.json``.

    Raises:
        MismatchError: a family without a style here, or a setting that the style does not have; says which.
    """
    family = config.get("model_type")
    if family not in SERVED:
        raise MismatchError(
            f"the space `decoder` has no style for a teacher of the family {family!r}; it knows {', '.join(SERVED)}",
            hint="Choose another space for this teacher: nasdistill spaces list.",
        )
    sizes = _gpt2(config) if family == "gpt2" else _llama(config, str(family))
    activation = config.get("activation_function" if family == "gpt2" else "hidden_act")
    if activation is None:
        activation = "gelu_new" if family == "gpt2" else "silu"
    if activation not in ACTIVATIONS:
        _refuse(f"the activation {activation!r}")
    vocabulary, padding = int(config["vocab_size"]), config.get("pad_token_id")
    known = {"padding_id": padding} if isinstance(padding, int) and 0 <= padding < vocabulary else {}
    return {**sizes, **known, "activation": ACTIVATIONS[activation], "vocabulary": vocabulary}


def _gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
    for key, usual in (
        ("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False), ("add_cross_attention", False),
    ):  # fmt: skip
        if config.get(key, usual) != usual:
            _refuse(f"{key} = {config[key]}")
    width, heads = int(config["n_embd"]), int(config["n_head"])
    return {
        "style": "gpt2", "layers": int(config["n_layer"]), "width": width, "heads": heads, "kv_heads": heads,
        "head_dim": width // heads, "mlp": int(config.get("n_inner") or 4 * width),
        "positions": int(config["n_positions"]), "eps": float(config.get("layer_norm_epsilon", 1e-5)),
        "qkv_bias": True, "out_bias": True, "mlp_bias": True, "tied": bool(config.get("tie_word_embeddings", True)),
    }  # fmt: skip


def _llama(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    # transformers 5 keeps everything about rotary positions in one table, earlier versions in two keys.
    rope = {**(config.get("rope_parameters") or config.get("rope_scaling") or {})}
    theta = float(rope.pop("rope_theta", None) or config.get("rope_theta") or 10_000.0)
    rope.setdefault("rope_type", rope.pop("type", "default"))
    kind = rope["rope_type"]
    if kind not in ("default", "linear", "llama3"):
        _refuse(f"rotary positions of the type {kind!r}")
    positions = int(config["max_position_embeddings"])
    window = config.get("sliding_window")
    if window and (family == "mistral" or config.get("use_sliding_window")):
        positions = min(positions, int(window))  # up to there the window hides nothing
    bias = bool(config.get("attention_bias", False))
    keys = ("rope_type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return {
        "style": "llama", "layers": int(config["num_hidden_layers"]), "width": width, "heads": heads,
        "kv_heads": int(config.get("num_key_value_heads") or heads),
        "head_dim": int(config.get("head_dim") or width // heads), "mlp": int(config["intermediate_size"]),
        "positions": positions, "eps": float(config.get("rms_norm_eps", 1e-6)),
        "qkv_bias": True if family == "qwen2" else bias, "out_bias": bias, "mlp_bias": bool(config.get("mlp_bias")),
        "tied": bool(config.get("tie_word_embeddings", False)), "rope_theta": theta,
        "rope_scaling": {} if kind == "default" else {key: rope[key] for key in keys if key in rope},
    }  # fmt: skip


def _refuse(what: str) -> None:
    raise MismatchError(
        f"the space `decoder` does not have {what}, which this teacher uses",
        hint="Choose another space or another teacher.",
    )


def read_teacher(model: nn.Module) -> tuple[DecoderShape, dict[str, Tensor]] | None:
    """Return the sizes of a decoder and its tensors under our names (views of its own), or None for other models.

    Args:
        model: a :class:`DecoderNet`, or a model of transformers of a served family, also inside a wrapper.
    """
    for module in model.modules():
        if isinstance(module, DecoderNet):
            return module.shape, dict(module.state_dict())
        config: Any = getattr(module, "config", None)
        if getattr(config, "model_type", None) not in SERVED or not hasattr(config, "to_dict"):
            continue
        state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
        # A wrapper may show the configuration of what it holds; the names tell which module is the model.
        if "transformer.wte.weight" in state or "model.embed_tokens.weight" in state:
            return _read_stock(state, config.to_dict())
    return None


def _read_stock(
    state: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[DecoderShape, dict[str, Tensor]] | None:
    try:
        sizes = sizes_of(config)
    except MismatchError:
        return None
    score = state.get("score.weight")
    layers, outputs = sizes["layers"], sizes["vocabulary"] if score is None else score.shape[0]
    shape = DecoderShape(
        style=sizes["style"], width=sizes["width"], head_dim=sizes["head_dim"], heads=(sizes["heads"],) * layers,
        kv_heads=(sizes["kv_heads"],) * layers, mlp=(sizes["mlp"],) * layers, attention=("softmax",) * layers,
        vocabulary=sizes["vocabulary"], positions=sizes["positions"], outputs=outputs,
        head="causal_lm" if score is None else "classes", activation=sizes["activation"], eps=sizes["eps"],
        qkv_bias=sizes["qkv_bias"], out_bias=sizes["out_bias"], mlp_bias=sizes["mlp_bias"], tied=sizes["tied"],
        rope_theta=sizes.get("rope_theta", 10_000.0), rope_scaling=sizes.get("rope_scaling", {}),
        padding_id=None if score is None else sizes.get("padding_id"),
    )  # fmt: skip
    read = _from_gpt2 if shape.style == "gpt2" else _from_llama
    return shape, read(state, shape)


GPT2_LAYER = (
    ("ln_1", "input_layernorm"), ("ln_2", "post_attention_layernorm"), ("attn.c_proj", "self_attn.o_proj"),
    ("mlp.c_fc", "mlp.up_proj"), ("mlp.c_proj", "mlp.down_proj"),
)  # fmt: skip


def _from_gpt2(state: Mapping[str, Tensor], shape: DecoderShape) -> dict[str, Tensor]:
    """Rename; `Conv1D` holds ``(in, out)``, and q, k and v are columns of one."""
    found = {
        "embed_tokens.weight": state["transformer.wte.weight"],
        "embed_positions.weight": state["transformer.wpe.weight"],
        **{f"norm.{end}": state[f"transformer.ln_f.{end}"] for end in ("weight", "bias")},
    }
    for layer in range(shape.layers):
        there, here = f"transformer.h.{layer}", f"layers.{layer}"
        for theirs, ours in GPT2_LAYER:
            weight = state[f"{there}.{theirs}.weight"]
            found[f"{here}.{ours}.weight"] = weight.t() if weight.dim() == 2 else weight
            found[f"{here}.{ours}.bias"] = state[f"{there}.{theirs}.bias"]
        for end in ("weight", "bias"):
            fused = state[f"{there}.attn.c_attn.{end}"]
            for part, tensor in zip("qkv", (fused.t() if end == "weight" else fused).chunk(3), strict=True):
                found[f"{here}.self_attn.{part}_proj.{end}"] = tensor
    return _with_output(found, state, shape)


def _from_llama(state: Mapping[str, Tensor], shape: DecoderShape) -> dict[str, Tensor]:
    found = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
    return _with_output({n: t for n, t in found.items() if not n.endswith("inv_freq")}, state, shape)


def _with_output(found: dict[str, Tensor], state: Mapping[str, Tensor], shape: DecoderShape) -> dict[str, Tensor]:
    """Add the output matrix where it is one of its own."""
    if shape.head == "classes":
        found["score.weight"] = state["score.weight"]
    elif not shape.tied:
        found["lm_head.weight"] = state["lm_head.weight"]
    return found


def stock_config(shape: DecoderShape) -> dict[str, Any] | None:
    """Return the ``config.json`` of the class of transformers that computes the same, or None where none does.

    Its classifiers find a text's end by the padding id, so a network that goes by the mask is none of them.
    """
    uniform = all(len(set(sizes)) == 1 for sizes in (shape.heads, shape.kv_heads, shape.mlp))
    if not uniform or set(shape.attention) != {"softmax"} or shape.head not in HEADS:
        return None
    classes = shape.head == "classes"
    if classes and (shape.padding_id is None or shape.padding_id >= shape.vocabulary):
        return None
    heads, groups, mlp = shape.heads[0], shape.kv_heads[0], shape.mlp[0]
    activation = {"gelu_tanh": "gelu_new"}.get(shape.activation, shape.activation)
    common: dict[str, Any] = {"vocab_size": shape.vocabulary, "tie_word_embeddings": shape.tied, "bos_token_id": None,
              "eos_token_id": None}  # fmt: skip
    if classes:
        names = [f"LABEL_{index}" for index in range(shape.outputs)]
        common |= {"pad_token_id": shape.padding_id, "id2label": {str(i): name for i, name in enumerate(names)},
                   "label2id": {name: i for i, name in enumerate(names)}}  # fmt: skip
    if shape.style == "gpt2":
        biases = shape.qkv_bias and shape.out_bias and shape.mlp_bias
        if heads * shape.head_dim != shape.width or groups != heads or not biases:
            return None
        return {
            "model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification" if classes else "GPT2LMHeadModel"],
            **common, "n_embd": shape.width, "n_layer": shape.layers, "n_head": heads, "n_inner": mlp,
            "n_positions": shape.positions,
            "activation_function": activation, "layer_norm_epsilon": shape.eps, "resid_pdrop": 0.0,
            "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        }  # fmt: skip
    qwen = shape.qkv_bias and not shape.out_bias and not shape.mlp_bias
    if not qwen and shape.qkv_bias != shape.out_bias:
        return None
    biases_ = {} if qwen else {"attention_bias": shape.qkv_bias, "mlp_bias": shape.mlp_bias}
    family, name = ("qwen2", "Qwen2") if qwen else ("llama", "Llama")
    return {
        "model_type": family, "architectures": [name + HEADS[shape.head]], **common, "hidden_size": shape.width,
        "num_hidden_layers": shape.layers, "num_attention_heads": heads, "num_key_value_heads": groups,
        "head_dim": shape.head_dim, "intermediate_size": mlp, "max_position_embeddings": shape.positions,
        "hidden_act": activation, "rms_norm_eps": shape.eps, **biases_,
        "rope_parameters": {"rope_type": "default", **shape.rope_scaling, "rope_theta": shape.rope_theta},
    }  # fmt: skip


def to_stock(shape: DecoderShape) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """Return what renames our tensors to those of the class that :func:`stock_config` names."""

    def llama(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name if name in OUTPUTS else f"model.{name}": tensor for name, tensor in state.items()}

    def gpt2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = {"embed_tokens.weight": "transformer.wte.weight", "embed_positions.weight": "transformer.wpe.weight"}
        names |= {f"norm.{end}": f"transformer.ln_f.{end}" for end in ("weight", "bias")}
        found = {theirs: state[ours] for ours, theirs in names.items()}
        found |= {name: state[name] for name in OUTPUTS if name in state}
        for layer in range(shape.layers):
            there, here = f"transformer.h.{layer}", f"layers.{layer}"
            for theirs, ours in GPT2_LAYER:
                weight = state[f"{here}.{ours}.weight"]
                found[f"{there}.{theirs}.weight"] = weight.t().contiguous() if weight.dim() == 2 else weight
                found[f"{there}.{theirs}.bias"] = state[f"{here}.{ours}.bias"]
            for end in ("weight", "bias"):
                parts = [state[f"{here}.self_attn.{part}_proj.{end}"] for part in "qkv"]
                fused = torch.cat(parts)
                found[f"{there}.attn.c_attn.{end}"] = fused.t().contiguous() if end == "weight" else fused
        return found

    return gpt2 if shape.style == "gpt2" else llama
