"""What a text model's folder needs beside the network: its tokenizer, and the files of sentence-transformers."""

from __future__ import annotations

from nasdistill.bridge.tokenizers import load_tokenizer
from nasdistill.errors import NasdistillError, one_line
from nasdistill.files import write_json
from nasdistill.interfaces import ExportRequest
from nasdistill_exporters._files import answer, copy_assets
from nasdistill_exporters.heads import preprocessing


def write_text_files(request: ExportRequest) -> list[str]:
    """Write the tokenizer and, for an encoder of sentences, how it pools; return what could not be written."""
    notes = []
    known = preprocessing(request)
    source = known.get("tokenizer")
    if copy_assets(request, request.folder):
        pass
    elif not source:
        notes.append("no tokenizer is recorded with the student, so the folder has none")
    else:
        try:
            load_tokenizer(str(source)).save_pretrained(str(request.folder))
        except (NasdistillError, OSError) as error:
            notes.append(f"the tokenizer {source} cannot be read here, so the folder has none: {one_line(error)}")
    if request.io.head == "embedding":
        _write_pooling(request, known.get("max_length"))
    return notes


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
