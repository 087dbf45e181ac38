"""The model that continual pretraining begins with: the Hugging Face directory of a BERT, looked at without torch.

Its vocabulary is kept piece by piece, but renumbered: here the special tokens are the ids 0 to 4, in google's BERT they
are 0 and 100 to 103. The rows of the embedding move with their pieces, so the model computes what it did before.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from bert_pipeline.formats.tokenizer import SPECIAL_TOKENS, read_tokenizer
from bert_pipeline.recipe import ModelRecipe, Recipe
from bert_pipeline.store import artifact

NO_WEIGHTS = {"hidden_dropout_prob", "attention_probs_dropout_prob"}
"""What a recipe may set as it likes: it shapes no weight."""


class InitialModelError(ValueError):
    """A directory that training cannot begin with."""


@dataclass(frozen=True)
class Vocabulary:
    """The pieces of a WordPiece vocabulary by id, and whether text is lower-cased before it is cut."""

    pieces: tuple[str, ...]
    lowercase: bool

    @property
    def in_our_order(self) -> tuple[str, ...]:
        """The special tokens first, then the others as they were."""
        return SPECIAL_TOKENS + tuple(piece for piece in self.pieces if piece not in SPECIAL_TOKENS)


def begun_from(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the sizes and the vocabulary of the model in `folder`.

    Raises InitialModelError where it is no BERT, or differs from what the recipe states.
    """
    found, vocabulary = _model_recipe(folder), read_vocabulary(folder)
    asked = recipe.model
    differing = [
        f"model.{name} = {getattr(asked, name)!r} (there: {getattr(found, name)!r})"
        for name in sorted(asked.model_fields_set - NO_WEIGHTS)
        if getattr(asked, name) != getattr(found, name)
    ]
    if differing:
        raise InitialModelError(
            f"recipe {recipe.name} states another model than it begins with ({folder}): {', '.join(differing)}; "
            "remedy: remove them from [model]"
        )
    model = found.model_copy(update={name: getattr(asked, name) for name in NO_WEIGHTS & asked.model_fields_set})
    sizes = {"vocab_size": len(vocabulary.pieces), "lowercase": vocabulary.lowercase}
    begun = recipe.model_copy(update={"model": model, "tokenizer": recipe.tokenizer.model_copy(update=sizes)})
    if too_long := begun.length_faults():
        raise InitialModelError(f"{folder} does not fit recipe {recipe.name}: {'; '.join(too_long)}")
    return begun


def _model_recipe(folder: Path) -> ModelRecipe:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        fixed = {"model_type": "bert", "type_vocab_size": 2, "position_embedding_type": "absolute", "is_decoder": False}
        for name, expected in fixed.items():
            if config.get(name, expected) != expected:
                raise InitialModelError(f"{path}: {name} is {config[name]!r}, and must be {expected!r}; remedy: a BERT")
        return ModelRecipe.model_validate({name: config[name] for name in ModelRecipe.model_fields if name in config})
    except FileNotFoundError:
        raise InitialModelError(
            f"{path}: no such file; remedy: pretrain.init_from names a Hugging Face directory (config.json, "
            "model.safetensors, tokenizer files), under BERT_PIPELINE_DATA where it is relative, or another recipe"
        ) from None
    except ValidationError as error:
        faults = "; ".join(f"{fault['loc'][0]}: {fault['msg']} (got {fault['input']!r})" for fault in error.errors())
        raise InitialModelError(f"{path}: {faults}; remedy: a BERT") from None
    except json.JSONDecodeError as error:
        raise InitialModelError(f"{path}: not JSON: {error}") from None


def read_vocabulary(folder: Path) -> Vocabulary:
    """From tokenizer.json, else from vocab.txt. Raises InitialModelError where it cuts text otherwise than BERT."""
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
            f"{folder} has no tokenizer.json and no vocab.txt; remedy: add the model's own"
        ) from None
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InitialModelError(f"{path}: no tokenizer of a BERT: {type(error).__name__}: {error}") from None
    pieces = tuple(sorted(ids, key=lambda piece: ids[piece]))
    if [ids[piece] for piece in pieces] != list(range(len(pieces))):
        raise InitialModelError(f"{path}: ids must be 0 to {len(pieces) - 1}, each once")
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
                f"{path}: {name} is {found!r}, and must be {' or '.join(map(repr, allowed))}; remedy: a model whose "
                "tokenizer is BERT's"
            )
    return model["vocab"], lowercase


def places_of_pieces(folder: Path, tokenizer: Path) -> list[int]:
    """For each id of the tokenizer artifact the id that its piece has in the initial model."""
    there = {piece: number for number, piece in enumerate(read_vocabulary(folder).pieces)}
    here = read_tokenizer(tokenizer).get_vocab()
    return [there[piece] for piece in sorted(here, key=lambda piece: here[piece])]


def assert_same_vocabulary(folder: Path, tokenizer: Path) -> None:
    """Raise InitialModelError where the tokenizer artifact is not that of the initial model."""
    there, here = read_vocabulary(folder), read_tokenizer(tokenizer)
    pieces = here.get_vocab()
    differing = [piece for number, piece in enumerate(there.in_our_order) if pieces.get(piece) != number]
    if differing or len(pieces) != len(there.pieces) or here.normalizer.lowercase != there.lowercase:
        example = f", such as {differing[0]!r}" if differing else ""
        raise InitialModelError(
            f"the datasets were made with {tokenizer} ({len(pieces):,} pieces, lowercase = "
            f"{here.normalizer.lowercase}), but {folder} reads {len(there.pieces):,} pieces, lowercase = "
            f"{there.lowercase}; {len(differing):,} of them have no such id here{example}; remedy: build tokenizer, "
            "nsp_dataset and masked_dataset with this recipe, whose tokenizer stage takes the model's vocabulary over"
        )


def model_fingerprint(folder: Path) -> str:
    """That of the artifact, or of the files where the directory comes from elsewhere."""
    if (folder / "record.json").exists():
        return artifact.load(folder, "pretrained_checkpoint").fingerprint
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    if len(files) == 1:
        raise InitialModelError(f"{folder} has no *.safetensors; remedy: save the model with safetensors")
    return artifact.files_fingerprint({path.name: path for path in files})


def vocabulary_fingerprint(folder: Path) -> str:
    vocabulary = read_vocabulary(folder)
    return artifact.fingerprint({"pieces": vocabulary.pieces, "lowercase": vocabulary.lowercase})
