"""Tokenizers of transformers, read from the folder of a model: what tasks turn text into token ids with.

transformers makes a tokenizer with an empty vocabulary when a folder has a ``config.json`` and no vocabulary; here that
is refused. No code that lies beside a model is ever run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nasdistill.bridge import prepare_imports
from nasdistill.bridge.hub import model_folder
from nasdistill.errors import DataError, UsageError, one_line
from nasdistill.files import canonical_json, read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "tekken.json",
)
"""Files that hold a vocabulary; a folder with none of them has no tokenizer."""

UNLIMITED = 10**9
"""transformers says "no limit" with a number above this."""

Side = Literal["left", "right"]


def load_tokenizer(source: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model.

    Args:
        source: a folder, a name in the hub's local cache, or ``hub:NAME`` (see :func:`nasdistill.bridge.hub`).
        revision: branch, tag or commit of a hub name.

    Raises:
        UsageError: there is no such folder or name, or the tokenizer needs code of its own.
        DataError: the folder has no tokenizer, or it cannot be read.
    """
    folder = model_folder(source, revision=revision, label=f"tokenizer {source}")
    if not has_tokenizer(folder):
        raise DataError(
            f"{source} has no tokenizer: none of {', '.join(VOCABULARIES[:4])} is in it",
            hint="Save it there with tokenizer.save_pretrained(FOLDER), or name the folder of another tokenizer.",
        )
    if _own_code(folder):
        raise UsageError(
            f"the tokenizer of {source} is code of its own (auto_map in tokenizer_config.json), which is not run",
            hint="Save it as a tokenizer.json (PreTrainedTokenizerFast) and name that folder.",
        )
    prepare_imports()
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_fast=True
        )
        size = len(tokenizer.get_vocab())
    except Exception as error:  # whatever a broken file makes the library raise
        raise DataError(
            f"the tokenizer of {source} cannot be read: {one_line(error)}",
            hint="Save it again with tokenizer.save_pretrained(FOLDER).",
        ) from error
    if size == 0:
        raise DataError(f"the tokenizer of {source} has an empty vocabulary")
    found: PreTrainedTokenizerBase = tokenizer
    return found


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder holds a vocabulary."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def vocabulary_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 (hex) of a tokenizer's vocabulary: every token with its id, added ones included.

    Two tokenizers with the same hash give the same ids to the same pieces; how they cut text into pieces is not in it.
    """
    vocabulary = {str(token): int(index) for token, index in tokenizer.get_vocab().items()}
    return hashlib.sha256(canonical_json(vocabulary).encode("utf-8", "surrogatepass")).hexdigest()


GENERATION = "generation_config.json"
"""The file that says with which ids ``generate`` begins, ends and fills up."""


def generation_ids(tokenizer: PreTrainedTokenizerBase, source: str) -> dict[str, int | list[int]]:
    """Return ``bos_token_id``, ``eos_token_id`` (of several ends a list) and ``pad_token_id``, such as are known.

    What the model says whose tokenizer it is comes first, as in transformers: its generation_config.json, then its
    config.json. Otherwise they are the tokenizer's own.

    Args:
        tokenizer: as `load_tokenizer` gave it.
        source: where it was loaded from.
    """
    folder, found = model_folder(source), dict[str, int | list[int]]()
    tables: list[Any] = []
    for name in (GENERATION, "config.json"):
        try:
            tables.append(read_json(folder / name))
        except (OSError, ValueError):  # a tokenizer may lie alone
            continue
    tables.append({name: getattr(tokenizer, name, None) for name in GENERATION_IDS})
    for name in GENERATION_IDS:
        values = [table.get(name) for table in tables if isinstance(table, dict)]
        known = next((value for value in values if _is_ids(value)), None)
        if known is not None:
            found[name] = known
    return found


GENERATION_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _is_ids(value: Any) -> bool:
    """Return whether a value is a token's id, or several."""
    many = value if isinstance(value, list) and value else [value]
    return all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in many)


CONFIG = "tokenizer_config.json"
"""The file that says how a tokenizer is set up."""

LOADED = ("is_local", "local_files_only")
"""How a tokenizer was loaded, which transformers saves with it."""


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, padding_side: Side = "right") -> None:
    """Write a tokenizer as ``AutoTokenizer.from_pretrained`` reads it.

    Args:
        tokenizer: as `load_tokenizer` gave it.
        folder: where to.
        padding_side: where the model that is served with it has batches filled up, whatever the tokenizer did so far.
    """
    tokenizer.save_pretrained(str(folder))
    settle_tokenizer(folder, padding_side)


def settle_tokenizer(folder: Path, padding_side: Side, *, types: bool = True) -> None:
    """Set what a saved tokenizer gives, and drop how it was once loaded; nothing where there is none.

    Args:
        folder: holds ``tokenizer_config.json``.
        padding_side: for the model that is served with it.
        types: that model takes ``token_type_ids``, so they stay where the tokenizer gives any.
    """
    try:
        known = read_json(folder / CONFIG)
    except (OSError, ValueError):
        return
    if not isinstance(known, dict):
        return
    told = {name: value for name, value in known.items() if name not in LOADED} | {"padding_side": padding_side}
    if not types:
        told["model_input_names"] = ["input_ids", "attention_mask"]
    if told != known:
        write_json(folder / CONFIG, told)


def _own_code(folder: Path) -> bool:
    """Return whether a tokenizer's configuration names code that lies beside it."""
    try:
        config = read_json(folder / CONFIG)
    except (OSError, ValueError):
        return False
    named = config.get("auto_map") if isinstance(config, dict) else None
    return isinstance(named, dict) and "AutoTokenizer" in named and not (folder / "tokenizer.json").is_file()


def save_characters(vocabulary: Mapping[str, int], folder: Path, *, framed: bool) -> None:
    """Write a tokenizer whose tokens are single characters, as ``AutoTokenizer.from_pretrained`` reads it.

    Args:
        vocabulary: token -> id: ``<pad> <unk> <cls> <sep> <mask>`` and the characters.
        folder: where to.
        framed: put ``<cls>`` before and ``<sep>`` after each text.
    """
    prepare_imports()
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel(dict(vocabulary), unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    if framed:
        ends = [(name, vocabulary[name]) for name in ("<cls>", "<sep>")]
        made.post_processor = processors.TemplateProcessing(
            single="<cls> $A <sep>", pair="<cls> $A <sep> $B:1 <sep>:1", special_tokens=ends
        )
    wrapped: Any = PreTrainedTokenizerFast
    wrapped(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", cls_token="<cls>", sep_token="<sep>",
        mask_token="<mask>", padding_side="right", clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(str(folder))  # fmt: skip
