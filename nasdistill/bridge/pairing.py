"""Do a transformers model and a task fit? Asked before anything is trained; every answer says what differs.

:func:`check_pair` compares what both say of themselves: kind of input, head, classes and their names, vocabulary,
tokenizer, longest input, padding. :func:`check_answers` runs a few samples: shapes, numbers that are none, and whether
padding changes the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nasdistill.bridge.describing import OFFSET, labels_of, position_limit
from nasdistill.bridge.tokenizers import has_tokenizer, load_tokenizer, vocabulary_sha256
from nasdistill.errors import DataError, MismatchError, UsageError, one_line
from nasdistill.interfaces.info import TextInfo
from nasdistill.interfaces.task import Task
from nasdistill.seeds import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Say = Callable[[str], None]

PADDING_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How much an answer may move, relative to the largest number in it, when padding is added."""


def check_pair(
    config: PreTrainedConfig, task: Task, folder: Path, label: str, say: Say, *, made_for: int | None = None
) -> None:
    """Compare what a model and a task say of themselves; no weights are needed.

    Args:
        config: the model's.
        task: a prepared task.
        folder: where the model lies, and perhaps its tokenizer.
        label: how messages call the model.
        say: told what could not be compared.
        made_for: longest input that the model was made for, in tokens, where it is shorter than what it takes.

    Raises:
        MismatchError: they do not fit; says what differs and what to do.
    """
    io = task.io
    vocabulary = getattr(config, "vocab_size", None)
    side = getattr(config, "image_size", None)
    takes = "images" if vocabulary is None else f"token ids below {vocabulary}"
    if vocabulary is None and side is not None:
        high, wide = (side, side) if isinstance(side, int) else tuple(side)[:2]
        takes = f"{getattr(config, 'num_channels', 3)} x {high} x {wide} images"
    if (io.kind == "tokens") != (vocabulary is not None) or io.kind not in ("tokens", "image"):
        raise MismatchError(
            f"{label} ({config.model_type}) takes {takes}, but the task is {io}", hint="Choose a teacher for this data."
        )
    if io.head == "classes":
        saved = ", ".join(config.architectures or ())
        # The number of classes of a model without any is transformers' default.
        if config.num_labels != io.outputs and saved and "classif" not in saved.casefold():
            raise MismatchError(
                f"{label} was saved as {saved} and has no classification head, the task is {io}",
                hint="Fine-tune it for classification on this data first, or choose a task that it was trained for.",
            )
        compare_classes(labels_of(config), int(config.num_labels or 0), task, label, say)
        problem = getattr(config, "problem_type", None)
        if problem not in (None, "single_label_classification"):
            raise MismatchError(
                f"{label} was trained for {problem.replace('_', ' ')}, the task is classification into one of "
                f"{io.outputs}",
                hint="Choose a model that was trained with one label per sample.",
            )
    if io.kind != "tokens":
        return
    if io.vocabulary is not None and io.vocabulary > int(vocabulary or 0):
        raise MismatchError(
            f"{label} knows {vocabulary} token ids, the task's tokenizer gives {io.vocabulary}",
            hint="Use the model's own tokenizer in the task.",
        )
    if io.head in ("masked_lm", "causal_lm") and io.outputs != vocabulary:
        raise MismatchError(
            f"{label} gives {vocabulary} logits per token, the task needs {io.outputs}: one per id of its vocabulary",
            hint="Use the model's own tokenizer in the task, or cut the model's embeddings to the tokenizer's size.",
        )
    text = task.text
    if text is None:
        return
    _check_tokenizer(text, folder, label, say)
    _check_length(config, text, label, say, made_for)
    _check_pad(config, text, io.head, label)


def compare_pixels(theirs: Mapping[str, Any], task: Task, label: str, say: Say) -> None:
    """Warn when a task's pixels are scaled otherwise than those that a model was trained on.

    Args:
        theirs: ``mean`` and ``std`` of the model's pixels, as in `TeacherInfo.preprocessing`.
        task: a prepared task.
        label: how messages call the model.
        say: told in one line.
    """
    ours = task.preprocessing
    keys = [key for key in ("mean", "std") if key in theirs and key in ours]
    pairs = [pair for key in keys for pair in zip(theirs[key], ours[key], strict=False)]
    if any(abs(float(a) - float(b)) > 0.02 for a, b in pairs):
        say(
            f"warning: {label} was trained with mean {theirs.get('mean')} and std {theirs.get('std')}, the task uses "
            f"{ours.get('mean')} and {ours.get('std')}; set mean and std in the task's options"
        )


def check_answers(model: nn.Module, task: Task, label: str, say: Say) -> None:
    """Run a few samples and look at the answers.

    Args:
        model: in eval mode.
        task: a prepared task.
        label: how messages call the model.
        say: told what is odd and not forbidden.

    Raises:
        MismatchError: the answers have the wrong shape, are no numbers, or change with the task's padding.
    """
    task.check(model, label)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    with seeded(0, "trial answers"), torch.no_grad():
        batch = next(iter(task.batches("train", batch_size=8))).to(where)
        answer = task.forward(model, batch)
    mask = batch.inputs.get("attention_mask")
    if mask is not None and answer.ndim == 3 and answer.shape[:2] == mask.shape:
        answer = answer[mask.bool()]
    if not bool(answer.isfinite().all()):
        name = str(dtype).removeprefix("torch.")
        bad = "NaN" if bool(answer.isnan().any()) else "infinity"
        raise MismatchError(
            f"{label} answers {bad} on the task's data in {name}",
            hint='Load it with dtype = "float32".' if dtype != torch.float32 else "Check its weights and the data.",
        )
    if task.io.kind == "tokens" and task.text is not None and task.text.pad_id is not None:
        _check_padding(model, task, task.text, dtype, label, say)


def compare_classes(theirs: Sequence[str], count: int, task: Task, label: str, say: Say) -> None:
    """Compare number, names and order of a model's classes with the task's.

    Args:
        theirs: names of the model's classes, in order; empty where they are only numbered.
        count: their number.
        task: a prepared task.
        label: how messages call the model.
        say: told what could not be compared.

    Raises:
        MismatchError: they differ; says where.
    """
    theirs, ours = tuple(theirs), tuple(task.classes)
    if count != task.io.outputs:
        raise MismatchError(
            f"{label} has {count} classes{_listed(theirs)}, the task ({task.io}) has {task.io.outputs}{_listed(ours)}",
            hint="Fine-tune the model on this data first, or choose the data that it was trained on.",
        )
    if not theirs or not ours:
        say(f"note: {'the data' if theirs else label} does not name its classes, so their order cannot be compared")
        return
    mine, other = [name.casefold() for name in ours], [name.casefold() for name in theirs]
    if mine == other:
        return
    if sorted(mine) == sorted(other):
        raise MismatchError(
            f"{label} and the task have the same classes in another order: {', '.join(theirs)} and {', '.join(ours)}",
            hint="Leave the task's option classes out: the teacher's order is taken then.",
        )
    if ours == tuple(map(str, range(count))):  # numbers stand for themselves
        return
    at = next(index for index, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b)
    raise MismatchError(
        f"class {at} is {theirs[at]!r} for {label} and {ours[at]!r} in the data",
        hint="Rename the labels in the data, or in id2label of the model's config.json, so that both agree.",
    )


def _check_tokenizer(text: TextInfo, folder: Path, label: str, say: Say) -> None:
    """Compare the vocabularies, where both are known."""
    if not text.vocabulary_sha256 or not has_tokenizer(folder):
        say(f"note: there is no tokenizer beside {label}; that the task's ids mean the same to it cannot be checked")
        return
    if _same_folder(text.tokenizer, folder):
        return
    try:
        own = load_tokenizer(str(folder))
    except (DataError, UsageError) as error:
        say(f"note: the tokenizer of {label} cannot be compared: {one_line(error)}")
        return
    if vocabulary_sha256(own) == text.vocabulary_sha256:
        return
    raise MismatchError(
        f"the task's tokenizer ({text.tokenizer}) gives other ids than that of {label}{_first_difference(own, text)}",
        hint="Leave the task's option tokenizer out: the teacher's is taken then.",
    )


def _check_length(config: PreTrainedConfig, text: TextInfo, label: str, say: Say, made_for: int | None) -> None:
    limit = position_limit(config)
    if limit is not None and text.max_length > limit:
        raise MismatchError(
            f"the task's texts are up to {text.max_length} tokens long, {label} takes {limit}",
            hint=f"Set max_length = {min(limit, made_for or limit)} in the task's options.",
        )
    if made_for is not None and text.max_length > made_for:
        say(f"note: the task's texts are up to {text.max_length} tokens long, {label} was made for {made_for}")


def _check_pad(config: PreTrainedConfig, text: TextInfo, head: str, label: str) -> None:
    """Compare the padding ids where a model looks for its own: to count positions, or to find a text's last token."""
    own, last = getattr(config, "pad_token_id", None), head == "classes" and reads_last_token(config)
    if own is None and last:
        raise MismatchError(
            f"{label} ({config.model_type}) has no padding token (pad_token_id in config.json is null): in a batch it "
            "cannot tell the last token of a text, which its classifier reads",
            hint="Set pad_token_id in config.json to the id that the tokenizer pads with.",
        )
    if own is not None and text.pad_id is not None and own != text.pad_id and (last or config.model_type in OFFSET):
        raise MismatchError(
            f"the task pads with id {text.pad_id}, {label} knows {own} as padding (pad_token_id in config.json)",
            hint="Use the model's own tokenizer, or make pad_token of the tokenizer and pad_token_id one id.",
        )


def reads_last_token(config: PreTrainedConfig) -> bool:
    """Return whether a model's classifier reads the last token of a text: it is a decoder only."""
    from transformers.models.auto import modeling_auto

    kind: Any = type(config)
    decodes = kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    return decodes and kind not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING


def _check_padding(model: nn.Module, task: Task, text: TextInfo, dtype: torch.dtype, label: str, say: Say) -> None:
    """Refuse when padding where the task pads changes the answer, and on the other side does not.

    So it is with models that read the last column of a batch (XLNet's classifier).
    """
    limit = position_limit(model.config) if hasattr(model, "config") else None  # type: ignore[arg-type]
    moved = _moved_by_padding(model, task, text, text.padding_side, limit)
    tolerance = PADDING_TOLERANCE.get(dtype, 1e-3)
    if moved is None or moved <= tolerance:
        return
    other = "left" if text.padding_side == "right" else "right"
    elsewhere = _moved_by_padding(model, task, text, other, limit)
    if elsewhere is not None and elsewhere <= tolerance:
        raise MismatchError(
            f"the task pads on the {text.padding_side}, which changes the answers of {label} (by {moved:.1%}); "
            f"padding on the {other} does not",
            hint=f"Choose another teacher, or a task that pads on the {other}; padding_side in tokenizer_config.json "
            "does not change where a task pads.",
        )
    say(f"warning: padding changes the answers of {label} (by {moved:.1%}), on either side: it does not heed the mask")


def _moved_by_padding(model: nn.Module, task: Task, text: TextInfo, side: str, limit: int | None) -> float | None:
    """Return by how much three padding tokens change the answer to one text, relative to its largest number."""
    ids, mask, *_ = (*task.example(1), None)
    if not isinstance(mask, Tensor) or ids.ndim != 2:
        return None
    real = ids[0][mask[0].bool()]
    real = real[: min(len(real), (limit or len(real) + 3) - 3)]
    if len(real) < 1:
        return None
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    plain = real.unsqueeze(0).to(where)
    padding = torch.full((1, 3), int(text.pad_id or 0), dtype=plain.dtype, device=where)
    ones, zeros = torch.ones_like(plain), torch.zeros_like(padding)
    parts = ((padding, plain), (zeros, ones)) if side == "left" else ((plain, padding), (ones, zeros))
    with torch.no_grad(), seeded(0, "padding"):
        first = model(plain, ones)
        second = model(torch.cat(parts[0], 1), torch.cat(parts[1], 1))
    if first.ndim == 3:
        second = second[:, 3:] if side == "left" else second[:, :-3]
    return float((first - second).abs().max() / first.abs().max().clamp(min=1e-6))


def _same_folder(source: str, folder: Path) -> bool:
    try:
        return Path(source).expanduser().resolve() == folder.resolve()
    except (OSError, RuntimeError):
        return False


def _first_difference(own: Any, text: TextInfo) -> str:
    """Return sizes and an example of two vocabularies; nothing when the other one cannot be read any more."""
    try:
        other = load_tokenizer(text.tokenizer).get_vocab()
    except (DataError, UsageError):
        return ""
    mine = own.get_vocab()
    token = next((token for token in sorted(other) if token in mine and mine[token] != other[token]), None)
    example = f"; {token!r} is {other[token]} and {mine[token]}" if token is not None else ""
    return f": {len(other)} and {len(mine)} tokens{example}"


def _listed(names: tuple[str, ...]) -> str:
    return f" ({', '.join(names[:5])}{' ...' if len(names) > 5 else ''})" if names else ""
