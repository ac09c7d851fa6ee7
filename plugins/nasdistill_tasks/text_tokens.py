"""From text to token ids: a tokenizer of transformers, or the characters of the training text.

``chars`` needs no files: its vocabulary is five special tokens and the characters of the training files, sorted. A
character that only occurs elsewhere becomes ``<unk>``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nasdistill.errors import DataError
from nasdistill.files import content_hash
from nasdistill.interfaces.info import TextInfo
from nasdistill_tasks.text_batches import SIDE

CHARS = "chars"
"""Name of the built-in tokenizer."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Texts as ids.

    Attributes:
        ids: one array per text, special tokens included.
        types: which of a pair's texts each token is of; None where the tokenizer does not say or there are no pairs.
        cut: how many texts were longer than allowed.
    """

    ids: list[Ids]
    types: list[Ids] | None
    cut: int


class Encoder(Protocol):
    """What tasks need of a tokenizer.

    Attributes:
        source: where it is from, as the user wrote it.
        identity: hash of all that decides which ids a text becomes.
        size: number of ids.
        pad_id: id that fills a batch up; the mask tells it from text.
        mask_id: id of the mask token, or None.
        special_ids: ids that are no text.
        prefix, suffix: ids that frame a single text.
        end_id: id that ends a document, or None.
        notes: what the user should know.
    """

    source: str
    identity: str
    size: int
    pad_id: int
    mask_id: int | None
    special_ids: frozenset[int]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    end_id: int | None
    notes: tuple[str, ...]

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> Encoded:
        """Return framed texts (or pairs of texts), each cut to `max_length`."""

    def plain(self, texts: Sequence[str]) -> list[Ids]:
        """Return texts without frames, uncut."""

    def info(self, max_length: int) -> TextInfo:
        """Return the record for `Task.text`."""

    def facts(self) -> dict[str, Any]:
        """Return what a user needs to make the same ids, as JSON."""

    def save(self, folder: Path) -> None:
        """Write a tokenizer of transformers that makes the same ids."""

    def generation(self) -> dict[str, Any]:
        """Return the ids that generating begins, ends and fills up with, in transformers' words."""


class Characters:
    """See :class:`Encoder` and the module's text.

    Args:
        letters: the characters, in the order of their ids.
        framed: put ``<cls>`` before and ``<sep>`` after each text, as encoders expect it.
    """

    SPECIAL = ("<pad>", "<unk>", "<cls>", "<sep>", "<mask>")

    def __init__(self, letters: str, *, framed: bool) -> None:
        self.source = CHARS
        self.letters = letters
        self.vocabulary = {token: i for i, token in enumerate((*self.SPECIAL, *letters))}
        self.identity = content_hash({"characters": letters, "framed": framed})
        self.size = len(self.vocabulary)
        self.pad_id = 0
        self.mask_id: int | None = 4
        self.special_ids = frozenset(range(len(self.SPECIAL)))
        self.prefix: tuple[int, ...] = (2,) if framed else ()
        self.suffix: tuple[int, ...] = (3,) if framed else ()
        self.end_id: int | None = None
        self.notes: tuple[str, ...] = ()
        codes = np.frombuffer(letters.encode("utf-32-le"), dtype=np.uint32)
        self._table = np.full(int(codes.max(initial=0)) + 2, 1, dtype=np.int64)
        self._table[codes] = np.arange(len(codes)) + len(self.SPECIAL)

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> Encoded:
        """Return framed texts or pairs; the longer one of a pair is cut first."""
        one = self.plain(texts)
        if pairs is None:
            room = max(1, max_length - len(self.prefix) - len(self.suffix))
            ids = [np.array((*self.prefix, *row[:room], *self.suffix), dtype=np.int64) for row in one]
            return Encoded(ids, None, sum(len(row) > room for row in one))
        room = max(2, max_length - len(self.prefix) - 2 * len(self.suffix))
        ids, types, cut = [], [], 0
        for first, second in zip(one, self.plain(pairs), strict=True):
            cut += len(first) + len(second) > room
            kept = min(len(first), max(room - len(second), room // 2))
            head = np.array((*self.prefix, *first[:kept], *self.suffix), dtype=np.int64)
            tail = np.array((*second[: room - kept], *self.suffix), dtype=np.int64)
            ids.append(np.concatenate([head, tail]))
            types.append(np.repeat(np.array([0, 1], dtype=np.int64), [len(head), len(tail)]))
        return Encoded(ids, types, cut)

    def plain(self, texts: Sequence[str]) -> list[Ids]:
        """Return one id per character."""
        top = len(self._table) - 1
        found = []
        for text in texts:
            codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
            found.append(self._table[np.minimum(codes, top)])
        return found

    def info(self, max_length: int) -> TextInfo:
        """Return the record for `Task.text`."""
        return TextInfo(CHARS, content_hash(self.vocabulary), max_length, SIDE, self.pad_id)

    def facts(self) -> dict[str, Any]:
        """Return the vocabulary: special tokens first, then the characters."""
        return {"tokenizer": CHARS, "special_tokens": list(self.SPECIAL), "characters": self.letters}

    def save(self, folder: Path) -> None:
        """Write a tokenizer of transformers that makes the same ids."""
        from nasdistill.bridge.tokenizers import save_characters

        save_characters(self.vocabulary, folder, framed=bool(self.prefix))

    def generation(self) -> dict[str, Any]:
        """Return the id that fills up; text of characters has no end."""
        return {"pad_token_id": self.pad_id}


def letters_of(texts: Iterable[str]) -> str:
    """Return the characters that occur, sorted; at most 65,000, so that ids stay small."""
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    return "".join(sorted(char for char in seen if not 0xD800 <= ord(char) < 0xE000)[:65_000])


class Pretrained:
    """A tokenizer of transformers; see :class:`Encoder`.

    Args:
        source: folder or name.
    """

    def __init__(self, source: str) -> None:
        from nasdistill.bridge.tokenizers import load_tokenizer, vocabulary_sha256

        tokenizer: Any = load_tokenizer(source)
        self._tokenizer = tokenizer
        self.source = source
        self._vocabulary_sha256 = vocabulary_sha256(tokenizer)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self.identity = content_hash(
            {
                "vocabulary": self._vocabulary_sha256,
                "how": backend.to_str() if backend is not None else type(tokenizer).__name__,
                "special": {k: str(v) for k, v in sorted(tokenizer.special_tokens_map.items())},
            }
        )
        self.size = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
        self.mask_id = None if tokenizer.mask_token_id is None else int(tokenizer.mask_token_id)
        self.special_ids = frozenset(int(i) for i in tokenizer.all_special_ids)
        self.end_id = None if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
        self.notes: tuple[str, ...] = ()
        if tokenizer.pad_token_id is not None:
            self.pad_id = int(tokenizer.pad_token_id)
        elif tokenizer.eos_token_id is not None:
            self.pad_id = int(tokenizer.eos_token_id)
            self.notes = (
                f"the tokenizer of {source} has no padding token: batches are filled up with its end token "
                f"{tokenizer.eos_token!r}, which the attention mask hides",
            )
            tokenizer.pad_token = tokenizer.eos_token
        else:
            raise DataError(
                f"the tokenizer of {source} has neither a padding token nor an end token, and texts of different "
                "lengths share a batch",
                hint="Set pad_token in its tokenizer_config.json and pad_token_id in the model's config.json.",
            )
        framed, bare = self._call(["a"])[0], self._call(["a"], add_special_tokens=False)[0]
        begin = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), len(framed))
        self.prefix, self.suffix = tuple(framed[:begin]), tuple(framed[begin + len(bare) :])
        if tokenizer.padding_side != SIDE:
            self.notes += (
                f"the tokenizer of {source} fills up on the {tokenizer.padding_side}; batches are filled up on the "
                f"{SIDE} here, which the attention mask hides",
            )

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> Encoded:
        """Return texts as the tokenizer frames them; the longer one of a pair is cut first."""
        batch = self._tokenizer(
            list(texts), None if pairs is None else list(pairs), truncation="longest_first", max_length=max_length,
            padding=False, return_attention_mask=False, return_token_type_ids=pairs is not None, verbose=False,
        )  # fmt: skip
        ids = [np.asarray(row, dtype=np.int64) for row in batch["input_ids"]]
        types = None
        if pairs is not None and "token_type_ids" in self._tokenizer.model_input_names:
            types = [np.asarray(row, dtype=np.int64) for row in batch["token_type_ids"]]
        encodings = batch.encodings
        if encodings is not None:
            return Encoded(ids, types, sum(bool(encoding.overflowing) for encoding in encodings))
        return Encoded(ids, types, sum(len(row) >= max_length for row in ids))

    def plain(self, texts: Sequence[str]) -> list[Ids]:
        """Return texts without special tokens, uncut."""
        return [np.asarray(row, dtype=np.int64) for row in self._call(list(texts), add_special_tokens=False)]

    def info(self, max_length: int) -> TextInfo:
        """Return the record for `Task.text`."""
        return TextInfo(self.source, self._vocabulary_sha256, max_length, SIDE, self.pad_id)

    def facts(self) -> dict[str, Any]:
        """Return the tokenizer's source and the hash of its vocabulary."""
        return {"tokenizer": self.source, "vocabulary_sha256": self._vocabulary_sha256}

    def save(self, folder: Path) -> None:
        """Write the tokenizer, which fills up as batches here are."""
        from nasdistill.bridge.tokenizers import save_tokenizer

        save_tokenizer(self._tokenizer, folder, SIDE)

    def generation(self) -> dict[str, Any]:
        """Return the ids of the model that the tokenizer belongs to, else its own."""
        from nasdistill.bridge.tokenizers import generation_ids

        return dict(generation_ids(self._tokenizer, self.source))

    def _call(self, texts: list[str], **how: Any) -> list[list[int]]:
        found: list[list[int]] = self._tokenizer(
            texts, truncation=False, padding=False, return_attention_mask=False, verbose=False, **how
        )["input_ids"]
        return found
