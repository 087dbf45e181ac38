"""Reading the initial model of continual pretraining."""

import json

import pytest
import torch
from transformers import BertConfig, BertForPreTraining, BertTokenizer

from bert_pipeline.formats.initial_model import (
    InitialModelError,
    adopt_initial_model,
    model_fingerprint,
    read_vocabulary,
    vocabulary_fingerprint,
)
from bert_pipeline.formats.weights import WeightsError
from bert_pipeline.recipe import Recipe, RecipeError
from bert_pipeline.recipe_files import load_recipe
from bert_pipeline.stages import resolve_recipe
from bert_pipeline.store import artifact

SPECIAL = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*SPECIAL, *"abcde", "##a", "##b", "dose"]
CONFIG = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "vocab_size": len(PIECES),
}
TOKENIZER = json.loads(BertTokenizer({piece: number for number, piece in enumerate(PIECES)}).backend_tokenizer.to_str())


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def recipe(folder, **sections):
    phase = {"max_seq_length": 32, "num_steps": 1, "learning_rate": 1e-3, "warmup_steps": 0}
    pretrain = {"init_from": str(folder), "phases": [phase]}
    table = {"name": "try", "corpus": {"source": "sample"}, "pretrain": pretrain} | sections
    return Recipe.model_validate_json(json.dumps(table))


def test_the_recipe_adopts_sizes_and_vocabulary_of_the_model(folder):
    adopted = adopt_initial_model(recipe(folder), folder)
    assert (
        adopted.model.model_dump().items()
        >= {k: v for k, v in CONFIG.items() if k in adopted.model.model_dump()}.items()
    )
    assert adopted.tokenizer.vocab_size == len(PIECES) and adopted.tokenizer.lowercase
    assert resolve_recipe(adopted) == adopted == resolve_recipe(recipe(folder))


def test_the_recipe_must_agree_with_the_model_except_for_dropout(folder):
    agreeing = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "hidden_dropout_prob": 0.0}
    adopted = adopt_initial_model(recipe(folder, model=agreeing), folder)
    assert adopted.model.hidden_dropout_prob == 0.0 and adopted.model.attention_probs_dropout_prob == 0.1
    wide = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 99, "num_attention_heads": 2}
    with pytest.raises(
        InitialModelError,
        match=r"recipe try contradicts its initial model .*: model.hidden_size = 32 \(initial model: 16\), "
        r"model.intermediate_size = 99 \(initial model: 32\); remedy: remove them",
    ):
        adopt_initial_model(recipe(folder, model=wide), folder)


def test_a_phase_longer_than_the_models_positions_is_refused(folder):
    phase = {"max_seq_length": 128, "num_steps": 1, "learning_rate": 1e-3, "warmup_steps": 0}
    longer = recipe(folder, pretrain={"init_from": str(folder), "phases": [phase]})
    with pytest.raises(InitialModelError, match=r"max_seq_length is 128, but model\.max_position_embeddings is 64"):
        resolve_recipe(longer)


def test_a_recipe_with_its_own_vocabulary_is_refused(folder):
    with pytest.raises(ValueError, match=r"tokenizer has no effect with pretrain\.init_from, .* remedy: remove it"):
        recipe(folder, tokenizer={"vocab_size": 200})


def test_special_tokens_come_first_and_other_pieces_keep_their_order(folder):
    vocabulary = read_vocabulary(folder)
    assert vocabulary.pieces == tuple(PIECES)
    assert vocabulary.in_our_order == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", *PIECES[6:])


def test_the_fingerprint_of_a_plain_vocabulary_is_the_one_of_older_versions(folder):
    expected = artifact.fingerprint({"pieces": tuple(PIECES), "lowercase": True})
    assert vocabulary_fingerprint(folder) == expected
    assert "strip_accents" not in adopt_initial_model(recipe(folder), folder).tokenizer.for_origin()


def test_a_vocabulary_without_tokenizer_json(folder):
    expected = read_vocabulary(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES))
    assert read_vocabulary(folder) == expected
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert not read_vocabulary(folder).lowercase
    (folder / "vocab.txt").write_text("[PAD]\na\na\n")
    with pytest.raises(InitialModelError, match="ids must be 0 to 1, each used once"):
        read_vocabulary(folder)
    (folder / "vocab.txt").unlink()
    with pytest.raises(InitialModelError, match=r"has no tokenizer\.json and no vocab\.txt; remedy"):
        read_vocabulary(folder)


def changed(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"model_type": "roberta"}, r"config.json: model_type is 'roberta', must be 'bert'"),
        ("config.json", {"hidden_size": "wide"}, r"config.json: hidden_size: .* \(got 'wide'\); remedy: use a BERT"),
        ("config.json", {"position_embedding_type": "relative_key"}, "must be 'absolute'"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "ByteLevel"}}, "pre_tokenizer.type is 'ByteLevel', must be"),
        ("tokenizer.json", {"normalizer": None}, r"tokenizer.json: not a BERT tokenizer: TypeError"),
        (
            "tokenizer.json",
            {"normalizer": TOKENIZER["normalizer"] | {"strip_accents": False}},
            r"contradict each other: strip_accents is False and True; AutoTokenizer follows the second, .* remedy",
        ),
        (
            "tokenizer.json",
            {"model": TOKENIZER["model"] | {"vocab": {"[PAD]": 0, "[UNK]": 1}}},
            r"the vocabulary lacks \[CLS\], \[SEP\], \[MASK\]",
        ),
        (
            "tokenizer.json",
            {"model": TOKENIZER["model"] | {"vocab": {"[PAD]": 0, "[UNK]": 3}}},
            "ids must be 0 to 1, each used once",
        ),
    ],
)
def test_a_model_that_is_not_a_bert_is_refused(folder, file, values, message):
    changed(folder, file, **values)
    with pytest.raises(InitialModelError, match=message):
        resolve_recipe(recipe(folder))


def test_a_missing_directory_is_reported(tmp_path):
    with pytest.raises(InitialModelError, match=r"config.json: no such file; remedy: set pretrain.init_from to"):
        resolve_recipe(recipe(tmp_path / "nowhere"))


def test_weights_in_a_pickle_are_refused_first_with_the_lines_that_convert_them(folder):
    (folder / "model.safetensors").unlink()
    model = BertForPreTraining(BertConfig(**{name: value for name, value in CONFIG.items() if name != "model_type"}))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"has its weights in pytorch_model\.bin, .*\n.*\n") as error:
        resolve_recipe(recipe(folder))
    exec(str(error.value).split("Python:\n")[1])
    assert resolve_recipe(recipe(folder)).model.hidden_size == 16
    converted, told = BertForPreTraining.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    assert not told["missing_keys"] and not told["mismatched_keys"]
    for name, value in model.state_dict().items():
        assert torch.equal(converted.state_dict()[name], value)


def test_a_tokenizer_with_more_pieces_than_the_model_is_refused(folder):
    tokenizer = BertTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["@GENE$", "[DRUG]"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InitialModelError, match=r"has 16 pieces, but the model has embeddings for 14 .*; remedy"):
        resolve_recipe(recipe(folder))
    changed(folder, "config.json", vocab_size=16)
    assert resolve_recipe(recipe(folder)).tokenizer.vocab_size == 16


def test_tokenizers_that_a_bert_tokenizer_cannot_replace_are_refused(folder):
    for config, message in [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "the tokenizer is a BertJapaneseTokenizer; remedy"),
        ({"auto_map": {"AutoTokenizer": ["mine.Mine", None]}}, r"the tokenizer is a \{'AutoTokenizer'"),
        ({"unk_token": "<unk>"}, r"model.unk_token is '<unk>', must be '\[UNK\]'"),
        ({"pad_token": "[unused0]"}, r"pad_token is '\[unused0\]', must be '\[PAD\]'"),
        ({"split_special_tokens": True, "extra_special_tokens": ["[unused0]"]}, "sets split_special_tokens"),
        (
            {"do_lower_case": False},
            "lowercase is True and False, strip_accents is True and False",
        ),
    ]:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(InitialModelError, match=message):
            resolve_recipe(recipe(folder))
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(InitialModelError, match=r"tokenizer_config.json: not a JSON object"):
        resolve_recipe(recipe(folder))


def test_the_fingerprint_depends_on_config_and_weights_only(folder):
    before = model_fingerprint(folder)
    (folder / "README.md").write_text("irrelevant")
    assert model_fingerprint(folder) == before
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert model_fingerprint(folder) != before
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no \*.safetensors; remedy"):
        model_fingerprint(folder)


def test_a_circle_of_recipes_and_a_recipe_without_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_RECIPES", str(tmp_path))
    monkeypatch.setenv("BERT_PIPELINE_HOME", str(tmp_path / "home"))
    for name, begins_with in {"one": "two", "two": "three", "three": "two", "after-demo": "demo"}.items():
        (tmp_path / f"{name}.toml").write_text(
            f'corpus = {{ source = "sample" }}\n[pretrain]\ninit_from = "{begins_with}"\n'
        )
    with pytest.raises(RecipeError, match="forms a cycle: one -> two -> three -> two; remedy"):
        resolve_recipe(load_recipe(tmp_path / "one.toml"))
    with pytest.raises(RecipeError, match=r"recipe after-demo starts from .* recipe demo, .*remedy: dg launch"):
        resolve_recipe(load_recipe(tmp_path / "after-demo.toml"))
