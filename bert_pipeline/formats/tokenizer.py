"""The tokenizer artifact: special tokens, id types, and a reader that validates tokenizer.json."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from bert_pipeline.core.files import cached_digest

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(5)
"""Ids of the special tokens; the tokenizer stage assigns the first ids to them and checks it."""
PREFIX = "##"
"""Begins a piece that continues a word."""

MAX_VOCABULARY = 2**22
"""Far above any vocabulary in use. Without a limit, a malicious file could set the size of the embedding."""


def padded_vocab_size(vocab_size: int) -> int:
    """Rows of the model's embedding: the next multiple of 64, which is efficient for matrix units. No text uses the
    added ids.
    """
    return -(-vocab_size // 64) * 64


def token_id_type(vocab_size: int) -> pa.DataType:
    """Arrow type of stored token ids: uint16 if the vocabulary fits, else uint32."""
    return pa.uint16() if vocab_size <= 2**16 else pa.uint32()


class _WordPiece(BaseModel):
    model_config = ConfigDict(strict=True)
    type: Literal["WordPiece"]
    unk_token: Literal["[UNK]"]
    continuing_subword_prefix: Literal["##"]
    max_input_chars_per_word: int = Field(ge=1, le=10_000)
    vocab: dict[str, NonNegativeInt] = Field(max_length=MAX_VOCABULARY)

    @model_validator(mode="after")
    def _ids_are_dense(self) -> Self:
        for expected, (number, piece) in enumerate(sorted((number, piece) for piece, number in self.vocab.items())):
            if number != expected:
                raise ValueError(f"vocab: id {number} of {piece!r} must be {expected}: ids are 0, 1, 2, ...")
        wrong = {token: self.vocab.get(token) for n, token in enumerate(SPECIAL_TOKENS) if self.vocab.get(token) != n}
        if wrong:
            raise ValueError(f"vocab: the ids of {', '.join(SPECIAL_TOKENS)} must be 0 to 4, but: {wrong}")
        return self


class _Normalizer(BaseModel):
    model_config = ConfigDict(strict=True)
    type: Literal["BertNormalizer"]
    clean_text: bool
    handle_chinese_chars: bool
    strip_accents: bool | None
    lowercase: bool


class _PreTokenizer(BaseModel):
    type: Literal["BertPreTokenizer"]


class _AddedToken(BaseModel):
    model_config = ConfigDict(strict=True)
    id: NonNegativeInt
    content: str = Field(min_length=1)
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class _TokenizerFile(BaseModel):
    model: _WordPiece
    normalizer: _Normalizer
    pre_tokenizer: _PreTokenizer
    added_tokens: list[_AddedToken] = Field([], max_length=MAX_VOCABULARY)

    @model_validator(mode="after")
    def _added_ids_follow(self) -> Self:
        following = len(self.model.vocab)
        for token in self.added_tokens:
            expected = self.model.vocab.get(token.content, following)
            if token.id != expected:
                raise ValueError(f"added_tokens: id {token.id} of {token.content!r} must be {expected}")
            following += expected == following
        return self


def read_tokenizer(directory: Path) -> Tokenizer:
    """Load the `tokenizers.Tokenizer` of a tokenizer artifact.

    A "[SEP]" in a text is encoded as its characters, never as one of the five special tokens; other added tokens of the
    file are matched in the text. The file may come from anywhere, and
    `tokenizers` panics on some files, so this function validates the fields that encoding needs and ignores all
    others. Raises ValueError that names the field.
    """
    path = directory / "tokenizer.json"
    return _read(path, cached_digest(path))


@lru_cache(maxsize=4)
def _read(path: Path, digest: str) -> Tokenizer:
    """Cached: parsing a file of 30,000 pieces takes 50 ms."""
    try:
        file = _TokenizerFile.model_validate(json.loads(path.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(
            f"{path}: {where}: {first['msg']} (got {str(first['input'])[:80]!r}); remedy: use a tokenizer built by "
            "the tokenizer stage"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}; remedy: use a tokenizer built by the tokenizer stage") from None
    tokenizer = Tokenizer(
        models.WordPiece(
            file.model.vocab, unk_token="[UNK]", max_input_chars_per_word=file.model.max_input_chars_per_word
        )
    )
    tokenizer.normalizer = normalizers.BertNormalizer(**file.normalizer.model_dump(exclude={"type"}))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_tokens(
        [
            AddedToken(**token.model_dump(exclude={"id"}))
            for token in file.added_tokens
            if token.content not in SPECIAL_TOKENS
        ]
    )
    return tokenizer


def continuation_pieces(tokenizer: Tokenizer) -> np.ndarray:
    """(vocabulary,) bool: True for pieces that continue a word (`##...`)."""
    table = np.zeros(tokenizer.get_vocab_size(), np.bool_)
    for piece, number in tokenizer.get_vocab(with_added_tokens=False).items():
        table[number] = piece.startswith(PREFIX) and len(piece) > len(PREFIX)
    return table
