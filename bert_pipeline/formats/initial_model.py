"""The initial model of continual pretraining: the Hugging Face directory of a BERT, read without torch.

The pieces of its vocabulary are kept but renumbered: this project gives the special tokens the ids 0 to 4, google's
BERT has 0 and 100 to 103. The rows of the embedding move with their pieces, so the outputs of the model do not change.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from bert_pipeline.formats.tokenizer import SPECIAL_TOKENS, read_tokenizer
from bert_pipeline.recipe import ModelRecipe, Recipe
from bert_pipeline.store import artifact

NO_WEIGHTS = {"hidden_dropout_prob", "attention_probs_dropout_prob"}
"""Fields that a recipe may set freely, because no weight depends on them."""


class InitialModelError(ValueError):
    """Training cannot start from this directory."""


@dataclass(frozen=True)
class Vocabulary:
    """The pieces of a WordPiece vocabulary in the order of their ids, and whether text is lower-cased first."""

    pieces: tuple[str, ...]
    lowercase: bool

    @property
    def in_our_order(self) -> tuple[str, ...]:
        """The pieces with the special tokens first, the others in their original order."""
        return SPECIAL_TOKENS + tuple(piece for piece in self.pieces if piece not in SPECIAL_TOKENS)


def adopt_initial_model(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with the sizes and the vocabulary of the model in `folder`.

    Raises InitialModelError if the model is not a BERT, or contradicts the recipe's [model].
    """
    found, vocabulary = _model_recipe(folder), read_vocabulary(folder)
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
    sizes = {"vocab_size": len(vocabulary.pieces), "lowercase": vocabulary.lowercase}
    adopted = recipe.model_copy(update={"model": model, "tokenizer": recipe.tokenizer.model_copy(update=sizes)})
    if too_long := adopted.length_faults():
        raise InitialModelError(f"{folder} does not fit recipe {recipe.name}: {'; '.join(too_long)}")
    return adopted


def _model_recipe(folder: Path) -> ModelRecipe:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        fixed = {"model_type": "bert", "type_vocab_size": 2, "position_embedding_type": "absolute", "is_decoder": False}
        for name, expected in fixed.items():
            if config.get(name, expected) != expected:
                raise InitialModelError(f"{path}: {name} is {config[name]!r}, must be {expected!r}; remedy: use a BERT")
        return ModelRecipe.model_validate({name: config[name] for name in ModelRecipe.model_fields if name in config})
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
    """Read tokenizer.json, or vocab.txt if there is none.

    Raises InitialModelError if the tokenizer normalizes or splits text differently from BERT.
    """
    path = folder / "tokenizer.json"
    try:
        if path.exists():
            ids, lowercase = _from_tokenizer_json(path)
        else:
            path = folder / "vocab.txt"
            lines = path.read_text(encoding="utf-8").split("\n")
            ids = {piece: number for number, piece in enumerate(lines if lines[-1] else lines[:-1])}
            config = folder / "tokenizer_config.json"
            lowercase = not config.exists() or json.loads(config.read_text(encoding="utf-8")).get("do_lower_case", True)
    except FileNotFoundError:
        raise InitialModelError(
            f"{folder} has no tokenizer.json and no vocab.txt; remedy: add the tokenizer files of this model"
        ) from None
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InitialModelError(f"{path}: not a BERT tokenizer: {type(error).__name__}: {error}") from None
    pieces = tuple(sorted(ids, key=lambda piece: ids[piece]))
    if [ids[piece] for piece in pieces] != list(range(len(pieces))):
        raise InitialModelError(f"{path}: ids must be 0 to {len(pieces) - 1}, each used once")
    if lacking := [token for token in SPECIAL_TOKENS if token not in ids]:
        raise InitialModelError(f"{path}: the vocabulary lacks {', '.join(lacking)}")
    return Vocabulary(pieces, bool(lowercase))


def _from_tokenizer_json(path: Path) -> tuple[dict[str, int], bool]:
    file = json.loads(path.read_text(encoding="utf-8"))
    model, normalizer = file["model"], file["normalizer"]
    lowercase = normalizer["lowercase"]
    expected = {
        "model.type": (model["type"], ("WordPiece",)),
        "model.continuing_subword_prefix": (model["continuing_subword_prefix"], ("##",)),
        "pre_tokenizer.type": (file["pre_tokenizer"]["type"], ("BertPreTokenizer",)),
        "normalizer.type": (normalizer["type"], ("BertNormalizer",)),
        "normalizer.clean_text": (normalizer["clean_text"], (True,)),
        "normalizer.handle_chinese_chars": (normalizer["handle_chinese_chars"], (True,)),
        "normalizer.strip_accents": (normalizer["strip_accents"], (None, lowercase)),
    }
    for name, (found, allowed) in expected.items():
        if found not in allowed:
            raise InitialModelError(
                f"{path}: {name} is {found!r}, must be {' or '.join(map(repr, allowed))}; remedy: use a model with "
                "BERT's tokenizer"
            )
    return model["vocab"], lowercase


def ids_in_initial_model(folder: Path, tokenizer: Path) -> list[int]:
    """For each id of the tokenizer artifact, the id of the same piece in the initial model."""
    there = {piece: number for number, piece in enumerate(read_vocabulary(folder).pieces)}
    here = read_tokenizer(tokenizer).get_vocab()
    return [there[piece] for piece in sorted(here, key=lambda piece: here[piece])]


def assert_same_vocabulary(folder: Path, tokenizer: Path) -> None:
    """Raise InitialModelError if the tokenizer artifact does not hold the vocabulary of the initial model."""
    there, here = read_vocabulary(folder), read_tokenizer(tokenizer)
    pieces = here.get_vocab()
    differing = [piece for number, piece in enumerate(there.in_our_order) if pieces.get(piece) != number]
    if differing or len(pieces) != len(there.pieces) or here.normalizer.lowercase != there.lowercase:
        example = f", such as {differing[0]!r}" if differing else ""
        raise InitialModelError(
            f"the datasets were built with {tokenizer} ({len(pieces):,} pieces, lowercase = "
            f"{here.normalizer.lowercase}), but {folder} has {len(there.pieces):,} pieces, lowercase = "
            f"{there.lowercase}; {len(differing):,} pieces differ in their ids{example}; remedy: build tokenizer, "
            "nsp_dataset and masked_dataset with this recipe; its tokenizer stage copies the model's vocabulary"
        )


def model_fingerprint(folder: Path) -> str:
    """The fingerprint of the artifact; for a directory from elsewhere, of config.json and the weights."""
    if (folder / "record.json").exists():
        return artifact.load(folder, "pretrained_checkpoint").fingerprint
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    if len(files) == 1:
        raise InitialModelError(f"{folder} has no *.safetensors; remedy: save the model with safetensors")
    return artifact.files_fingerprint({path.name: path for path in files})


def vocabulary_fingerprint(folder: Path) -> str:
    vocabulary = read_vocabulary(folder)
    return artifact.fingerprint({"pieces": vocabulary.pieces, "lowercase": vocabulary.lowercase})
