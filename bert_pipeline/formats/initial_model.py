"""The initial model of continual pretraining: the Hugging Face directory of a BERT, read without torch.

The pieces of its vocabulary are kept but renumbered: this project gives the special tokens the ids 0 to 4, google's
BERT has 0 and 100 to 103. The rows of the embedding move with their pieces, so the outputs of the model do not change.
"""

import json
from collections.abc import Container
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tokenizers import AddedToken, Tokenizer
from tokenizers.normalizers import BertNormalizer

from bert_pipeline.core.files import cached_digest
from bert_pipeline.formats.tokenizer import PREFIX, SPECIAL_TOKENS, read_tokenizer
from bert_pipeline.formats.weights import weight_files
from bert_pipeline.recipe import ModelRecipe, Recipe
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Facts

NO_WEIGHTS = {"hidden_dropout_prob", "attention_probs_dropout_prob"}
"""Fields that a recipe may set freely, because no weight depends on them."""
TOKENIZER_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json"),
    *("vocab.txt", "added_tokens.json", "special_tokens_map.json"),
)
BERT_ROWS = 30_522
"""vocab_size of transformers.BertConfig where config.json does not state it."""
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class InitialModelError(ValueError):
    """Training cannot start from this directory."""


@dataclass(frozen=True)
class Vocabulary:
    """The pieces of a BERT tokenizer in the order of their ids, and its settings."""

    pieces: tuple[str, ...]
    """The `num_in_model` pieces of the WordPiece model, then the added tokens that it lacks."""
    num_in_model: int
    lowercase: bool
    strip_accents: bool | None
    """None: strip accents if `lowercase`."""
    tokenize_chinese_chars: bool
    added: tuple[AddedToken, ...]
    """Tokens that are matched in the text before it is split into words, without the five special tokens."""

    @property
    def in_our_order(self) -> tuple[str, ...]:
        """The pieces with the special tokens first, the others in their original order."""
        return SPECIAL_TOKENS + tuple(piece for piece in self.pieces if piece not in SPECIAL_TOKENS)

    @property
    def normalizer(self) -> BertNormalizer:
        return BertNormalizer(True, self.tokenize_chinese_chars, self.strip_accents, self.lowercase)

    def settings(self) -> Facts:
        """The settings that differ from a BERT without added tokens, and `lowercase`."""
        settings: Facts = {"lowercase": self.lowercase}
        if self.strip_accents is not None:
            settings["strip_accents"] = self.strip_accents
        if not self.tokenize_chinese_chars:
            settings["tokenize_chinese_chars"] = False
        if self.added:
            settings["added_tokens"] = [
                {name: getattr(token, name) for name in ("content", *FLAGS)} for token in self.added
            ]
        return settings


def adopt_initial_model(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with the sizes and the vocabulary of the model in `folder`.

    Raises InitialModelError if the model is not a BERT, or contradicts the recipe's [model], and WeightsError if it has
    no weights that can be read.
    """
    found, rows = _model_recipe(folder)
    weight_files(folder)
    vocabulary = read_vocabulary(folder)
    if len(vocabulary.pieces) > rows:
        raise InitialModelError(
            f"{folder}: the tokenizer has {len(vocabulary.pieces):,} pieces, but the model has embeddings for {rows:,} "
            "(config.json: vocab_size); remedy: resize the embeddings (model.resize_token_embeddings(len(tokenizer))) "
            "and save the model"
        )
    stated = recipe.model
    differing = [
        f"model.{name} = {getattr(stated, name)!r} (initial model: {getattr(found, name)!r})"
        for name in sorted(stated.model_fields_set - NO_WEIGHTS)
        if getattr(stated, name) != getattr(found, name)
    ]
    if differing:
        raise InitialModelError(
            f"recipe {recipe.name} contradicts its initial model ({folder}): {', '.join(differing)}; "
            "remedy: remove them from [model]"
        )
    model = found.model_copy(update={name: getattr(stated, name) for name in NO_WEIGHTS & stated.model_fields_set})
    sizes = {
        "vocab_size": len(vocabulary.pieces) + recipe.tokenizer.extend,
        "lowercase": vocabulary.lowercase,
        "strip_accents": vocabulary.strip_accents,
    }
    adopted = recipe.model_copy(update={"model": model, "tokenizer": recipe.tokenizer.model_copy(update=sizes)})
    if too_long := adopted.length_faults():
        raise InitialModelError(f"{folder} does not fit recipe {recipe.name}: {'; '.join(too_long)}")
    return adopted


def _model_recipe(folder: Path) -> tuple[ModelRecipe, int]:
    """The sizes of the model, and the rows of its embedding."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        fixed = {"model_type": "bert", "type_vocab_size": 2, "position_embedding_type": "absolute", "is_decoder": False}
        for name, expected in fixed.items():
            if config.get(name, expected) != expected:
                raise InitialModelError(f"{path}: {name} is {config[name]!r}, must be {expected!r}; remedy: use a BERT")
        stated = {name: config[name] for name in ModelRecipe.model_fields if name in config}
        return ModelRecipe.model_validate(stated), config.get("vocab_size", BERT_ROWS)
    except FileNotFoundError:
        raise InitialModelError(
            f"{path}: no such file; remedy: set pretrain.init_from to a recipe's name or to a Hugging Face directory "
            "(config.json, model.safetensors, tokenizer files); a relative path starts at BERT_PIPELINE_DATA"
        ) from None
    except ValidationError as error:
        faults = "; ".join(f"{fault['loc'][0]}: {fault['msg']} (got {fault['input']!r})" for fault in error.errors())
        raise InitialModelError(f"{path}: {faults}; remedy: use a BERT") from None
    except json.JSONDecodeError as error:
        raise InitialModelError(f"{path}: not JSON: {error}") from None


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the tokenizer as `AutoTokenizer` reads it: the same pieces, ids and settings, whatever file states them.

    Raises InitialModelError if it normalizes or splits text differently from BERT, or if its files contradict each
    other.
    """
    files = [folder / name for name in TOKENIZER_FILES]
    return _read_vocabulary(folder, tuple(cached_digest(path) if path.exists() else "" for path in files))


@lru_cache(maxsize=4)
def _read_vocabulary(folder: Path, digests: tuple[str, ...]) -> Vocabulary:
    """Cached: transformers reads a tokenizer of 30,000 pieces in 0.2 s."""
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt")):
        raise InitialModelError(
            f"{folder} has no tokenizer.json and no vocab.txt; remedy: add the tokenizer files of this model"
        )
    stated = _json(folder / "tokenizer.json")
    if stated:
        _require_bert_tokenizer(folder / "tokenizer.json", stated)
    loaded = _auto_tokenizer(folder)
    file = json.loads(loaded.backend_tokenizer.to_str())
    _require_bert_tokenizer(folder, file)
    if stated and (differing := _differing_settings(stated["normalizer"], file["normalizer"])):
        raise InitialModelError(
            f"{folder}: tokenizer.json and tokenizer_config.json contradict each other: {differing}; AutoTokenizer "
            "follows the second, and BERT's default where that states nothing; remedy: state the setting with which "
            "the model was trained in both, as do_lower_case, strip_accents or tokenize_chinese_chars in "
            "tokenizer_config.json and below normalizer in tokenizer.json"
        )
    ids = file["model"]["vocab"]
    added = [token for token in file["added_tokens"] if token["content"] not in SPECIAL_TOKENS]
    all_ids = ids | {token["content"]: token["id"] for token in added}
    pieces = tuple(sorted(all_ids, key=lambda piece: all_ids[piece]))
    if [all_ids[piece] for piece in pieces] != list(range(len(pieces))):
        raise InitialModelError(f"{folder}: ids must be 0 to {len(pieces) - 1}, each used once")
    if lacking := [token for token in SPECIAL_TOKENS if token not in ids]:
        raise InitialModelError(f"{folder}: the vocabulary lacks {', '.join(lacking)}")
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    for name, expected in zip(names, SPECIAL_TOKENS, strict=True):
        if getattr(loaded, name) != expected:
            raise InitialModelError(
                f"{folder}: {name} is {getattr(loaded, name)!r}, must be {expected!r}; remedy: use a model with BERT's "
                "special tokens"
            )
    if loaded.split_special_tokens and any(token["special"] for token in added):
        raise InitialModelError(
            f"{folder}: tokenizer_config.json sets split_special_tokens, so that added special tokens are not matched "
            "in text; remedy: remove split_special_tokens"
        )
    normalizer = file["normalizer"]
    return Vocabulary(
        pieces,
        len(file["model"]["vocab"]),
        normalizer["lowercase"],
        None if _strips(normalizer) == normalizer["lowercase"] else _strips(normalizer),
        normalizer["handle_chinese_chars"],
        tuple(AddedToken(token["content"], **{flag: token[flag] for flag in FLAGS}) for token in added),
    )


def _json(path: Path) -> Any:
    """The content of a file, or None if there is no such file. Raises InitialModelError unless it is an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise InitialModelError(f"{path}: not JSON: {error}; remedy: download the file again") from None
    if not isinstance(content, dict):
        raise InitialModelError(f"{path}: not a JSON object: {str(content)[:80]}; remedy: download the file again")
    return content


def _auto_tokenizer(folder: Path) -> Any:
    """Load what AutoTokenizer loads for a BERT, without torch, which AutoTokenizer imports."""
    from transformers import BertTokenizer, PreTrainedTokenizerFast

    config = _json(folder / "tokenizer_config.json") or {}
    chosen = config.get("tokenizer_class") or (_json(folder / "config.json") or {}).get("tokenizer_class")
    name = (chosen or "BertTokenizer").removesuffix("Fast")
    if name not in ("BertTokenizer", "PreTrainedTokenizer", "TokenizersBackend") or config.get("auto_map"):
        raise InitialModelError(
            f"{folder}: the tokenizer is a {config.get('auto_map') or chosen}; remedy: use a model with BERT's "
            "tokenizer"
        )
    try:
        if name == "BertTokenizer":
            return BertTokenizer.from_pretrained(folder, local_files_only=True)
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise InitialModelError(
            f"{folder}: not a BERT tokenizer: {type(error).__name__}: {error}; remedy: use a model whose tokenizer "
            "AutoTokenizer can load"
        ) from error


def _require_bert_tokenizer(path: Path, file: Any) -> None:
    try:
        model, normalizer = file["model"], file["normalizer"]
        expected = {
            "model.type": (model["type"], "WordPiece"),
            "model.unk_token": (model["unk_token"], "[UNK]"),
            "model.continuing_subword_prefix": (model["continuing_subword_prefix"], PREFIX),
            "model.max_input_chars_per_word": (model["max_input_chars_per_word"], 100),
            "pre_tokenizer.type": (file["pre_tokenizer"]["type"], "BertPreTokenizer"),
            "normalizer.type": (normalizer["type"], "BertNormalizer"),
            "normalizer.clean_text": (normalizer["clean_text"], True),
        }
    except (KeyError, TypeError) as error:
        raise InitialModelError(
            f"{path}: not a BERT tokenizer: {type(error).__name__}: {error}; remedy: use a model with BERT's tokenizer"
        ) from None
    for name, (found, needed) in expected.items():
        if found != needed:
            raise InitialModelError(
                f"{path}: {name} is {found!r}, must be {needed!r}; remedy: use a model with BERT's tokenizer"
            )


def _strips(normalizer: dict[str, Any]) -> bool:
    stated = normalizer["strip_accents"]
    return normalizer["lowercase"] if stated is None else stated


def _differing_settings(stated: dict[str, Any], loaded: dict[str, Any]) -> str:
    pairs = {name: (stated[name], loaded[name]) for name in ("lowercase", "handle_chinese_chars")}
    pairs["strip_accents"] = (_strips(stated), _strips(loaded))
    return ", ".join(f"{name} is {one} and {other}" for name, (one, other) in pairs.items() if one != other)


def pieces_in_initial_model(folder: Path, tokenizer: Path) -> list[list[int]]:
    """For each id of the tokenizer artifact, the id of the same piece in the initial model. For a piece that was added
    (tokenizer.extend): the ids of the pieces that it replaces.
    """
    there = {piece: number for number, piece in enumerate(read_vocabulary(folder).pieces)}
    here = read_tokenizer(tokenizer).get_vocab()
    pieces = sorted(here, key=lambda piece: here[piece])
    return [[there[part] for part in ([piece] if piece in there else split_piece(piece, there))] for piece in pieces]


def split_piece(piece: str, vocabulary: Container[str]) -> list[str]:
    """Split a piece into pieces of the vocabulary as WordPiece does, longest first; an empty list if that fails."""
    prefix = PREFIX if piece.startswith(PREFIX) and len(piece) > len(PREFIX) else ""
    rest, parts = piece.removeprefix(prefix), []
    while rest:
        size = next((size for size in range(len(rest), 0, -1) if prefix + rest[:size] in vocabulary), 0)
        if not size:
            return []
        parts.append(prefix + rest[:size])
        prefix, rest = PREFIX, rest[size:]
    return parts


def assert_same_vocabulary(folder: Path, tokenizer: Path) -> None:
    """Raise InitialModelError if the tokenizer artifact does not hold the vocabulary of the initial model.

    It may hold more pieces of words (tokenizer.extend), which come before the added tokens.
    """
    there, here = read_vocabulary(folder), read_tokenizer(tokenizer)
    pieces = here.get_vocab()
    more = len(here.get_vocab(with_added_tokens=False)) - there.num_in_model
    expected = {
        piece: number if number < there.num_in_model else number + more
        for number, piece in enumerate(there.in_our_order)
    }
    differing = [piece for piece, number in expected.items() if pieces.get(piece) != number]
    differing += [piece for piece in pieces.keys() - expected.keys() if not split_piece(piece, expected)]
    settings = _settings(here)
    if differing or more < 0 or settings != there.settings():
        example = f", such as {differing[0]!r}" if differing else ""
        raise InitialModelError(
            f"the datasets were built with {tokenizer} ({len(pieces):,} pieces, {_listed(settings)}), but {folder} has "
            f"{len(there.pieces):,} pieces, {_listed(there.settings())}; {len(differing):,} pieces differ in their "
            f"ids{example}; remedy: build tokenizer, nsp_dataset and masked_dataset with this recipe; its tokenizer "
            "stage copies the model's vocabulary"
        )


def _settings(tokenizer: Tokenizer) -> Facts:
    normalizer = tokenizer.normalizer
    stripped = None if normalizer.strip_accents == normalizer.lowercase else normalizer.strip_accents
    added = tuple(token for _, token in sorted(tokenizer.get_added_tokens_decoder().items()))
    return Vocabulary((), 0, normalizer.lowercase, stripped, normalizer.handle_chinese_chars, added).settings()


def _listed(settings: Facts) -> str:
    return ", ".join(f"{name} = {value}" for name, value in settings.items())


def model_fingerprint(folder: Path) -> str:
    """The fingerprint of the artifact; for a directory from elsewhere, of config.json and the weights."""
    if (folder / "record.json").exists():
        return artifact.load(folder, "pretrained_checkpoint").fingerprint
    files = [folder / "config.json", *weight_files(folder)]
    return artifact.files_fingerprint({path.name: path for path in files})


def vocabulary_fingerprint(folder: Path) -> str:
    vocabulary = read_vocabulary(folder)
    return artifact.fingerprint({"pieces": vocabulary.pieces, **vocabulary.settings()})
