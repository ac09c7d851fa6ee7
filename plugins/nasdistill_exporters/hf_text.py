"""What a text model's folder needs beside the network: its tokenizer, and the files of sentence-transformers."""

from __future__ import annotations

from typing import Any

from nasdistill.bridge.tokenizers import (
    GENERATION,
    GENERATION_IDS,
    generation_ids,
    load_tokenizer,
    save_tokenizer,
    settle_tokenizer,
)
from nasdistill.errors import NasdistillError, one_line
from nasdistill.files import read_json, write_json
from nasdistill.interfaces import ExportRequest
from nasdistill_exporters._files import answer, copy_assets
from nasdistill_exporters.heads import padding_side, preprocessing


def write_text_files(request: ExportRequest, *, stock: bool) -> list[str]:
    """Write the tokenizer and, for an encoder of sentences, how it pools; return what could not be written.

    The tokenizer fills up on the right; that of a causal language model on the left, as ``generate`` needs it, and the
    file is written, too, from which ``generate`` takes its ids.

    Args:
        request: the student.
        stock: its network is a class of transformers.
    """
    notes = []
    known = preprocessing(request)
    source = known.get("tokenizer")
    if copy_assets(request, request.folder):
        pass
    elif not source:
        notes.append("no tokenizer is recorded with the student, so the folder has none")
    else:
        try:
            save_tokenizer(load_tokenizer(str(source)), request.folder)
        except (NasdistillError, OSError) as error:
            notes.append(f"the tokenizer {source} cannot be read here, so the folder has none: {one_line(error)}")
    if request.io.head == "embedding":
        _write_pooling(request, known.get("max_length"))
    settle_tokenizer(request.folder, padding_side(request), types=_takes_types(request, stock))
    if request.io.head == "causal_lm":
        _write_generation(request, str(request.assets or source or ""), stock)
    return notes


def _takes_types(request: ExportRequest, stock: bool) -> bool:
    """Return whether the written model tells a pair's texts apart, by its ``config.json``.

    Others must not be given ``token_type_ids``: GPT-2 looks them up among its words, DistilBERT does not know the name,
    and RoBERTa's table has one row. Code of its own takes the name, and is believed where it does not say how many.
    """
    config: dict[str, Any] = read_json(request.folder / "config.json")
    return int(config.get("type_vocab_size", 0 if stock else 2)) > 1


def _write_generation(request: ExportRequest, source: str, stock: bool) -> None:
    """Write the ids that ``generate`` begins, ends and fills up with, such as are known and in the vocabulary."""
    path = request.folder / GENERATION
    try:
        known: Any = read_json(path) if path.is_file() else generation_ids(load_tokenizer(source), source)
    except (NasdistillError, OSError, ValueError):  # there is no tokenizer, as the notes say
        path.unlink(missing_ok=True)
        return
    size = request.io.vocabulary or 0
    ids: dict[str, Any] = {}
    for name in GENERATION_IDS:
        value = known.get(name) if isinstance(known, dict) else None
        inside = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int) and one < size]
        if inside:
            ids[name] = inside if isinstance(value, list) else inside[0]
    # A network of its own code reads the whole text at every step.
    write_json(path, {**ids, **({} if stock else {"use_cache": False})})


def _write_pooling(request: ExportRequest, longest: object) -> None:
    """Write the mean over real tokens as sentence-transformers reads it."""
    width = answer(request.model, request.example).shape[-1]
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    write_json(request.folder / "modules.json", modules)
    (request.folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    write_json(request.folder / "1_Pooling" / "config.json", pooling)
    if isinstance(longest, int):
        write_json(request.folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})
